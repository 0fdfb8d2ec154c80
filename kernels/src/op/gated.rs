//! The gated activation between the two halves of an MLP.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::elements;
use crate::cpu;

/// The function applied to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// `activation(gate) * up`, elementwise over two tensors of the same shape.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    gate.apply_op2_no_bwd(up, &Gated { activation })
}

struct Gated {
    activation: Activation,
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (elements(self.name(), s1, l1)?, elements(self.name(), s2, l2)?);
        if l1.shape() != l2.shape() {
            bail!("gated: the gate is {:?}, up is {:?}", l1.shape(), l2.shape());
        }
        let mut out = vec![0.0; gate.len()];
        cpu::best().gated(self.activation, gate, up, &mut out);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }
}
