//! The options of `rempart bench`, as they are typed. [`Plan`](crate::plan::Plan) is what they come to.

#![expect(
    clippy::doc_markdown,
    clippy::doc_link_with_quotes,
    reason = "clap prints these texts as they are"
)]

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use rempart_client::{AccessArgs, PatienceArgs};

use crate::body::Endpoint;
use crate::schedule::RampShape;
use crate::slo::Slo;

/// Load on an OpenAI-compatible server, and what its clients see of it.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("shape").args(["concurrency", "request_rate", "sweep", "search_rate"]))]
pub struct LoadArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub shape: ShapeArgs,
    #[command(flatten)]
    pub dataset: DatasetArgs,
    #[command(flatten)]
    pub results: ResultArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Where the server is, with the version's path: http://127.0.0.1:8080/v1
    // Clap has no default here: load goes where somebody has said that it may.
    #[arg(long, value_name = "URL", required = true)]
    pub base_url: Option<String>,
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    pub endpoint: Endpoint,
    /// Instead of the endpoint's own path; with a slash in front, instead of the base URL's path, too
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// The model's name [default: the first that the server lists]
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub access: AccessArgs,
    /// A JSON object that goes into the body of each request, over what would be there
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<String>,
    /// Ask for answers that go on to their full length (not every server can)
    #[arg(long)]
    pub ignore_eos: bool,
    /// [default: the server's]
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Open a connection for each request, over TLS with a full handshake; TTFT and E2E have that in them
    #[arg(long)]
    pub disable_keepalive: bool,
    #[command(flatten)]
    pub patience: PatienceArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct ShapeArgs {
    /// Closed loop: so many clients, each of which asks again when it is answered; a step for each number [default: 1]
    #[arg(
        long,
        visible_alias = "max-concurrency",
        value_name = "N,..",
        value_delimiter = ','
    )]
    pub concurrency: Vec<usize>,
    /// Open loop: requests a second, sent at their times however many are in flight; a step for each number
    #[arg(long, value_name = "RPS,..", value_delimiter = ',')]
    pub request_rate: Vec<f64>,
    /// Closed loops of 1, 2, 4, .. clients up to this, until throughput grows no more; tells the knee
    #[arg(long, value_name = "MAX", num_args = 0..=1, default_missing_value = "256")]
    pub sweep: Option<usize>,
    /// Open loops between two rates: the highest that keeps --slo, by bisection
    #[arg(long, value_name = "LOW:HIGH", requires = "slo", value_parser = range)]
    pub search_rate: Option<(f64, f64)>,
    /// How near the search comes, as a share of the rate
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    pub search_precision: f64,
    /// Shape of the gamma-distributed gaps: 1 is a Poisson process, less comes in bursts, `inf` is even
    #[arg(long, value_name = "SHAPE", default_value = "1")]
    pub burstiness: f64,
    /// Let the rate grow from --ramp-up-start-rps to --request-rate
    #[arg(long, value_enum, requires = "ramp_up_start_rps")]
    pub ramp_up_strategy: Option<RampShape>,
    /// Requests a second at the beginning of the step
    #[arg(long, value_name = "RPS", requires = "ramp_up_strategy")]
    pub ramp_up_start_rps: Option<f64>,
    /// Requests of each step [default: 5 for each client, at least 50; what --duration-s has room for; a whole trace]
    #[arg(long, value_name = "N")]
    pub num_prompts: Option<usize>,
    /// No request of a step begins later
    #[arg(long, value_name = "S")]
    pub duration_s: Option<f64>,
    /// Requests before the first step that count for nothing
    #[arg(long, value_name = "N", default_value = "1")]
    pub num_warmups: usize,
    /// Leave out the beginning and the end of each step, where not all clients are at work
    #[arg(long)]
    pub steady_state: bool,
    /// The share of requests that are dropped before they are done, as by people who go away
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub cancellation_rate: f64,
    /// When they are dropped
    #[arg(long, value_name = "MS", default_value = "1000")]
    pub cancellation_delay_ms: u64,
    /// Open loop: requests in flight; one more is not sent and counts as failed
    #[arg(long, value_name = "N", default_value = "10000")]
    pub in_flight_max: usize,
    /// Of texts, times and intervals [default: another one each time, which results tell]
    #[arg(long)]
    pub seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatasetName {
    /// Random words, about as many as tokens are asked for
    Random,
    /// The same behind prefixes that requests share
    SharedPrefix,
    /// JSON lines: {"prompt": "..", "output_tokens": 99} or {"query": "..", "documents": [".."]}
    Custom,
    /// Conversations in the format of ShareGPT
    Sharegpt,
    /// Times and lengths of a trace, replayed: Mooncake's JSON lines, or BurstGPT's CSV
    Trace,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Data")]
pub struct DatasetArgs {
    #[arg(long, visible_alias = "dataset-name", value_enum, default_value_t = DatasetName::Random)]
    pub dataset: DatasetName,
    /// The file of a data set that has one
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,
    /// Tokens of a prompt, about: of a document, for rerank
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub random_input_len: u32,
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    pub random_output_len: u32,
    /// Lengths are drawn evenly from LEN * (1 - RATIO) to LEN * (1 + RATIO)
    #[arg(long, value_name = "RATIO", default_value = "0")]
    pub random_range_ratio: f64,
    /// Tokens of a shared prefix, in front of --random-input-len
    #[arg(long, value_name = "TOKENS", default_value = "1024")]
    pub prefix_len: u32,
    /// Different prefixes
    #[arg(long, value_name = "N", default_value = "1")]
    pub num_prefixes: u32,
    /// Documents of a request for a ranking
    #[arg(long, value_name = "N", default_value = "8")]
    pub num_documents: u32,
    /// Tokens of each answer, over what the file says [default: 128 where it says nothing]
    #[arg(long, value_name = "TOKENS")]
    pub output_len: Option<u32>,
    /// How many times faster than it was a trace is replayed
    #[arg(long, value_name = "FACTOR", default_value = "1")]
    pub trace_speed: f64,
    /// Take each word for a token, instead of asking the server by two short requests how many it makes of them
    #[arg(long)]
    pub no_calibration: bool,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Results")]
pub struct ResultArgs {
    /// What must hold of each step, like ttft_p95=500ms,itl_p99=80ms,errors=0; if it does not, the exit status is 3
    #[arg(long, value_name = "CONDITIONS", value_parser = conditions)]
    pub slo: Option<Slo>,
    /// A file of --result --save-detailed to compare with; after a regression, the exit status is 4
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// How much worse than the baseline a figure may be
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    pub regression_tolerance: f64,
    /// Limits in ms that make a request a good one: ttft:500,tpot:50,e2el:20000
    #[arg(long, value_name = "NAME:MS,..", value_delimiter = ',')]
    pub goodput: Vec<String>,
    /// Results with the field names of vLLM, a JSON object on a line for each step
    #[arg(long, value_name = "FILE")]
    pub result: Option<PathBuf>,
    /// With the times of each request, never with texts
    #[arg(long, requires = "result")]
    pub save_detailed: bool,
    /// A table of the steps
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// A page with charts, which fetches nothing
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// A name for the results
    #[arg(long)]
    pub label: Option<String>,
    /// Goes into the results; may be repeated
    #[arg(long = "metadata", value_name = "NAME=VALUE", value_parser = pair)]
    pub metadata: Vec<(String, String)>,
    /// Nothing but results
    #[arg(long, short)]
    pub quiet: bool,
}

/// With the whole of what is wrong: clap tells the outermost reason alone.
fn conditions(text: &str) -> Result<Slo, String> {
    text.parse().map_err(|error: anyhow::Error| format!("{error:#}"))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("needs NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn range(text: &str) -> Result<(f64, f64), String> {
    let (low, high) = text.split_once(':').ok_or("needs LOW:HIGH, like 1:50")?;
    let parse = |text: &str| text.parse::<f64>().map_err(|_| format!("`{text}` is no number"));
    Ok((parse(low)?, parse(high)?))
}
