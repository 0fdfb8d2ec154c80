//! The block of Llama and its descendants: normalise, attend, add; normalise, feed forward, add.

use candle_core::Tensor;
use rempart_kernels::op::{self, Activation};

use super::{Attention, AttentionOptions, GatedMlp, RmsNorm, Rope};
use crate::{
    ForwardInput, ModelConfig, Result,
    decoder::{Block, Decoder},
    weights::Weights,
};

/// A pre-norm transformer block.
pub(crate) struct PreNormBlock {
    input_norm: RmsNorm,
    attention: Attention,
    post_norm: RmsNorm,
    mlp: GatedMlp,
}

impl PreNormBlock {
    /// Loads a whole decoder of such blocks; each layer's window is the configuration's.
    pub(crate) fn decoder(
        config: &ModelConfig,
        weights: &Weights<'_>,
        rope: &Rope,
        qk_norm_offset: Option<f32>,
    ) -> Result<Decoder<Self>> {
        Decoder::load(config, weights, 1.0, 0.0, |weights, layer| {
            let window = config.windows[layer];
            Self::load(
                config,
                weights,
                AttentionOptions {
                    rope: rope.clone(),
                    window,
                    qk_norm_offset,
                },
            )
        })
    }

    fn load(config: &ModelConfig, weights: &Weights<'_>, options: AttentionOptions) -> Result<Self> {
        let norm = |name: &str| RmsNorm::load(&weights.at(name), config.hidden_size, config.norm_eps);
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            attention: Attention::load(config, &weights.at("self_attn"), options)?,
            post_norm: norm("post_attention_layernorm")?,
            mlp: GatedMlp::load(config, &weights.at("mlp"), Activation::Silu)?,
        })
    }
}

impl Block for PreNormBlock {
    fn forward(&self, x: &Tensor, input: &ForwardInput<'_>, kv: &op::KvCache) -> Result<Tensor> {
        let x = self.attention.forward(x, &self.input_norm, Some(x), input, kv)?;
        self.mlp.forward(&x, &self.post_norm, Some(&x))
    }
}
