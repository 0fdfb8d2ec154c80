//! What every decoder has around its blocks: embedding, final norm, output head on the rows that are sampled.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rempart_kernels::{Weight, op};

use crate::{
    ForwardInput, KvCache, Model, ModelConfig, Result,
    layers::{Embedding, Linear, RmsNorm},
    parallel::Collective,
    weights::Weights,
};

/// One transformer block.
pub(crate) trait Block: Send {
    /// `x` `[n, hidden]` to `[n, hidden]`; writes the batch's keys and values to `kv`.
    fn forward(&self, x: &Tensor, input: &ForwardInput<'_>, kv: &op::KvCache) -> Result<Tensor>;
}

/// A decoder without its head, whatever its blocks are: what one that generates and one that embeds have in common.
pub(crate) trait Body: Send {
    /// Computes the batch, writing keys and values to `kv`, and returns the hidden states behind the final norm of the tokens
    /// that `input.logits` names, f32 `[input.logits.len(), hidden]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    fn hidden(&self, input: &ForwardInput<'_>, kv: &KvCache) -> Result<Tensor>;

    /// The embedding's weights `[vocab, hidden]`, for a head that is tied to them.
    fn embedding(&self) -> Weight;
}

/// A decoder-only transformer, up to its final norm.
pub(crate) struct Decoder<B> {
    embedding: Embedding,
    blocks: Vec<B>,
    norm: RmsNorm,
    hidden: usize,
}

impl<B: Block> Decoder<B> {
    /// Loads `model.embed_tokens`, the blocks by `block(weights, layer)` and `model.norm`.
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &Weights<'_>,
        embedding_scale: f32,
        norm_offset: f32,
        block: impl Fn(&Weights<'_>, usize) -> Result<B>,
    ) -> Result<Self> {
        // A model that was saved without a head has no name for what is beside it.
        let model = if weights.contains("embed_tokens.weight") {
            weights.clone()
        } else {
            weights.at("model")
        };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = Embedding::load(&model.at("embed_tokens"), vocab, hidden, embedding_scale)?;
        let blocks = (0..config.layers)
            .map(|layer| block(&model.at("layers").at(layer), layer))
            .collect::<Result<_>>()?;
        let norm = RmsNorm::load_with_offset(&model.at("norm"), hidden, config.norm_eps, norm_offset)?;
        Ok(Self {
            embedding,
            blocks,
            norm,
            hidden,
        })
    }
}

impl<B: Block> Body for Decoder<B> {
    fn hidden(&self, input: &ForwardInput<'_>, kv: &KvCache) -> Result<Tensor> {
        let mut x = self.embedding.forward(input.tokens)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, input, kv.layer(layer))?;
        }
        if input.logits.is_empty() {
            return Ok(Tensor::zeros((0, self.hidden), DType::F32, &Device::Cpu)?);
        }
        if !input.wants_all() {
            let wanted = Tensor::from_slice(input.logits, input.logits.len(), x.device())?;
            x = x.index_select(&wanted, 0)?;
        }
        self.norm.forward(&x)
    }

    fn embedding(&self) -> Weight {
        self.embedding.weight()
    }
}

/// A decoder with the head that makes logits of hidden states.
pub(crate) struct Generator {
    body: Box<dyn Body>,
    /// The rank's rows of it.
    head: Linear,
    vocab: usize,
    collective: Arc<dyn Collective>,
}

impl Generator {
    /// Loads `lm_head`, unless it is the embedding.
    pub(crate) fn load(body: Box<dyn Body>, config: &ModelConfig, weights: &Weights<'_>) -> Result<Self> {
        let vocab = config.vocab_size;
        let head = if config.tied_head {
            Linear::from_weight(body.embedding())
        } else {
            let part = weights.shard().rows("vocab_size", vocab)?;
            Linear::load(&weights.at("lm_head"), [vocab, config.hidden_size], part, false)?
        };
        Ok(Self {
            body,
            head,
            vocab,
            collective: Arc::clone(weights.collective()),
        })
    }

    fn logits(&self, input: &ForwardInput<'_>, kv: &KvCache) -> Result<Tensor> {
        // The head dominates small models: only the rows that are sampled pass through it.
        let hidden = self.body.hidden(input, kv)?;
        if input.logits.is_empty() {
            return Ok(Tensor::zeros((0, self.vocab), DType::F32, &Device::Cpu)?);
        }
        self.collective
            .all_gather(self.head.forward(&hidden)?, self.vocab)
    }
}

impl Model for Generator {
    fn forward(&self, input: &ForwardInput<'_>, kv: &KvCache) -> Result<Tensor> {
        let logits = self.logits(input, kv);
        if let Err(error) = &logits {
            // The other ranks wait for what will not come.
            self.collective.stop(&error.to_string());
        }
        logits
    }
}
