//! The options of `rempart chat`.

use anyhow::ensure;
use clap::Args;
use rempart_client::{AccessArgs, Client, PatienceArgs};

use crate::AGENT;

/// Talk to a model, in a terminal or from a script.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// Where the server is, with the version's path; any that is OpenAI-compatible
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8080/v1",
        help_heading = "Server"
    )]
    base_url: String,
    /// The model's name [default: the first that the server lists]
    #[arg(long, help_heading = "Server")]
    pub(super) model: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
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
    /// Without colours, as where `NO_COLOR` is set
    #[arg(
        long,
        env = "NO_COLOR",
        value_name = "ANY",
        num_args = 0..=1,
        default_missing_value = "1",
        hide = true
    )]
    no_color: Option<String>,
}

/// What temperatures the API has.
pub(super) const TEMPERATURE_MAX: f64 = 2.0;

impl ChatArgs {
    pub(super) fn has_color(&self) -> bool {
        self.no_color.as_deref().is_none_or(str::is_empty)
    }

    pub(super) fn client(&self) -> anyhow::Result<Client> {
        if let Some(temperature) = self.temperature {
            ensure!(
                (0.0..=TEMPERATURE_MAX).contains(&temperature),
                "--temperature {temperature}: from 0 to {TEMPERATURE_MAX}"
            );
        }
        let target = self.access.target("--base-url", &self.base_url)?;
        Ok(Client::new(target, self.patience.patience()?, AGENT))
    }
}
