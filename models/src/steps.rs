//! A model and its cache, step by step. On a card, steps of decoding are recorded and replayed.

use candle_core::{Device, Tensor};
use rempart_kernels::{Graphs, Heads, StepArrays};

use crate::{ForwardInput, KvCache, Model, ModelConfig, Result};

/// Runs a model's steps over one cache.
pub struct Steps {
    model: Box<dyn Model>,
    kv: KvCache,
    graphs: Graphs,
}

impl Steps {
    /// Takes the model and the cache that its sequences share, both on `device`.
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
        }
    }

    /// As [`Model::forward`]. The next step may write the result again.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward(&mut self, input: &ForwardInput<'_>) -> Result<Tensor> {
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
