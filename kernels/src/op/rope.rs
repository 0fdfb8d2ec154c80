//! Rotary position embedding.

use std::{cell::RefCell, collections::VecDeque};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

#[cfg(feature = "cuda")]
use super::kv_cache::with_written;
use super::{InputNorm, KvCache, rows, with_elements, write_kv};
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

/// Rotates the heads of `q` `[n, heads * d]` by `positions` `[n]`, which it gives, and those of `k` `[n, kv_heads * d]`, which it stores
/// with `v` `[n, kv_heads * d]` at `slots` `[n]` as [`write_kv`] does: on a card in one launch.
///
/// # Errors
/// Those of [`rope`] and of [`write_kv`], and where the options of queries and of keys have not the same tensor of frequencies, style
/// and attention factor. Nothing is stored then.
pub fn rope_and_write_kv(
    cache: &KvCache,
    [q, k, v]: [&Tensor; 3],
    options: [&RopeOptions<'_>; 2],
    positions: &[u32],
    slots: &[u32],
) -> Result<Tensor> {
    let [queries, keys] = options.map(|options| Rope { options, positions });
    q.apply_op1_no_bwd(&RopeAndWrite {
        queries,
        keys,
        cache,
        k,
        v,
        slots,
    })
}

struct RopeAndWrite<'a> {
    queries: Rope<'a>,
    keys: Rope<'a>,
    cache: &'a KvCache,
    k: &'a Tensor,
    v: &'a Tensor,
    slots: &'a [u32],
}

impl CustomOp1 for RopeAndWrite<'_> {
    fn name(&self) -> &'static str {
        self.queries.name()
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.check(layout)?;
        let rotated = self.queries.cpu_fwd(storage, layout)?;
        let k = self.k.apply_op1_no_bwd(&self.keys)?;
        write_kv(self.cache, &k, self.v, self.slots)?;
        Ok(rotated)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.check(layout)?;
        let options = [self.queries.options, self.keys.options];
        with_written(self.cache, [self.k, self.v], self.slots, |written| {
            crate::cuda::ops::rotate((storage, layout), options, self.queries.positions, Some(written))
        })
    }
}

impl RopeAndWrite<'_> {
    fn check(&self, layout: &Layout) -> Result<()> {
        self.queries.check(layout)?;
        self.keys.check(self.k.layout())?;
        let (q, k) = (self.queries.options, self.keys.options);
        let alike = q.inv_freq.id() == k.inv_freq.id()
            && q.style == k.style
            && q.attention_factor.to_bits() == k.attention_factor.to_bits();
        if !alike || self.cache.head_dim != q.inv_freq.elem_count() * 2 {
            bail!(
                "rope: queries and keys must share frequencies, style and factor, and the cache have such heads"
            );
        }
        Ok(())
    }
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
