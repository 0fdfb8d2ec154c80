//! `rempart bench`: how fast it is.

mod engine;

use clap::Subcommand;

pub(super) use engine::EngineBenchArgs;

/// How fast it is.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// How fast a model computes prompts and answers on this machine, without HTTP
    Engine(Box<EngineBenchArgs>),
}

/// Measures what was asked for.
pub(super) fn bench(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Engine(args) => engine::run(&args),
    }
}
