//! Large key biases moved to the queries, so that keys are of one magnitude where they are cached.
//!
//! A key's bias can be a hundred times what the input adds (Qwen2), in a few dimensions of a head: 8 bits that must hold
//! those have none left for the others. Products of queries and keys stay what they are where a dimension's keys are
//! divided and its queries multiplied by one number, and so does rotation where the two dimensions of a pair share that
//! number (arXiv:2405.04532, section 4.2, with measured magnitudes). Powers of two lose no bit.

use super::Rope;

/// What rotated queries and keys are multiplied by.
pub(crate) struct Balance {
    /// `[heads * head_dim]`
    pub(crate) q: Vec<f32>,
    /// `[kv_heads * head_dim]`
    pub(crate) k: Vec<f32>,
}

impl Balance {
    /// For keys with `bias` `[kv_heads * head_dim]`, each of whose heads `group` query heads read.
    pub(crate) fn new(bias: &[f32], group: usize, head_dim: usize, rope: &Rope) -> Self {
        let (mut q, mut k) = (Vec::new(), Vec::new());
        for bias in bias.chunks_exact(head_dim) {
            let factors = factors(bias, rope);
            k.extend(factors.iter().map(|factor| 1.0 / factor));
            for _ in 0..group {
                q.extend(&factors);
            }
        }
        Self { q, k }
    }
}

/// For each dimension of a head the power of two next to the magnitude of its pair's bias, beside the mean magnitude, which
/// stands for what the input adds.
fn factors(bias: &[f32], rope: &Rope) -> Vec<f32> {
    let pair = |i: usize| bias[i].hypot(bias[rope.partner(i, bias.len())]);
    let mean = (0..bias.len()).map(pair).sum::<f32>() / bias.len() as f32;
    let factor = |i: usize| (1.0 + pair(i) / mean).log2().round().exp2();
    // Without any bias, or with one that is no number, there is nothing to balance.
    let balances = mean.is_normal();
    (0..bias.len())
        .map(|i| if balances { factor(i) } else { 1.0 })
        .collect()
}

#[cfg(test)]
mod tests {
    use rempart_kernels::op::RopeStyle;

    use super::*;
    use crate::{RopeConfig, RopeScaling};

    fn rope(style: RopeStyle, head_dim: usize) -> Rope {
        let config = RopeConfig {
            theta: 10_000.0,
            scaling: RopeScaling::None,
        };
        Rope::new(&config, head_dim, style, None, &candle_core::Device::Cpu).unwrap()
    }

    #[test]
    fn pairs_share_a_power_of_two() {
        let bias = [0.0, 60.0, 0.0, 4.0, 0.0, 80.0, 0.0, 3.0];
        for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
            let rope = rope(style, 8);
            let Balance { q, k } = Balance::new(&bias, 2, 8, &rope);
            assert_eq!(q[..8], q[8..]);
            for i in 0..8 {
                assert_eq!(q[i].to_bits(), q[rope.partner(i, 8)].to_bits(), "{style:?} {i}");
                assert_eq!((q[i] * k[i]).to_bits(), 1_f32.to_bits());
                assert_eq!(q[i].to_bits() << 9, 0, "{} is no power of two", q[i]);
            }
        }
        // Means of pairs: (0 + 100 + 0 + 5) / 4 of halves.
        let Balance { q, .. } = Balance::new(&bias, 1, 8, &rope(RopeStyle::Halves, 8));
        assert_eq!(q, [1.0, 4.0, 1.0, 1.0, 1.0, 4.0, 1.0, 1.0]);
    }

    #[test]
    fn nothing_is_balanced_by_nothing() {
        for bias in [[0.0; 4], [f32::NAN; 4], [f32::INFINITY; 4]] {
            let balance = Balance::new(&bias, 1, 4, &rope(RopeStyle::Halves, 4));
            assert_eq!((balance.q, balance.k), (vec![1.0; 4], vec![1.0; 4]));
        }
    }
}
