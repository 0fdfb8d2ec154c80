//! `rempart doctor`: proves on this machine what the documentation promises. A check is a module with a function that prints
//! what it tried, a line each, and returns whether all is well.

mod egress;

use anyhow::ensure;
use clap::Args;

pub(super) use egress::{TrialArgs, try_egress};

/// Checks, all of them where none is named.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Try to get out of a process that is confined as a server with --zero-egress is
    #[arg(long)]
    egress: bool,
    /// Database of the server that is meant, as its --database has it: whom it may connect to depends on it [default: none]
    #[arg(long, env = "REMPART_DATABASE", hide_env_values = true, value_name = "PLACE")]
    database: Option<String>,
    /// Also tell whether this process, a server that runs, is confined
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

/// A check's name as an option, and what it does.
type Check = (bool, fn(&DoctorArgs) -> anyhow::Result<bool>);

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let checks: [Check; 1] = [(args.egress, egress::check)];
    let all = !checks.iter().any(|(named, _)| *named);
    let mut well = true;
    for (named, check) in checks {
        if named || all {
            well &= check(args)?;
        }
    }
    ensure!(well, "not all is as it should be");
    Ok(())
}
