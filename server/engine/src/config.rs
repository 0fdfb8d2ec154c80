//! The engine's limits, all of them.

use thiserror::Error;

use crate::report::Queued;

/// Rows of logits a step may ask for beyond one per sequence, so that prompts are scored in chunks.
const SCORED_PER_STEP: usize = 64;

/// Limits of one engine. Every queue, buffer and loop of it is bounded by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Blocks of the key-value cache.
    pub blocks: usize,
    /// Token slots of a block.
    pub block_size: usize,
    /// The token budget of a step; at least `sequences_max`, so that every running sequence can decode.
    pub step_tokens_max: usize,
    /// Sequences that run at once.
    pub sequences_max: usize,
    /// Requests that wait to start.
    pub queue_requests_max: usize,
    /// Tokens that wait to be computed. An empty queue takes any one request.
    pub queue_tokens_max: usize,
    /// Percent of the blocks that one flow may hold while another is alive, 1 to 100; 100 is no limit. A flow may always
    /// run one sequence, so that none is too large to ever run.
    pub flow_blocks_share_max: usize,
    /// Tokens guessed ahead for a sequence that decodes nearly alone. 0 is off.
    pub speculative_tokens: usize,
    /// Tokens of prompt and completion together.
    pub context_max: usize,
    /// False: a request finds only blocks it computed itself (its siblings, its own after a preemption).
    pub prefix_cache: bool,
    /// Keys the content hash of the prefix cache. Random per process, so that nobody can aim at a bucket.
    pub cache_secret: u64,
}

/// Why a configuration can't work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("{name} must be at least 1")]
    Zero { name: &'static str },
    #[error("step_tokens_max is {tokens}, it must be at least sequences_max, {sequences}")]
    BudgetBelowSequences { tokens: usize, sequences: usize },
    #[error("{blocks} blocks of {block_size} tokens have more slots than 32 bits can number")]
    TooManySlots { blocks: usize, block_size: usize },
    #[error("flow_blocks_share_max is {percent}, it must be 1 to 100 (percent)")]
    FlowBlocksShare { percent: usize },
    #[error("context_max is {context_max}, it must be at least 2 and fit in 32 bits")]
    Context { context_max: usize },
}

impl EngineConfig {
    /// Checks what [`crate::Engine::new`] asserts.
    pub fn check(&self) -> Result<(), ConfigError> {
        let positive = [
            ("blocks", self.blocks),
            ("block_size", self.block_size),
            ("step_tokens_max", self.step_tokens_max),
            ("sequences_max", self.sequences_max),
            ("queue_requests_max", self.queue_requests_max),
            ("queue_tokens_max", self.queue_tokens_max),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { name });
        }
        if self.step_tokens_max < self.sequences_max {
            return Err(ConfigError::BudgetBelowSequences {
                tokens: self.step_tokens_max,
                sequences: self.sequences_max,
            });
        }
        if !(1..=100).contains(&self.flow_blocks_share_max) {
            return Err(ConfigError::FlowBlocksShare {
                percent: self.flow_blocks_share_max,
            });
        }
        let slots = self.blocks.checked_mul(self.block_size);
        if slots.is_none_or(|slots| u32::try_from(slots).is_err()) {
            return Err(ConfigError::TooManySlots {
                blocks: self.blocks,
                block_size: self.block_size,
            });
        }
        if self.context_max < 2 || u32::try_from(self.context_max).is_err() {
            return Err(ConfigError::Context {
                context_max: self.context_max,
            });
        }
        Ok(())
    }

    /// The most rows of logits one step asks for: what the memory plan must hold (times the vocabulary).
    pub fn logits_max(&self) -> usize {
        self.step_tokens_max.min(self.sequences_max + SCORED_PER_STEP)
    }

    /// Whether the queue has room for one more request of a flow other than 0, which has `own` of `all` that wait to
    /// start. What a flow may hold is what is left free (Choudhury and Hahne 1998, "Dynamic queue length thresholds"):
    /// alone it gets half, and there is always room for the next flow. A flow that holds nothing only needs the room.
    pub fn flow_queue_takes(&self, all: Queued, own: Queued, needed: usize) -> bool {
        let takes = |max: usize, all: usize, own: usize, needed: usize| {
            own == 0 || own + needed <= max.saturating_sub(all + needed)
        };
        takes(self.queue_requests_max, all.requests, own.requests, 1)
            && takes(self.queue_tokens_max, all.tokens, own.tokens, needed)
    }
}
