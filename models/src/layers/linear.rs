//! Matrix products and the token embedding, on weights of whatever format.

use candle_core::Tensor;
use rempart_kernels::{Projection, Weight, op};

use crate::{Result, weights::Weights};

/// `y = x Wᵀ + b`.
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `weight` `[outputs, inputs]` and, if `bias`, `bias` `[outputs]`.
    pub(crate) fn load(weights: &Weights<'_>, outputs: usize, inputs: usize, bias: bool) -> Result<Self> {
        let weight = weights.weight(outputs, inputs)?.to_device(weights.device())?;
        let bias = if bias {
            weights.tensor("bias")?;
            weights.bias(outputs)?
        } else {
            None
        };
        let bias = bias
            .map(|bias| Tensor::from_vec(bias, outputs, weights.device()))
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

/// Rows of a matrix looked up by token id and scaled.
pub(crate) struct Embedding {
    weight: Weight,
    scale: f32,
}

impl Embedding {
    /// Loads `weight` `[vocab, hidden]`; each row is multiplied by `scale` when looked up.
    pub(crate) fn load(weights: &Weights<'_>, vocab: usize, hidden: usize, scale: f32) -> Result<Self> {
        Ok(Self {
            weight: weights.weight(vocab, hidden)?.to_device(weights.device())?,
            scale,
        })
    }

    /// `tokens` `[n]` to `[n, hidden]`.
    pub(crate) fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        Ok(op::embed(&self.weight, tokens, self.scale)?)
    }

    /// The weights, for a tied head.
    pub(crate) fn weight(&self) -> Weight {
        self.weight.clone()
    }
}
