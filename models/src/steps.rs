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
    on_card: bool,
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
            on_card: !device.is_cpu(),
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

    /// Whether a step's result is still computed when [`Steps::forward`] returns it. Ranks wait for each other within a step.
    pub fn is_asynchronous(&self) -> bool {
        self.on_card && self.ranks.is_none()
    }

    /// As [`Model::forward`]. The next step may write the result again.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward(&mut self, input: &ForwardInput<'_>) -> Result<Tensor> {
        if let Some(ranks) = &self.ranks {
            debug_assert!(ranks.shard().leads(), "only the first rank gives steps");
            ranks.give(input)?;
            // What ranks exchange is not recorded.
            return self.model.forward(input, &self.kv);
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
