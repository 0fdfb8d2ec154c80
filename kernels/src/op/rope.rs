//! Rotary position embedding.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::elements;

/// Which two elements of a head form a pair that is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + d/2)`: GPT-NeoX, and safetensors files made for Transformers.
    Halves,
    /// `(2i, 2i + 1)`: GGML's "norm", llama in GGUF files.
    Interleaved,
}

/// Rotates pair `i` of each head of `x` `[n, heads, d]` by `positions[row] * inv_freq[i]`, and multiplies by
/// `attention_factor` (YaRN's; otherwise 1). `inv_freq` `[d/2]`, `positions` `[n]`.
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
        if heads * d > 0 {
            let rows = out.chunks_exact_mut(heads * d).zip(x.chunks_exact(heads * d));
            for ((out, x), &position) in rows.zip(self.positions) {
                self.row(position, x, out, d);
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

impl Rope<'_> {
    fn row(&self, position: u32, x: &[f32], out: &mut [f32], d: usize) {
        for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            for (i, freq) in self.inv_freq.iter().enumerate() {
                let (sin, cos) = (position as f32 * freq).sin_cos();
                let (sin, cos) = (sin * self.attention_factor, cos * self.attention_factor);
                let (a, b) = match self.style {
                    RopeStyle::Halves => (i, i + d / 2),
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                };
                out[a] = x[a] * cos - x[b] * sin;
                out[b] = x[b] * cos + x[a] * sin;
            }
        }
    }
}
