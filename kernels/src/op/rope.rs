//! Rotary position embedding.

use std::{cell::RefCell, collections::VecDeque};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{InputNorm, rows, with_elements};
use crate::cpu::{self, Angles, Norm, Output};

/// Which two elements of a head form a pair that is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + d/2)`: GPT-NeoX, and safetensors files made for Transformers.
    Halves,
    /// `(2i, 2i + 1)`: GGML's "norm", llama in GGUF files.
    Interleaved,
}

/// How heads are rotated.
#[derive(Debug, Clone, Copy)]
pub struct RopeOptions<'a> {
    /// Radians of each position for each pair, `[d/2]`.
    pub inv_freq: &'a Tensor,
    /// Multiplies the result: the scale of `YaRN`, otherwise 1.
    pub attention_factor: f32,
    pub style: RopeStyle,
    /// Normalises each head before, with a weight `[d]`.
    pub norm: Option<InputNorm<'a>>,
    /// Multiplies the rotated elements, `[heads * d]`.
    pub factors: Option<&'a Tensor>,
}

/// Rotates pair `i` of each head of `x` `[n, heads * d]` by `positions[row] * inv_freq[i]`; `positions` `[n]`.
pub fn rope(x: &Tensor, options: &RopeOptions<'_>, positions: &[u32]) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Rope { options, positions })
}

struct Rope<'a> {
    options: &'a RopeOptions<'a>,
    positions: &'a [u32],
}

impl CustomOp1 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = rows(self.name(), storage, layout)?;
        self.check(layout)?;
        let RopeOptions {
            inv_freq,
            attention_factor,
            style,
            norm,
            factors,
        } = *self.options;
        let tensors = [Some(inv_freq), norm.map(|norm| norm.weight), factors];
        let out = with_elements(self.name(), tensors.into_iter().flatten(), |slices| {
            let mut slices = slices.iter().copied();
            let mut next = || slices.next().expect("a slice for each tensor. This is a bug.");
            let inv_freq = next();
            let norm = norm.map(|norm| Norm {
                weight: next(),
                eps: norm.eps,
            });
            let factors = factors.map(|_| next());
            let rotate = |out: &Output<'_>| {
                with_angles(inv_freq, attention_factor, self.positions, |angles| {
                    cpu::best().rope(&x, norm, (style, angles), factors, out);
                });
            };
            // SAFETY: the kernel writes each row, and the rows are all there is.
            Ok(unsafe { cpu::filled(x.n * x.width, rotate) })
        })?;
        Ok((CpuStorage::F32(out), Shape::from((x.n, x.width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.check(layout)?;
        crate::cuda::ops::rope((storage, layout), self.options, self.positions)
    }
}

impl Rope<'_> {
    fn check(&self, layout: &Layout) -> Result<()> {
        let &[n, width] = layout.dims() else {
            bail!("rope: the tensor must be [n, width], it is {:?}", layout.shape())
        };
        let (inv_freq, norm, factors) = (self.options.inv_freq, self.options.norm, self.options.factors);
        let d = inv_freq.elem_count().saturating_mul(2);
        if self.positions.len() != n || d == 0 || !width.is_multiple_of(d) {
            bail!(
                "rope: {:?} needs {n} positions and heads of twice the frequencies, got {} and {}",
                layout.shape(),
                self.positions.len(),
                inv_freq.elem_count()
            );
        }
        if let Some(norm) = norm.filter(|norm| norm.weight.dims() != [d]) {
            bail!("rope: heads of {d} with a norm of {:?}", norm.weight.shape());
        }
        if let Some(factors) = factors.filter(|factors| factors.dims() != [width]) {
            bail!("rope: {:?} with {} factors", layout.shape(), factors.elem_count());
        }
        Ok(())
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
