//! The one place that records metrics: our own names, and those of vLLM that dashboards and routers read.
//!
//! Labels take values from short lists only, so the number of series is bounded.

mod access;
mod encoder;
mod http;
mod lifecycle;
mod projects;
mod rejection;
mod tls;
mod traces;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use rempart_engine::{EngineConfig, StepReport};

use crate::process;
pub use encoder::EncoderMetrics;
pub use http::GaugeGuard;
pub use lifecycle::LifecycleMetrics;
pub use rejection::Rejection;
pub use tls::TlsMetrics;
pub use usage::{LeaseMetrics, UsageMetrics};

/// vLLM's buckets for what a client waits for before the first token, in seconds.
const FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's buckets for one token after another, in seconds.
const TOKEN_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// vLLM's buckets for whole requests and their phases, in seconds.
const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6,
];
const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const STEP_S: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
const HTTP_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// Every histogram and its buckets.
const HISTOGRAMS: &[(&str, &[f64])] = &[
    ("vllm:time_to_first_token_seconds", FIRST_TOKEN_S),
    ("vllm:inter_token_latency_seconds", TOKEN_S),
    ("vllm:request_time_per_output_token_seconds", TOKEN_S),
    ("vllm:e2e_request_latency_seconds", REQUEST_S),
    ("vllm:request_queue_time_seconds", REQUEST_S),
    ("vllm:request_inference_time_seconds", REQUEST_S),
    ("vllm:request_prefill_time_seconds", REQUEST_S),
    ("vllm:request_decode_time_seconds", REQUEST_S),
    ("vllm:request_prompt_tokens", REQUEST_TOKENS),
    ("vllm:request_generation_tokens", REQUEST_TOKENS),
    ("vllm:request_max_num_generation_tokens", REQUEST_TOKENS),
    ("vllm:request_params_max_tokens", REQUEST_TOKENS),
    ("vllm:request_params_n", CHOICES),
    ("vllm:iteration_tokens_total", STEP_TOKENS),
    ("rempart_step_duration_seconds", STEP_S),
    ("rempart_encoder_batch_duration_seconds", STEP_S),
    ("rempart_prepare_duration_seconds", HTTP_S),
    ("http_request_duration_seconds", HTTP_S),
];

/// Those that an engine gives.
const QUEUES: [Rejection; 3] = [
    Rejection::QueueRequests,
    Rejection::QueueTokens,
    Rejection::FlowQueue,
];

/// How a sequence ended, in vLLM's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Stop,
    Length,
    Abort,
    Error,
}

/// The process's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    in_flight: Gauge,
    connections: Gauge,
    rejections: [Counter; Rejection::ALL.len()],
    panics: Counter,
    prepare_s: Histogram,
    ready: Gauge,
    process: Arc<process::Gauges>,
}

impl Metrics {
    pub fn new() -> anyhow::Result<Self> {
        let mut builder = PrometheusBuilder::new();
        for (name, buckets) in HISTOGRAMS {
            builder = builder
                .set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
                .with_context(|| format!("the buckets of {name}"))?;
        }
        let recorder = Arc::new(builder.build_recorder());
        let series = Series {
            recorder: &recorder,
            labels: Vec::new(),
        };
        let reject = |reason: Rejection| {
            series
                .with("reason", reason.name())
                .counter("rempart_rejections_total")
        };
        let version = series.with("version", env!("CARGO_PKG_VERSION"));
        version.gauge("rempart_build_info").set(1.0);
        access::begin_at_zero(&series);
        usage::begin_at_zero(&series);
        Ok(Self {
            handle: recorder.handle(),
            in_flight: series.gauge("rempart_http_requests_in_flight"),
            connections: series.gauge("rempart_http_connections"),
            rejections: Rejection::ALL.map(reject),
            panics: series.counter("rempart_handler_panics_total"),
            prepare_s: series.histogram("rempart_prepare_duration_seconds"),
            ready: series.gauge("rempart_ready"),
            process: Arc::new(process::Gauges::new(&|name| series.gauge(name))),
            recorder,
        })
    }

    /// The page that Prometheus reads, of a server that is ready or not.
    pub fn render(&self, ready: bool) -> String {
        self.ready.set(f64::from(u8::from(ready)));
        self.process.read();
        process::declared(&self.handle.render())
    }

    /// Whether the kernel refuses the process every connection to elsewhere.
    pub fn zero_egress(&self, confined: bool) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        let gauge = series.gauge("rempart_zero_egress");
        gauge.set(f64::from(u8::from(confined)));
    }

    /// Folds recorded samples into their buckets. Called on a timer, so that memory stays flat when nobody reads
    /// the page.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    pub fn reject(&self, reason: Rejection) {
        let at = Rejection::ALL
            .iter()
            .position(|r| *r == reason)
            .expect("ALL holds every reason");
        self.rejections[at].increment(1);
    }

    /// A handler panicked, which is a bug.
    pub fn handler_panicked(&self) {
        self.panics.increment(1);
    }

    /// A prompt was rendered and tokenized.
    pub fn prepared(&self, took: Duration) {
        self.prepare_s.record(took.as_secs_f64());
    }

    /// The series of one served model.
    pub fn model(&self, name: &str, config: &EngineConfig) -> ModelMetrics {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        let series = series.with("model_name", name).with("engine", "0");
        let info = series.with("block_size", &config.block_size.to_string());
        let info = info.with("num_gpu_blocks", &config.blocks.to_string());
        let info = info.with("enable_prefix_caching", &config.prefix_cache.to_string());
        let info = info.gauge("vllm:cache_config_info");
        info.set(1.0);
        for (name, limit) in [
            ("rempart_queue_requests_limit", config.queue_requests_max),
            ("rempart_queue_tokens_limit", config.queue_tokens_max),
        ] {
            series.gauge(name).set(limit as f64);
        }
        ModelMetrics::new(&series, config.blocks, info, self.clone())
    }
}

/// One sequence's life, in seconds since its request arrived, and its counts.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    pub ended: Ended,
    pub prompt_tokens: usize,
    pub generated_tokens: usize,
    pub max_tokens: usize,
    pub n: usize,
    /// `None` if it never left the queue.
    pub started_s: Option<f64>,
    pub first_token_s: Option<f64>,
    pub last_token_s: Option<f64>,
    pub ended_s: f64,
}

/// What the engine thread records.
pub struct ModelMetrics {
    /// 1 while it is true: a model that comes back can have other blocks, and so another series.
    info: Gauge,
    running: Gauge,
    waiting: Gauge,
    queue_requests: Gauge,
    queue_tokens: Gauge,
    kv_usage: Gauge,
    kv_used: Gauge,
    kv_cached: Gauge,
    kv_total: Gauge,
    drain_rate: Gauge,
    prompt_tokens: Counter,
    prompt_cached: Counter,
    generated_tokens: Counter,
    cache_queries: Counter,
    cache_hits: Counter,
    preemptions: Counter,
    drafts: Counter,
    drafted: Counter,
    accepted: Counter,
    step_failures: Counter,
    steps_limited: Counter,
    steps_out_of_memory: Counter,
    prefill_budget: Gauge,
    finished: [Counter; 4],
    rejected: [Counter; QUEUES.len()],
    timed_out: Counter,
    /// Of the process.
    all: Metrics,
    step_s: Histogram,
    step_tokens: Histogram,
    first_token_s: Histogram,
    inter_token_s: Histogram,
    per_token_s: Histogram,
    e2e_s: Histogram,
    queue_s: Histogram,
    inference_s: Histogram,
    prefill_s: Histogram,
    decode_s: Histogram,
    request_prompt: Histogram,
    request_generated: Histogram,
    request_max_generated: Histogram,
    request_max_tokens: Histogram,
    request_n: Histogram,
}

impl ModelMetrics {
    fn new(s: &Series<'_>, blocks: usize, info: Gauge, all: Metrics) -> Self {
        let kv_total = s.gauge("rempart_kv_blocks_total");
        kv_total.set(blocks as f64);
        let ended = |reason: &str| {
            s.with("finished_reason", reason)
                .counter("vllm:request_success_total")
        };
        let rejected = |reason: Rejection| {
            s.with("reason", reason.name())
                .counter("vllm:admission_rejections_total")
        };
        Self {
            info,
            running: s.gauge("vllm:num_requests_running"),
            waiting: s.gauge("vllm:num_requests_waiting"),
            queue_requests: s.gauge("rempart_queue_requests"),
            queue_tokens: s.gauge("rempart_queue_tokens"),
            kv_usage: s.gauge("vllm:kv_cache_usage_perc"),
            kv_used: s.gauge("rempart_kv_blocks_used"),
            kv_cached: s.gauge("rempart_kv_blocks_cached"),
            kv_total,
            drain_rate: s.gauge("rempart_drain_requests_per_second"),
            prompt_tokens: s.counter("vllm:prompt_tokens_total"),
            prompt_cached: s.counter("vllm:prompt_tokens_cached_total"),
            generated_tokens: s.counter("vllm:generation_tokens_total"),
            cache_queries: s.counter("vllm:prefix_cache_queries_total"),
            cache_hits: s.counter("vllm:prefix_cache_hits_total"),
            preemptions: s.counter("vllm:num_preemptions_total"),
            drafts: s.counter("vllm:spec_decode_num_drafts_total"),
            drafted: s.counter("vllm:spec_decode_num_draft_tokens_total"),
            accepted: s.counter("vllm:spec_decode_num_accepted_tokens_total"),
            step_failures: s.counter("rempart_step_failures_total"),
            steps_limited: s.counter("rempart_steps_prefill_limited_total"),
            steps_out_of_memory: s.counter("rempart_steps_out_of_memory_total"),
            prefill_budget: s.gauge("rempart_prefill_budget_tokens"),
            finished: ["stop", "length", "abort", "error"].map(ended),
            rejected: QUEUES.map(rejected),
            timed_out: s.counter("rempart_requests_timed_out_total"),
            all,
            step_s: s.histogram("rempart_step_duration_seconds"),
            step_tokens: s.histogram("vllm:iteration_tokens_total"),
            first_token_s: s.histogram("vllm:time_to_first_token_seconds"),
            inter_token_s: s.histogram("vllm:inter_token_latency_seconds"),
            per_token_s: s.histogram("vllm:request_time_per_output_token_seconds"),
            e2e_s: s.histogram("vllm:e2e_request_latency_seconds"),
            queue_s: s.histogram("vllm:request_queue_time_seconds"),
            inference_s: s.histogram("vllm:request_inference_time_seconds"),
            prefill_s: s.histogram("vllm:request_prefill_time_seconds"),
            decode_s: s.histogram("vllm:request_decode_time_seconds"),
            request_prompt: s.histogram("vllm:request_prompt_tokens"),
            request_generated: s.histogram("vllm:request_generation_tokens"),
            request_max_generated: s.histogram("vllm:request_max_num_generation_tokens"),
            request_max_tokens: s.histogram("vllm:request_params_max_tokens"),
            request_n: s.histogram("vllm:request_params_n"),
        }
    }

    /// One step and how long it took.
    pub fn step(&self, report: &StepReport, took: Duration) {
        let computed = report.prefill_tokens + report.decode_tokens + report.drafted_tokens;
        if computed > 0 {
            self.step_s.record(took.as_secs_f64());
            self.step_tokens.record(computed as f64);
        }
        self.cache_queries.increment(report.cache_query_tokens as u64);
        self.cache_hits.increment(report.cache_hit_tokens as u64);
        self.preemptions.increment(report.preemptions as u64);
        self.drafts.increment(report.drafts as u64);
        self.drafted.increment(report.drafted_tokens as u64);
        self.accepted.increment(report.accepted_tokens as u64);
        self.steps_limited.increment(u64::from(report.prefill_limited));
        self.steps_out_of_memory
            .increment(u64::from(report.out_of_memory));
        let stats = &report.stats;
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        self.queue_requests.set(stats.waiting_requests as f64);
        self.queue_tokens.set(stats.waiting_tokens as f64);
        self.kv_used.set(stats.blocks_used as f64);
        self.kv_cached.set(stats.blocks_cached as f64);
        self.kv_usage
            .set(stats.blocks_used as f64 / stats.blocks_total.max(1) as f64);
    }

    /// The most tokens of prefill that the next step may compute beside decoding sequences.
    pub fn prefill_budget(&self, tokens: usize) {
        self.prefill_budget.set(tokens as f64);
    }

    /// A step failed or panicked.
    pub fn step_failed(&self) {
        self.step_failures.increment(1);
    }

    /// Requests finished a second, of late.
    pub fn drain_rate(&self, per_second: f64) {
        self.drain_rate.set(per_second);
    }

    /// The engine turned a request away.
    pub fn rejected(&self, reason: Rejection) {
        self.all.reject(reason);
        if let Some(at) = QUEUES.iter().position(|queue| *queue == reason) {
            self.rejected[at].increment(1);
        }
    }

    /// A request's prompt was taken up.
    pub fn prompt(&self, tokens: usize, cached: usize) {
        self.prompt_tokens.increment(tokens as u64);
        self.prompt_cached.increment(cached as u64);
    }

    /// A sequence's first token, this long after its request arrived.
    pub fn first_token(&self, seconds: f64) {
        self.generated_tokens.increment(1);
        self.first_token_s.record(seconds);
    }

    /// A later token, this long after the one before.
    pub fn next_token(&self, seconds: f64) {
        self.generated_tokens.increment(1);
        self.inter_token_s.record(seconds);
    }

    /// A request's time was over. vLLM's reasons have no such, so that it counts as aborted, too.
    pub fn timed_out(&self) {
        self.timed_out.increment(1);
    }

    /// A sequence ended.
    pub fn finished(&self, request: &Finished) {
        let reason = match request.ended {
            Ended::Stop => 0,
            Ended::Length => 1,
            Ended::Abort => 2,
            Ended::Error => 3,
        };
        self.finished[reason].increment(1);
        self.e2e_s.record(request.ended_s);
        self.request_prompt.record(request.prompt_tokens as f64);
        self.request_generated.record(request.generated_tokens as f64);
        self.request_max_generated.record(request.generated_tokens as f64);
        self.request_max_tokens.record(request.max_tokens as f64);
        self.request_n.record(request.n as f64);
        let Some(started) = request.started_s else { return };
        self.queue_s.record(started);
        self.inference_s.record(request.ended_s - started);
        let (Some(first), Some(last)) = (request.first_token_s, request.last_token_s) else {
            return;
        };
        self.prefill_s.record(first - started);
        self.decode_s.record(last - first);
        if request.generated_tokens > 1 {
            self.per_token_s
                .record((last - first) / (request.generated_tokens - 1) as f64);
        }
    }
}

/// Registers series with the labels it holds.
struct Series<'a> {
    recorder: &'a PrometheusRecorder,
    labels: Vec<Label>,
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

impl Series<'_> {
    fn with(&self, key: &'static str, value: &str) -> Self {
        let mut labels = self.labels.clone();
        labels.push(Label::new(key, value.to_owned()));
        Self {
            recorder: self.recorder,
            labels,
        }
    }

    fn key(&self, name: &'static str) -> Key {
        Key::from_parts(name, self.labels.clone())
    }

    fn counter(&self, name: &'static str) -> Counter {
        self.recorder.register_counter(&self.key(name), &METADATA)
    }

    fn gauge(&self, name: &'static str) -> Gauge {
        self.recorder.register_gauge(&self.key(name), &METADATA)
    }

    fn histogram(&self, name: &'static str) -> Histogram {
        self.recorder.register_histogram(&self.key(name), &METADATA)
    }
}
