//! Llama 2 and 3.x (arXiv:2302.13971, arXiv:2407.21783), SmolLM2, and Mistral (arXiv:2310.06825) with its window.

use rempart_kernels::op::RopeStyle;

use crate::{
    ModelConfig, Result,
    decoder::Decoder,
    layers::{PreNormBlock, Rope},
    weights::{Source, Weights},
};

/// Loads the model.
pub(crate) fn load(config: &ModelConfig, weights: &Weights<'_>) -> Result<Decoder<PreNormBlock>> {
    // GGUF's converter reorders q and k of this family so that rotated pairs lie side by side.
    let style = match weights.source() {
        Source::Gguf => RopeStyle::Interleaved,
        Source::Safetensors => RopeStyle::Halves,
    };
    let divisors = weights.at("rope_freqs").optional_vector(config.head_dim / 2)?;
    let rope = Rope::new(
        &config.rope,
        config.head_dim,
        style,
        divisors.as_deref(),
        weights.device(),
    )?;
    PreNormBlock::decoder(config, weights, &rope, None)
}
