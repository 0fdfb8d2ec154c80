//! `rempart traces`: what a server has written of where requests spend their time, handed on.

use clap::Subcommand;
use rempart_operations::{TracesSendArgs, send_traces};

#[derive(Debug, Subcommand)]
pub enum TracesCommand {
    /// Send what a server writes to its file of traces to a collector, over OTLP/HTTP, until a signal ends it
    Send(Box<TracesSendArgs>),
}

/// Runs the command; what it has to tell goes to standard error, as of whoever runs for long.
pub(super) fn traces(command: &TracesCommand) -> anyhow::Result<()> {
    let TracesCommand::Send(args) = command;
    send_traces(args, &mut std::io::stderr())
}
