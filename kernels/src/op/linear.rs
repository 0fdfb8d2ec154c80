//! The product of activations and a weight matrix.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::elements;
use crate::{Weight, cpu};

/// `x * weight^T + bias`: `x` `[n, k]`, `weight` `[out, k]`, `bias` `[out]`, the result `[n, out]`. With packed weights
/// `x` is rounded as these ask for ([`crate::Activations`]). A row's result is the same bits alone and in any batch.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    let op = Linear { weight };
    match bias {
        Some(bias) => x.apply_op2_no_bwd(bias, &op),
        None => x.apply_op1_no_bwd(&op),
    }
}

struct Linear<'a> {
    weight: &'a Weight,
}

impl CustomOp1 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(elements("linear", storage, layout)?, layout, None)
    }
}

impl CustomOp2 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = elements("linear", s2, l2)?;
        if l2.dims() != [self.weight.rows()] {
            bail!(
                "linear: the weight has {} rows, the bias is {:?}",
                self.weight.rows(),
                l2.shape()
            );
        }
        self.forward(elements("linear", s1, l1)?, l1, Some(bias))
    }
}

impl Linear<'_> {
    fn forward(&self, x: &[f32], layout: &Layout, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (rows, k) = (self.weight.rows(), self.weight.cols());
        let &[n, width] = layout.dims() else {
            bail!("linear: the input must be [n, {k}], it is {:?}", layout.shape())
        };
        if width != k {
            bail!(
                "linear: the input is {:?}, the weight [{rows}, {k}]",
                layout.shape()
            );
        }
        let Some(len) = n.checked_mul(rows) else {
            bail!("linear: {n} rows of {rows} results are too many")
        };
        let mut out = vec![0.0; len];
        match self.weight {
            Weight::Dense(weight) => cpu::best().linear(x, weight, bias, &mut out),
            Weight::Packed(weight) => cpu::best().linear_packed(x, weight, bias, &mut out),
        }
        Ok((CpuStorage::F32(out), Shape::from((n, rows))))
    }
}
