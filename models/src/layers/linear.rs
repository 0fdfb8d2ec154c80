//! Matrix products and the token embedding, on weights of whatever format.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;
use rempart_kernels::{Projection, Weight, op};

use crate::{
    Error, Result,
    parallel::Collective,
    weights::{Part, Weights},
};

/// `y = x Wᵀ + b`.
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads the outputs `part` of `weight` `[outputs, inputs]` and, if `bias`, of `bias` `[outputs]`: a rank's, or all.
    pub(crate) fn load(
        weights: &Weights<'_>,
        [outputs, inputs]: [usize; 2],
        part: Range<usize>,
        bias: bool,
    ) -> Result<Self> {
        let (of, len) = (part.clone(), part.len());
        let weight = weights.weight([outputs, inputs], Part::Outputs(part))?;
        let weight = weight.to_device(weights.device())?;
        let bias = if bias {
            weights.tensor("bias")?;
            weights.bias(outputs)?
        } else {
            None
        };
        let bias = bias
            .map(|bias| Tensor::from_slice(&bias[of], len, weights.device()))
            .transpose()?;
        Ok(Self { weight, bias })
    }

    /// A product with a matrix that is already loaded: the head that is the embedding.
    pub(crate) fn from_weight(weight: Weight) -> Self {
        Self { weight, bias: None }
    }

    /// `x` `[n, inputs]` to `[n, outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(op::linear(x, &self.weight, self.bias.as_ref())?)
    }

    /// `x` `[n, inputs]` times the weight plus `residual` `[n, outputs]`, or without it where there is none. The layer has
    /// no bias.
    pub(crate) fn forward_onto(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        match residual {
            Some(residual) => Ok(op::linear_add(x, &self.weight, residual)?),
            None => self.forward(x),
        }
    }

    /// `[outputs]`
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(crate) fn outputs(&self) -> usize {
        self.weight.rows()
    }

    /// The layer as a part of a product of several.
    pub(crate) fn projection(&self) -> Projection<'_> {
        Projection {
            weight: &self.weight,
            bias: self.bias.as_ref(),
        }
    }
}

/// A product whose inputs are spread over the ranks, as the outputs of those before it are: each multiplies its own, and
/// the results are added up.
pub(crate) struct RowParallel {
    linear: Linear,
    collective: Arc<dyn Collective>,
}

impl RowParallel {
    /// Loads the inputs `part` of `weight` `[outputs, inputs]`.
    pub(crate) fn load(
        weights: &Weights<'_>,
        [outputs, inputs]: [usize; 2],
        part: Range<usize>,
    ) -> Result<Self> {
        let weight = weights.weight([outputs, inputs], Part::Inputs(part))?;
        Ok(Self {
            linear: Linear::from_weight(weight.to_device(weights.device())?),
            collective: Arc::clone(weights.collective()),
        })
    }

    /// All ranks' `x` `[n, part of inputs]` times the weight plus `residual` `[n, outputs]`, which all have, or without it
    /// where there is none.
    pub(crate) fn forward_onto(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        // What is to be added once comes from one rank, for whom it costs nothing.
        let residual = residual.filter(|_| self.collective.shard().leads());
        let sum = self.linear.forward_onto(x, residual)?;
        self.collective.all_reduce(&sum)?;
        Ok(sum)
    }
}

/// Rows of a matrix looked up by token id and scaled. Each rank has some of them.
pub(crate) struct Embedding {
    weight: Weight,
    scale: f32,
    vocab: usize,
    rows: Range<usize>,
    collective: Arc<dyn Collective>,
}

impl Embedding {
    /// Loads the rank's part of `weight` `[vocab, hidden]`; each row is multiplied by `scale` when looked up.
    pub(crate) fn load(weights: &Weights<'_>, vocab: usize, hidden: usize, scale: f32) -> Result<Self> {
        let rows = weights.shard().rows("vocab_size", vocab)?;
        let weight = weights.weight([vocab, hidden], Part::Outputs(rows.clone()))?;
        Ok(Self {
            weight: weight.to_device(weights.device())?,
            scale,
            vocab,
            rows,
            collective: Arc::clone(weights.collective()),
        })
    }

    /// `tokens` `[n]` to `[n, hidden]`.
    pub(crate) fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        if self.collective.shard().is_whole() {
            return Ok(op::embed(&self.weight, tokens, self.scale)?);
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.vocab) {
            let message = format!("token {token} is not below the vocabulary's {}", self.vocab);
            return Err(Error::Input(message));
        }
        // Of another rank's tokens nothing is added to what that rank knows.
        let own = |token: &u32| self.rows.contains(&(*token as usize));
        let mask: Vec<f32> = tokens.iter().map(|token| f32::from(own(token))).collect();
        let first = self.rows.start as u32;
        let local: Vec<u32> = tokens
            .iter()
            .map(|token| if own(token) { token - first } else { 0 })
            .collect();
        let x = op::embed(&self.weight, &local, self.scale)?;
        let mask = Tensor::from_vec(mask, (tokens.len(), 1), x.device())?;
        let x = x.broadcast_mul(&mask)?;
        self.collective.all_reduce(&x)?;
        Ok(x)
    }

    /// The rank's weights, for a tied head.
    pub(crate) fn weight(&self) -> Weight {
        self.weight.clone()
    }
}
