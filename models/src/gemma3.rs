//! Gemma 3, text (arXiv:2503.19786): sliding layers between whole-context ones, norms on both sides of each part,
//! normalised query and key heads, embeddings scaled by the root of their width.

use candle_core::Tensor;
use rempart_kernels::op::{self, Activation, RopeStyle};

use crate::{
    ForwardInput, ModelConfig, Result,
    decoder::{Block, Decoder},
    layers::{Attention, AttentionOptions, GatedMlp, RmsNorm, Rope},
    weights::{Source, Weights},
};

/// A block with a norm before and after each part.
pub(crate) struct SandwichBlock {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    pre_mlp_norm: RmsNorm,
    mlp: GatedMlp,
    post_mlp_norm: RmsNorm,
}

/// Loads the model.
pub(crate) fn load(config: &ModelConfig, weights: &Weights<'_>) -> Result<Decoder<SandwichBlock>> {
    // Hugging Face's files hold weight − 1; GGUF's converter has added the one.
    let offset = match weights.source() {
        Source::Gguf => 0.0,
        Source::Safetensors => 1.0,
    };
    let rope = |rope| Rope::new(rope, config.head_dim, RopeStyle::Halves, None, weights.device());
    let global = rope(&config.rope)?;
    let local = rope(config.rope_local.as_ref().unwrap_or(&config.rope))?;
    Decoder::load(
        config,
        weights,
        (config.hidden_size as f32).sqrt(),
        offset,
        |weights, layer| {
            let window = config.windows[layer];
            let rope = if window.is_some() {
                local.clone()
            } else {
                global.clone()
            };
            let options = AttentionOptions {
                rope,
                window,
                qk_norm_offset: Some(offset),
            };
            SandwichBlock::load(config, weights, options, offset)
        },
    )
}

impl SandwichBlock {
    fn load(
        config: &ModelConfig,
        weights: &Weights<'_>,
        options: AttentionOptions,
        offset: f32,
    ) -> Result<Self> {
        let norm = |name: &str| {
            RmsNorm::load_with_offset(&weights.at(name), config.hidden_size, config.norm_eps, offset)
        };
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            attention: Attention::load(config, &weights.at("self_attn"), options)?,
            post_attention_norm: norm("post_attention_layernorm")?,
            pre_mlp_norm: norm("pre_feedforward_layernorm")?,
            mlp: GatedMlp::load(config, &weights.at("mlp"), Activation::GeluTanh)?,
            post_mlp_norm: norm("post_feedforward_layernorm")?,
        })
    }
}

impl Block for SandwichBlock {
    fn forward(&self, x: &Tensor, input: &ForwardInput<'_>, kv: &op::KvCache) -> Result<Tensor> {
        let attended = self.attention.forward(x, &self.input_norm, None, input, kv)?;
        let x = self.post_attention_norm.forward_onto(&attended, x)?;
        let fed = self.mlp.forward(&x, &self.pre_mlp_norm, None)?;
        self.post_mlp_norm.forward_onto(&fed, &x)
    }
}
