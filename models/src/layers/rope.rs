//! Rotary position embedding as attention applies it.

use candle_core::{Device, Tensor};
use rempart_kernels::op::{self, RopeOptions, RopeStyle};

use super::RmsNorm;
use crate::{ForwardInput, Result, RopeConfig};

/// Frequencies and the pairing of a head's dimensions.
#[derive(Clone)]
pub(crate) struct Rope {
    inv_freq: Tensor,
    style: RopeStyle,
}

impl Rope {
    /// `divisors` `[head_dim / 2]`, where a file brings them (GGUF's `rope_freqs.weight`), replace the configured scaling.
    pub(crate) fn new(
        config: &RopeConfig,
        head_dim: usize,
        style: RopeStyle,
        divisors: Option<&[f32]>,
        device: &Device,
    ) -> Result<Self> {
        let inv_freq: Vec<f32> = match divisors {
            Some(divisors) => {
                let plain = RopeConfig {
                    theta: config.theta,
                    scaling: crate::RopeScaling::None,
                };
                plain
                    .inv_freq(head_dim)
                    .iter()
                    .zip(divisors)
                    .map(|(freq, divisor)| freq / divisor)
                    .collect()
            }
            None => config.inv_freq(head_dim),
        };
        let pairs = inv_freq.len();
        let inv_freq = Tensor::from_vec(inv_freq, pairs, device)?;
        Ok(Self { inv_freq, style })
    }

    /// The dimension that is rotated with dimension `i` of a head of `head_dim`.
    pub(crate) fn partner(&self, i: usize, head_dim: usize) -> usize {
        match self.style {
            RopeStyle::Halves => (i + head_dim / 2) % head_dim,
            RopeStyle::Interleaved => i ^ 1,
        }
    }

    /// Rotates the heads of `x` `[n, heads * head_dim]` by `positions` `[n]`.
    pub(crate) fn forward(&self, x: &Tensor, positions: &[u32]) -> Result<Tensor> {
        Ok(op::rope(x, &self.options((None, None)), positions)?)
    }

    /// Rotates `q` `[n, heads * head_dim]`, which it gives, and `k`, which it stores with `v`, both `[n, kv_heads * head_dim]`, at the
    /// slots of `input`: queries and keys normalised before, and multiplied behind by as many factors as they are wide, if asked for.
    pub(crate) fn forward_and_store(
        &self,
        qkv: [&Tensor; 3],
        multiplied: [(Option<&RmsNorm>, Option<&Tensor>); 2],
        input: &ForwardInput<'_>,
        kv: &op::KvCache,
    ) -> Result<Tensor> {
        let [q, k] = multiplied.map(|by| self.options(by));
        let (positions, slots) = (input.positions, input.slots);
        Ok(op::rope_and_write_kv(kv, qkv, [&q, &k], positions, slots)?)
    }

    fn options<'a>(&'a self, (norm, factors): (Option<&'a RmsNorm>, Option<&'a Tensor>)) -> RopeOptions<'a> {
        RopeOptions {
            inv_freq: &self.inv_freq,
            attention_factor: 1.0,
            style: self.style,
            norm: norm.map(RmsNorm::of_input),
            factors,
        }
    }
}
