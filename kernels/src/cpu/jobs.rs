//! The work that several threads share, in parts that one kernel call does.

use std::{marker::PhantomData, ops::Range};

use super::{
    Kernels,
    operand::{Operand, OperandRows},
    packed::PackedJob,
};
use crate::{AttentionOptions, AttentionRow, Format, Matrix, Packed, op::Activation, op::RopeStyle, pool};

/// A buffer that several threads write, each its own elements.
pub(crate) struct Output<'a, T = f32> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access is by `slice` alone, whose callers keep their ranges apart.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T> Output<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            len: buffer.len(),
            borrow: PhantomData,
        }
    }

    /// The elements `at..at + len`; panics where the buffer has none.
    ///
    /// # Safety
    /// No two slices that are alive at the same time may overlap.
    #[expect(
        clippy::mut_from_ref,
        reason = "the borrow is of the buffer, and callers keep ranges apart"
    )]
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(
            at <= self.len && len <= self.len - at,
            "{at}+{len} is outside the output of {}",
            self.len
        );
        // SAFETY: within the buffer by the check, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// Row `i` of rows of `len`, or nothing of an empty buffer; panics where the buffer has no such row.
    ///
    /// # Safety
    /// As for [`Output::slice`].
    #[expect(
        clippy::mut_from_ref,
        reason = "the borrow is of the buffer, and callers keep ranges apart"
    )]
    pub(super) unsafe fn row(&self, i: usize, len: usize) -> &mut [T] {
        let len = if self.len == 0 { 0 } else { len };
        // SAFETY: the caller's promise.
        unsafe { self.slice(i * len, len) }
    }
}

/// `x * weight^T + bias`: `x` `[n, weight.cols()]`, `out` `[n, weight.rows()]`.
pub(super) struct LinearJob<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) n: usize,
    pub(crate) weight: &'a Matrix,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) out: Output<'a>,
}

impl LinearJob<'_> {
    /// Stores activation row `i`'s results of the weight rows from `row` on.
    ///
    /// # Safety
    /// No other thread may write these rows' results.
    pub(crate) unsafe fn finish(&self, i: usize, row: usize, sums: &[f32]) {
        // SAFETY: the caller's promise.
        let out = unsafe { self.out.slice(i * self.weight.rows() + row, sums.len()) };
        match self.bias {
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[row..]) {
                    *out = sum + bias;
                }
            }
            None => out.copy_from_slice(sums),
        }
    }
}

/// Causal attention over a paged cache; `q` and `out` are `[n, heads, d]`, `k` and `v`
/// `[blocks, kv_heads, block_size, d]`. The rows have been checked against these shapes.
pub(crate) struct AttentionJob<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) block_size: usize,
    pub(crate) d: usize,
    pub(crate) rows: &'a [AttentionRow],
    pub(crate) options: &'a AttentionOptions,
    pub(crate) out: Output<'a>,
}

/// The queries of some consecutive tokens of a row, all those that read one head of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tile {
    pub(crate) row: usize,
    pub(crate) tokens: Range<usize>,
    pub(crate) kv_head: usize,
}

impl AttentionJob<'_> {
    /// Query heads for each head of the cache.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that a token of a row sees.
    pub(super) fn visible(&self, row: &AttentionRow, token: usize) -> Range<usize> {
        let end = row.context_len - (row.tokens.end - 1 - token);
        let start = self.options.window.map_or(0, |window| end.saturating_sub(window));
        start..end
    }

    /// Where the keys or values of a position start.
    pub(super) fn slot(&self, row: &AttentionRow, kv_head: usize, position: usize) -> usize {
        let block = row.block_table[position / self.block_size] as usize;
        ((block * self.kv_heads + kv_head) * self.block_size + position % self.block_size) * self.d
    }

    /// Where a query starts in `q` and `out`: number `i` of a tile, tokens first, then the heads of its group.
    pub(super) fn query(&self, tile: &Tile, i: usize) -> usize {
        let group = self.group();
        ((tile.tokens.start + i / group) * self.heads + tile.kv_head * group + i % group) * self.d
    }

    fn tiles(&self) -> Vec<Tile> {
        let tokens_max = (TILE_QUERIES / self.group().max(1)).max(1);
        let mut tiles = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            for start in row.tokens.clone().step_by(tokens_max) {
                let tokens = start..(start + tokens_max).min(row.tokens.end);
                tiles.extend((0..self.kv_heads).map(|kv_head| Tile {
                    row: index,
                    tokens: tokens.clone(),
                    kv_head,
                }));
            }
        }
        // The longest first, so that the last one to finish is short.
        tiles.sort_by_key(|tile| std::cmp::Reverse(self.cost(tile)));
        tiles
    }

    fn cost(&self, tile: &Tile) -> usize {
        self.visible(&self.rows[tile.row], tile.tokens.end - 1).len() * tile.tokens.len()
    }
}

/// Queries that share one read of the cache: enough to make arithmetic the limit, few enough for the first cache.
pub(super) const TILE_QUERIES: usize = 24;
/// Below this many multiplications a second thread costs more than it brings.
const PARALLEL_PRODUCTS: usize = 1 << 15;
/// Below this many elements likewise, where an element takes little.
const PARALLEL_ELEMENTS: usize = 1 << 14;
/// Parts for each thread: more even out a noisy machine, fewer cost less.
const PARTS: usize = 4;

/// The cosines and sines of tokens' positions, each `[n, half]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Angles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    pub half: usize,
}

impl Kernels {
    /// Widens whole blocks of `format` to `out`, as many as both hold; the same bits in every table.
    pub fn dequantize(&self, format: Format, bytes: &[u8], out: &mut [f32]) {
        // SAFETY: the table runs on this processor.
        unsafe { (self.dequantize)(format, bytes, out) }
    }

    /// `x * weight^T + bias` into `out` `[n, weight.rows()]`, for `x` `[n, weight.cols()]`, on all threads. Panics where
    /// the lengths do not agree.
    pub fn linear(&self, x: &[f32], weight: &Matrix, bias: Option<&[f32]>, out: &mut [f32]) {
        let (rows, k) = (weight.rows(), weight.cols());
        let Some(n) = batch((rows, k), x, bias, out) else {
            return;
        };
        let job = LinearJob {
            x,
            n,
            weight,
            bias,
            out: Output::new(out),
        };
        // Whole groups of four rows, which the kernels take at once.
        let quads = rows.div_ceil(4);
        let parts = product_parts((rows, k), n).min(quads);
        pool::run(parts, |part| {
            let range = split(quads, parts, part);
            // SAFETY: the table runs on this processor, and the parts' rows do not overlap.
            unsafe { (self.linear)(&job, range.start * 4..(range.end * 4).min(rows)) }
        });
    }

    /// As [`Kernels::linear`] with packed weights, and activations rounded as these ask for.
    pub fn linear_packed(&self, x: &[f32], weight: &Packed, bias: Option<&[f32]>, out: &mut [f32]) {
        let (rows, k) = (weight.rows(), weight.cols());
        let Some(n) = batch((rows, k), x, bias, out) else {
            return;
        };
        Operand::with_scratch(|operand| {
            let scales = weight.layout().scales;
            operand.resize(n, k, weight.activations(), scales);
            self.round(x, &OperandRows::new(operand, scales), n, k);
            let job = PackedJob {
                x: operand,
                n,
                weight,
                bias,
                out: Output::new(out),
            };
            let panels = weight.panels();
            let parts = product_parts((rows, k), n).min(panels);
            pool::run(parts, |part| {
                // SAFETY: the table runs on this processor, and the parts' panels do not overlap.
                unsafe { (self.linear_packed)(&job, split(panels, parts, part)) }
            });
        });
    }

    /// Rounds `n` rows of activations.
    fn round(&self, x: &[f32], rows: &OperandRows<'_>, n: usize, k: usize) {
        let parts = (n * k / PARALLEL_ELEMENTS)
            .clamp(1, pool::threads() * PARTS)
            .min(n);
        pool::run(parts, |part| {
            for i in split(n, parts, part) {
                // SAFETY: the table runs on this processor, and the parts' rows do not overlap.
                unsafe { (self.round)(&x[i * k..][..k], &mut rows.row(i)) }
            }
        });
    }

    /// Runs a checked attention job on all threads.
    pub(crate) fn attention(&self, job: &AttentionJob<'_>) {
        let tiles = job.tiles();
        let products = tiles.iter().map(|tile| job.cost(tile)).sum::<usize>() * job.group() * job.d;
        let parts = if products < PARALLEL_PRODUCTS {
            1
        } else {
            tiles.len()
        };
        pool::run(parts, |part| {
            for tile in tiles.iter().skip(part).step_by(parts) {
                // SAFETY: the table runs on this processor, and every query is in one tile.
                unsafe { (self.attention)(job, tile) }
            }
        });
    }

    /// Normalises the rows of `x`, each as long as `weight`, into `out`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let d = weight.len();
        each_row(d, out, |row, out| {
            // SAFETY: the table runs on this processor.
            unsafe { (self.rms_norm)(&x[row * d..][..d], weight, eps, out) }
        });
    }

    /// Rotates the tokens of `x`, `width` elements each, by the cosines and sines `[n, half]` of half a head.
    pub fn rope(&self, style: RopeStyle, x: &[f32], angles: &Angles, width: usize, out: &mut [f32]) {
        let half = angles.half;
        each_row(width, out, |row, out| {
            let (cos, sin) = (
                &angles.cos[row * half..][..half],
                &angles.sin[row * half..][..half],
            );
            // SAFETY: the table runs on this processor.
            unsafe { (self.rope)(style, &x[row * width..][..width], (cos, sin), out) }
        });
    }

    /// `activation(gate) * up` into `out`, all of one length.
    pub fn gated(&self, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        const RUN: usize = 1024;
        let (len, (gate, up)) = (out.len(), (&gate[..out.len()], &up[..out.len()]));
        let shared = Output::new(out);
        let parts = (len / PARALLEL_ELEMENTS * 4).clamp(1, pool::threads() * PARTS);
        pool::run(parts, |part| {
            let runs = split(len.div_ceil(RUN), parts, part);
            let range = runs.start * RUN..(runs.end * RUN).min(len);
            // SAFETY: the table runs on this processor, and the parts do not overlap.
            unsafe {
                let out = shared.slice(range.start, range.len());
                (self.gated)(activation, &gate[range.clone()], &up[range], out);
            }
        });
    }
}

/// The rows of activations `x` that a product with weights `[rows, k]` takes, none where it has no result. Panics where the
/// lengths do not agree.
fn batch((rows, k): (usize, usize), x: &[f32], bias: Option<&[f32]>, out: &[f32]) -> Option<usize> {
    if out.is_empty() {
        return None;
    }
    let n = out.len() / rows;
    assert_eq!(
        (x.len(), out.len()),
        (n * k, n * rows),
        "a linear layer's lengths disagree"
    );
    assert!(
        bias.is_none_or(|bias| bias.len() == rows),
        "a linear layer's bias has another length"
    );
    Some(n)
}

/// How many parts a product of `n` rows of activations is worth.
fn product_parts((rows, k): (usize, usize), n: usize) -> usize {
    let products = rows.saturating_mul(k).saturating_mul(n + 2);
    (products / PARALLEL_PRODUCTS).clamp(1, pool::threads() * PARTS)
}

/// Calls `kernel` for each row of `width` elements of `out`.
fn each_row(width: usize, out: &mut [f32], kernel: impl Fn(usize, &mut [f32]) + Sync) {
    let (len, rows) = (out.len(), out.len().checked_div(width).unwrap_or(0));
    let shared = Output::new(out);
    let parts = (len / PARALLEL_ELEMENTS)
        .clamp(1, pool::threads() * PARTS)
        .min(rows.max(1));
    pool::run(parts, |part| {
        for row in split(rows, parts, part) {
            // SAFETY: the rows do not overlap.
            kernel(row, unsafe { shared.slice(row * width, width) });
        }
    });
}

/// Part `part` of `parts` nearly equal parts of `0..len`.
fn split(len: usize, parts: usize, part: usize) -> Range<usize> {
    let (size, rest) = (len / parts, len % parts);
    let start = part * size + part.min(rest);
    start..start + size + usize::from(part < rest)
}
