//! `rempart bench`: how fast a model is here, and what the clients of a server see of it under load.

mod engine;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use rempart_load::LoadArgs;

pub(super) use engine::EngineBenchArgs;

/// How fast it is.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub struct BenchArgs {
    #[command(subcommand)]
    engine: Option<BenchCommand>,
    #[command(flatten)]
    load: LoadArgs,
}

/// What is measured without a server.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// How fast a model computes prompts and answers on this machine, without HTTP
    Engine(Box<EngineBenchArgs>),
}

/// Measures what was asked for.
pub(super) fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match &args.engine {
        Some(BenchCommand::Engine(args)) => engine::run(args).map(|()| ExitCode::SUCCESS),
        None => rempart_load::run(&args.load).map(ExitCode::from),
    }
}
