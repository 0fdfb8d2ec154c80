//! The layers of encoders: dense products with biases, and layer normalisation.

use candle_core::Tensor;
use rempart_kernels::{
    Dense, Precision,
    op::{self, Around, DenseLayer},
};

use crate::{Error, Result, weights::Weights};

/// `y = x Wᵀ + b`, for many rows at a time.
pub(crate) struct DenseLinear {
    weight: Dense,
    bias: Vec<f32>,
}

impl DenseLinear {
    /// Loads `weight` `[outputs, inputs]` and, if `bias`, `bias` `[outputs]`, of each of some places; their outputs come one
    /// behind the other.
    pub(crate) fn load(
        parts: &[Weights<'_>],
        (outputs, inputs): (usize, usize),
        bias: bool,
        precision: Precision,
    ) -> Result<Self> {
        let matrices = parts
            .iter()
            .map(|part| Ok(part.linear(outputs, inputs)?))
            .collect::<Result<Vec<_>>>()?;
        let weight = Dense::pack(&matrices.iter().collect::<Vec<_>>(), precision);
        let mut all = Vec::new();
        for part in parts.iter().filter(|_| bias) {
            part.tensor("bias")?;
            all.extend(part.bias(outputs)?.unwrap_or_default());
        }
        Ok(Self { weight, bias: all })
    }

    /// Splits `weight` `[2 * outputs, inputs]` and its bias into the first and the second half of their outputs.
    pub(crate) fn load_halves(
        weights: &Weights<'_>,
        (outputs, inputs): (usize, usize),
        bias: bool,
        precision: Precision,
    ) -> Result<[Self; 2]> {
        let both = weights.linear(2 * outputs, inputs)?;
        let mut first = Vec::new();
        if bias {
            weights.tensor("bias")?;
            first = weights.bias(2 * outputs)?.unwrap_or_default();
        }
        let second = first.split_off(first.len() / 2);
        let half = |start: usize, bias| {
            let rows: Vec<u32> = (start..start + outputs).map(|row| row as u32).collect();
            Self {
                weight: Dense::pack(&[&both.select_rows(&rows)], precision),
                bias,
            }
        };
        Ok([half(0, first), half(outputs, second)])
    }

    /// `x` `[n, inputs]` to `[n, outputs]`, with what stands around it.
    pub(crate) fn forward(&self, x: &Tensor, around: &Around<'_>) -> Result<Tensor> {
        Ok(op::dense(x, self.layer(), around)?)
    }

    pub(crate) fn layer(&self) -> DenseLayer<'_> {
        DenseLayer {
            weight: &self.weight,
            bias: &self.bias,
        }
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias`, over the last dimension.
pub(crate) struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    /// Loads `weight` `[size]` and, if `bias`, `bias` `[size]`; older files call them `gamma` and `beta`.
    pub(crate) fn load(weights: &Weights<'_>, size: usize, bias: bool, eps: f32) -> Result<Self> {
        let read = |names: [&str; 2]| -> Result<Vec<f32>> {
            let name = names
                .into_iter()
                .find(|name| weights.contains(name))
                .unwrap_or(names[0]);
            Ok(weights.numbers_of(name, size)?)
        };
        Ok(Self {
            weight: read(["weight", "gamma"])?,
            bias: if bias { read(["bias", "beta"])? } else { Vec::new() },
            eps,
        })
    }

    /// Same shape as `x` `[.., size]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(op::layer_norm(x, self.of())?)
    }

    /// The norm as a part of a product.
    pub(crate) fn of(&self) -> op::LayerNorm<'_> {
        op::LayerNorm {
            weight: &self.weight,
            bias: &self.bias,
            eps: self.eps,
        }
    }
}

/// The one place in the tensors' names below which `suffix` is: checkpoints put different names before a model's own.
pub(crate) fn find_root<'a>(weights: &Weights<'a>, suffix: &str) -> Result<Weights<'a>> {
    let mut roots = weights.checkpoint().tensors().filter_map(|(name, _)| {
        let root = name.strip_suffix(suffix)?;
        (root.is_empty() || root.ends_with('.')).then(|| root.trim_end_matches('.'))
    });
    let path = || weights.checkpoint().path().display().to_string();
    match (roots.next(), roots.next()) {
        (Some(""), None) => Ok(weights.clone()),
        (Some(root), None) => Ok(weights.at(root)),
        (None, _) => Err(Error::config(
            path(),
            format!("no tensor's name ends with {suffix}"),
        )),
        (Some(_), Some(_)) => Err(Error::config(
            path(),
            format!("several tensors' names end with {suffix}"),
        )),
    }
}
