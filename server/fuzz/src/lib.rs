//! What the targets share.

use std::sync::OnceLock;

use clap::Parser as _;
use rempart::cli::{Cli, Command};
use rempart::config::RequestLimits;

/// The limits that a server has by default.
pub fn limits() -> &'static RequestLimits {
    static LIMITS: OnceLock<RequestLimits> = OnceLock::new();
    LIMITS.get_or_init(|| {
        let cli = Cli::parse_from(["rempart", "serve", "a-model"]);
        let Command::Serve(arguments) = cli.command else {
            unreachable!("the arguments say serve")
        };
        arguments.check().expect("defaults are good settings").request
    })
}
