//! Memory: what is free, what a control group limits, and what each model that is named needs of it, beside the others.

use anyhow::ensure;
use candle_core::Device;
use rempart_hub::store::resolve;

use super::DoctorArgs;
use super::finding::{Finding, in_gib};
use crate::cli::plan::Planned;
use crate::config::{self, Settings};
use crate::runner;
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
    let asked = settings.filter(|settings| is_of_processor(settings));
    let asked = asked.and_then(|settings| settings.model.memory_max_bytes);
    let group = served_model::group_memory(args.pid);
    let mut findings: Vec<Finding> = group.map(limit).into_iter().collect();
    let free = served_model::available(&Device::Cpu).and_then(|free| Ok((free, served_model::total()?)));
    match free {
        Ok((free, total)) => {
            let most = group.map_or(total, |group| group.limit.min(total));
            findings.extend(asked.and_then(|asked| above(asked, most)));
            findings.extend(models(args, settings, asked.unwrap_or(free)));
        }
        Err(error) => findings.push(Finding::bad(WHAT, format!("{error:#}"), "mount /proc")),
    }
    findings
}

/// Whether what the options say of memory is of the processor's. A binary with CUDA takes them for the card's, where there is one.
fn is_of_processor(settings: &Settings) -> bool {
    !runner::CUDA || matches!(settings.model.compute.device, config::Device::Cpu)
}

/// Of the group that leaves least.
fn limit(GroupMemory { limit, left }: GroupMemory) -> Finding {
    let (limit, left) = (in_gib(limit), in_gib(left));
    Finding::good(
        "memory limit",
        format!("the control group may have {limit}, of which {left} are left"),
    )
}

/// Where the operator lets a plan have as much as there is at `most`, or more.
fn above(asked: u64, most: u64) -> Option<Finding> {
    let (plan, all) = (in_gib(asked), in_gib(most));
    (asked >= most).then(|| {
        Finding::warning(
            WHAT,
            format!("--memory-max-mib lets a plan have {plan}, and there are {all} for all"),
            "the kernel ends what takes more, and a server needs memory beside its plan: lower the option, or raise the limit (systemd: \
             MemoryMax, containers: --memory)",
        )
    })
}

/// What each model that is named takes of `free`.
fn models(args: &DoctorArgs, settings: Option<&Settings>, free: u64) -> Vec<Finding> {
    let with = if settings.is_some() {
        ""
    } else {
        " with a server's defaults"
    };
    let found = format!("{} may be planned with{with}", in_gib(free));
    if args.models.is_empty() {
        let found = format!("{found} (name a model to see what it needs)");
        return vec![Finding::good(WHAT, found)];
    }
    let store = args.store.clone().path();
    let open = |model: &String| (model.clone(), Planned::open(&store, model));
    let opened: Vec<_> = args.models.iter().map(open).collect();
    let weights = |keeps: bool| {
        let known = opened.iter().filter_map(|(_, planned)| planned.as_ref().ok());
        known
            .filter(move |planned| planned.keeps() == keeps)
            .map(Planned::weights)
    };
    let others = weights(false).sum();
    let mut shares = served_model::shares(free, others, &weights(true).collect::<Vec<_>>()).into_iter();
    let mut share = |planned: &Planned| {
        if planned.keeps() {
            return shares.next().unwrap_or_default();
        }
        // Encoders stand or fall together.
        (planned.weights() + free).saturating_sub(others)
    };
    let tell = |(model, planned): &(String, anyhow::Result<Planned>)| match planned {
        Ok(planned) => match takes(planned, share(planned), settings) {
            Ok(takes) => Finding::good(
                WHAT,
                format!("{found} on the processor, of which {model} takes {takes}"),
            ),
            Err(error) => Finding::bad(WHAT, format!("{found}: {model}: {error:#}"), LESS),
        },
        // It may be fetched later, or be closed to all but the server's user.
        Err(error) if resolve(&store, model).is_err() => {
            Finding::warning(WHAT, format!("{found}: {model}: {error:#}"), ABSENT)
        }
        Err(error) => Finding::bad(WHAT, format!("{found}: {model}: {error:#}"), UNREADABLE),
    };
    opened.iter().map(tell).collect()
}

/// What a model takes of its share, and what it is for.
///
/// # Errors
/// It does not fit.
fn takes(planned: &Planned, share: u64, settings: Option<&Settings>) -> anyhow::Result<String> {
    match planned {
        Planned::Generator(known) => {
            let tokens = known.tokens_within(share, settings)?;
            let weights = in_gib(planned.weights());
            Ok(format!("{weights} and leaves a cache of {tokens} tokens"))
        }
        Planned::Encoder(files) => {
            let bytes = match settings {
                Some(settings) => files.plan(&settings.model, share)?.bytes,
                None => files.weights_bytes(),
            };
            ensure!(
                bytes <= share,
                "its {} do not fit beside the others",
                in_gib(bytes)
            );
            Ok(format!("{}: it is an encoder", in_gib(bytes)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::finding::State;
    use super::*;
    use crate::cli::config::{behind_serve, unchecked};

    #[test]
    fn a_plan_that_a_control_group_or_the_machine_can_not_hold_is_told() {
        assert_eq!(above((2 << 30) - 1, 2 << 30), None);
        assert_eq!(
            above(2 << 30, 2 << 30).map(|finding| finding.state()),
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
