//! A cache of records as a source of attention in `f32`, for instruction sets without dot products of bytes: codes are
//! widened in registers.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over constants unroll, and their indices are registers' numbers"
)]
#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::ops::Range;

use super::{SPAN, Source, Span};
use crate::cpu::{
    records::{OFFSET, PART, Records, SCALES, STRIDE, record_bytes, scale},
    simd::Simd,
    stored::KEY_GROUP,
};

impl<S: Simd> Source<S> for Records<'_> {
    #[inline(always)]
    unsafe fn scores<const M: usize>(
        &self,
        span: &Span<'_>,
        first: usize,
        seen: &Range<usize>,
        scores: &mut [[f32; SPAN]; M],
    ) {
        // SAFETY: the caller's promise; a span is a multiple of the vectors.
        unsafe {
            match S::LANES {
                8 => self.chunks::<S, M, 2>(span, first, seen, scores),
                _ => self.chunks::<S, M, 4>(span, first, seen, scores),
            }
        }
    }

    #[inline(always)]
    unsafe fn values<const M: usize>(
        &self,
        span: &Span<'_>,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
    ) {
        let d = span.job.d;
        for start in (0..d).step_by(PART) {
            let dims = (d - start).min(PART);
            let mut at = 0;
            // SAFETY: the caller's promise; the elements are within the part.
            unsafe {
                while at + 4 * S::LANES <= dims {
                    self.weighted::<S, M, 4>(span, seen, weights, outs, start + at);
                    at += 4 * S::LANES;
                }
                while at + S::LANES <= dims {
                    self.weighted::<S, M, 1>(span, seen, weights, outs, start + at);
                    at += S::LANES;
                }
                for i in start + at..start + dims {
                    self.weighted_one::<M>(span, seen, weights, outs, i);
                }
            }
        }
    }
}

impl Records<'_> {
    /// The scaled products of `M` queries with the keys around those seen, `C` vectors of positions at a time.
    ///
    /// # Safety
    /// As for [`Source::scores`]; `C` vectors must divide a span, and groups of keys divide them or they these.
    #[inline(always)]
    unsafe fn chunks<S: Simd, const M: usize, const C: usize>(
        &self,
        span: &Span<'_>,
        first: usize,
        seen: &Range<usize>,
        scores: &mut [[f32; SPAN]; M],
    ) {
        let (job, chunk) = (span.job, C * S::LANES);
        // SAFETY: queries are in `q`, groups in the cache.
        unsafe {
            for start in (seen.start / chunk * chunk..seen.end).step_by(chunk) {
                let mut keys = [self.k.as_ptr(); C];
                for c in 0..C {
                    let position = start + c * S::LANES;
                    let record = span.groups[position / KEY_GROUP] * record_bytes(job.d);
                    keys[c] = keys[c].add(record + position % KEY_GROUP * 4);
                }
                let mut totals = [[S::splat(0.0); C]; M];
                for (part, from) in (0..job.d).step_by(PART).enumerate() {
                    let mut sums = [[S::splat(0.0); C]; M];
                    for i in from..(from + PART).min(job.d) {
                        let at = part * STRIDE + SCALES + (i - from) / 4 * 4 * KEY_GROUP;
                        let mut key = [S::splat(0.0); C];
                        for c in 0..C {
                            let code = S::unsigned_bytes(keys[c].add(at), i % 4);
                            key[c] = S::sub(code, S::splat(f32::from(OFFSET)));
                        }
                        for m in 0..M {
                            let query = S::splat(*job.q.as_ptr().add(job.query(span.tile, first + m) + i));
                            for c in 0..C {
                                sums[m][c] = S::fma(query, key[c], sums[m][c]);
                            }
                        }
                    }
                    for c in 0..C {
                        let scale = S::load(keys[c].add(part * STRIDE).cast());
                        for m in 0..M {
                            totals[m][c] = S::fma(sums[m][c], scale, totals[m][c]);
                        }
                    }
                }
                let scale = S::splat(job.options.scale);
                for m in 0..M {
                    for c in 0..C {
                        let to = scores[m].as_mut_ptr().add(start + c * S::LANES);
                        S::store(to, S::mul(totals[m][c], scale));
                    }
                }
            }
        }
    }

    /// Where the part of a position's value that has element `i` starts.
    #[inline(always)]
    fn value_part(&self, span: &Span<'_>, position: usize, i: usize) -> &[u8] {
        let record = span.groups[position / KEY_GROUP] * record_bytes(span.job.d);
        &self.v[record + i / PART * STRIDE..]
    }

    /// Adds the weighted values to `C` vectors of each query's output, from element `at` on.
    ///
    /// # Safety
    /// As for [`Source::values`]; the vectors must be within a part.
    #[inline(always)]
    unsafe fn weighted<S: Simd, const M: usize, const C: usize>(
        &self,
        span: &Span<'_>,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
        at: usize,
    ) {
        let dims = (span.job.d - at / PART * PART).min(PART);
        // SAFETY: the caller's promise; groups are in the cache.
        unsafe {
            let mut sums = [[S::splat(0.0); C]; M];
            for m in 0..M {
                for c in 0..C {
                    sums[m][c] = S::load(outs[m].add(at + c * S::LANES));
                }
            }
            for position in seen.clone() {
                let (part, place) = (self.value_part(span, position, at), position % KEY_GROUP);
                let scale = scale(part, place);
                let codes = part.as_ptr().add(SCALES + (place / 4 * dims + at % PART) * 4);
                let mut value = [S::splat(0.0); C];
                for c in 0..C {
                    value[c] = S::signed_bytes(codes.add(4 * c * S::LANES), place % 4);
                }
                for m in 0..M {
                    let weight = S::splat(weights[m][position] * scale);
                    for c in 0..C {
                        sums[m][c] = S::fma(weight, value[c], sums[m][c]);
                    }
                }
            }
            for m in 0..M {
                for c in 0..C {
                    S::store(outs[m].add(at + c * S::LANES), sums[m][c]);
                }
            }
        }
    }

    /// As [`Records::weighted`] for element `i` alone.
    ///
    /// # Safety
    /// As for [`Source::values`].
    #[inline(always)]
    unsafe fn weighted_one<const M: usize>(
        &self,
        span: &Span<'_>,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
        i: usize,
    ) {
        for position in seen.clone() {
            let slot = span.groups[position / KEY_GROUP] * KEY_GROUP + position % KEY_GROUP;
            let value = self.value(span.job.d, slot, i);
            for m in 0..M {
                // SAFETY: the caller's promise.
                unsafe { *outs[m].add(i) += weights[m][position] * value }
            }
        }
    }
}
