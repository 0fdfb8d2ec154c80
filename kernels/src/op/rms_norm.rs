//! Root-mean-square normalisation.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::elements;
use crate::cpu;

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension: `x` `[.., d]`, `weight` `[d]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &RmsNorm { eps })
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (elements(self.name(), s1, l1)?, elements(self.name(), s2, l2)?);
        let d = l1.dims().last().copied().unwrap_or(0);
        if l2.dims() != [d] {
            bail!(
                "rms_norm: the input is {:?}, the weight {:?}",
                l1.shape(),
                l2.shape()
            );
        }
        let mut out = vec![0.0; x.len()];
        cpu::best().rms_norm(x, weight, self.eps, &mut out);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }
}
