//! Qwen3, dense (arXiv:2505.09388): Llama's block with normalised query and key heads.

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
    PreNormBlock::decoder(config, weights, &rope, Some(0.0))
}
