//! Weights in, logits or embeddings out: checkpoint loaders, the layers models share, and one short file per architecture.
//!
//! A model is defined once; whether its weights come from GGUF or safetensors, and how they are quantised, is known
//! to [`weights`] and to the kernels alone.

mod bert;
mod config;
mod decoder;
mod encoder;
mod error;
mod gemma3;
mod kv_cache;
mod largest;
mod layers;
mod llama;
mod load;
mod modernbert;
pub mod parallel;
mod plan;
mod qwen2;
mod qwen3;
pub mod speed;
mod steps;
pub mod weights;

pub use config::{Architecture, ModelConfig, RopeConfig, RopeScaling};
pub use encoder::{
    Embedder, EncoderBatch, EncoderOptions, LoadedEncoder, Pooling, ScoreActivation, Task, load_encoder,
};
pub use error::{Error, Result};
pub use kv_cache::KvCache;
pub use largest::LargestSteps;
pub use load::{LoadOptions, ModelFiles, TextSource};
pub use plan::{CONTEXT_AUTO_MIN, MemoryPlan, PlanRequest};
pub use rempart_kernels::{KvDtype, Precision, op::AttentionRow};
pub use steps::Steps;

use candle_core::Tensor;

/// One step's work as a model reads it: a ragged batch, flat.
#[derive(Clone, Copy, Debug)]
pub struct ForwardInput<'a> {
    /// Token ids of all rows, `[tokens]`.
    pub tokens: &'a [u32],
    /// Position of each token in its sequence, `[tokens]`.
    pub positions: &'a [u32],
    /// Cache slot each token's keys and values are written to, `[tokens]`; slot = block × block size + offset.
    pub slots: &'a [u32],
    /// The sequences of the batch: which tokens are theirs and where their context lies.
    pub rows: &'a [AttentionRow],
    /// Indices into `tokens` whose logits are wanted.
    pub logits: &'a [u32],
}

impl ForwardInput<'_> {
    /// Whether the logits of every token are wanted, in order.
    pub(crate) fn wants_all(&self) -> bool {
        self.logits.iter().copied().eq(0..self.tokens.len() as u32)
    }
}

/// A generative model: token ids in, logits out.
pub trait Model: Send {
    /// Computes the batch, writing keys and values to `kv`, and returns f32 logits `[input.logits.len(), vocab]`.
    ///
    /// # Errors
    /// When an id, a slot or a block lies outside its table. The cache may then hold part of the batch.
    fn forward(&self, input: &ForwardInput<'_>, kv: &KvCache) -> Result<Tensor>;
}
