//! `ModernBERT` (arXiv:2412.13663): norms before each part, rotations for positions, gated feed-forward parts, and windows in
//! two layers of three.

use candle_core::Tensor;
use rempart_kernels::{
    Precision,
    op::{self, Around, BidirectionalOptions, FeedForwardLayers, RopeStyle},
};

use crate::{
    Result,
    encoder::{Embeddings, Encoder, EncoderBatch, EncoderConfig, Layer},
    layers::{DenseLinear, LayerNorm, Rope, find_root},
    weights::Weights,
};

struct PreNormLayer {
    /// The first layer has none: the embeddings are normalised already.
    attention_norm: Option<LayerNorm>,
    qkv: DenseLinear,
    rope: Rope,
    attention: BidirectionalOptions,
    output: DenseLinear,
    mlp_norm: LayerNorm,
    up: DenseLinear,
    gate: DenseLinear,
    activation: op::Activation,
    down: DenseLinear,
}

/// Loads the model below whatever prefix the file has.
pub(crate) fn load(config: &EncoderConfig, weights: &Weights<'_>, precision: Precision) -> Result<Encoder> {
    let model = find_root(weights, "embeddings.tok_embeddings.weight")?;
    let layers = (0..config.layers)
        .map(|layer| -> Result<Box<dyn Layer>> {
            let place = model.at("layers").at(layer);
            Ok(Box::new(PreNormLayer::load(config, &place, layer, precision)?))
        })
        .collect::<Result<_>>()?;
    let modern = &config.modern;
    let norm = LayerNorm::load(
        &model.at("final_norm"),
        config.hidden_size,
        modern.norm_bias,
        config.norm_eps,
    )?;
    let embeddings = Embeddings::modern(config, &model.at("embeddings"))?;
    Ok(Encoder::new(embeddings, layers, Some(norm)))
}

impl PreNormLayer {
    fn load(
        config: &EncoderConfig,
        weights: &Weights<'_>,
        layer: usize,
        precision: Precision,
    ) -> Result<Self> {
        let (hidden, inner, modern) = (config.hidden_size, config.intermediate_size, &config.modern);
        let dense = |name: &str, shape, bias| DenseLinear::load(&[weights.at(name)], shape, bias, precision);
        let norm = |name: &str| LayerNorm::load(&weights.at(name), hidden, modern.norm_bias, config.norm_eps);
        let window = modern.windows[layer];
        let rope = if window.is_some() {
            &modern.rope_local
        } else {
            &modern.rope_global
        };
        let (mlp, bias) = (weights.at("mlp.Wi"), modern.mlp_bias);
        let [up, gate] = DenseLinear::load_halves(&mlp, (inner, hidden), bias, precision)?;
        Ok(Self {
            attention_norm: (layer > 0).then(|| norm("attn_norm")).transpose()?,
            qkv: dense("attn.Wqkv", (3 * hidden, hidden), modern.attention_bias)?,
            rope: Rope::new(rope, config.head_dim, RopeStyle::Halves, None, weights.device())?,
            attention: BidirectionalOptions {
                head_dim: config.head_dim,
                scale: (config.head_dim as f32).powf(-0.5),
                window,
                precision,
            },
            output: dense("attn.Wo", (hidden, hidden), modern.attention_bias)?,
            mlp_norm: norm("mlp_norm")?,
            up,
            gate,
            activation: config.activation,
            down: dense("mlp.Wo", (hidden, inner), bias)?,
        })
    }
}

/// A product of what a norm makes of its input.
fn before(norm: Option<&LayerNorm>) -> Around<'_> {
    Around {
        norm: norm.map(LayerNorm::of),
        ..Around::default()
    }
}

impl Layer for PreNormLayer {
    fn forward(&self, x: &Tensor, batch: &EncoderBatch<'_>, positions: &[u32]) -> Result<Tensor> {
        let qkv = self.qkv.forward(x, &before(self.attention_norm.as_ref()))?;
        let width = qkv.dims2()?.1 / 3;
        let part = |i: usize| qkv.narrow(1, i * width, width);
        let q = self.rope.forward(&part(0)?, positions)?;
        let k = self.rope.forward(&part(1)?, positions)?;
        let attended = op::bidirectional_attention(&q, &k, &part(2)?, batch.lengths, &self.attention)?;
        let residual = Around {
            residual: Some(x),
            ..Around::default()
        };
        let x = self.output.forward(&attended, &residual)?;
        let layers = FeedForwardLayers {
            up: self.up.layer(),
            gate: Some(self.gate.layer()),
            activation: self.activation,
            down: self.down.layer(),
        };
        let around = Around {
            residual: Some(&x),
            ..before(Some(&self.mlp_norm))
        };
        Ok(op::feed_forward(&x, &layers, &around)?)
    }
}
