//! Steps of decoding that a card runs as a whole, kept by their shape.

use candle_core::{Device, Result, Tensor};

use crate::op::AttentionRow;

/// Shape of attention's heads and of its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Of queries.
    pub heads: usize,
    /// Of keys and values.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub d: usize,
    /// Positions of a block of the cache.
    pub block_size: usize,
}

/// What changes between steps of decoding: a row for each sequence, of one token.
#[derive(Debug, Clone, Copy)]
pub struct StepArrays<'a> {
    /// `[n]`
    pub tokens: &'a [u32],
    /// `[n]`
    pub positions: &'a [u32],
    /// `[n]`
    pub slots: &'a [u32],
    /// `n` of them.
    pub rows: &'a [AttentionRow],
}

/// Recorded steps of one model. Without CUDA there are none.
pub struct Graphs {
    #[cfg(feature = "cuda")]
    known: recorded::Known,
    /// Whether there is anything to record.
    on_card: bool,
}

impl Graphs {
    /// Of a model on `device`, whose logits are `[n, vocab]`.
    pub fn new(device: &Device, heads: Heads, vocab: usize) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = (heads, vocab);
        Self {
            #[cfg(feature = "cuda")]
            known: recorded::Known::new(device, heads, vocab),
            on_card: device.is_cuda(),
        }
    }

    /// Logits of a step that is recorded, or that is recorded now as it comes for the second time; `None` where it must run
    /// kernel by kernel. `step` computes it from these very arrays. The next call may write the result again.
    pub fn run(&mut self, arrays: &StepArrays<'_>, step: impl FnOnce() -> Result<Tensor>) -> Option<Tensor> {
        let n = arrays.tokens.len();
        let decodes = arrays.rows.len() == n && arrays.rows.iter().all(|row| row.tokens.len() == 1);
        if !self.on_card || !decodes || n == 0 || n > RECORDED_SEQUENCES_MAX {
            return None;
        }
        #[cfg(feature = "cuda")]
        return self.known.run(arrays, step);
        #[cfg(not(feature = "cuda"))]
        {
            let _ = step;
            None
        }
    }
}

/// Sequences of a step up to which a card records it: starting kernels one by one then takes longer than they do.
pub const RECORDED_SEQUENCES_MAX: usize = 32;

#[cfg(feature = "cuda")]
mod recorded {
    use std::collections::HashMap;

    use candle_core::{Device, Error, Result, Tensor};

    use super::{Heads, StepArrays};
    use crate::cuda::{StepGraph, graph_splits};

    /// Steps known at once: each recorded one has memory of its own on the card, for logits above all. One more takes the place
    /// of the one that is longest unused.
    const STEPS_MAX: usize = 48;

    /// Steps by their sequences and the splits of their longest context.
    pub(super) struct Known {
        device: Device,
        heads: Heads,
        vocab: usize,
        steps: HashMap<(usize, usize), (Step, u64)>,
        /// Steps so far.
        now: u64,
    }

    enum Step {
        /// It has run once, kernel by kernel.
        Seen,
        Recorded(Box<StepGraph>),
        /// It cannot be recorded.
        Refused,
    }

    impl Step {
        /// What failed is not tried again, unless it found no memory, which may be another time.
        fn after(error: &Error) -> Self {
            if crate::is_out_of_memory(error) {
                Self::Seen
            } else {
                Self::Refused
            }
        }
    }

    impl Known {
        pub(super) fn new(device: &Device, heads: Heads, vocab: usize) -> Self {
            Self {
                device: device.clone(),
                heads,
                vocab,
                steps: HashMap::new(),
                now: 0,
            }
        }

        pub(super) fn run(
            &mut self,
            arrays: &StepArrays<'_>,
            step: impl FnOnce() -> Result<Tensor>,
        ) -> Option<Tensor> {
            let key = (arrays.tokens.len(), graph_splits(arrays.rows));
            self.now += 1;
            let Some((known, used)) = self.steps.get_mut(&key) else {
                self.make_room();
                self.steps.insert(key, (Step::Seen, self.now));
                return None;
            };
            *used = self.now;
            if matches!(known, Step::Seen) {
                let recorded = StepGraph::record(&self.device, self.heads, arrays, self.vocab, step);
                *known = recorded.map_or_else(
                    |error| Step::after(&error),
                    |graph| Step::Recorded(Box::new(graph)),
                );
            }
            let Step::Recorded(graph) = known else {
                return None;
            };
            let logits = graph.run(arrays);
            // Kernel by kernel it may still work, and if not, that says why.
            logits.map_err(|error| *known = Step::after(&error)).ok()
        }

        fn make_room(&mut self) {
            if self.steps.len() < STEPS_MAX {
                return;
            }
            let oldest = self.steps.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.steps.remove(&key);
            }
        }
    }
}
