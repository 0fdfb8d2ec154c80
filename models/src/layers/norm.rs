//! Root mean square normalisation (arXiv:1910.07467).

use candle_core::Tensor;
use rempart_kernels::{InputNorm, op};

use crate::{Result, weights::Weights};

/// `x / sqrt(mean(x²) + eps) * weight`, over the last dimension.
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Loads `weight` `[size]`.
    pub(crate) fn load(weights: &Weights<'_>, size: usize, eps: f32) -> Result<Self> {
        Self::load_with_offset(weights, size, eps, 0.0)
    }

    /// Loads `weight` `[size]` and adds `offset` to each element (Gemma's files hold weight − 1).
    pub(crate) fn load_with_offset(
        weights: &Weights<'_>,
        size: usize,
        eps: f32,
        offset: f32,
    ) -> Result<Self> {
        let mut weight = weights.vector(size)?;
        for weight in &mut weight {
            *weight += offset;
        }
        Ok(Self {
            weight: Tensor::from_vec(weight, size, weights.device())?,
            eps,
        })
    }

    /// Same shape as `x` `[.., size]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(op::rms_norm(x, &self.weight, self.eps)?)
    }

    /// `residual` plus `x`, normalised, of one shape.
    pub(crate) fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(op::rms_norm_add(x, &self.weight, self.eps, residual)?)
    }

    /// The norm as the first step of a product.
    pub(crate) fn of_input(&self) -> InputNorm<'_> {
        InputNorm {
            weight: &self.weight,
            eps: self.eps,
        }
    }
}
