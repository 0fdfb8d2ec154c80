//! Tokens to vectors: the sum of a token's row, its position's and its type's, normalised.

use candle_core::Tensor;
use rempart_kernels::op;

use super::{EncoderBatch, config::EncoderConfig};
use crate::{
    Error, Result,
    layers::{Embedding, LayerNorm},
    weights::Weights,
};

pub(crate) struct Embeddings {
    tokens: Embedding,
    /// `[positions, hidden]` and the first token's row, where positions have rows.
    positions: Option<(Vec<f32>, usize)>,
    /// `[token types, hidden]`; empty where there are none.
    types: Vec<f32>,
    norm: LayerNorm,
    hidden: usize,
}

impl Embeddings {
    /// BERT's: `word_embeddings`, `position_embeddings`, `token_type_embeddings` and `LayerNorm`.
    pub(crate) fn bert(config: &EncoderConfig, weights: &Weights<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let table = |name: &str, rows: usize| -> Result<Vec<f32>> {
            Ok(weights.at(name).linear(rows, hidden)?.dequantize())
        };
        let types = match config.token_types {
            0 => Vec::new(),
            types => table("token_type_embeddings", types)?,
        };
        Ok(Self {
            tokens: Embedding::load(&weights.at("word_embeddings"), config.vocab_size, hidden, 1.0)?,
            positions: Some((
                table("position_embeddings", config.positions)?,
                config.first_position,
            )),
            types,
            norm: LayerNorm::load(&weights.at("LayerNorm"), hidden, true, config.norm_eps)?,
            hidden,
        })
    }

    /// `ModernBERT`'s: `tok_embeddings` and `norm`; positions are rotations.
    pub(crate) fn modern(config: &EncoderConfig, weights: &Weights<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        Ok(Self {
            tokens: Embedding::load(&weights.at("tok_embeddings"), config.vocab_size, hidden, 1.0)?,
            positions: None,
            types: Vec::new(),
            norm: LayerNorm::load(
                &weights.at("norm"),
                hidden,
                config.modern.norm_bias,
                config.norm_eps,
            )?,
            hidden,
        })
    }

    /// `[tokens, hidden]`. The batch's lengths have been checked.
    pub(crate) fn forward(&self, batch: &EncoderBatch<'_>, positions: &[u32]) -> Result<Tensor> {
        let hidden = self.hidden;
        let types = self.types.len() / hidden;
        // A tokenizer may tell parts of a pair apart for a model that does not.
        let unknown = |kind: &&u32| types > 0 && **kind as usize >= types;
        if let Some(kind) = batch.token_types.iter().find(unknown) {
            return Err(Error::Input(format!("token type {kind}; the model has {types}")));
        }
        let x = self.tokens.forward(batch.tokens)?;
        if self.positions.is_some() || !self.types.is_empty() {
            op::edit(&x, |x| {
                for (i, row) in x.chunks_exact_mut(hidden).enumerate() {
                    if let Some((table, first)) = &self.positions {
                        add(row, &table[(first + positions[i] as usize) * hidden..]);
                    }
                    if !self.types.is_empty() {
                        let kind = batch.token_types.get(i).copied().unwrap_or(0) as usize;
                        add(row, &self.types[kind * hidden..]);
                    }
                }
            })?;
        }
        self.norm.forward(&x)
    }
}

fn add(row: &mut [f32], other: &[f32]) {
    for (x, other) in row.iter_mut().zip(other) {
        *x += other;
    }
}
