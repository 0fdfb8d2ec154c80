//! Weights that an instruction set decodes in registers, block by block: summed at once, or stored.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over constants unroll, and their indices are registers' numbers"
)]
#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::ops::Range;

use super::{jobs::LinearJob, simd::Simd};

/// A weight format's block, decoded in registers.
pub(super) trait Decode<S: Simd> {
    /// Weights of a block: a multiple of `LANES`.
    const LEN: usize;
    const BYTES: usize;
    /// Hands the block's weights to `sink`, in order, with the place of the first of each vector.
    ///
    /// # Safety
    /// As for [`Simd`]; `bytes` must be valid for a block.
    unsafe fn block(bytes: *const u8, sink: &mut impl Sink<S>);
}

/// What becomes of decoded weights.
pub(super) trait Sink<S: Simd> {
    /// # Safety
    /// As for [`Simd`]; `at` must be within the sink's block.
    unsafe fn take(&mut self, at: usize, weights: S::V);
}

/// Sums of one weight row with `M` activation rows.
struct Dot<S: Simd, const M: usize> {
    x: [*const f32; M],
    sums: [S::V; M],
}

impl<S: Simd, const M: usize> Sink<S> for Dot<S, M> {
    #[inline(always)]
    unsafe fn take(&mut self, at: usize, weights: S::V) {
        for m in 0..M {
            // SAFETY: the caller's promise.
            unsafe { self.sums[m] = S::fma(S::load(self.x[m].add(at)), weights, self.sums[m]) }
        }
    }
}

/// Widened weights in memory.
struct Store {
    to: *mut f32,
}

impl<S: Simd> Sink<S> for Store {
    #[inline(always)]
    unsafe fn take(&mut self, at: usize, weights: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store(self.to.add(at), weights) }
    }
}

/// Widens whole blocks, as many as both slices hold.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, D: Decode<S>>(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.chunks_exact(D::BYTES).zip(out.chunks_exact_mut(D::LEN)) {
        // SAFETY: the chunks are a block's bytes and a block's weights.
        unsafe { D::block(bytes.as_ptr(), &mut Store { to: out.as_mut_ptr() }) }
    }
}

/// The products of some weight rows with few activation rows, decoding without a detour through memory.
///
/// # Safety
/// As for [`Simd`]; `M` must be the job's `n`, the weights in `D`'s format with rows of whole blocks of `D`, and no
/// other thread may write the same rows' results.
#[inline(always)]
pub(super) unsafe fn fused<S: Simd, D: Decode<S>, const M: usize>(job: &LinearJob<'_>, rows: Range<usize>) {
    let (k, row_bytes) = (job.weight.cols(), job.weight.row_bytes());
    let start = job.weight.bytes().as_ptr();
    // SAFETY: the matrix holds its rows; of a last, incomplete quad the last row is repeated.
    unsafe {
        for row in rows.clone().step_by(4) {
            let count = (rows.end - row).min(4);
            let mut quad = [[S::splat(0.0); M]; 4];
            for block in 0..k / D::LEN {
                for r in 0..4 {
                    let bytes = start.add((row + r.min(count - 1)) * row_bytes + block * D::BYTES);
                    let mut x = [job.x.as_ptr(); M];
                    for m in 0..M {
                        x[m] = job.x.as_ptr().add(m * k + block * D::LEN);
                    }
                    let mut dot = Dot::<S, M> { x, sums: quad[r] };
                    D::block(bytes, &mut dot);
                    quad[r] = dot.sums;
                }
            }
            for m in 0..M {
                let sums = S::sum4([quad[0][m], quad[1][m], quad[2][m], quad[3][m]]);
                job.finish(m, row, &sums[..count]);
            }
        }
    }
}
