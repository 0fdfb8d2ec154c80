//! Encoders: a batch of texts' tokens in; embeddings, or scores of classes, out.
//!
//! Sequences of a batch lie behind one another without padding: products run over all tokens at once, and attention stays
//! within each sequence. What a sequence gets is the same bits alone and in any batch.
//!
//! A decoder can be trained to embed, too: it is the same decoder that generates, without its head.

mod causal;
mod config;
mod embedder;
mod embeddings;
mod head;
mod load;
mod modules;
mod pooling;

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use candle_core::{DType, Device, Tensor};
use rempart_kernels::pool;

pub(crate) use config::EncoderConfig;
pub use embedder::Embedder;
pub(crate) use embeddings::Embeddings;
pub use head::ScoreActivation;
pub use load::{EncoderOptions, load_encoder};
pub use pooling::Pooling;

use crate::{Error, Result, layers::LayerNorm};
use causal::{BLOCK, Causal};
use head::Head;
use pooling::Projection;

/// Tokens computed at once for each thread: what lies between two operations stays in the caches, and memory is bounded
/// whatever a batch holds. A longer sequence is computed alone; a decoder computes it in parts.
const TOKENS_PER_THREAD: usize = 256;
/// Fewer tokens are computed by all threads together: the weights would be read for too little.
const PART_TOKENS_MIN: usize = 64;
/// With as many, no thread waits long for the last one.
const PARTS_PER_THREAD: usize = 8;

/// Some sequences, flat.
#[derive(Clone, Copy, Debug, Default)]
pub struct EncoderBatch<'a> {
    /// Token ids of all sequences, those that the tokenizer puts around a text included, `[tokens]`.
    pub tokens: &'a [u32],
    /// Which part of a pair each token belongs to, `[tokens]`; empty where all are of the first.
    pub token_types: &'a [u32],
    /// Tokens of each sequence, each at least 1; they add up to `tokens`.
    pub lengths: &'a [usize],
}

/// One transformer block.
pub(crate) trait Layer: Send + Sync {
    /// `x` `[n, hidden]` to `[n, hidden]`; `positions` `[n]` are those within each sequence.
    fn forward(&self, x: &Tensor, batch: &EncoderBatch<'_>, positions: &[u32]) -> Result<Tensor>;
}

/// An encoder without a head.
pub(crate) struct Encoder {
    embeddings: Embeddings,
    layers: Vec<Box<dyn Layer>>,
    final_norm: Option<LayerNorm>,
}

/// What makes hidden states of tokens.
enum Network {
    /// A token attends to both sides.
    Bidirectional(Box<Encoder>),
    /// A token attends to what is before it. One batch at a time has the cache.
    Causal(Mutex<Causal>),
}

/// What a model gives for a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// A vector.
    Embed {
        /// How a sequence's hidden states become one.
        pooling: Pooling,
        /// Whether vectors have length 1.
        normalize: bool,
        /// Elements of a vector.
        dimensions: usize,
    },
    /// A score for each of some classes: of a pair's relevance, where there is one.
    Rank {
        /// Classes.
        labels: usize,
        /// What is applied to logits.
        activation: ScoreActivation,
    },
}

/// An encoder with its head, and what its files say of its use.
pub struct LoadedEncoder {
    /// What it gives.
    pub task: Task,
    /// Most tokens of a sequence, those around the text included.
    pub tokens_max: usize,
    /// Token ids lie below this.
    pub vocab_size: usize,
    network: Network,
    /// What the network has room for.
    network_tokens_max: usize,
    hidden_size: usize,
    head: Option<Head>,
    projection: Option<Projection>,
}

impl Encoder {
    pub(crate) fn new(
        embeddings: Embeddings,
        layers: Vec<Box<dyn Layer>>,
        final_norm: Option<LayerNorm>,
    ) -> Self {
        Self {
            embeddings,
            layers,
            final_norm,
        }
    }

    /// Hidden states `[tokens, hidden]` of a batch that was checked.
    fn forward(&self, batch: &EncoderBatch<'_>) -> Result<Tensor> {
        let positions: Vec<u32> = batch.lengths.iter().flat_map(|&len| 0..len as u32).collect();
        let mut x = self.embeddings.forward(batch, &positions)?;
        for layer in &self.layers {
            x = layer.forward(&x, batch, &positions)?;
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}

impl Network {
    /// Hidden states `[tokens, hidden]` of a batch that was checked.
    fn forward(&self, batch: &EncoderBatch<'_>) -> Result<Tensor> {
        match self {
            Self::Bidirectional(encoder) => encoder.forward(batch),
            Self::Causal(decoder) => lock(decoder).forward(batch),
        }
    }

    /// The vectors of a batch's sequences.
    fn pooled(&self, batch: &EncoderBatch<'_>, pooling: Pooling) -> Result<Vec<Vec<f32>>> {
        match self {
            // Of a long text, most hidden states need not be kept.
            Self::Causal(decoder) if pooling == Pooling::Last => pooling::pool(
                pooling,
                &lock(decoder).last(batch)?,
                &vec![1; batch.lengths.len()],
            ),
            network => pooling::pool(pooling, &network.forward(batch)?, batch.lengths),
        }
    }

    /// What a sequence takes of a part.
    fn places(&self, len: usize) -> usize {
        match self {
            Self::Bidirectional(_) => len,
            Self::Causal(_) => len.next_multiple_of(BLOCK),
        }
    }

    /// Most places of a part of `tokens`, and whether each thread computes parts of its own: that is faster, as none waits for
    /// others between two operations, where there are enough of them.
    fn part_places(&self, tokens: usize) -> (usize, bool) {
        match self {
            Self::Bidirectional(_) => {
                let share = tokens / (PARTS_PER_THREAD * pool::threads());
                if share < PART_TOKENS_MIN {
                    (TOKENS_PER_THREAD * pool::threads(), false)
                } else {
                    (share.min(TOKENS_PER_THREAD), true)
                }
            }
            Self::Causal(decoder) => (lock(decoder).step_tokens(), false),
        }
    }
}

fn lock(decoder: &Mutex<Causal>) -> MutexGuard<'_, Causal> {
    // What a batch that panicked left in the cache is written before it is read.
    decoder.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LoadedEncoder {
    /// The last layer's hidden states, `[tokens, hidden]`.
    ///
    /// # Errors
    /// When lengths do not add up, a sequence is empty or too long, or an id or a type lies outside its table.
    pub fn forward(&self, batch: &EncoderBatch<'_>) -> Result<Tensor> {
        let parts = self.each_part(batch, |part| Ok(vec![self.network.forward(part)?]))?;
        if parts.is_empty() {
            return Ok(Tensor::zeros((0, self.hidden_size), DType::F32, &Device::Cpu)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// A vector for each sequence, pooled, projected and normalised as the model's files say.
    ///
    /// # Errors
    /// As [`LoadedEncoder::forward`], and for a model that gives scores.
    pub fn embed(&self, batch: &EncoderBatch<'_>) -> Result<Vec<Vec<f32>>> {
        let Task::Embed {
            pooling, normalize, ..
        } = self.task
        else {
            return Err(Error::Input("the model gives scores, not embeddings".into()));
        };
        self.each_part(batch, |part| {
            let mut vectors = self.network.pooled(part, pooling)?;
            if let Some(projection) = &self.projection {
                vectors = projection.forward(&vectors)?;
            }
            if normalize {
                for vector in &mut vectors {
                    pooling::normalize(vector);
                }
            }
            Ok(vectors)
        })
    }

    /// Scores of all classes for each sequence, activated as the model's files say.
    ///
    /// # Errors
    /// As [`LoadedEncoder::forward`], and for a model that gives embeddings.
    pub fn score(&self, batch: &EncoderBatch<'_>) -> Result<Vec<Vec<f32>>> {
        let (Task::Rank { activation, .. }, Some(head)) = (self.task, &self.head) else {
            return Err(Error::Input("the model gives embeddings, not scores".into()));
        };
        self.each_part(batch, |part| {
            let hidden = self.network.forward(part)?;
            let mut scores = head.forward(&hidden, part.lengths)?;
            for scores in &mut scores {
                activation.apply(scores);
            }
            Ok(scores)
        })
    }

    /// Calls `work` with whole sequences of the batch, a part at a time or one on each thread.
    fn each_part<R: Send + Sync>(
        &self,
        batch: &EncoderBatch<'_>,
        work: impl Fn(&EncoderBatch<'_>) -> Result<Vec<R>> + Sync,
    ) -> Result<Vec<R>> {
        self.check(batch)?;
        let (places, side_by_side) = self.network.part_places(batch.tokens.len());
        let parts = self.parts(batch, places);
        let results: Vec<Vec<R>> = if side_by_side {
            let results: Vec<OnceLock<_>> = parts.iter().map(|_| OnceLock::new()).collect();
            pool::run(parts.len(), |i| {
                results[i].get_or_init(|| work(&parts[i]));
            });
            let computed = |part: OnceLock<_>| part.into_inner().expect("every part was computed");
            let results = results.into_iter().map(computed);
            results.collect::<Result<_>>()?
        } else {
            parts.iter().map(work).collect::<Result<_>>()?
        };
        Ok(results.into_iter().flatten().collect())
    }

    /// Cuts a batch between sequences, into parts of `places` unless one sequence has more.
    fn parts<'a>(&self, batch: &EncoderBatch<'a>, places: usize) -> Vec<EncoderBatch<'a>> {
        let mut parts = Vec::new();
        let (mut tokens, mut first, mut taken) = (0..0, 0, 0);
        for (i, &len) in batch.lengths.iter().enumerate() {
            let own = self.network.places(len);
            if taken + own > places && !tokens.is_empty() {
                parts.push(batch.part(tokens.clone(), first..i));
                (tokens, first, taken) = (tokens.end..tokens.end, i, 0);
            }
            tokens.end += len;
            taken += own;
        }
        if !tokens.is_empty() {
            parts.push(batch.part(tokens, first..batch.lengths.len()));
        }
        parts
    }

    fn check(&self, batch: &EncoderBatch<'_>) -> Result<()> {
        let refuse = |message: String| Err(Error::Input(message));
        let (tokens, types) = (batch.tokens.len(), batch.token_types.len());
        let total = batch
            .lengths
            .iter()
            .try_fold(0_usize, |sum, &len| sum.checked_add(len));
        if total != Some(tokens) {
            return refuse(format!("{tokens} tokens, and lengths that do not add up to them"));
        }
        if types != 0 && types != tokens {
            return refuse(format!("{tokens} tokens and {types} token types"));
        }
        let max = self.tokens_max.min(self.network_tokens_max);
        match batch.lengths.iter().position(|&len| len == 0 || len > max) {
            Some(i) => refuse(format!(
                "sequence {i} has {} tokens; it must be 1 to {max}",
                batch.lengths[i]
            )),
            None => Ok(()),
        }
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }
}

impl<'a> EncoderBatch<'a> {
    fn part(&self, tokens: Range<usize>, sequences: Range<usize>) -> Self {
        let token_types: &'a [u32] = if self.token_types.is_empty() {
            &[]
        } else {
            &self.token_types[tokens.clone()]
        };
        Self {
            tokens: &self.tokens[tokens],
            token_types,
            lengths: &self.lengths[sequences],
        }
    }
}
