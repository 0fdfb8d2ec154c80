//! What a page of metrics says about a server and its models, at one time.

use std::collections::BTreeMap;
use std::time::Instant;

use super::exposition::{self, Series};
use super::histogram::Histogram;
use crate::visible::line;

/// Models that are told apart.
const MODELS_MAX: usize = 1000;
const NAME_CHARS_MAX: usize = 80;

/// A page, and when it came. Counters count from the server's start.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub at: Instant,
    pub server: ServerSample,
    pub models: BTreeMap<String, ModelSample>,
}

/// What is not of one model; of other servers than Rempart little is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServerSample {
    pub version: Option<String>,
    pub ready: Option<bool>,
    pub connections: Option<f64>,
    pub in_flight: Option<f64>,
    pub resident_bytes: Option<f64>,
    /// Seconds of the Unix clock.
    pub started_s: Option<f64>,
    pub cpu_s: f64,
    /// Requests that were turned away with a 503.
    pub rejected: f64,
    /// Requests that were turned away with a 429.
    pub limited: f64,
}

/// One model, all its engines together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ModelSample {
    pub running: f64,
    pub waiting: f64,
    /// The share of the cache of keys and values that is in use; of several engines the highest.
    pub kv: Option<f64>,
    pub prompt_tokens: f64,
    pub cached_tokens: f64,
    pub generated_tokens: f64,
    /// Answers that ended, however.
    pub ended: f64,
    pub encoder_requests: f64,
    pub encoder_tokens: f64,
    pub ttft: Histogram,
    pub itl: Histogram,
}

/// The metrics that are read, as docs/monitoring.md has them; those of `vllm:` are vLLM's, too.
const WANTED: &[&str] = &[
    "rempart_build_info",
    "rempart_ready",
    "rempart_http_connections",
    "rempart_http_requests_in_flight",
    "rempart_rejections_total",
    "rempart_limited_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "rempart_encoder_requests_total",
    "rempart_encoder_tokens_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
];

impl Sample {
    /// Reads a page that came then.
    ///
    /// # Errors
    /// Where it is not in Prometheus's text format, or has nothing that is shown here.
    pub(crate) fn read(page: &str, at: Instant) -> anyhow::Result<Self> {
        let mut sample = Self {
            at,
            server: ServerSample::default(),
            models: BTreeMap::new(),
        };
        let mut known = 0_usize;
        exposition::read(
            page,
            |name| WANTED.contains(&name),
            |series| {
                known += 1;
                sample.take(series);
            },
        )?;
        anyhow::ensure!(
            known > 0,
            "no metric of Rempart's or vLLM's: is --metrics-url right?"
        );
        Ok(sample)
    }

    fn take(&mut self, series: &Series<'_>) {
        // A value that is no number is none; sums stay sound.
        if !series.value.is_finite() {
            return;
        }
        if let Some(model) = series.label("model_name") {
            let model = line(model, NAME_CHARS_MAX);
            if self.models.len() < MODELS_MAX || self.models.contains_key(&model) {
                self.models.entry(model).or_default().take(series);
            }
            return;
        }
        self.server.take(series);
    }
}

impl ServerSample {
    fn take(&mut self, series: &Series<'_>) {
        let value = series.value;
        match series.name {
            "rempart_build_info" => {
                self.version = series
                    .label("version")
                    .map(|version| line(version, NAME_CHARS_MAX));
            }
            "rempart_ready" => self.ready = Some(value > 0.0),
            "rempart_http_connections" => self.connections = Some(value),
            "rempart_http_requests_in_flight" => self.in_flight = Some(value),
            "process_resident_memory_bytes" => self.resident_bytes = Some(value),
            "process_start_time_seconds" => self.started_s = Some(value),
            "process_cpu_seconds_total" => self.cpu_s = value,
            "rempart_rejections_total" => self.rejected += value,
            "rempart_limited_total" => self.limited += value,
            _ => {}
        }
    }
}

impl ModelSample {
    fn take(&mut self, series: &Series<'_>) {
        let value = series.value;
        match series.name {
            "vllm:num_requests_running" => self.running += value,
            "vllm:num_requests_waiting" => self.waiting += value,
            "vllm:kv_cache_usage_perc" => self.kv = Some(self.kv.unwrap_or(0.0).max(value)),
            "vllm:prompt_tokens_total" => self.prompt_tokens += value,
            "vllm:prompt_tokens_cached_total" => self.cached_tokens += value,
            "vllm:generation_tokens_total" => self.generated_tokens += value,
            "vllm:request_success_total" => self.ended += value,
            "rempart_encoder_requests_total" => self.encoder_requests += value,
            "rempart_encoder_tokens_total" => self.encoder_tokens += value,
            "vllm:time_to_first_token_seconds_bucket" => bucket(&mut self.ttft, series),
            "vllm:inter_token_latency_seconds_bucket" => bucket(&mut self.itl, series),
            _ => {}
        }
    }
}

fn bucket(histogram: &mut Histogram, series: &Series<'_>) {
    let limit = series.label("le").and_then(|limit| match limit {
        "+Inf" => Some(f64::INFINITY),
        _ => limit.parse().ok(),
    });
    if let Some(limit) = limit {
        histogram.add(limit, series.value);
    }
}
