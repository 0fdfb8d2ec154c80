//! The commands of the project that are not the product: `ci`, `tidy`, `sim`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

mod ci;
mod sim;
mod tidy;

#[derive(Parser)]
#[command(name = "xtask", about = "The commands of the project: ci, tidy, sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every check and test: the list is scripts/test, this only starts it.
    Ci(ci::Args),
    /// Check the rules of the house that no compiler and no lint checks.
    Tidy,
    /// Run the engine's simulator over many seeds, on every core.
    Sim(sim::Args),
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // Debug of an anyhow error is its whole chain of causes.
            say_error(&format!("error: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Ci(args) => ci::run(&workspace_root()?, args),
        Command::Tidy => tidy::run(&workspace_root()?),
        Command::Sim(args) => sim::run(args),
    }
}

/// The nearest folder at or above the current one whose Cargo.toml declares the workspace.
fn workspace_root() -> Result<PathBuf> {
    let start = std::env::current_dir().context("the current folder cannot be read")?;
    for folder in start.ancestors() {
        if declares_workspace(folder) {
            return Ok(folder.to_path_buf());
        }
    }
    bail!(
        "no Cargo.toml with [workspace] at or above {}: run this inside the repository",
        start.display()
    )
}

fn declares_workspace(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("Cargo.toml"))
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "[workspace]"))
}

/// One line to standard output. A reader that went away (`| head`) is no reason to fail.
fn say(line: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stdout(), "{line}"));
}

/// One line to standard error.
fn say_error(line: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "{line}"));
}
