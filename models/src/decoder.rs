//! What every decoder has around its blocks: embedding, final norm, output head on the rows that are sampled.

use candle_core::{DType, Device, Tensor};
use rempart_kernels::op;

use crate::{
    ForwardInput, KvCache, Model, ModelConfig, Result,
    layers::{Embedding, Linear, RmsNorm},
    weights::Weights,
};

/// One transformer block.
pub(crate) trait Block: Send {
    /// `x` `[n, hidden]` to `[n, hidden]`; writes the batch's keys and values to `kv`.
    fn forward(&self, x: &Tensor, input: &ForwardInput<'_>, kv: &op::KvCache) -> Result<Tensor>;
}

/// A decoder-only transformer.
pub(crate) struct Decoder<B> {
    embedding: Embedding,
    blocks: Vec<B>,
    norm: RmsNorm,
    head: Linear,
}

impl<B: Block> Decoder<B> {
    /// Loads `model.embed_tokens`, the blocks by `block(weights, layer)`, `model.norm` and the head.
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &Weights<'_>,
        embedding_scale: f32,
        norm_offset: f32,
        block: impl Fn(&Weights<'_>, usize) -> Result<B>,
    ) -> Result<Self> {
        let model = weights.at("model");
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = Embedding::load(&model.at("embed_tokens"), vocab, hidden, embedding_scale)?;
        let blocks = (0..config.layers)
            .map(|layer| block(&model.at("layers").at(layer), layer))
            .collect::<Result<_>>()?;
        let norm = RmsNorm::load_with_offset(&model.at("norm"), hidden, config.norm_eps, norm_offset)?;
        let head = if config.tied_head {
            Linear::from_weight(embedding.weight())
        } else {
            Linear::load(&weights.at("lm_head"), vocab, hidden, false)?
        };
        Ok(Self {
            embedding,
            blocks,
            norm,
            head,
        })
    }
}

impl<B: Block> Model for Decoder<B> {
    fn forward(&self, input: &ForwardInput<'_>, kv: &KvCache) -> Result<Tensor> {
        let mut x = self.embedding.forward(input.tokens)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, input, kv.layer(layer))?;
        }
        if input.logits.is_empty() {
            return Ok(Tensor::zeros((0, self.head.outputs()), DType::F32, &Device::Cpu)?);
        }
        // The head dominates small models: only the rows that are sampled pass through it.
        if !input.wants_all() {
            let wanted = Tensor::from_slice(input.logits, input.logits.len(), x.device())?;
            x = x.index_select(&wanted, 0)?;
        }
        let x = self.norm.forward(&x)?;
        self.head.forward(&x)
    }
}
