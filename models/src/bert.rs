//! BERT (arXiv:1810.04805), `RoBERTa` (arXiv:1907.11692) and XLM-R (arXiv:1911.02116): a norm behind each part.

use candle_core::Tensor;
use rempart_kernels::{
    Precision,
    op::{self, Around, BidirectionalOptions, FeedForwardLayers},
};

use crate::{
    Result,
    encoder::{Embeddings, Encoder, EncoderBatch, EncoderConfig, Layer},
    layers::{DenseLinear, LayerNorm, find_root},
    weights::Weights,
};

/// A block that normalises what it has added.
struct PostNormLayer {
    qkv: DenseLinear,
    attention: BidirectionalOptions,
    output: DenseLinear,
    attention_norm: LayerNorm,
    up: DenseLinear,
    activation: op::Activation,
    down: DenseLinear,
    norm: LayerNorm,
}

/// Loads the model below whatever prefix the file has.
pub(crate) fn load(config: &EncoderConfig, weights: &Weights<'_>, precision: Precision) -> Result<Encoder> {
    let model = find_root(weights, "embeddings.word_embeddings.weight")?;
    let layers = (0..config.layers)
        .map(|layer| -> Result<Box<dyn Layer>> {
            let place = model.at("encoder.layer").at(layer);
            Ok(Box::new(PostNormLayer::load(config, &place, precision)?))
        })
        .collect::<Result<_>>()?;
    Ok(Encoder::new(
        Embeddings::bert(config, &model.at("embeddings"))?,
        layers,
        None,
    ))
}

impl PostNormLayer {
    fn load(config: &EncoderConfig, weights: &Weights<'_>, precision: Precision) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let dense = |name: &str, shape| DenseLinear::load(&[weights.at(name)], shape, true, precision);
        let norm = |name: &str| LayerNorm::load(&weights.at(name), hidden, true, config.norm_eps);
        let projections = ["query", "key", "value"].map(|name| weights.at("attention.self").at(name));
        Ok(Self {
            qkv: DenseLinear::load(&projections, (hidden, hidden), true, precision)?,
            attention: BidirectionalOptions {
                head_dim: config.head_dim,
                scale: (config.head_dim as f32).powf(-0.5),
                window: None,
                precision,
            },
            output: dense("attention.output.dense", (hidden, hidden))?,
            attention_norm: norm("attention.output.LayerNorm")?,
            up: dense("intermediate.dense", (inner, hidden))?,
            activation: config.activation,
            down: dense("output.dense", (hidden, inner))?,
            norm: norm("output.LayerNorm")?,
        })
    }
}

impl Layer for PostNormLayer {
    fn forward(&self, x: &Tensor, batch: &EncoderBatch<'_>, _: &[u32]) -> Result<Tensor> {
        let qkv = self.qkv.forward(x, &Around::default())?;
        let width = qkv.dims2()?.1 / 3;
        let part = |i: usize| qkv.narrow(1, i * width, width);
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let attended = op::bidirectional_attention(&q, &k, &v, batch.lengths, &self.attention)?;
        let added = |x, norm: &LayerNorm, work: &dyn Fn(&Around<'_>) -> Result<Tensor>| {
            work(&Around {
                norm: None,
                residual: Some(x),
                post_norm: Some(norm.of()),
            })
        };
        let x = added(x, &self.attention_norm, &|around| {
            self.output.forward(&attended, around)
        })?;
        let layers = FeedForwardLayers {
            up: self.up.layer(),
            gate: None,
            activation: self.activation,
            down: self.down.layer(),
        };
        added(&x, &self.norm, &|around| {
            Ok(op::feed_forward(&x, &layers, around)?)
        })
    }
}
