//! The commands of the binary.

mod serve;

use clap::{Parser, Subcommand};

use crate::config::{LogArgs, ServeArgs};
use crate::telemetry;

/// Serves open-weight language models on your own machines, over an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "rempart", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model and answer requests until a signal ends it
    Serve(Box<ServeArgs>),
}

/// Runs the command that was typed.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    telemetry::init(&cli.log)?;
    match cli.command {
        Command::Serve(args) => serve::run(*args),
    }
}
