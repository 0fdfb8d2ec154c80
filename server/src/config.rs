//! Everything that can be configured: each limit with its name, its default and its environment variable. What was
//! typed ([`ServeArgs`]) becomes what is used ([`Settings`]) in one place, [`ServeArgs::check`].

mod admin;
mod choices;
mod compute;
mod governance;
mod hosts;
mod oidc;
mod pull;
mod request;
mod tls;
mod traces;
mod trust;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use thiserror::Error;

pub use admin::{AdminArgs, AdminSettings};
pub use choices::{Activations, Device, KvDtype, LogFormat, LogLevel};
pub use compute::{ComputeArgs, ComputeSettings};
pub use governance::{DatabaseArgs, GovernanceArgs, GovernanceSettings, currency, place_of};
pub use hosts::AllowedHosts;
pub use oidc::{OidcArgs, OidcSettings};
pub use pull::{PullArgs, Secret, StoreArgs};
pub use request::{RequestArgs, RequestLimits};
use tls::Guards;
pub use tls::{TlsArgs, TlsSettings};
pub use traces::TracesArgs;
pub use trust::{TrustArgs, TrustSettings};

/// Why a configuration cannot work.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "--bind {bind} can be reached from other machines, and this server has {lacks}: give {give}, or bind a loopback \
         address, or add --allow-remote if a proxy or a firewall decides who gets through"
    )]
    RemoteBind {
        bind: SocketAddr,
        lacks: &'static str,
        give: &'static str,
    },
    #[error("{given} is of no use without {lacking}: TLS needs a certificate and its key")]
    HalfOfTls {
        given: &'static str,
        lacking: &'static str,
    },
    #[error(
        "--admin-bind {bind} can be reached from other machines, and administration has no TLS: bind a loopback address"
    )]
    RemoteAdminBind { bind: SocketAddr },
    #[error("--database: {reason}")]
    Database { reason: String },
    #[error("--admin-bind {bind} is also what --bind says: administration has an address of its own")]
    OneBind { bind: SocketAddr },
    #[error("--served-model-name {name:?} must have 1 to 128 of the characters A-Z a-z 0-9 . _ - / : @")]
    ModelName { name: String },
    #[error(
        "--step-tokens-max {tokens} must be at least --sequences-max {sequences}: each sequence decodes one token"
    )]
    StepBelowSequences { tokens: usize, sequences: usize },
    #[error("--bodies-bytes-max {all} must be at least --body-bytes-max {one}: one body must find room")]
    BodiesBelowBody { all: usize, one: usize },
    #[error("{option} {value} is more than the limit of {limit}")]
    AboveLimit {
        option: &'static str,
        value: usize,
        limit: usize,
    },
    #[error(
        "--allowed-host {name:?} must be a name or an address (IPv6 in brackets) without scheme, port and path"
    )]
    AllowedHost { name: String },
    #[error(
        "--oidc-issuer, --oidc-audience and --oidc-keys go together: whose tokens, for whom, and what verifies them"
    )]
    PartOfOidc,
    #[error("--oidc-issuer needs --database: tokens are of people who are in it")]
    OidcWithoutDatabase,
    #[error("--project-metrics needs --database: without it there are no projects")]
    ProjectsWithoutDatabase,
    #[error(
        "--oidc-issuer {issuer:?} must be a URL as the login's tokens have it, such as https://login.example.org"
    )]
    OidcIssuer { issuer: String },
    #[error("{option} must be a name, without blanks around it")]
    OidcName { option: &'static str },
    #[error("--price names {model} twice")]
    TwoPrices { model: String },
    #[error("--block-size {0} must be a power of two between 16 and 256")]
    BlockSize(usize),
}

/// The most that numbers without a limit of their own may be: far above what any machine can use, and low enough that
/// no sum or product made of them overflows.
const MEMORY_MIB_MAX: usize = 1 << 24;
const THREADS_MAX: usize = 4096;
pub(crate) const STEP_TOKENS_LIMIT: usize = 1 << 20;
const QUEUE_REQUESTS_LIMIT: usize = 1 << 16;
const CONNECTIONS_LIMIT: usize = 1 << 20;

/// Open connections that a server has, unless it is told another number.
pub const CONNECTIONS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// How log lines are written, to standard error
    #[arg(
        long,
        env = "REMPART_LOG_FORMAT",
        value_enum,
        default_value = "human",
        global = true
    )]
    pub log_format: LogFormat,
    /// How much is logged; never a prompt, an answer or a key
    #[arg(
        long,
        env = "REMPART_LOG_LEVEL",
        value_enum,
        default_value = "info",
        global = true
    )]
    pub log_level: LogLevel,
}

/// Options of `rempart serve`, as typed.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The models: each a name of the catalogue, a GGUF file, or a directory with safetensors; any number of models that
    /// generate text and of encoders, for embeddings and ranking
    #[arg(env = "REMPART_MODEL", value_name = "MODEL", required = true)]
    pub models: Vec<String>,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Name that clients ask for the model that generates by, if there is one such; give it again for further names [default:
    /// the model's own]
    #[arg(
        long,
        env = "REMPART_SERVED_MODEL_NAME",
        value_delimiter = ',',
        help_heading = "Model"
    )]
    pub served_model_name: Vec<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Processes that share the model out, each with a part of it, on the CPU; each computes with its part of the threads
    #[arg(long, env = "REMPART_TENSOR_PARALLEL", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64), help_heading = "Model")]
    pub tensor_parallel: u8,
    /// Seconds that one of these processes waits for another before the server gives up
    #[arg(long, env = "REMPART_RANK_TIMEOUT_S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600), help_heading = "Model")]
    pub rank_timeout_s: u64,
    /// Tokens of prompt and answer together [default: what the model was trained for, as far as memory allows]
    #[arg(long, env = "REMPART_CONTEXT_LENGTH", help_heading = "Model")]
    pub context_length: Option<NonZeroUsize>,
    /// Memory the whole process may plan for, in MiB [default: 90 % of what is free at start]
    #[arg(long, env = "REMPART_MEMORY_MAX_MIB", help_heading = "Model")]
    pub memory_max_mib: Option<NonZeroUsize>,
    /// Memory for the key-value cache, in MiB [default: what the sequences can use, as far as memory allows]
    #[arg(long, env = "REMPART_KV_CACHE_MIB", help_heading = "Model")]
    pub kv_cache_mib: Option<NonZeroUsize>,
    #[command(flatten)]
    pub trust: TrustArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub admin: AdminArgs,
    #[command(flatten)]
    pub governance: GovernanceArgs,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub traces: TracesArgs,
}

/// Limits of the engine.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Token slots of one block of the key-value cache
    #[arg(long, env = "REMPART_BLOCK_SIZE", default_value_t = 16)]
    pub block_size: usize,
    /// Sequences that run at once
    #[arg(long, env = "REMPART_SEQUENCES_MAX", default_value = "64")]
    pub sequences_max: NonZeroUsize,
    /// Tokens one step computes, prompts and answers together
    #[arg(long, env = "REMPART_STEP_TOKENS_MAX", default_value = "512")]
    pub step_tokens_max: NonZeroUsize,
    /// Milliseconds between the tokens of an answer that computing others' prompts should not exceed; 0: as it comes
    #[arg(long, env = "REMPART_ITL_TARGET_MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub itl_target_ms: u64,
    /// Tokens guessed ahead for one or two answers that run alone, from what their text repeats; 0: none
    #[arg(long, env = "REMPART_SPECULATIVE_TOKENS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=16))]
    pub speculative_tokens: u8,
    /// Requests that may wait; further ones get a 503 with Retry-After
    #[arg(long, env = "REMPART_QUEUE_REQUESTS_MAX", default_value = "256")]
    pub queue_requests_max: NonZeroUsize,
    /// Prompt tokens that may wait
    #[arg(long, env = "REMPART_QUEUE_TOKENS_MAX", default_value = "1048576")]
    pub queue_tokens_max: NonZeroUsize,
    /// Percent of a model's cache that one project may fill while another has requests
    #[arg(long, env = "REMPART_PROJECT_CACHE_PERCENT_MAX", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub project_cache_percent_max: u8,
    /// Tokens that an encoder computes at once; other models wait as long
    #[arg(long, env = "REMPART_ENCODER_BATCH_TOKENS_MAX", default_value = "1024")]
    pub encoder_batch_tokens_max: NonZeroUsize,
    /// Compute every prompt from its first token, even if an earlier one began the same
    #[arg(long, env = "REMPART_NO_PREFIX_CACHE", value_parser = BoolishValueParser::new())]
    pub no_prefix_cache: bool,
    /// Seconds without progress, with work waiting, after which /readyz turns red
    #[arg(long, env = "REMPART_STALL_TIMEOUT_S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub stall_timeout_s: u64,
}

/// Limits of the HTTP side.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on
    #[arg(long, env = "REMPART_BIND", default_value = "127.0.0.1:8080")]
    pub bind: SocketAddr,
    /// Listen on an address that other machines can reach, although TLS or keys are missing
    #[arg(long, env = "REMPART_ALLOW_REMOTE", value_parser = BoolishValueParser::new())]
    pub allow_remote: bool,
    /// Have the kernel refuse this process every connection to elsewhere, but the one to its database; refuses to start where
    /// the kernel can't
    #[arg(long, env = "REMPART_ZERO_EGRESS", value_parser = BoolishValueParser::new())]
    pub zero_egress: bool,
    /// Host name that requests may carry beside localhost and the bound address; give it again for further names
    /// [default: none, or any where other machines can reach --bind]
    #[arg(long, env = "REMPART_ALLOWED_HOST", value_delimiter = ',')]
    pub allowed_host: Vec<String>,
    /// Open connections; a further one gets a 503 and is closed
    #[arg(long, env = "REMPART_CONNECTIONS_MAX", default_value_t = CONNECTIONS_MAX)]
    pub connections_max: NonZeroUsize,
    /// Open connections from one address, or from one /64 of IPv6; loopback has no such limit
    #[arg(long, env = "REMPART_CONNECTIONS_PER_ADDRESS_MAX", default_value = "256")]
    pub connections_per_address_max: NonZeroUsize,
    /// Bytes of a request's head
    #[arg(long, env = "REMPART_HEADER_BYTES_MAX", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(8192..=1_048_576))]
    pub header_bytes_max: u32,
    /// Seconds for a request's head to arrive
    #[arg(long, env = "REMPART_HEADER_TIMEOUT_S", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub header_timeout_s: u64,
    /// Bytes of a request's body
    #[arg(long, env = "REMPART_BODY_BYTES_MAX", default_value = "10485760")]
    pub body_bytes_max: NonZeroUsize,
    /// Bytes of all bodies being read at one time
    #[arg(long, env = "REMPART_BODIES_BYTES_MAX", default_value = "268435456")]
    pub bodies_bytes_max: NonZeroUsize,
    /// Seconds for a request's body to arrive
    #[arg(long, env = "REMPART_BODY_TIMEOUT_S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub body_timeout_s: u64,
    /// Seconds a client may take to read what it was sent before its connection is closed
    #[arg(long, env = "REMPART_WRITE_TIMEOUT_S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub write_timeout_s: u64,
    /// Seconds a request may take, waiting included
    #[arg(long, env = "REMPART_REQUEST_TIMEOUT_S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub request_timeout_s: u64,
    /// Refusals of full queues in a second that a project is sent at once; further ones wait for their turn
    #[arg(long, env = "REMPART_REFUSALS_PER_SECOND", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub refusals_per_second: u32,
    /// Milliseconds that a refusal waits for its turn at most; 0 sends all at once
    #[arg(long, env = "REMPART_REFUSAL_WAIT_MAX_MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub refusal_wait_max_ms: u64,
    /// Seconds between comments that keep a silent stream open
    #[arg(long, env = "REMPART_KEEP_ALIVE_S", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub keep_alive_s: u64,
    /// Seconds that running requests get to finish after SIGTERM or SIGINT; a second signal ends at once
    #[arg(long, env = "REMPART_DRAIN_TIMEOUT_S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub drain_timeout_s: u64,
    /// Prompts rendered and tokenized at one time [default: the cores]
    #[arg(long, env = "REMPART_PREPARE_CONCURRENCY")]
    pub prepare_concurrency: Option<NonZeroUsize>,
    /// Prompts that may wait for that; further ones get a 503
    #[arg(long, env = "REMPART_PREPARE_QUEUE_MAX", default_value = "256")]
    pub prepare_queue_max: NonZeroUsize,
}

/// What the server runs with, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    pub model: ModelSettings,
    pub engine: EngineSettings,
    pub http: HttpSettings,
    pub request: RequestLimits,
    pub governance: GovernanceSettings,
    /// `None`: requests are not traced.
    pub traces: Option<rempart_traces::Settings>,
}

#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// Catalogue names, files or directories.
    pub models: Vec<String>,
    /// The folder of pulled models.
    pub store: PathBuf,
    /// Empty: the model's own name.
    pub served_names: Vec<String>,
    pub compute: ComputeSettings,
    /// Processes that share a model out.
    pub ranks: usize,
    pub rank_timeout: Duration,
    pub context_length: Option<usize>,
    pub memory_max_bytes: Option<u64>,
    pub kv_cache_bytes: Option<u64>,
    pub trust: TrustSettings,
}

#[derive(Debug, Clone)]
pub struct EngineSettings {
    pub block_size: usize,
    pub sequences_max: usize,
    pub step_tokens_max: usize,
    pub itl_target: Option<Duration>,
    pub speculative_tokens: usize,
    pub queue_requests_max: usize,
    pub project_cache_percent_max: usize,
    pub queue_tokens_max: usize,
    pub encoder_batch_tokens_max: usize,
    pub prefix_cache: bool,
    pub stall_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct HttpSettings {
    pub bind: SocketAddr,
    /// The process can't connect to elsewhere.
    pub zero_egress: bool,
    /// What the `Host` header may name; `None`: anything.
    pub hosts: Option<AllowedHosts>,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    /// `None`: plain HTTP.
    pub tls: Option<TlsSettings>,
    pub header_bytes_max: u32,
    pub header_timeout: Duration,
    pub body_bytes_max: usize,
    pub bodies_bytes_max: usize,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub request_timeout: Duration,
    pub refusals_per_second: u32,
    pub refusal_wait_max: Duration,
    pub keep_alive: Duration,
    pub drain_timeout: Duration,
    pub prepare_concurrency: usize,
    pub prepare_queue_max: usize,
    pub admin: AdminSettings,
}

impl ServeArgs {
    /// Makes settings of what was typed, or says what is wrong with it.
    pub fn check(self) -> Result<Settings, Error> {
        let keys = self.governance.database.is_some();
        let http = self.http.check(self.tls, self.admin, keys)?;
        let engine = self.engine.check()?;
        if let Some(name) = self.served_model_name.iter().find(|name| !is_model_name(name)) {
            return Err(Error::ModelName { name: name.clone() });
        }
        let mib = |option, mib: Option<NonZeroUsize>| {
            let mib = mib.map(|mib| at_most(option, mib, MEMORY_MIB_MAX)).transpose()?;
            Ok(mib.map(|mib| (mib as u64) << 20))
        };
        let model = ModelSettings {
            models: self.models,
            store: self.store.path(),
            served_names: self.served_model_name,
            compute: self.compute.check()?,
            ranks: usize::from(self.tensor_parallel),
            rank_timeout: Duration::from_secs(self.rank_timeout_s),
            context_length: self.context_length.map(NonZeroUsize::get),
            memory_max_bytes: mib("--memory-max-mib", self.memory_max_mib)?,
            kv_cache_bytes: mib("--kv-cache-mib", self.kv_cache_mib)?,
            trust: self.trust.settings(),
        };
        Ok(Settings {
            model,
            engine,
            http,
            request: self.request.limits(),
            governance: self.governance.settings()?,
            traces: self.traces.settings(),
        })
    }
}

impl EngineArgs {
    fn check(self) -> Result<EngineSettings, Error> {
        if !self.block_size.is_power_of_two() || !(16..=256).contains(&self.block_size) {
            return Err(Error::BlockSize(self.block_size));
        }
        let tokens = at_most("--step-tokens-max", self.step_tokens_max, STEP_TOKENS_LIMIT)?;
        let sequences = self.sequences_max.get();
        if tokens < sequences {
            return Err(Error::StepBelowSequences { tokens, sequences });
        }
        Ok(EngineSettings {
            block_size: self.block_size,
            sequences_max: sequences,
            step_tokens_max: tokens,
            itl_target: (self.itl_target_ms > 0).then(|| Duration::from_millis(self.itl_target_ms)),
            speculative_tokens: usize::from(self.speculative_tokens),
            queue_requests_max: at_most(
                "--queue-requests-max",
                self.queue_requests_max,
                QUEUE_REQUESTS_LIMIT,
            )?,
            project_cache_percent_max: usize::from(self.project_cache_percent_max),
            queue_tokens_max: self.queue_tokens_max.get(),
            encoder_batch_tokens_max: self.encoder_batch_tokens_max.get(),
            prefix_cache: !self.no_prefix_cache,
            stall_timeout: Duration::from_secs(self.stall_timeout_s),
        })
    }
}

impl HttpArgs {
    fn check(self, tls: TlsArgs, admin: AdminArgs, keys: bool) -> Result<HttpSettings, Error> {
        let tls = tls.check()?;
        if !self.allow_remote {
            let tls = tls.is_some();
            Guards { tls, keys }.check(self.bind)?;
        }
        let (all, one) = (self.bodies_bytes_max.get(), self.body_bytes_max.get());
        if all < one {
            return Err(Error::BodiesBelowBody { all, one });
        }
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let admin = admin.check(self.bind)?;
        Ok(HttpSettings {
            admin,
            bind: self.bind,
            zero_egress: self.zero_egress,
            hosts: AllowedHosts::new(self.bind, self.allowed_host)?,
            connections_max: at_most("--connections-max", self.connections_max, CONNECTIONS_LIMIT)?,
            connections_per_address_max: at_most(
                "--connections-per-address-max",
                self.connections_per_address_max,
                CONNECTIONS_LIMIT,
            )?,
            tls,
            header_bytes_max: self.header_bytes_max,
            header_timeout: Duration::from_secs(self.header_timeout_s),
            body_bytes_max: self.body_bytes_max.get(),
            bodies_bytes_max: self.bodies_bytes_max.get(),
            body_timeout: Duration::from_secs(self.body_timeout_s),
            write_timeout: Duration::from_secs(self.write_timeout_s),
            request_timeout: Duration::from_secs(self.request_timeout_s),
            refusals_per_second: self.refusals_per_second,
            refusal_wait_max: Duration::from_millis(self.refusal_wait_max_ms),
            keep_alive: Duration::from_secs(self.keep_alive_s),
            drain_timeout: Duration::from_secs(self.drain_timeout_s),
            prepare_concurrency: self.prepare_concurrency.map_or_else(cores, NonZeroUsize::get),
            prepare_queue_max: self.prepare_queue_max.get(),
        })
    }
}

fn at_most(option: &'static str, value: NonZeroUsize, limit: usize) -> Result<usize, Error> {
    let value = value.get();
    if value > limit {
        return Err(Error::AboveLimit { option, value, limit });
    }
    Ok(value)
}

fn is_model_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed)
}
