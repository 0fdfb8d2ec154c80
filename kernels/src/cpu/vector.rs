//! The kernels over any vector width; each instruction set compiles them for itself.
//!
//! A sum over a row always runs through the same lanes in the same order: the tile's shape, the batch and the place
//! within it change which sums are made together, never how one is made.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over constants unroll, and their indices are registers' numbers"
)]
#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::{cell::RefCell, ops::Range};

use super::{jobs::LinearJob, simd::Simd};
use crate::{Format, op::Activation, op::RopeStyle};

/// Weights of a widened panel: half of a common second-level cache.
const PANEL: usize = 64 * 1024;

thread_local! {
    /// A panel of widened weights, reused so that a step allocates nothing for it. It is taken and put back: in the body
    /// of a closure that the standard library calls, the instruction set would be lost.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The sums of four weight rows with `M` activation rows of `k` elements.
///
/// # Safety
/// As for [`Simd`]; every pointer must be valid for `k` elements.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize>(w: [*const f32; 4], x: [*const f32; M], k: usize) -> [[f32; 4]; M] {
    // SAFETY: the caller's promise; every load stays below `k`.
    unsafe {
        let mut sums = [[S::splat(0.0); 4]; M];
        let full = k - k % S::LANES;
        let mut at = 0;
        while at < full {
            let w = [
                S::load(w[0].add(at)),
                S::load(w[1].add(at)),
                S::load(w[2].add(at)),
                S::load(w[3].add(at)),
            ];
            for m in 0..M {
                let x = S::load(x[m].add(at));
                for r in 0..4 {
                    sums[m][r] = S::fma(x, w[r], sums[m][r]);
                }
            }
            at += S::LANES;
        }
        if full < k {
            for m in 0..M {
                let x = S::load_first(x[m].add(full), k - full);
                for r in 0..4 {
                    sums[m][r] = S::fma(x, S::load_first(w[r].add(full), k - full), sums[m][r]);
                }
            }
        }
        let mut out = [[0.0; 4]; M];
        for m in 0..M {
            out[m] = S::sum4(sums[m]);
        }
        out
    }
}

/// The products of some weight rows by way of a widened panel, which all activation rows share.
///
/// # Safety
/// As for [`Simd`]; no other thread may write the same rows' results.
#[inline(always)]
pub(super) unsafe fn panels<S: Simd>(job: &LinearJob<'_>, rows: Range<usize>) {
    let k = job.weight.cols();
    if let Some(weights) = aligned(job) {
        for row in rows.clone().step_by(panel_rows(k)) {
            let rows = row..(row + panel_rows(k)).min(rows.end);
            // SAFETY: the matrix holds its rows; the rest is the caller's promise.
            unsafe { panel::<S>(job, rows.clone(), weights[rows.start * k..].as_ptr()) }
        }
        return;
    }
    let mut scratch = SCRATCH.take();
    if scratch.len() < panel_rows(k) * k {
        scratch.resize(panel_rows(k) * k, 0.0);
    }
    for row in rows.clone().step_by(panel_rows(k)) {
        let rows = row..(row + panel_rows(k)).min(rows.end);
        let bytes = job.weight.rows_bytes(rows.clone());
        let widened = &mut scratch[..rows.len() * k];
        // SAFETY: the panel holds the rows; the rest is the caller's promise.
        unsafe {
            S::dequantize(job.weight.format(), bytes, widened);
            panel::<S>(job, rows, widened.as_ptr());
        }
    }
    SCRATCH.set(scratch);
}

/// Weights that need no widening.
fn aligned<'a>(job: &LinearJob<'a>) -> Option<&'a [f32]> {
    // SAFETY: any four bytes are a float.
    let (before, weights, _) = unsafe { job.weight.bytes().align_to() };
    (job.weight.format() == Format::F32 && before.is_empty()).then_some(weights)
}

/// Rows of a panel, a multiple of four.
fn panel_rows(k: usize) -> usize {
    (PANEL / k.max(1)).clamp(4, 64) / 4 * 4
}

/// # Safety
/// As for [`Simd`]; `weights` must hold the rows, and no other thread may write their results.
#[inline(always)]
unsafe fn panel<S: Simd>(job: &LinearJob<'_>, rows: Range<usize>, weights: *const f32) {
    let (n, blocks) = (job.n, job.n.div_ceil(S::BATCH));
    let mut first = 0;
    for block in 0..blocks {
        // Nearly equal blocks: 7 rows as 4 and 3 rather than 6 and 1.
        let count = (n - first).div_ceil(blocks - block);
        // SAFETY: the caller's promise, and `count` rows from `first` on are below `n`.
        unsafe {
            match count {
                1 => quads::<S, 1>(job, first, rows.clone(), weights),
                2 => quads::<S, 2>(job, first, rows.clone(), weights),
                3 => quads::<S, 3>(job, first, rows.clone(), weights),
                4 => quads::<S, 4>(job, first, rows.clone(), weights),
                5 => quads::<S, 5>(job, first, rows.clone(), weights),
                _ => quads::<S, 6>(job, first, rows.clone(), weights),
            }
        }
        first += count;
    }
}

/// # Safety
/// As for [`panel`]; activation rows `first..first + M` must exist.
#[inline(always)]
unsafe fn quads<S: Simd, const M: usize>(
    job: &LinearJob<'_>,
    first: usize,
    rows: Range<usize>,
    weights: *const f32,
) {
    let k = job.weight.cols();
    // SAFETY: the rows exist in `x` and in the panel; of a last, incomplete quad the last row is repeated.
    unsafe {
        let mut x = [job.x.as_ptr(); M];
        for m in 0..M {
            x[m] = job.x.as_ptr().add((first + m) * k);
        }
        for row in rows.clone().step_by(4) {
            let count = (rows.end - row).min(4);
            let at = |r: usize| weights.add((row - rows.start + r.min(count - 1)) * k);
            let sums = tile::<S, M>([at(0), at(1), at(2), at(3)], x, k);
            for m in 0..M {
                job.finish(first + m, row, &sums[m][..count]);
            }
        }
    }
}

/// `exp`, within two units in the last place for arguments in -87..=88, which it is clamped to.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        // The order of the operands lets a NaN through.
        let x = S::min(S::splat(88.0), S::max(S::splat(-87.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // x - n ln 2, with ln 2 in two parts so that the first product is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        // Cephes' polynomial for exp on [-ln 2 / 2, ln 2 / 2].
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let p = S::fma(p, S::mul(r, r), S::add(r, S::splat(1.0)));
        S::mul(p, S::pow2(n))
    }
}

/// 2 to the power of a number in -126..=127, to 2e-7 of it.
///
/// # Safety
/// As for [`Simd`].
#[expect(
    clippy::approx_constant,
    reason = "a fitted coefficient, not the logarithm that it is near"
)]
#[inline(always)]
pub(super) unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let n = S::round(x);
        let r = S::sub(x, n);
        // Fitted on [-1/2, 1/2] to 7.5e-8 of the result.
        let mut p = S::splat(1.327_647_2e-3);
        for c in [9.675_541e-3, 5.550_713e-2, 2.402_212e-1, 6.931_47e-1, 1.000_000_1] {
            p = S::fma(p, r, S::splat(c));
        }
        S::mul(p, S::pow2(n))
    }
}

/// `1 / (1 + exp(-x))`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// `tanh(x)`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::sub(S::mul(S::splat(2.0), sigmoid::<S>(S::add(x, x))), S::splat(1.0)) }
}

/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn activate<S: Simd>(activation: Activation, x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        match activation {
            Activation::Silu => S::mul(x, sigmoid::<S>(x)),
            // (1 + tanh(y)) / 2 is the sigmoid of 2y.
            Activation::GeluTanh => {
                let cubic = S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0));
                let twice = S::mul(S::splat(2.0 * super::scalar::SQRT_2_OVER_PI), S::mul(x, cubic));
                S::mul(x, sigmoid::<S>(twice))
            }
            Activation::Gelu => gelu::<S>(x),
            Activation::Relu => S::max(x, S::splat(0.0)),
        }
    }
}

/// `x / 2 * (1 + erf(x / sqrt(2)))` to 3e-7, most of which is the result's own rounding.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = S::splat(0.0);
        // Beyond 7 nothing is left of the tail. The order of the operands lets a NaN through.
        let magnitude = S::min(S::splat(7.0), S::max(x, S::sub(zero, x)));
        // The logarithm to base 2 of the normal distribution's tail, fitted so that the magnitude times the tail errs by at
        // most 5.2e-8.
        let mut log = S::splat(3.311_253e-5);
        for c in [
            -7.693_686e-4,
            8.081_137e-3,
            -5.341_265_5e-2,
            -4.587_706_3e-1,
            -1.151_201_8,
            -9.999_93e-1,
        ] {
            log = S::fma(log, magnitude, S::splat(c));
        }
        // What is missing from a positive x, and all there is of a negative one.
        let missing = S::mul(magnitude, exp2::<S>(log));
        S::sub(S::max(zero, x), missing)
    }
}

/// `activation(gate) * up`, for slices of one length.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn gated<S: Simd>(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len(), "lengths differ");
    let full = out.len() - out.len() % S::LANES;
    // SAFETY: the three slices are as long as `out`.
    unsafe {
        let (gate, up, to) = (gate.as_ptr(), up.as_ptr(), out.as_mut_ptr());
        for at in (0..full).step_by(S::LANES) {
            let v = S::mul(
                activate::<S>(activation, S::load(gate.add(at))),
                S::load(up.add(at)),
            );
            S::store(to.add(at), v);
        }
        let rest = out.len() - full;
        if rest > 0 {
            let g = activate::<S>(activation, S::load_first(gate.add(full), rest));
            S::store_first(to.add(full), rest, S::mul(g, S::load_first(up.add(full), rest)));
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight`, for slices of one length.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn rms_norm<S: Simd>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(
        x.len() == out.len() && weight.len() == out.len(),
        "lengths differ"
    );
    let full = x.len() - x.len() % S::LANES;
    let rest = x.len() - full;
    // SAFETY: the three slices are as long as `x`.
    unsafe {
        let (from, weight, to) = (x.as_ptr(), weight.as_ptr(), out.as_mut_ptr());
        let mut squares = S::splat(0.0);
        for at in (0..full).step_by(S::LANES) {
            let x = S::load(from.add(at));
            squares = S::fma(x, x, squares);
        }
        if rest > 0 {
            let x = S::load_first(from.add(full), rest);
            squares = S::fma(x, x, squares);
        }
        let zero = S::splat(0.0);
        let mean = S::sum4([squares, zero, zero, zero])[0] / x.len() as f32;
        let scale = S::splat(1.0 / (mean + eps).sqrt());
        for at in (0..full).step_by(S::LANES) {
            S::store(
                to.add(at),
                S::mul(S::mul(S::load(from.add(at)), scale), S::load(weight.add(at))),
            );
        }
        if rest > 0 {
            let v = S::mul(
                S::mul(S::load_first(from.add(full), rest), scale),
                S::load_first(weight.add(full), rest),
            );
            S::store_first(to.add(full), rest, v);
        }
    }
}

/// Rotates every head of `x` by one token's angles.
#[inline(always)]
pub(super) fn rope(style: RopeStyle, x: &[f32], (cos, sin): (&[f32], &[f32]), out: &mut [f32]) {
    let half = cos.len().min(sin.len());
    let (cos, sin) = (&cos[..half], &sin[..half]);
    if half == 0 {
        return;
    }
    for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
        match style {
            RopeStyle::Halves => {
                let ((a, b), (to_a, to_b)) = (x.split_at(half), out.split_at_mut(half));
                for i in 0..half {
                    to_a[i] = a[i] * cos[i] - b[i] * sin[i];
                    to_b[i] = b[i] * cos[i] + a[i] * sin[i];
                }
            }
            RopeStyle::Interleaved => {
                let pairs = x.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<2>().0);
                for (([a, b], to), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                    *to = [a * cos - b * sin, b * cos + a * sin];
                }
            }
        }
    }
}
