//! `rempart doctor`: looks at this machine as a server would find it, and proves on it what the documentation promises. A check is a
//! module with a function that tells what it found or tried, and whether all is well.

mod configuration;
mod egress;
mod finding;
mod machine;
mod memory;
mod surroundings;

use std::ffi::OsString;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use super::config::{behind_serve, unchecked};
use crate::config::{CONNECTIONS_MAX, ServeArgs, Settings, StoreArgs};
use finding::Finding;

pub(super) use egress::{TrialArgs, try_egress};

/// Checks, all of them where none is named.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Look at the machine: processor, memory, card, limits, disks, clock, certificate, configuration
    #[arg(long)]
    machine: bool,
    /// Try to get out of a process that is confined as a server with --zero-egress is
    #[arg(long)]
    egress: bool,
    /// Models whose need of memory is compared with what is free, as a server has them
    #[arg(long = "model", env = "REMPART_MODEL", value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
    /// Open connections of the server that is meant
    #[arg(long, env = "REMPART_CONNECTIONS_MAX", default_value_t = CONNECTIONS_MAX)]
    connections_max: NonZeroUsize,
    /// Certificate of the server that is meant
    #[arg(long, env = "REMPART_TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// Database of the server that is meant, as its --database has it: whom it may connect to depends on it [default: none]
    #[arg(long, env = "REMPART_DATABASE", hide_env_values = true, value_name = "PLACE")]
    database: Option<String>,
    /// Also tell whether this process, a server that runs, is confined
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Findings about the machine as JSON, an object in each line
    #[arg(long, requires = "machine", conflicts_with = "egress")]
    json: bool,
}

impl DoctorArgs {
    /// What of these are a server's options, as they would be typed. A certificate is none by itself, without its key.
    fn of_server(&self) -> Vec<OsString> {
        let mut options: Vec<OsString> = vec![
            "--connections-max".into(),
            self.connections_max.to_string().into(),
        ];
        if let Some(place) = &self.database {
            options.extend(["--database".into(), place.into()]);
        }
        if let Some(folder) = &self.store.models_dir {
            options.extend(["--models-dir".into(), folder.into()]);
        }
        options.push("--".into());
        options.extend(self.models.iter().map(OsString::from));
        options
    }
}

/// A check's name as an option, and what it does.
type Check<'a> = (bool, &'a dyn Fn() -> anyhow::Result<bool>);

/// Does what was asked for; the server that is meant has the options of `file`, where there is one, and of the environment.
pub(super) fn run(args: &DoctorArgs, file: Option<PathBuf>) -> anyhow::Result<()> {
    let named = file.is_some();
    let typed = behind_serve(file, &args.of_server());
    let checks: [Check<'_>; 2] = [
        (args.machine, &|| look(args, &typed, named)),
        (args.egress, &|| egress::check(args)),
    ];
    let all = !checks.iter().any(|(named, _)| *named);
    let mut well = true;
    for (named, check) in checks {
        if named || all {
            well &= check()?;
        }
    }
    ensure!(well, "not all is as it should be");
    Ok(())
}

/// What is found of a server that was `typed` so, as JSON, an object in each line; `serve` is what could be read of that.
///
/// # Errors
/// None that is expected.
pub(super) fn told_of(serve: &ServeArgs, typed: &[OsString]) -> anyhow::Result<String> {
    let args = DoctorArgs {
        machine: true,
        egress: false,
        models: serve.models.clone(),
        store: serve.store.clone(),
        connections_max: serve.http.connections_max,
        tls_certificate: serve.tls.tls_certificate.clone(),
        database: serve.governance.database.clone(),
        pid: None,
        json: true,
    };
    let mut lines = String::new();
    let settings = serve.clone().check().ok();
    let findings = findings(&args, settings.as_ref());
    for finding in findings.into_iter().chain(configuration::findings(Some(typed))) {
        lines += &serde_json::to_string(&finding)?;
        lines.push('\n');
    }
    Ok(lines)
}

/// What is found on the machine and around it; with the settings of the server that is meant, where it would start with them.
fn findings(args: &DoctorArgs, settings: Option<&Settings>) -> Vec<Finding> {
    let mut findings = machine::findings(args, settings);
    findings.extend(surroundings::findings(args, settings));
    findings
}

/// Tells what is found on the machine and around it, and of the options of a server that was `typed` so, where a file is `named`.
fn look(args: &DoctorArgs, typed: &[OsString], named: bool) -> anyhow::Result<bool> {
    let settings = unchecked(typed).ok().and_then(|(serve, _)| serve.check().ok());
    let mut findings = findings(args, settings.as_ref());
    findings.extend(configuration::findings(named.then_some(typed)));
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        if args.json {
            writeln!(out, "{}", serde_json::to_string(finding)?)?;
        } else {
            finding.write(&mut out)?;
        }
    }
    Ok(!findings.iter().any(Finding::is_bad))
}
