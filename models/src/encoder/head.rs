//! Hidden states to logits of classes, as each family does it.

use candle_core::Tensor;
use rempart_kernels::{
    Activation, Precision,
    op::{self, Around},
};

use super::{
    config::{EncoderConfig, Family},
    pooling::{Pooling, pool, stacked},
};
use crate::{
    Error, Result,
    layers::{DenseLinear, LayerNorm, find_root},
    weights::Weights,
};

/// What is applied to a classifier's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreActivation {
    /// Nothing.
    Identity,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `exp(x)` divided by its sum over the classes.
    Softmax,
}

impl ScoreActivation {
    /// By the name of its Python class, or what sentence-transformers takes where a file names none.
    pub(super) fn of(name: Option<&str>, labels: usize) -> Result<Self> {
        let Some(name) = name else {
            return Ok(if labels == 1 {
                Self::Sigmoid
            } else {
                Self::Identity
            });
        };
        match name {
            "torch.nn.modules.linear.Identity" | "torch.nn.Identity" => Ok(Self::Identity),
            "torch.nn.modules.activation.Sigmoid" | "torch.nn.Sigmoid" => Ok(Self::Sigmoid),
            "torch.nn.modules.activation.Softmax" | "torch.nn.Softmax" => Ok(Self::Softmax),
            other => {
                let other: String = other.chars().take(64).collect();
                Err(Error::config(
                    "config.json",
                    format!("activation_fn '{other}' is not supported"),
                ))
            }
        }
    }

    pub(super) fn apply(self, scores: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Sigmoid => {
                for x in scores {
                    *x = 1.0 / (1.0 + (-*x).exp());
                }
            }
            Self::Softmax => {
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                for x in scores.iter_mut() {
                    *x = (*x - max).exp();
                }
                let sum: f32 = scores.iter().sum();
                for x in scores {
                    *x /= sum;
                }
            }
        }
    }
}

/// `classifier(norm(activation(dense(pooled))))`, the norm where there is one. Its weights are never rounded: they are few.
pub(super) struct Head {
    pooling: Pooling,
    dense: DenseLinear,
    /// None is tanh.
    activation: Option<Activation>,
    norm: Option<LayerNorm>,
    classifier: DenseLinear,
}

impl Head {
    pub(super) fn load(config: &EncoderConfig, labels: usize, weights: &Weights<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let layer = |place: Weights<'_>, outputs: usize, bias: bool| {
            DenseLinear::load(&[place], (outputs, hidden), bias, Precision::F32)
        };
        Ok(match config.family {
            Family::Bert => Self {
                pooling: Pooling::Cls,
                dense: layer(
                    find_root(weights, "pooler.dense.weight")?.at("pooler.dense"),
                    hidden,
                    true,
                )?,
                activation: None,
                norm: None,
                classifier: layer(weights.at("classifier"), labels, true)?,
            },
            Family::Roberta => Self {
                pooling: Pooling::Cls,
                dense: layer(weights.at("classifier.dense"), hidden, true)?,
                activation: None,
                norm: None,
                classifier: layer(weights.at("classifier.out_proj"), labels, true)?,
            },
            Family::ModernBert => {
                let (modern, head) = (&config.modern, weights.at("head"));
                Self {
                    pooling: if modern.classifier_mean {
                        Pooling::Mean
                    } else {
                        Pooling::Cls
                    },
                    dense: layer(head.at("dense"), hidden, modern.classifier_bias)?,
                    activation: Some(modern.classifier_activation),
                    norm: Some(LayerNorm::load(
                        &head.at("norm"),
                        hidden,
                        modern.norm_bias,
                        config.norm_eps,
                    )?),
                    classifier: layer(weights.at("classifier"), labels, true)?,
                }
            }
        })
    }

    /// `hidden` `[tokens, width]` to the logits of each sequence.
    pub(super) fn forward(&self, hidden: &Tensor, lengths: &[usize]) -> Result<Vec<Vec<f32>>> {
        let pooled = stacked(&pool(self.pooling, hidden, lengths)?)?;
        let x = self.dense.forward(&pooled, &Around::default())?;
        match self.activation {
            Some(activation) => op::activate(&x, activation)?,
            None => op::edit(&x, |x| x.iter_mut().for_each(|x| *x = x.tanh()))?,
        }
        let around = Around {
            norm: self.norm.as_ref().map(LayerNorm::of),
            ..Around::default()
        };
        Ok(self.classifier.forward(&x, &around)?.to_vec2()?)
    }
}
