//! Qwen2 and Qwen2.5 (arXiv:2407.10671): Llama's block with biases on q, k and v.

use rempart_kernels::op::RopeStyle;

use crate::{
    ModelConfig, Result,
    decoder::Decoder,
    layers::{PreNormBlock, Rope},
    weights::Weights,
};

/// Loads the model.
pub(crate) fn load(config: &ModelConfig, weights: &Weights<'_>) -> Result<Decoder<PreNormBlock>> {
    let rope = Rope::new(
        &config.rope,
        config.head_dim,
        RopeStyle::Halves,
        None,
        weights.device(),
    )?;
    PreNormBlock::decoder(config, weights, &rope, None)
}
