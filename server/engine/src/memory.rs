//! What becomes of a step that its device had no memory for.
//!
//! Keys and values have their memory from the start; what a step takes beside them grows with its tokens. So a step that found
//! none is halved, and no client is told (docs/adr/0003): the same tokens are computed in smaller steps, and those who don't fit
//! any more go back to the queue. After a while steps may be larger again, as whoever took the memory may have given it back.

use crate::batch::Batch;
use crate::config::EngineConfig;
use crate::scheduler::Scheduler;

/// Steps that must succeed before they may be twice as large; twice as many each time that the larger ones found no memory.
const STEPS_BEFORE_MORE: usize = 16;
/// The most that it can become: a minute or so.
const STEPS_BEFORE_MORE_MAX: usize = 4096;

/// How large steps may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSize {
    /// What the configuration allows: tokens and sequences.
    tokens_max: usize,
    sequences_max: usize,
    /// Tokens of the largest step that has succeeded since one of as many or fewer found no memory.
    worked_tokens: usize,
    /// Steps that succeeded since the limit was set.
    succeeded_steps: usize,
    /// Steps that must succeed before it is raised.
    steps_before_more: usize,
}

impl StepSize {
    pub(crate) fn of(config: &EngineConfig) -> Self {
        Self {
            tokens_max: config.step_tokens_max,
            sequences_max: config.sequences_max,
            worked_tokens: 0,
            succeeded_steps: 0,
            steps_before_more: STEPS_BEFORE_MORE,
        }
    }
}

impl Scheduler {
    /// Has the tokens of a step that found no memory computed again, in steps of half its size, or of what has worked. False if it was of
    /// one token: then there is none to be had.
    pub(crate) fn shrink(&mut self, batch: &Batch) -> bool {
        let (tokens, limited) = (batch.tokens.len(), self.is_limited());
        if tokens == 1 {
            return false;
        }
        for row in &batch.rows {
            let sequence = self.sequence_mut(row.seq);
            let told = sequence.tokens.len() - sequence.drafted;
            sequence.tokens.truncate(told);
            let (flow, charged) = (sequence.flow(), row.tokens.len() - sequence.drafted);
            sequence.drafted = 0;
            self.flows.refund(flow, charged);
        }
        let size = &mut self.step_size;
        if size.worked_tokens >= tokens {
            // There is less memory than there was.
            size.worked_tokens = 0;
        } else if limited && size.worked_tokens > 0 {
            size.steps_before_more = (2 * size.steps_before_more).min(STEPS_BEFORE_MORE_MAX);
        }
        let tokens_max = size.worked_tokens.max(tokens / 2);
        self.limit_steps(tokens_max);
        while self.running.len() > self.config.sequences_max {
            self.preempt(self.victim());
        }
        self.report.out_of_memory = true;
        true
    }

    /// Notes a step of so many tokens that succeeded, and lets steps be twice as large after enough of them.
    pub(crate) fn regrow(&mut self, tokens: usize) {
        let limited = self.is_limited();
        let size = &mut self.step_size;
        size.worked_tokens = size.worked_tokens.max(tokens);
        if !limited {
            size.steps_before_more = STEPS_BEFORE_MORE;
            return;
        }
        size.succeeded_steps += 1;
        if size.succeeded_steps >= size.steps_before_more {
            self.limit_steps(self.config.step_tokens_max.saturating_mul(2));
        }
    }

    fn is_limited(&self) -> bool {
        self.config.step_tokens_max < self.step_size.tokens_max
    }

    /// Every running sequence must find a token in a step, so that there are no more of them than tokens.
    fn limit_steps(&mut self, tokens_max: usize) {
        let size = &mut self.step_size;
        size.succeeded_steps = 0;
        self.config.step_tokens_max = tokens_max.min(size.tokens_max);
        self.config.sequences_max = tokens_max.min(size.sequences_max);
    }
}
