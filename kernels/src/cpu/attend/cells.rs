//! A cache of numbers as a source of attention, in `f32`.

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
    simd::Simd,
    stored::{Cells, KEY_GROUP, Stored},
};

impl<S: Simd, E: Stored> Source<S> for Cells<'_, E> {
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
        // SAFETY: the caller's promise; the vectors are within the head.
        unsafe {
            let mut at = 0;
            while at + 4 * S::LANES <= d {
                self.weighted::<S, M, 4>(span, seen, weights, outs, at);
                at += 4 * S::LANES;
            }
            while at + S::LANES <= d {
                self.weighted::<S, M, 1>(span, seen, weights, outs, at);
                at += S::LANES;
            }
            if at < d {
                self.last_weighted::<S, M>(span, seen, weights, outs, at);
            }
        }
    }
}

impl<E: Stored> Cells<'_, E> {
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
        let mut queries = [job.q.as_ptr(); M];
        // SAFETY: queries are in `q`, groups in the cache.
        unsafe {
            for (m, query) in queries.iter_mut().enumerate() {
                *query = query.add(job.query(span.tile, first + m));
            }
            for start in (seen.start / chunk * chunk..seen.end).step_by(chunk) {
                let mut keys = [self.k.as_ptr(); C];
                for c in 0..C {
                    let position = start + c * S::LANES;
                    keys[c] = keys[c]
                        .add(span.groups[position / KEY_GROUP] * KEY_GROUP * job.d + position % KEY_GROUP);
                }
                let mut sums = [[S::splat(0.0); C]; M];
                for i in 0..job.d {
                    let mut key = [S::splat(0.0); C];
                    for c in 0..C {
                        key[c] = E::load::<S>(keys[c].add(i * KEY_GROUP));
                    }
                    for m in 0..M {
                        let query = S::splat(*queries[m].add(i));
                        for c in 0..C {
                            sums[m][c] = S::fma(query, key[c], sums[m][c]);
                        }
                    }
                }
                let scale = S::splat(job.options.scale);
                for m in 0..M {
                    for c in 0..C {
                        let to = scores[m].as_mut_ptr().add(start + c * S::LANES);
                        S::store(to, S::mul(sums[m][c], scale));
                    }
                }
            }
        }
    }

    /// Where the values of a position of the span start.
    #[inline(always)]
    fn value(&self, span: &Span<'_>, position: usize) -> *const E {
        let group = span.groups[position / KEY_GROUP];
        let at = (group * KEY_GROUP + position % KEY_GROUP) * span.job.d;
        self.v.as_ptr().wrapping_add(at)
    }

    /// Adds the weighted values to `C` vectors of each query's output, from element `at` on.
    ///
    /// # Safety
    /// As for [`Source::values`]; the vectors must be within the head.
    #[inline(always)]
    unsafe fn weighted<S: Simd, const M: usize, const C: usize>(
        &self,
        span: &Span<'_>,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
        at: usize,
    ) {
        // SAFETY: the caller's promise; groups are in the cache.
        unsafe {
            let mut sums = [[S::splat(0.0); C]; M];
            for m in 0..M {
                for c in 0..C {
                    sums[m][c] = S::load(outs[m].add(at + c * S::LANES));
                }
            }
            for position in seen.clone() {
                let value = self.value(span, position).add(at);
                for c in 0..C {
                    let value = E::load::<S>(value.add(c * S::LANES));
                    for m in 0..M {
                        sums[m][c] = S::fma(S::splat(weights[m][position]), value, sums[m][c]);
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

    /// As [`Cells::weighted`] for the elements from `at` to the end of the head, fewer than a vector.
    ///
    /// # Safety
    /// As for [`Source::values`].
    #[inline(always)]
    unsafe fn last_weighted<S: Simd, const M: usize>(
        &self,
        span: &Span<'_>,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
        at: usize,
    ) {
        let rest = span.job.d - at;
        // SAFETY: the caller's promise; groups are in the cache.
        unsafe {
            for m in 0..M {
                let mut sums = S::load_first(outs[m].add(at), rest);
                for position in seen.clone() {
                    let value = E::load_first::<S>(self.value(span, position).add(at), rest);
                    sums = S::fma(S::splat(weights[m][position]), value, sums);
                }
                S::store_first(outs[m].add(at), rest, sums);
            }
        }
    }
}
