//! What a step did, as plain numbers for the metrics at the edge.

use crate::request::Output;

/// The engine's state after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Those of them that have one token to compute.
    pub decoding: usize,
    /// Sequences in the queue, preempted ones included.
    pub waiting: usize,
    /// Requests none of whose sequences has started yet: what `queue_requests_max` bounds.
    pub waiting_requests: usize,
    /// Tokens the queue holds: what `queue_tokens_max` bounds.
    pub waiting_tokens: usize,
    /// Those of them whose sequences have not started yet.
    pub unstarted_tokens: usize,
    /// Flows with a living sequence.
    pub flows: usize,
    /// When the oldest request that has not started was added, in milliseconds of the caller's clock.
    pub waiting_since_ms: Option<u64>,
    pub blocks_total: usize,
    /// Blocks held by running sequences.
    pub blocks_used: usize,
    /// Blocks nobody holds whose content can still be found.
    pub blocks_cached: usize,
}

/// What waits to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// None of their sequences has started.
    pub requests: usize,
    /// Of sequences that have not started: what was preempted takes nobody's place in the queue.
    pub tokens: usize,
}

impl Stats {
    /// What waits to start, of all flows.
    pub fn queued(&self) -> Queued {
        Queued {
            requests: self.waiting_requests,
            tokens: self.unstarted_tokens,
        }
    }
}

/// One flow's state after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowStats {
    pub flow: u64,
    pub weight: u32,
    pub queued: Queued,
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences in the queue, preempted ones included.
    pub waiting: usize,
    /// Held blocks that count for it: those it took first.
    pub blocks_used: usize,
    /// Tokens computed for it since the engine knows it; a flow without work may be forgotten.
    pub tokens: u64,
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// In order of occurrence; per sequence this is the order to send them in.
    pub outputs: Vec<Output>,
    /// Tokens computed for prompts, and again after a preemption.
    pub prefill_tokens: usize,
    /// Tokens computed one for each sequence to continue its completion.
    pub decode_tokens: usize,
    /// Sequences for which tokens were guessed ahead.
    pub drafts: usize,
    /// Tokens guessed ahead and computed with those.
    pub drafted_tokens: usize,
    /// Those of them that were right.
    pub accepted_tokens: usize,
    /// Sequences that lost their blocks in this step.
    pub preemptions: usize,
    /// Prompt tokens of the sequences that started in this step.
    pub cache_query_tokens: usize,
    /// Those of them found in the prefix cache.
    pub cache_hit_tokens: usize,
    /// Prefill used up [`crate::Engine::limit_prefill`], which was less than the step had room for.
    pub prefill_limited: bool,
    /// The device had no memory for the step: nothing was computed, and the next steps are smaller.
    pub out_of_memory: bool,
    pub stats: Stats,
}
