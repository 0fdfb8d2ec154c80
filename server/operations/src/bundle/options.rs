//! The options of `rempart support-bundle`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rempart_client::{Client, Patience, ServerArgs, seconds};

use crate::AGENT;

/// What is put into a bundle, and where that is written.
#[derive(Clone, Debug, Args)]
pub struct BundleArgs {
    /// The archive, which must not be there yet [default: rempart-support-TIME.tar.gz in this folder]
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// File that the server's log goes into, or `-` for what is piped in, as of `journalctl -u rempart -o cat`: lines that the
    /// server has not written are left out [default: no log]
    #[arg(long, value_name = "FILE")]
    pub(super) log_file: Option<PathBuf>,
    /// Lines of it, the last ones
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2000,
        value_parser = clap::value_parser!(u32).range(1..=100_000),
        requires = "log_file"
    )]
    pub(super) log_lines: u32,
    /// Process of the running server, whose limits are told instead of this command's
    #[arg(long, value_name = "PID")]
    pub(super) pid: Option<u32>,
    #[command(flatten)]
    server: ServerArgs,
    /// For each answer of the server
    #[arg(long, value_name = "S", default_value = "5", help_heading = "Server")]
    timeout_s: f64,
}

impl BundleArgs {
    /// What asks the server.
    ///
    /// # Errors
    /// Names the option that is wrong.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let timeout: Duration = seconds("--timeout-s", self.timeout_s)?;
        let patience = Patience {
            connect: timeout,
            idle: timeout,
            request: timeout,
        };
        Ok(Client::new(self.server.target()?, patience, AGENT))
    }

    /// What may stand in no file.
    pub(super) fn secrets(&self) -> Vec<String> {
        self.server.secrets()
    }
}
