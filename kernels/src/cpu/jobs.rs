//! The work that several threads share, in parts that one kernel call does.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::{cell::RefCell, marker::PhantomData, ops::Range};

use super::{
    Kernels, Norm,
    stored::{Cache, KEY_GROUP},
};
use crate::{
    AttentionOptions, AttentionRow, Format, Matrix,
    op::RopeStyle,
    pool::{self, split},
};

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

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The same buffer, for another job on other elements of it.
    pub(crate) fn share(&self) -> Output<'_, T> {
        Output {
            start: self.start,
            len: self.len,
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
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
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

/// A vector of `len` numbers, all of which `fill` writes: clearing it first would cost as much as a small operation.
///
/// # Safety
/// `fill` must write every element and read none before.
pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(&Output<'_>)) -> Vec<f32> {
    let mut vector = Vec::with_capacity(len);
    fill(&Output {
        start: vector.as_mut_ptr(),
        len,
        borrow: PhantomData,
    });
    // SAFETY: the capacity is there; the rest is the caller's promise.
    unsafe { vector.set_len(len) };
    vector
}

/// Where the results of one matrix go, and what is added to them.
pub(super) struct Target<'a> {
    pub(super) out: Output<'a>,
    /// Elements from one activation row's results to the next one's.
    pub(super) stride: usize,
    /// Where the results of weight row `first` are.
    pub(super) column: usize,
    pub(super) first: usize,
    pub(super) addend: Addend<'a>,
}

/// What is added to a product.
#[derive(Clone, Copy)]
pub(super) enum Addend<'a> {
    Nothing,
    /// `[weight rows]`, to every activation row.
    Bias(&'a [f32]),
    /// As long as the output, element by element.
    Residual(&'a [f32]),
}

impl<'a> Target<'a> {
    /// Stores activation row `i`'s results of the weight rows from `row` on.
    ///
    /// # Safety
    /// No other thread may write these rows' results.
    #[inline(always)]
    pub(super) unsafe fn store(&self, i: usize, row: usize, sums: &[f32]) {
        let at = i * self.stride + self.column + row - self.first;
        // SAFETY: the caller's promise.
        let out = unsafe { self.out.slice(at, sums.len()) };
        let addends = match self.addend {
            Addend::Nothing => return out.copy_from_slice(sums),
            Addend::Bias(bias) => &bias[row..],
            Addend::Residual(rows) => &rows[at..],
        };
        for ((out, sum), addend) in out.iter_mut().zip(sums).zip(addends) {
            *out = sum + addend;
        }
    }

    /// Where activation row `i`'s results of the `N` weight rows from `row` on go: for vectors.
    ///
    /// # Safety
    /// As for [`Target::store`].
    #[inline(always)]
    pub(super) unsafe fn whole<const N: usize>(&self, i: usize, row: usize) -> Whole<'_, N> {
        let at = i * self.stride + self.column + row - self.first;
        let all = |of: &'a [f32]| of.first_chunk().expect("as many as results. This is a bug.");
        let addends = match self.addend {
            Addend::Nothing => None,
            Addend::Bias(bias) => Some(all(&bias[row..])),
            Addend::Residual(rows) => Some(all(&rows[at..])),
        };
        // SAFETY: the caller's promise.
        let out = unsafe { self.out.slice(at, N) };
        let out = out
            .first_chunk_mut()
            .expect("as many as asked for. This is a bug.");
        Whole { out, addends }
    }
}

/// Where `N` results of an activation row go.
pub(super) struct Whole<'a, const N: usize> {
    pub(super) out: &'a mut [f32; N],
    pub(super) addends: Option<&'a [f32; N]>,
}

/// `x * weight^T` into `target`: `x` `[n, weight.cols()]`.
pub(super) struct LinearJob<'a> {
    pub(super) x: &'a [f32],
    pub(super) n: usize,
    pub(super) weight: &'a Matrix,
    pub(super) target: Target<'a>,
}

impl LinearJob<'_> {
    /// Stores activation row `i`'s results of the weight rows from `row` on.
    ///
    /// # Safety
    /// No other thread may write these rows' results.
    #[inline(always)]
    pub(super) unsafe fn finish(&self, i: usize, row: usize, sums: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.target.store(i, row, sums) }
    }
}

/// Causal attention over a paged cache; `q` and `out` are `[n, heads, d]`, blocks hold a multiple of [`KEY_GROUP`]
/// positions. The rows have been checked against these shapes.
pub(crate) struct AttentionJob<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) cache: Cache<'a>,
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
    pub(super) row: usize,
    pub(super) tokens: Range<usize>,
    pub(super) kv_head: usize,
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

    /// Of the groups of positions that the cache has of all heads, the one that `position` belongs to.
    pub(super) fn key_group(&self, row: &AttentionRow, kv_head: usize, position: usize) -> usize {
        let groups = self.block_size / KEY_GROUP;
        let block = row.block_table[position / self.block_size] as usize;
        (block * self.kv_heads + kv_head) * groups + position % self.block_size / KEY_GROUP
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
const TILE_QUERIES: usize = 24;
/// Below this many multiplications a second thread costs more than it brings.
pub(super) const PARALLEL_PRODUCTS: usize = 1 << 15;
/// Below this many elements likewise, where an element takes little.
pub(super) const PARALLEL_ELEMENTS: usize = 1 << 12;
/// Parts for each thread: more even out a noisy machine, fewer cost less.
pub(super) const PARTS: usize = 4;

/// Rows `[n, width]` of a wider buffer, each contiguous.
pub(crate) struct StridedRows<'a> {
    /// From the first row's first element to the last row's last one.
    pub(crate) elements: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) n: usize,
    pub(crate) width: usize,
}

impl StridedRows<'_> {
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.elements[i * self.stride..][..self.width]
    }
}

/// The cosines and sines of tokens' positions, each `[n, half]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Angles {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    pub(crate) half: usize,
}

impl Kernels {
    /// Widens whole blocks of `format` to `out`, as many as both hold; the same bits in every table.
    pub fn dequantize(&self, format: Format, bytes: &[u8], out: &mut [f32]) {
        // SAFETY: the table runs on this processor.
        unsafe { (self.dequantize)(format, bytes, out) }
    }

    /// Runs an attention job on all threads.
    ///
    /// # Safety
    /// The job's rows must have been checked against the shapes of its buffers, and its output must be zero.
    pub(crate) unsafe fn attention(&self, job: &AttentionJob<'_>) {
        let sorted = job.tiles();
        let tiles = pool::deal(&sorted);
        let products = sorted.iter().map(|tile| job.cost(tile)).sum::<usize>() * job.group() * job.d;
        let parts = if products < PARALLEL_PRODUCTS {
            1
        } else {
            tiles.len()
        };
        pool::run(parts, |part| {
            for tile in tiles.iter().skip(part).step_by(parts) {
                // SAFETY: the table runs on this processor, and every query is in one tile; the rest is the caller's
                // promise.
                unsafe { (self.attention)(job, tile) }
            }
        });
    }

    /// Normalises the rows of `x`, each as long as the norm's weight, and adds `residual`, as long as `x`; writes every
    /// element of `out`, which is as long too.
    pub(crate) fn rms_norm(&self, x: &[f32], norm: Norm<'_>, residual: Option<&[f32]>, out: &Output<'_>) {
        assert!(x.len() == out.len(), "lengths differ. This is a bug.");
        let d = norm.weight.len();
        each_row(d, out, |row, out| {
            // SAFETY: the table runs on this processor.
            unsafe { (self.rms_norm)(&x[row * d..][..d], norm.weight, norm.eps, out) }
            if let Some(residual) = residual {
                for (out, residual) in out.iter_mut().zip(&residual[row * d..]) {
                    *out += residual;
                }
            }
        });
    }

    /// Rotates the heads of tokens by the cosines and sines of their positions, after normalising each and before
    /// multiplying by `factors`, as long as a row, where asked for; writes every element of `out`, as long as all rows.
    pub(crate) fn rope(
        &self,
        x: &StridedRows<'_>,
        norm: Option<Norm<'_>>,
        (style, angles): (RopeStyle, &Angles),
        factors: Option<&[f32]>,
        out: &Output<'_>,
    ) {
        let half = angles.half;
        each_row(x.width, out, |row, out| {
            let angles = (
                &angles.cos[row * half..][..half],
                &angles.sin[row * half..][..half],
            );
            let x = x.row(row);
            // SAFETY: the table runs on this processor.
            unsafe {
                match norm {
                    None => (self.rope)(style, x, angles, out),
                    Some(norm) => self.normed_rope(x, norm, (style, angles), out),
                }
            }
            for (out, factor) in out.iter_mut().zip(factors.unwrap_or_default()) {
                *out *= factor;
            }
        });
    }

    /// Normalises each of a token's heads and rotates them.
    ///
    /// # Safety
    /// The table must run on this processor.
    unsafe fn normed_rope(
        &self,
        x: &[f32],
        norm: Norm<'_>,
        (style, (cos, sin)): (RopeStyle, (&[f32], &[f32])),
        out: &mut [f32],
    ) {
        let (d, mut scratch) = (2 * cos.len(), HEADS.take());
        scratch.resize(x.len(), 0.0);
        for (x, to) in x.chunks_exact(d).zip(scratch.chunks_exact_mut(d)) {
            // SAFETY: the caller's promise.
            unsafe { (self.rms_norm)(x, norm.weight, norm.eps, to) }
        }
        // SAFETY: as above.
        unsafe { (self.rope)(style, &scratch, (cos, sin), out) }
        HEADS.set(scratch);
    }
}

thread_local! {
    /// A token's heads between normalisation and rotation.
    static HEADS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `kernel` for each row of `width` elements of `out`.
pub(super) fn each_row(width: usize, out: &Output<'_>, kernel: impl Fn(usize, &mut [f32]) + Sync) {
    let (len, rows) = (out.len(), out.len().checked_div(width).unwrap_or(0));
    assert!(
        len == rows * width,
        "{len} elements in rows of {width}. This is a bug."
    );
    let parts = (len / PARALLEL_ELEMENTS)
        .clamp(1, pool::threads() * PARTS)
        .min(rows.max(1));
    pool::run(parts, |part| {
        for row in split(rows, parts, part) {
            // SAFETY: the rows do not overlap.
            kernel(row, unsafe { out.slice(row * width, width) });
        }
    });
}
