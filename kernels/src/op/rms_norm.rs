//! Root-mean-square normalisation.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::elements;
use crate::cpu;

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension: `x` `[.., d]`, `weight` `[d]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &RmsNorm { eps })
}

/// `residual + rms_norm(x)`, for tensors of one shape.
pub fn rms_norm_add(x: &Tensor, weight: &Tensor, eps: f32, residual: &Tensor) -> Result<Tensor> {
    x.apply_op3_no_bwd(weight, residual, &RmsNorm { eps })
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
        self.forward((s1, l1), (s2, l2), None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        check(l1, l2)?;
        crate::cuda::ops::rms_norm("rms_norm", (s1, l1), (s2, l2), None, self.eps)
    }
}

impl CustomOp3 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm_add"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        check_residual(l1, l3)?;
        self.forward((s1, l1), (s2, l2), Some(elements("rms_norm_add", s3, l3)?))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        check(l1, l2)?;
        check_residual(l1, l3)?;
        crate::cuda::ops::rms_norm("rms_norm_add", (s1, l1), (s2, l2), Some((s3, l3)), self.eps)
    }
}

fn check(x: &Layout, weight: &Layout) -> Result<()> {
    let Some(&d) = x.dims().last() else {
        bail!("rms_norm: the input has no dimension")
    };
    if weight.dims() != [d] {
        bail!(
            "rms_norm: the input is {:?}, the weight {:?}",
            x.shape(),
            weight.shape()
        );
    }
    Ok(())
}

fn check_residual(x: &Layout, residual: &Layout) -> Result<()> {
    if residual.shape() != x.shape() {
        bail!(
            "rms_norm_add: the input is {:?}, the residual {:?}",
            x.shape(),
            residual.shape()
        );
    }
    Ok(())
}

impl RmsNorm {
    fn forward(
        &self,
        (s1, l1): (&CpuStorage, &Layout),
        (s2, l2): (&CpuStorage, &Layout),
        residual: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (elements("rms_norm", s1, l1)?, elements("rms_norm", s2, l2)?);
        check(l1, l2)?;
        let norm = cpu::Norm {
            weight,
            eps: self.eps,
        };
        // SAFETY: the kernel writes each row, and the rows are all there is.
        let out = unsafe { cpu::filled(x.len(), |out| cpu::best().rms_norm(x, norm, residual, out)) };
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }
}
