//! Every limit of the load generator: what a server or a file may make it hold, and how long it waits.

use std::time::Duration;

/// Of an answer that is one JSON document: embeddings are large.
pub(crate) const BODY_BYTES_MAX: usize = 64 << 20;
/// Of a list of models.
pub(crate) const LIST_BYTES_MAX: usize = 4 << 20;
/// Events of one stream: as many for each token that was asked for, and some more.
pub(crate) const EVENTS_PER_TOKEN_MAX: usize = 4;
pub(crate) const EVENTS_MORE: usize = 64;
/// Output tokens that one step asks for, since the time of each is kept: 4 bytes a token.
pub(crate) const STEP_TOKENS_MAX: u64 = 1 << 28;
pub(crate) const STEP_REQUESTS_MAX: usize = 4 << 20;
pub(crate) const STEPS_MAX: usize = 64;
pub(crate) const CONCURRENCY_MAX: usize = 1 << 16;
pub(crate) const RATE_MAX: f64 = 100_000.0;
/// A request in three hours.
pub(crate) const RATE_MIN: f64 = 1e-4;
/// Documents of a made-up request for a ranking.
pub(crate) const DOCUMENTS_MAX: u32 = 10_000;
/// Different reasons of failures that are told apart; the rest is counted together.
pub(crate) const REASONS_MAX: usize = 32;
/// Of a data set's file.
pub(crate) const DATASET_BYTES_MAX: u64 = 2 << 30;
pub(crate) const DATASET_ITEMS_MAX: usize = 1 << 20;
/// Of all prompts that are read from a file.
pub(crate) const DATASET_PROMPT_BYTES_MAX: usize = 1 << 30;
pub(crate) const PROMPT_TOKENS_MAX: u32 = 1 << 22;
pub(crate) const OUTPUT_TOKENS_MAX: u32 = 1 << 20;
/// Of a result that is read as a baseline.
pub(crate) const BASELINE_BYTES_MAX: u64 = 1 << 30;
/// Of everything that a run waits for.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_hours(24);
/// Requests that wait between the pacer and the tasks that send them.
pub(crate) const PACED_MAX: usize = 4096;
