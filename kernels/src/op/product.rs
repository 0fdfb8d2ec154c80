//! Products of activations and weight matrices, with what comes before and after them in a transformer.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::{elements, with_elements};
use crate::{
    Weight,
    cpu::{self, Factor, Finish, Norm, Product},
};

/// The function applied to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x / 2 * (1 + erf(x / sqrt(2)))` (arXiv:1606.08415).
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

/// A weight matrix and its bias.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    /// `[out, k]`
    pub weight: &'a Weight,
    /// `[out]`
    pub bias: Option<&'a Tensor>,
}

/// `x / sqrt(mean(x^2) + eps) * weight` over rows of `k`, before a product.
#[derive(Debug, Clone, Copy)]
pub struct InputNorm<'a> {
    /// `[k]`
    pub weight: &'a Tensor,
    pub eps: f32,
}

/// `x * weight^T + bias`: `x` `[n, k]`, `weight` `[out, k]`, `bias` `[out]`, the result `[n, out]`. With packed weights
/// `x` is rounded as these ask for ([`crate::Activations`]). A row's result is the same bits alone and in any batch.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    projections(x, None, &[Projection { weight, bias }])
}

/// The products of `x` `[n, k]`, normalised where asked for, with several matrices: `[n, sum of their outs]`, side by
/// side. Each part has the bits that [`linear`] of [`super::rms_norm`] makes.
pub fn projections(x: &Tensor, norm: Option<InputNorm<'_>>, parts: &[Projection<'_>]) -> Result<Tensor> {
    let op = Op {
        name: "linear",
        norm,
        parts,
        activation: None,
    };
    x.apply_op1_no_bwd(&op)
}

/// `activation(norm(x) * gate^T) * (norm(x) * up^T)`: the first two thirds of a gated MLP, `x` `[n, k]`, the result
/// `[n, out]`.
pub fn gated_projections(
    x: &Tensor,
    norm: Option<InputNorm<'_>>,
    [gate, up]: [Projection<'_>; 2],
    activation: Activation,
) -> Result<Tensor> {
    let op = Op {
        name: "gated",
        norm,
        parts: &[gate, up],
        activation: Some(activation),
    };
    x.apply_op1_no_bwd(&op)
}

/// `residual + x * weight^T`: `x` `[n, k]`, `residual` and the result `[n, out]`.
pub fn linear_add(x: &Tensor, weight: &Weight, residual: &Tensor) -> Result<Tensor> {
    let op = Op {
        name: "linear_add",
        norm: None,
        parts: &[Projection { weight, bias: None }],
        activation: None,
    };
    x.apply_op2_no_bwd(residual, &op)
}

struct Op<'a> {
    name: &'static str,
    norm: Option<InputNorm<'a>>,
    parts: &'a [Projection<'a>],
    activation: Option<Activation>,
}

impl CustomOp1 for Op<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let finish = self.activation.map_or(Finish::Concat, Finish::Gate);
        self.forward(elements(self.name, storage, layout)?, layout, finish)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.check(layout)?;
        let finish = crate::cuda::ops::Finish {
            gate: self.activation,
            addends: None,
        };
        crate::cuda::ops::product(self.name, (storage, layout), self.norm, self.parts, &finish)
    }
}

impl CustomOp2 for Op<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let residual = elements(self.name, s2, l2)?;
        self.check_residual(l1, l2)?;
        self.forward(elements(self.name, s1, l1)?, l1, Finish::Add(residual))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.check(l1)?;
        self.check_residual(l1, l2)?;
        let finish = crate::cuda::ops::Finish {
            gate: None,
            addends: Some((s2, l2)),
        };
        crate::cuda::ops::product(self.name, (s1, l1), self.norm, self.parts, &finish)
    }
}

impl Op<'_> {
    fn forward(&self, x: &[f32], layout: &Layout, finish: Finish<'_>) -> Result<(CpuStorage, Shape)> {
        let n = self.check(layout)?;
        if self.parts.iter().any(|part| !part.weight.on_cpu()) {
            bail!("{}: the input is on the CPU, the weight is not", self.name);
        }
        let tensors = self
            .norm
            .iter()
            .map(|norm| norm.weight)
            .chain(self.parts.iter().filter_map(|part| part.bias));
        with_elements(self.name, tensors, |slices| {
            let mut slices = slices.iter().copied();
            let mut next = || slices.next().expect("a slice for each tensor. This is a bug.");
            let norm = self.norm.map(|norm| Norm {
                weight: next(),
                eps: norm.eps,
            });
            let mut factors = Vec::with_capacity(self.parts.len());
            for part in self.parts {
                factors.push(Factor {
                    weight: part.weight,
                    bias: part.bias.map(|_| next()),
                });
            }
            let product = Product {
                x,
                n,
                norm,
                factors: &factors,
                finish,
            };
            let width = product.width();
            let Some(len) = n.checked_mul(width) else {
                bail!("{}: {n} rows of {width} results are too many", self.name)
            };
            // SAFETY: the kernels write every result of every matrix.
            let out = unsafe { cpu::filled(len, |out| cpu::best().product(&product, out)) };
            Ok((CpuStorage::F32(out), Shape::from((n, width))))
        })
    }

    fn check_residual(&self, x: &Layout, residual: &Layout) -> Result<()> {
        let rows: usize = self.parts.iter().map(|part| part.weight.rows()).sum();
        if residual.dims() != [x.dims().first().copied().unwrap_or(0), rows] {
            bail!(
                "{}: the input is {:?}, the residual {:?}, the weight has {rows} rows",
                self.name,
                x.shape(),
                residual.shape()
            );
        }
        Ok(())
    }

    /// The rows of the input.
    fn check(&self, layout: &Layout) -> Result<usize> {
        let name = self.name;
        let Some(first) = self.parts.first().map(|part| part.weight) else {
            bail!("{name}: there is no weight")
        };
        let k = first.cols();
        let &[n, width] = layout.dims() else {
            bail!("{name}: the input must be [n, {k}], it is {:?}", layout.shape())
        };
        if let Some(norm) = self.norm.filter(|norm| norm.weight.dims() != [width]) {
            bail!(
                "{name}: the input is {:?}, the norm's weight {:?}",
                layout.shape(),
                norm.weight.shape()
            );
        }
        for part in self.parts {
            let (rows, cols) = (part.weight.rows(), part.weight.cols());
            if cols != width {
                bail!(
                    "{name}: the input is {:?}, the weight [{rows}, {cols}]",
                    layout.shape()
                );
            }
            if let Some(bias) = part.bias.filter(|bias| bias.dims() != [rows]) {
                bail!(
                    "{name}: the weight has {rows} rows, the bias is {:?}",
                    bias.shape()
                );
            }
            if self.activation.is_some() && rows != first.rows() {
                bail!("{name}: the gate has {} rows, up {rows}", first.rows());
            }
        }
        let mut activations = self.parts.iter().filter_map(|part| part.weight.activations());
        if let Some(first) = activations.next()
            && activations.any(|other| other != first)
        {
            bail!("{name}: the weights ask for different activations");
        }
        Ok(n)
    }
}
