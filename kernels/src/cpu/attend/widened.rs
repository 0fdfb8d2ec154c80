//! Attention in `f32` over whatever a cache holds, widened in registers as it is read.

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
    stored::{Cells, KEY_GROUP, Stored},
};

/// A cache whose numbers become vectors.
pub(super) trait Widen {
    /// Dimension `i` of the keys of `LANES` positions of the span, from `position`, a multiple of them, on.
    ///
    /// # Safety
    /// As for [`Simd`]; the span's groups must be in the cache.
    unsafe fn key<S: Simd>(&self, span: &Span<'_>, position: usize, i: usize) -> S::V;

    /// Dimensions `at..at + LANES`, `at` being a multiple of `LANES`, of a position's value.
    ///
    /// # Safety
    /// As for [`Widen::key`]; the dimensions must be the head's.
    unsafe fn value<S: Simd>(&self, span: &Span<'_>, position: usize, at: usize) -> S::V;

    /// As [`Widen::value`] for the `len` dimensions that are left, fewer than `LANES`; the other lanes are zero.
    ///
    /// # Safety
    /// As for [`Widen::value`].
    unsafe fn last_value<S: Simd>(&self, span: &Span<'_>, position: usize, at: usize, len: usize) -> S::V;
}

impl<E: Stored> Cells<'_, E> {
    /// Where a position's value starts.
    #[inline(always)]
    fn value_start(&self, span: &Span<'_>, position: usize) -> *const E {
        let group = span.groups[position / KEY_GROUP];
        let at = (group * KEY_GROUP + position % KEY_GROUP) * span.job.d;
        self.v.as_ptr().wrapping_add(at)
    }
}

impl<E: Stored> Widen for Cells<'_, E> {
    #[inline(always)]
    unsafe fn key<S: Simd>(&self, span: &Span<'_>, position: usize, i: usize) -> S::V {
        let group = span.groups[position / KEY_GROUP] * KEY_GROUP * span.job.d;
        // SAFETY: the caller's promise.
        unsafe { E::load::<S>(self.k.as_ptr().add(group + i * KEY_GROUP + position % KEY_GROUP)) }
    }

    #[inline(always)]
    unsafe fn value<S: Simd>(&self, span: &Span<'_>, position: usize, at: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { E::load::<S>(self.value_start(span, position).add(at)) }
    }

    #[inline(always)]
    unsafe fn last_value<S: Simd>(&self, span: &Span<'_>, position: usize, at: usize, len: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { E::load_first::<S>(self.value_start(span, position).add(at), len) }
    }
}

/// Where the part of a group's record that has dimension `i` starts.
#[inline(always)]
fn part(span: &Span<'_>, position: usize, i: usize) -> usize {
    span.groups[position / KEY_GROUP] * record_bytes(span.job.d) + i / PART * STRIDE
}

impl Records<'_> {
    /// The scale of a position's value in dimension `at`, and where the codes from there on start.
    #[inline(always)]
    fn value_codes(&self, span: &Span<'_>, position: usize, at: usize) -> (f32, *const u8) {
        let (part, place) = (&self.v[part(span, position, at)..], position % KEY_GROUP);
        let dims = (span.job.d - at / PART * PART).min(PART);
        let codes = part
            .as_ptr()
            .wrapping_add(SCALES + (place / 4 * dims + at % PART) * 4);
        (scale(part, place), codes)
    }
}

impl Widen for Records<'_> {
    #[inline(always)]
    unsafe fn key<S: Simd>(&self, span: &Span<'_>, position: usize, i: usize) -> S::V {
        let places = position % KEY_GROUP * 4;
        // SAFETY: the caller's promise: scales and codes are in the part.
        unsafe {
            let part = self.k.as_ptr().add(part(span, position, i));
            let codes = part.add(SCALES + i % PART / 4 * 4 * KEY_GROUP + places);
            let code = S::sub(S::unsigned_bytes(codes, i % 4), S::splat(f32::from(OFFSET)));
            S::mul(code, S::load(part.add(places).cast()))
        }
    }

    #[inline(always)]
    unsafe fn value<S: Simd>(&self, span: &Span<'_>, position: usize, at: usize) -> S::V {
        let (scale, codes) = self.value_codes(span, position, at);
        // SAFETY: the caller's promise: vectors divide parts.
        unsafe { S::mul(S::signed_bytes(codes, position % 4), S::splat(scale)) }
    }

    #[inline(always)]
    unsafe fn last_value<S: Simd>(&self, span: &Span<'_>, position: usize, at: usize, len: usize) -> S::V {
        let ((scale, codes), mut padded) = (self.value_codes(span, position, at), [0; 4 * KEY_GROUP]);
        // SAFETY: the caller's promise; no vector has more lanes than a group positions.
        unsafe {
            codes.copy_to_nonoverlapping(padded.as_mut_ptr(), 4 * len);
            S::mul(S::signed_bytes(padded.as_ptr(), position % 4), S::splat(scale))
        }
    }
}

impl<S: Simd, W: Widen> Source<S> for W {
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
                8 => chunks::<S, W, M, 2>(self, span, first, seen, scores),
                _ => chunks::<S, W, M, 4>(self, span, first, seen, scores),
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
                weighted::<S, W, M, 4>(self, span, seen, weights, outs, at);
                at += 4 * S::LANES;
            }
            while at + S::LANES <= d {
                weighted::<S, W, M, 1>(self, span, seen, weights, outs, at);
                at += S::LANES;
            }
            if at < d {
                last_weighted::<S, W, M>(self, span, seen, weights, outs, at);
            }
        }
    }
}

/// The scaled products of `M` queries with the keys around those seen, `C` vectors of positions at a time.
///
/// # Safety
/// As for [`Source::scores`]; `C` vectors must divide a span, and groups of keys divide them or they these.
#[inline(always)]
unsafe fn chunks<S: Simd, W: Widen, const M: usize, const C: usize>(
    cache: &W,
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
            let mut sums = [[S::splat(0.0); C]; M];
            for i in 0..job.d {
                let mut key = [S::splat(0.0); C];
                for c in 0..C {
                    key[c] = cache.key::<S>(span, start + c * S::LANES, i);
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

/// Adds the weighted values to `C` vectors of each query's output, from element `at` on.
///
/// # Safety
/// As for [`Source::values`]; the vectors must be within the head.
#[inline(always)]
unsafe fn weighted<S: Simd, W: Widen, const M: usize, const C: usize>(
    cache: &W,
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
            for c in 0..C {
                let value = cache.value::<S>(span, position, at + c * S::LANES);
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

/// As [`weighted`] for the elements from `at` to the end of the head, fewer than a vector.
///
/// # Safety
/// As for [`Source::values`].
#[inline(always)]
unsafe fn last_weighted<S: Simd, W: Widen, const M: usize>(
    cache: &W,
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
                let value = cache.last_value::<S>(span, position, at, rest);
                sums = S::fma(S::splat(weights[m][position]), value, sums);
            }
            S::store_first(outs[m].add(at), rest, sums);
        }
    }
}
