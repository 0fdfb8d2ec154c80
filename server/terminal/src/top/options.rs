//! The options of `rempart top`.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use rempart_client::{Client, Patience, ServerArgs, seconds};

use crate::AGENT;
use crate::color::ColorArgs;

const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_hours(1);

/// A live view of a running server, from its metrics.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Where its metrics are, which get the key, too [default: /metrics on the host of --base-url]
    #[arg(long, value_name = "URL", help_heading = "Server")]
    metrics_url: Option<String>,
    /// For a page of metrics; a server that takes longer is shown as gone, and asked again
    #[arg(long, value_name = "S", default_value = "5", help_heading = "Server")]
    timeout_s: f64,
    /// Seconds between two looks, over which rates and percentiles are taken
    #[arg(
        long,
        short = 'i',
        value_name = "S",
        default_value = "2",
        help_heading = "View"
    )]
    interval: f64,
    /// Print one picture as plain text, after one interval, and end
    #[arg(long, help_heading = "View")]
    pub(super) once: bool,
    #[command(flatten)]
    pub(super) color: ColorArgs,
}

/// What the options come to.
#[derive(Clone)]
pub(super) struct Source {
    /// Where the API is.
    pub api: Client,
    /// Where the metrics are, and their path there.
    pub metrics: Client,
    pub path: String,
    pub interval: Duration,
}

impl TopArgs {
    pub(super) fn source(&self) -> anyhow::Result<Source> {
        let timeout = seconds("--timeout-s", self.timeout_s)?;
        let interval = seconds("--interval", self.interval)?;
        ensure!(
            (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval),
            "--interval {}: from {} to {} seconds",
            self.interval,
            INTERVAL_MIN.as_secs_f64(),
            INTERVAL_MAX.as_secs()
        );
        let patience = Patience {
            connect: timeout,
            idle: timeout,
            request: timeout,
        };
        let api = self.server.target()?;
        let (metrics, path) = match &self.metrics_url {
            None => (api.clone(), "/metrics".to_owned()),
            Some(url) => {
                let target = self.server.target_at("--metrics-url", url)?;
                let path = match target.base() {
                    "" => "/metrics".to_owned(),
                    path => path.to_owned(),
                };
                (target, path)
            }
        };
        Ok(Source {
            api: Client::new(api, patience, AGENT),
            metrics: Client::new(metrics, patience, AGENT),
            path,
            interval,
        })
    }
}
