//! An encoder's products, with what stands before and after them.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::elements;
use crate::{
    Precision,
    cpu::{self, DenseFinish, DenseLayer, FeedForwardLayers, Inputs, LayerNorm, Output},
};

/// `norm(x) * weight^T + bias`, plus `residual`, normalised by `post_norm`, each where there is one: `x` `[n, k]`, the
/// residual and the result `[n, out]`. A row's result is the same bits alone and in any batch.
pub fn dense(x: &Tensor, layer: DenseLayer<'_>, around: &Around<'_>) -> Result<Tensor> {
    apply(x, around, "dense", &Layers::One(layer))
}

/// As [`dense`] with `down(activation(up) * gate)` in place of one product; the gate where there is one.
pub fn feed_forward(x: &Tensor, layers: &FeedForwardLayers<'_>, around: &Around<'_>) -> Result<Tensor> {
    apply(x, around, "feed_forward", &Layers::Two(layers))
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension: `x` `[.., d]`.
pub fn layer_norm(x: &Tensor, norm: LayerNorm<'_>) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Norm { norm })
}

/// What stands around a product.
#[derive(Debug, Clone, Copy, Default)]
pub struct Around<'a> {
    /// Normalises the input.
    pub norm: Option<LayerNorm<'a>>,
    /// Is added to the result.
    pub residual: Option<&'a Tensor>,
    /// Normalises the sum.
    pub post_norm: Option<LayerNorm<'a>>,
}

enum Layers<'a> {
    One(DenseLayer<'a>),
    Two(&'a FeedForwardLayers<'a>),
}

impl Layers<'_> {
    /// Inputs, outputs and precision of the whole, if its parts agree.
    fn shape(&self) -> Option<(usize, usize, Precision)> {
        let fits = |layer: &DenseLayer<'_>| layer.bias.is_empty() || layer.bias.len() == layer.weight.rows();
        match self {
            Self::One(layer) => {
                let weight = layer.weight;
                fits(layer).then(|| (weight.cols(), weight.rows(), weight.precision()))
            }
            Self::Two(layers) => {
                let (up, down) = (layers.up.weight, layers.down.weight);
                let like_up = |gate: &DenseLayer<'_>| {
                    fits(gate)
                        && (gate.weight.rows(), gate.weight.cols()) == (up.rows(), up.cols())
                        && gate.weight.precision() == up.precision()
                };
                let agree = fits(&layers.up)
                    && fits(&layers.down)
                    && layers.gate.as_ref().is_none_or(like_up)
                    && down.cols() == up.rows()
                    && down.precision() == up.precision();
                agree.then(|| (up.cols(), down.rows(), up.precision()))
            }
        }
    }
}

struct Op<'a> {
    name: &'static str,
    layers: &'a Layers<'a>,
    norm: Option<LayerNorm<'a>>,
    post_norm: Option<LayerNorm<'a>>,
}

fn apply(x: &Tensor, around: &Around<'_>, name: &'static str, layers: &Layers<'_>) -> Result<Tensor> {
    let op = Op {
        name,
        layers,
        norm: around.norm,
        post_norm: around.post_norm,
    };
    match around.residual {
        Some(residual) => x.apply_op2_no_bwd(residual, &op),
        None => x.apply_op1_no_bwd(&op),
    }
}

impl CustomOp1 for Op<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((storage, layout), None)
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
        self.forward((s1, l1), Some(elements(self.name, s2, l2)?))
    }
}

impl Op<'_> {
    fn forward(
        &self,
        (storage, layout): (&CpuStorage, &Layout),
        residual: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name;
        let Some((width, out_width, precision)) = self.layers.shape() else {
            bail!("{name}: the layers' matrices and biases disagree")
        };
        let x = elements(name, storage, layout)?;
        let &[n, given] = layout.dims() else {
            bail!(
                "{name}: the input must be [n, {width}], it is {:?}",
                layout.shape()
            )
        };
        let Some(len) = n.checked_mul(out_width).filter(|_| given == width) else {
            bail!(
                "{name}: the input is {:?}, the weight [{out_width}, {width}]",
                layout.shape()
            )
        };
        if let Some(residual) = residual.filter(|residual| residual.len() != len) {
            bail!("{name}: {} elements are added to {len}", residual.len());
        }
        check_norm(name, self.norm, width)?;
        check_norm(name, self.post_norm, out_width)?;
        let inputs = Inputs {
            x,
            n,
            width,
            norm: self.norm,
            precision,
        };
        let finish = DenseFinish {
            residual,
            norm: self.post_norm,
        };
        let fill = |out: &Output<'_>| match self.layers {
            Layers::One(layer) => cpu::best().dense(&inputs, *layer, &finish, out),
            Layers::Two(layers) => cpu::best().feed_forward(&inputs, layers, &finish, out),
        };
        // SAFETY: the kernels write every result of every panel before they normalise a row.
        let out = unsafe { cpu::filled(len, fill) };
        Ok((CpuStorage::F32(out), Shape::from((n, out_width))))
    }
}

fn check_norm(name: &str, norm: Option<LayerNorm<'_>>, width: usize) -> Result<()> {
    match norm {
        Some(LayerNorm { weight, bias, .. })
            if weight.len() != width || !(bias.is_empty() || bias.len() == width) =>
        {
            bail!(
                "{name}: rows of {width}, a norm of {} and {}",
                weight.len(),
                bias.len()
            )
        }
        _ => Ok(()),
    }
}

struct Norm<'a> {
    norm: LayerNorm<'a>,
}

impl CustomOp1 for Norm<'_> {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(0);
        check_norm(self.name(), Some(self.norm), width)?;
        let mut out = elements(self.name(), storage, layout)?.to_vec();
        cpu::best().layer_norm(self.norm, &Output::new(&mut out));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}
