//! The gated feed-forward part (GLU variants, arXiv:2002.05202).

use candle_core::Tensor;
use rempart_kernels::op::{self, Activation};

use super::{Linear, RmsNorm};
use crate::{ModelConfig, Result, weights::Weights};

/// `down(activation(gate(x)) * up(x))`.
pub(crate) struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl GatedMlp {
    /// Loads `gate_proj`, `up_proj` and `down_proj`.
    pub(crate) fn load(config: &ModelConfig, weights: &Weights<'_>, activation: Activation) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate: Linear::load(&weights.at("gate_proj"), inner, hidden, false)?,
            up: Linear::load(&weights.at("up_proj"), inner, hidden, false)?,
            down: Linear::load(&weights.at("down_proj"), hidden, inner, false)?,
            activation,
        })
    }

    /// Of `x` `[n, hidden]`, normalised; onto `residual` `[n, hidden]` where there is one.
    pub(crate) fn forward(&self, x: &Tensor, norm: &RmsNorm, residual: Option<&Tensor>) -> Result<Tensor> {
        let parts = [self.gate.projection(), self.up.projection()];
        let gated = op::gated_projections(x, Some(norm.of_input()), parts, self.activation)?;
        self.down.forward_onto(&gated, residual)
    }
}
