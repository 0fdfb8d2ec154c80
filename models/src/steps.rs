//! A model and its cache, step by step. On a card, steps of decoding are recorded and replayed.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rempart_kernels::{Graphs, Heads, StepArrays};

use crate::parallel::{Collective as _, Processes};
use crate::{ForwardInput, KvCache, Model, ModelConfig, Result};

/// Runs a model's steps over one cache.
pub struct Steps {
    model: Box<dyn Model>,
    kv: KvCache,
    graphs: Graphs,
    /// With which other ranks the model is shared, if with any.
    ranks: Option<Arc<Processes>>,
}

impl Steps {
    /// Takes the model and the cache that its sequences share, both on `device`; `config` is that of a whole model, or of the
    /// rank's part of one ([`ModelConfig::part`]).
    pub fn new(model: Box<dyn Model>, kv: KvCache, config: &ModelConfig, device: &Device) -> Self {
        let heads = Heads {
            heads: config.heads,
            kv_heads: config.kv_heads,
            d: config.head_dim,
            block_size: kv.block_size(),
        };
        Self {
            graphs: Graphs::new(device, heads, config.vocab_size),
            model,
            kv,
            ranks: None,
        }
    }

    /// The same as one of several ranks: the first gives its steps to the others, which [`Steps::follow`] it.
    #[must_use]
    pub fn with_ranks(self, ranks: Arc<Processes>) -> Self {
        let ranks = Some(ranks);
        Self { ranks, ..self }
    }

    /// Computes the steps that the first rank gives, until that is gone.
    ///
    /// # Errors
    /// A step failed, here or elsewhere.
    pub fn follow(&mut self) -> Result<()> {
        let Some(ranks) = self.ranks.clone() else {
            return Ok(());
        };
        while let Some(step) = ranks.take()? {
            self.model.forward(&step.forward_input(), &self.kv)?;
        }
        Ok(())
    }

    /// As [`Model::forward`]. The next step may write the result again.
    ///
    /// # Errors
    /// As [`Model::forward`]; where ranks share the model, no further step is computed then.
    pub fn forward(&mut self, input: &ForwardInput<'_>) -> Result<Tensor> {
        if let Some(ranks) = &self.ranks {
            debug_assert!(ranks.shard().leads(), "only the first rank gives steps");
            ranks.give(input)?;
            // What ranks exchange is not recorded. The others are in the middle of a step that fails here: they could tell no part of
            // the next from the rest of this.
            return self
                .model
                .forward(input, &self.kv)
                .inspect_err(|error| ranks.stop(&error.to_string()));
        }
        let arrays = StepArrays {
            tokens: input.tokens,
            positions: input.positions,
            slots: input.slots,
            rows: input.rows,
        };
        if input.wants_all() {
            let (model, kv) = (&self.model, &self.kv);
            let step = || model.forward(input, kv).map_err(candle_core::Error::wrap);
            if let Some(logits) = self.graphs.run(&arrays, step) {
                return Ok(logits);
            }
        }
        self.model.forward(input, &self.kv)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::tests::tiny;
    use crate::parallel::{Collective, Shard};
    use crate::{Error, KvDtype};

    const LONG: Duration = Duration::from_mins(1);
    const BLOCK_SIZE: usize = 16;

    /// Fails after its ranks have added up `sums` times.
    struct Failing {
        ranks: Arc<Processes>,
        sums: usize,
    }

    impl Model for Failing {
        fn forward(&self, _: &ForwardInput<'_>, _: &KvCache) -> Result<Tensor> {
            let x = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu)?;
            for _ in 0..self.sums {
                self.ranks.all_reduce(&x)?;
            }
            Err(Error::from(candle_core::Error::Msg("no memory".to_owned())))
        }
    }

    #[test]
    fn a_step_that_fails_at_the_first_rank_ends_the_others_in_theirs() {
        let (first, other) = UnixStream::pair().unwrap();
        let first = Arc::new(Processes::first(vec![first], LONG).unwrap());
        let other = Arc::new(Processes::other(Shard::new(1, 2).unwrap(), other, LONG).unwrap());
        let steps = |ranks: &Arc<Processes>, sums| {
            let ranks = Arc::clone(ranks);
            let kv = KvCache::new(&tiny(), 1, BLOCK_SIZE, KvDtype::F32, &Device::Cpu).unwrap();
            let model = Box::new(Failing {
                ranks: Arc::clone(&ranks),
                sums,
            });
            Steps::new(model, kv, &tiny(), &Device::Cpu).with_ranks(ranks)
        };
        let (mut leading, mut following) = (steps(&first, 1), steps(&other, 2));
        let began = Instant::now();
        let input = ForwardInput {
            tokens: &[],
            positions: &[],
            slots: &[],
            rows: &[],
            logits: &[],
        };
        let (own, told) = thread::scope(|scope| {
            let followed = scope.spawn(move || following.follow().unwrap_err().to_string());
            let own = leading.forward(&input).unwrap_err().to_string();
            (own, followed.join().unwrap())
        });
        assert!(own.contains("no memory"), "{own}");
        assert!(
            told.contains("rank 0 failed") && told.contains("no memory"),
            "{told}"
        );
        assert!(first.is_stopped() && began.elapsed() < LONG / 2);
    }
}
