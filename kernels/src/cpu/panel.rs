//! One product of activation rows with a panel of 32 outputs, over any vector width.
//!
//! An output is summed over its inputs from the first to the last, whatever rows it is computed beside.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over constants unroll, and their indices are registers' numbers"
)]
#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use super::simd::Simd;
use crate::{
    Precision,
    dense::{PANEL, pair},
};

/// `start + x * panel^T` for some rows.
pub(super) struct PanelJob<'a> {
    pub(super) precision: Precision,
    /// Rows of words, `stride` apart: `f32`, or for bf16 what the table's `operand` writes.
    pub(super) x: &'a [u32],
    pub(super) stride: usize,
    /// Rows, at least one.
    pub(super) n: usize,
    /// Whole lines of 32 words.
    pub(super) panel: &'a [u32],
    /// What sums begin with; zeros where there is nothing.
    pub(super) start: Option<&'a [f32; PANEL]>,
}

/// Where a panel's results go.
pub(super) struct PanelOut<'a> {
    /// Rows of results, `stride` apart.
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
}

impl PanelJob<'_> {
    pub(super) fn lines(&self) -> usize {
        self.panel.len() / PANEL
    }

    /// Panics where a buffer is too short. `words` are those that a line takes of a row.
    #[inline(always)]
    fn check(&self, words: usize, to: &PanelOut<'_>) {
        let last = self.n - 1;
        assert!(
            self.x.len() >= last * self.stride + self.lines() * words
                && to.out.len() >= last * to.stride + PANEL,
            "a panel's buffers are too short. This is a bug."
        );
    }
}

/// How a tile reads a line of a panel and the words of a row that belong to it.
///
/// # Safety
/// As for [`Simd`]; `x` must be valid for `WORDS` words, `line` for [`PANEL`].
pub(super) trait Line<S: Simd> {
    /// Words of a row that a line takes.
    const WORDS: usize;
    /// Adds the products of a line with `M` rows to their sums, `V` vectors each.
    unsafe fn add<const M: usize, const V: usize>(
        sums: &mut [[S::V; V]; M],
        x: [*const u32; M],
        line: *const u32,
    );
}

/// Lines of `f32`.
pub(super) struct Floats;

impl<S: Simd> Line<S> for Floats {
    const WORDS: usize = 1;

    #[inline(always)]
    unsafe fn add<const M: usize, const V: usize>(
        sums: &mut [[S::V; V]; M],
        x: [*const u32; M],
        line: *const u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut w = [S::splat(0.0); V];
            for v in 0..V {
                w[v] = S::load(line.add(v * S::LANES).cast());
            }
            for m in 0..M {
                let x = S::splat(x[m].cast::<f32>().read());
                for v in 0..V {
                    sums[m][v] = S::fma(x, w[v], sums[m][v]);
                }
            }
        }
    }
}

/// Lines of pairs in bf16, widened; the rows hold `f32`.
pub(super) struct Widened;

impl<S: Simd> Line<S> for Widened {
    const WORDS: usize = 2;

    #[inline(always)]
    unsafe fn add<const M: usize, const V: usize>(
        sums: &mut [[S::V; V]; M],
        x: [*const u32; M],
        line: *const u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut w = [[S::splat(0.0); 2]; V];
            for v in 0..V {
                w[v] = S::load_pairs(line.add(v * S::LANES));
            }
            for m in 0..M {
                for half in 0..2 {
                    let x = S::splat(x[m].add(half).cast::<f32>().read());
                    for v in 0..V {
                        sums[m][v] = S::fma(x, w[v][half], sums[m][v]);
                    }
                }
            }
        }
    }
}

/// All rows of a job, in tiles of at most `S::TILE`; `V` vectors make a line.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn panel<S: Simd, L: Line<S>, const V: usize>(job: &PanelJob<'_>, to: &mut PanelOut<'_>) {
    job.check(L::WORDS, to);
    let blocks = job.n.div_ceil(S::TILE);
    let mut first = 0;
    for block in 0..blocks {
        // Nearly equal tiles: 13 rows as 7 and 6 rather than 12 and 1.
        let count = (job.n - first).div_ceil(blocks - block);
        // SAFETY: the buffers hold these rows, as was checked; the rest is the caller's promise.
        unsafe {
            match count {
                1 => tile::<S, L, 1, V>(job, first, to),
                2 => tile::<S, L, 2, V>(job, first, to),
                3 => tile::<S, L, 3, V>(job, first, to),
                4 => tile::<S, L, 4, V>(job, first, to),
                5 => tile::<S, L, 5, V>(job, first, to),
                6 => tile::<S, L, 6, V>(job, first, to),
                7 => tile::<S, L, 7, V>(job, first, to),
                8 => tile::<S, L, 8, V>(job, first, to),
                9 => tile::<S, L, 9, V>(job, first, to),
                10 => tile::<S, L, 10, V>(job, first, to),
                11 => tile::<S, L, 11, V>(job, first, to),
                _ => tile::<S, L, 12, V>(job, first, to),
            }
        }
        first += count;
    }
}

/// # Safety
/// As for [`Simd`]; the job's buffers must hold the rows `first..first + M`.
#[inline(always)]
unsafe fn tile<S: Simd, L: Line<S>, const M: usize, const V: usize>(
    job: &PanelJob<'_>,
    first: usize,
    to: &mut PanelOut<'_>,
) {
    // No table has larger tiles: the rest would only be code.
    if M > S::TILE {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let mut start = [S::splat(0.0); V];
        if let Some(from) = job.start {
            for v in 0..V {
                start[v] = S::load(from.as_ptr().add(v * S::LANES));
            }
        }
        let mut sums = [start; M];
        let mut x = [job.x.as_ptr(); M];
        for m in 0..M {
            x[m] = x[m].add((first + m) * job.stride);
        }
        let mut line = job.panel.as_ptr();
        for _ in 0..job.lines() {
            L::add(&mut sums, x, line);
            line = line.add(PANEL);
            for x in &mut x {
                *x = x.wrapping_add(L::WORDS);
            }
        }
        for m in 0..M {
            let out = to.out.as_mut_ptr().add((first + m) * to.stride);
            for v in 0..V {
                S::store(out.add(v * S::LANES), sums[m][v]);
            }
        }
    }
}

/// Rounds a row of an even number of activations to bf16 for [`Widened`]: a word each.
pub(super) fn rounded(x: &[f32], to: &mut [u32]) {
    for (x, to) in x.as_chunks::<2>().0.iter().zip(to.as_chunks_mut::<2>().0) {
        let pair = pair(x[0], x[1]);
        *to = [pair << 16, pair & 0xffff_0000];
    }
}

/// The plain product: the specification.
pub(super) fn plain(job: &PanelJob<'_>, to: &mut PanelOut<'_>) {
    let words = match job.precision {
        Precision::Bf16 => 2,
        Precision::F32 => 1,
    };
    job.check(words, to);
    for i in 0..job.n {
        let (x, out) = (&job.x[i * job.stride..], &mut to.out[i * to.stride..][..PANEL]);
        for (r, out) in out.iter_mut().enumerate() {
            let mut sum = job.start.map_or(0.0, |start| start[r]);
            for (line, x) in job.panel.as_chunks::<PANEL>().0.iter().zip(x.chunks_exact(words)) {
                match *x {
                    [a, b] => {
                        sum += f32::from_bits(a) * f32::from_bits(line[r] << 16);
                        sum += f32::from_bits(b) * f32::from_bits(line[r] & 0xffff_0000);
                    }
                    [a] => sum += f32::from_bits(a) * f32::from_bits(line[r]),
                    _ => {}
                }
            }
            *out = sum;
        }
    }
}

/// Numbers as the words that hold them.
pub(super) fn words(x: &[f32]) -> &[u32] {
    // SAFETY: both types have four bytes, one alignment, and no invalid pattern.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) }
}
