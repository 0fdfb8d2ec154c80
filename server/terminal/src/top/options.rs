//! The options of `rempart top`.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use rempart_client::{AccessArgs, Client, Patience, seconds};

use crate::AGENT;

const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_hours(1);

/// A live view of a running server, from its metrics.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Where the server is, with the version's path
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8080/v1",
        help_heading = "Server"
    )]
    base_url: String,
    /// Where its metrics are, which get the key, too [default: /metrics on the host of --base-url]
    #[arg(long, value_name = "URL", help_heading = "Server")]
    metrics_url: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
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
    pub(super) fn has_color(&self) -> bool {
        self.no_color.as_deref().is_none_or(str::is_empty)
    }

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
        let api = self.access.target("--base-url", &self.base_url)?;
        let (metrics, path) = match &self.metrics_url {
            None => (api.clone(), "/metrics".to_owned()),
            Some(url) => {
                let target = self.access.target("--metrics-url", url)?;
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
