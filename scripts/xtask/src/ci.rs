//! `cargo xtask ci`: the list of checks lives in scripts/test alone, so that there is one to keep.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Handed to scripts/test as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(root: &Path, args: &Args) -> Result<ExitCode> {
    let script = root.join("scripts").join("test");
    let status = Command::new(&script)
        .args(&args.arguments)
        .current_dir(root)
        .status()
        .with_context(|| format!("{} cannot be started", script.display()))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
