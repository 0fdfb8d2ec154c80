//! The gated feed-forward part (GLU variants, arXiv:2002.05202).

use candle_core::Tensor;
use rempart_kernels::op::{self, Activation};

use super::{Linear, RmsNorm, RowParallel};
use crate::{ModelConfig, Result, weights::Weights};

/// `down(activation(gate(x)) * up(x))`.
pub(crate) struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: RowParallel,
    activation: Activation,
}

impl GatedMlp {
    /// Loads `gate_proj`, `up_proj` and `down_proj`: of what lies between them the rank's part, in whole blocks of the last.
    pub(crate) fn load(config: &ModelConfig, weights: &Weights<'_>, activation: Activation) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let down = weights.at("down_proj");
        let part = || {
            weights
                .shard()
                .columns(&down.to_string(), inner, down.block_len())
        };
        Ok(Self {
            gate: Linear::load(&weights.at("gate_proj"), [inner, hidden], part()?, false)?,
            up: Linear::load(&weights.at("up_proj"), [inner, hidden], part()?, false)?,
            down: RowParallel::load(&down, [hidden, inner], part()?)?,
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
