//! Rotary position embedding.

use std::{cell::RefCell, collections::VecDeque};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::elements;
use crate::cpu::{self, Angles};

/// Which two elements of a head form a pair that is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + d/2)`: GPT-NeoX, and safetensors files made for Transformers.
    Halves,
    /// `(2i, 2i + 1)`: GGML's "norm", llama in GGUF files.
    Interleaved,
}

/// Rotates pair `i` of each head of `x` `[n, heads, d]` by `positions[row] * inv_freq[i]`, and multiplies by
/// `attention_factor` (the scale of `YaRN`; otherwise 1). `inv_freq` `[d/2]`, `positions` `[n]`.
pub fn rope(
    x: &Tensor,
    inv_freq: &[f32],
    attention_factor: f32,
    positions: &[u32],
    style: RopeStyle,
) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Rope {
        inv_freq,
        attention_factor,
        positions,
        style,
    })
}

struct Rope<'a> {
    inv_freq: &'a [f32],
    attention_factor: f32,
    positions: &'a [u32],
    style: RopeStyle,
}

impl CustomOp1 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(self.name(), storage, layout)?;
        let &[n, heads, d] = layout.dims() else {
            bail!(
                "rope: the input must be [n, heads, d], it is {:?}",
                layout.shape()
            )
        };
        if self.positions.len() != n || self.inv_freq.len().checked_mul(2) != Some(d) {
            bail!(
                "rope: {:?} needs {n} positions and d/2 frequencies, got {} and {}",
                layout.shape(),
                self.positions.len(),
                self.inv_freq.len()
            );
        }
        let mut out = vec![0.0; x.len()];
        with_angles(self.inv_freq, self.attention_factor, self.positions, |angles| {
            cpu::best().rope(self.style, x, angles, heads * d, &mut out);
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// The angles last computed and what they were computed from.
struct Memo {
    inv_freq: Vec<f32>,
    attention_factor: f32,
    positions: Vec<u32>,
    angles: Angles,
}

thread_local! {
    /// All layers of a step rotate by the same angles, or by two sets in turn: keeping those saves most sines.
    static MEMO: RefCell<VecDeque<Memo>> = const { RefCell::new(VecDeque::new()) };
}

const MEMO_MAX: usize = 2;

fn with_angles<R>(
    inv_freq: &[f32],
    attention_factor: f32,
    positions: &[u32],
    work: impl FnOnce(&Angles) -> R,
) -> R {
    MEMO.with_borrow_mut(|memo| {
        let known = memo.iter().position(|memo| {
            memo.positions == positions
                && memo.inv_freq == inv_freq
                && memo.attention_factor.to_bits() == attention_factor.to_bits()
        });
        let i = known.unwrap_or_else(|| {
            memo.truncate(MEMO_MAX - 1);
            memo.push_front(Memo {
                inv_freq: inv_freq.to_vec(),
                attention_factor,
                positions: positions.to_vec(),
                angles: angles(inv_freq, attention_factor, positions),
            });
            0
        });
        work(&memo[i].angles)
    })
}

fn angles(inv_freq: &[f32], attention_factor: f32, positions: &[u32]) -> Angles {
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for &position in positions {
        for freq in inv_freq {
            let (s, c) = (position as f32 * freq).sin_cos();
            sin.push(s * attention_factor);
            cos.push(c * attention_factor);
        }
    }
    Angles {
        cos,
        sin,
        half: inv_freq.len(),
    }
}
