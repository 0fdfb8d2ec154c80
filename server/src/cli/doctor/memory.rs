//! Memory: what is free, what a control group limits, and what each model that is named needs of it, beside the others.

use candle_core::Device;
use rempart_hub::store::resolve;

use super::DoctorArgs;
use super::finding::{Finding, in_gib};
use crate::cli::plan::Planned;
use crate::config::Settings;
use crate::served_model::{self, GroupMemory};

const WHAT: &str = "memory";
const LESS: &str = "`rempart model list` tells what is here, and `rempart plan` what each needs: a smaller one, or one of fewer bits, takes \
                    less";
const ABSENT: &str = "`rempart pull` fetches it; where the server's user alone may read it, look as that user: `runuser -u rempart -- rempart \
                      doctor`";
const UNREADABLE: &str =
    "`rempart pull NAME --force` fetches it again; docs/troubleshoot.md has what such messages mean";

/// With the options of the server that is meant, where it would start with them, and else with a server's defaults.
pub(super) fn findings(args: &DoctorArgs, settings: Option<&Settings>) -> Vec<Finding> {
    let asked = settings.and_then(|settings| settings.model.memory_max_bytes);
    let mut findings: Vec<Finding> = served_model::group_memory()
        .map(|group| limit(group, asked))
        .into_iter()
        .collect();
    match served_model::available(&Device::Cpu) {
        Ok(free) => {
            findings.extend(asked.and_then(|asked| above(asked, free)));
            findings.extend(models(args, settings, asked.unwrap_or(free)));
        }
        Err(error) => findings.push(Finding::bad(WHAT, format!("{error:#}"), "mount /proc")),
    }
    findings
}

/// Of the group that leaves least; `asked` is what the operator lets a plan have.
fn limit(group: GroupMemory, asked: Option<u64>) -> Finding {
    const WHAT: &str = "memory limit";
    let GroupMemory { limit, left } = group;
    let found = format!(
        "the control group may have {}, of which {} are left",
        in_gib(limit),
        in_gib(left)
    );
    match asked {
        Some(asked) if asked >= limit => Finding::warning(
            WHAT,
            format!("{found}; --memory-max-mib lets a plan have {}", in_gib(asked)),
            "the kernel ends what takes more, and a server needs memory beside its plan: lower the option, or raise the limit \
             (systemd: MemoryMax, containers: --memory)",
        ),
        _ => Finding::good(WHAT, found),
    }
}

/// Where the operator lets a plan have more than is free.
fn above(asked: u64, free: u64) -> Option<Finding> {
    let found = || {
        format!(
            "--memory-max-mib lets a plan have {}, and {} of what is free should be",
            in_gib(asked),
            in_gib(free)
        )
    };
    (asked > free).then(|| {
        Finding::warning(
            WHAT,
            found(),
            "lower it, leave it out, or see what else is running",
        )
    })
}

/// What each model that is named takes of `free`.
fn models(args: &DoctorArgs, settings: Option<&Settings>, free: u64) -> Vec<Finding> {
    let found = format!("{} may be planned with", in_gib(free));
    if args.models.is_empty() {
        let found = format!("{found} (name a model to see what it needs)");
        return vec![Finding::good(WHAT, found)];
    }
    let store = args.store.clone().path();
    let opened: Vec<_> = args
        .models
        .iter()
        .map(|model| (model, Planned::open(&store, model)))
        .collect();
    let (mut encoders, mut generators) = (0, Vec::new());
    for (_, planned) in &opened {
        match planned {
            Ok(Planned::Encoder(bytes)) => encoders += bytes,
            Ok(Planned::Generator(known)) => generators.push(known.weights()),
            Err(_) => {}
        }
    }
    let mut shares = served_model::shares(free, encoders, &generators).into_iter();
    let mut tell = |(model, planned): (&String, anyhow::Result<Planned>)| {
        let known = match planned {
            Ok(Planned::Generator(known)) => known,
            Ok(Planned::Encoder(bytes)) => {
                let found = format!(
                    "{found}, of which {model} takes {}: it is an encoder",
                    in_gib(bytes)
                );
                return if encoders <= free {
                    Finding::good(WHAT, found)
                } else {
                    Finding::bad(WHAT, found, LESS)
                };
            }
            // It may be fetched later, or be closed to all but the server's user.
            Err(error) if resolve(&store, model).is_err() => {
                return Finding::warning(WHAT, format!("{found}: {model}: {error:#}"), ABSENT);
            }
            Err(error) => return Finding::bad(WHAT, format!("{found}: {model}: {error:#}"), UNREADABLE),
        };
        match known.tokens_within(shares.next().unwrap_or_default(), settings) {
            Ok(tokens) => Finding::good(
                WHAT,
                format!(
                    "{found} on the processor, of which {model} takes {} and leaves a cache of {tokens} tokens",
                    in_gib(known.weights())
                ),
            ),
            Err(error) => Finding::bad(WHAT, format!("{found}: {model}: {error:#}"), LESS),
        }
    };
    opened.into_iter().map(&mut tell).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::finding::State;
    use super::*;
    use crate::cli::config::{behind_serve, unchecked};

    #[test]
    fn a_plan_that_a_control_group_or_the_machine_can_not_hold_is_told() {
        let group = GroupMemory {
            limit: 4 << 30,
            left: 3 << 30,
        };
        assert_eq!(limit(group, None).state(), State::Good);
        assert_eq!(limit(group, Some(3 << 30)).state(), State::Good);
        assert_eq!(limit(group, Some(4 << 30)).state(), State::Warning);
        assert_eq!(above(2 << 30, 2 << 30), None);
        assert_eq!(
            above(3 << 30, 2 << 30).map(|finding| finding.state()),
            Some(State::Warning)
        );
    }

    #[test]
    fn a_cache_is_planned_with_the_options_of_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.json");
        let shape = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 512, "vocab_size": 512,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5
        });
        std::fs::write(&config, shape.to_string()).unwrap();
        let Ok(Planned::Generator(known)) = Planned::open(folder.path(), config.to_str().unwrap()) else {
            panic!("a decoder is planned")
        };
        let tokens = |options: &[&str]| {
            let options: Vec<OsString> = options.iter().map(OsString::from).collect();
            let (serve, _) = unchecked(&behind_serve(None, &options)).unwrap();
            known.tokens_within(1 << 30, Some(&serve.check().unwrap()))
        };
        let eight = tokens(&["--kv-cache-mib", "8"]).unwrap();
        assert!(tokens(&[]).unwrap() > eight);
        assert_eq!(
            tokens(&["--kv-cache-mib", "8", "--context-length", "64"]).unwrap(),
            eight
        );
        assert!(tokens(&["--kv-cache-mib", "8", "--kv-dtype", "f32"]).unwrap() < eight);
        assert!(tokens(&["--kv-cache-mib", "2048"]).is_err());
        let error = tokens(&["--context-length", "4096"]).unwrap_err().to_string();
        assert!(error.contains("--context-length 4096 is more than"), "{error}");
    }
}
