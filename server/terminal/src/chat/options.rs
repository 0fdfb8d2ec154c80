//! The options of `rempart chat`.

use anyhow::ensure;
use clap::Args;
use rempart_client::{Client, PatienceArgs, ServerArgs};

use crate::AGENT;
use crate::color::ColorArgs;

/// Talk to a model, in a terminal or from a script.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The model's name [default: the first that the server lists]
    #[arg(long, help_heading = "Server")]
    pub(super) model: Option<String>,
    #[command(flatten)]
    patience: PatienceArgs,
    /// What the model is told before everything else
    #[arg(long, value_name = "TEXT", help_heading = "Chat")]
    pub(super) system: Option<String>,
    /// Ask this, print the answer and end; without it, what is piped in is asked so
    #[arg(long, short, value_name = "TEXT", help_heading = "Chat")]
    pub(super) prompt: Option<String>,
    /// [default: the server's]
    #[arg(long, help_heading = "Chat")]
    pub(super) temperature: Option<f64>,
    /// Tokens of an answer [default: the server's]
    #[arg(long, value_name = "N", help_heading = "Chat")]
    pub(super) max_tokens: Option<u32>,
    #[command(flatten)]
    pub(super) color: ColorArgs,
}

/// What temperatures the API has.
pub(super) const TEMPERATURE_MAX: f64 = 2.0;

impl ChatArgs {
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        if let Some(temperature) = self.temperature {
            ensure!(
                (0.0..=TEMPERATURE_MAX).contains(&temperature),
                "--temperature {temperature}: from 0 to {TEMPERATURE_MAX}"
            );
        }
        let target = self.server.target()?;
        Ok(Client::new(target, self.patience.patience()?, AGENT))
    }
}
