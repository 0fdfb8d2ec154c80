//! A cache of records as a source of attention, in whole numbers: queries in two digits of 8 bits, so that nothing but the
//! cache's own rounding is felt; softmax weights, times the values' scales, in 8 bits of the span's largest.

#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "the bodies are instructions under the trait's one contract"
)]
#![cfg_attr(
    not(test),
    expect(
        clippy::wildcard_imports,
        reason = "an instruction set is a vocabulary, not a list of names"
    )
)]
#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "loops over constants unroll, and their indices are registers' numbers"
)]

use std::{
    arch::x86_64::*,
    cell::RefCell,
    f32::consts::{LN_2, LOG2_E},
    ops::Range,
};

use super::{GROUPS, Running, SPAN, Source, Span, over};
use crate::cpu::{
    avx512::{Avx512, first, four, upper_digits},
    jobs::{AttentionJob, Tile},
    operand::{DIGITS_MAX, factor_of},
    records::{OFFSET, PART, Records, SCALES, STRIDE, record_bytes},
    stored::{Cache, KEY_GROUP},
};

/// The largest softmax weight's code.
const WEIGHT_MAX: f32 = 255.0;
/// Bytes of a vector.
const VECTOR: usize = 64;

/// Attention of one tile's queries.
///
/// # Safety
/// As for [`super::attention`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::cpu) unsafe fn attention(job: &AttentionJob<'_>, tile: &Tile) {
    match job.cache {
        Cache::Int8(records) => {
            let source = Codes::new(job, tile, records);
            over::<Avx512, _>(job, &source, tile);
        }
        Cache::F32(_) | Cache::Bf16(_) => super::attention::<Avx512>(job, tile),
    }
}

/// A tile's queries.
#[derive(Default)]
struct Queries {
    /// Codes `[queries, width]`, where a width is a head's dimensions, rounded up to fours with zeros.
    upper: Vec<i8>,
    lower: Vec<i8>,
    width: usize,
    /// What a part's sum of products starts from, as keys are [`OFFSET`] above what they mean, `[queries, parts]`.
    starts: Vec<i32>,
    /// What the numbers count, times the scale of scores, `[queries]`.
    scales: Vec<f32>,
}

thread_local! {
    /// Taken and put back, as in `vector`.
    static SCRATCH: RefCell<Queries> = RefCell::default();
}

/// The records with queries that can meet them.
struct Codes<'a> {
    records: Records<'a>,
    queries: Queries,
}

impl<'a> Codes<'a> {
    #[inline(always)]
    unsafe fn new(job: &AttentionJob<'_>, tile: &Tile, records: Records<'a>) -> Self {
        let mut queries = SCRATCH.take();
        queries.round(job, tile);
        Self { records, queries }
    }
}

impl Drop for Codes<'_> {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.queries));
    }
}

impl Queries {
    #[inline(always)]
    unsafe fn round(&mut self, job: &AttentionJob<'_>, tile: &Tile) {
        let (d, count) = (job.d, tile.tokens.len() * job.group());
        self.width = d.next_multiple_of(4);
        self.upper.clear();
        self.upper.resize(count * self.width, 0);
        self.lower.clear();
        self.lower.resize(count * self.width, 0);
        self.starts.clear();
        self.scales.clear();
        let rows = self.upper.chunks_exact_mut(self.width);
        for (i, (upper, lower)) in rows.zip(self.lower.chunks_exact_mut(self.width)).enumerate() {
            let query = &job.q[job.query(tile, i)..][..d];
            let (factor, scale) = factor_of(largest(query), DIGITS_MAX);
            self.scales.push(scale * job.options.scale);
            let digits = upper.chunks_mut(PART).zip(lower.chunks_mut(PART));
            for (x, (upper, lower)) in query.chunks(PART).zip(digits) {
                self.starts
                    .push(-i32::from(OFFSET) * round(x, factor, upper, lower));
            }
        }
    }
}

/// The largest magnitude, NaN above all.
#[inline(always)]
unsafe fn largest(x: &[f32]) -> f32 {
    let mut largest = _mm512_setzero_si512();
    for x in x.chunks(KEY_GROUP) {
        let bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(first(x.len()), x.as_ptr()));
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(i32::MAX)));
    }
    f32::from_bits(_mm512_reduce_max_epi32(largest).cast_unsigned())
}

/// The digits of `x` times `factor`, and the sum of these numbers.
#[inline(always)]
unsafe fn round(x: &[f32], factor: f32, upper: &mut [i8], lower: &mut [i8]) -> i32 {
    let (mut sum, factor) = (_mm512_setzero_si512(), _mm512_set1_ps(factor));
    for ((x, upper), lower) in x
        .chunks(KEY_GROUP)
        .zip(upper.chunks_mut(KEY_GROUP))
        .zip(lower.chunks_mut(KEY_GROUP))
    {
        let mask = first(x.len());
        let number = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x.as_ptr()), factor));
        // What is not finite has become the least number, and counts as none.
        let some = _mm512_cmpneq_epi32_mask(number, _mm512_set1_epi32(i32::MIN));
        let number = _mm512_maskz_mov_epi32(some, number);
        sum = _mm512_add_epi32(sum, number);
        _mm512_mask_cvtepi32_storeu_epi8(upper.as_mut_ptr(), mask, upper_digits(number));
        _mm512_mask_cvtepi32_storeu_epi8(lower.as_mut_ptr(), mask, number);
    }
    _mm512_reduce_add_epi32(sum)
}

/// 2 to the power of `x`, within three units in the last place, for arguments from -125 on, to which lesser ones are clamped:
/// what is seen weighs something, and so shows if it is no number.
#[inline(always)]
unsafe fn exp2(x: __m512) -> __m512 {
    // The order of the operands lets a NaN through.
    let x = _mm512_max_ps(_mm512_set1_ps(-125.0), x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let r = _mm512_sub_ps(x, n);
    // Taylor's polynomial: on [-1/2, 1/2] the next term is 1.7e-7 of the sum at most.
    let mut p = _mm512_set1_ps(1.540_353e-4);
    for c in [
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        LN_2,
        1.0,
    ] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, n)
}

/// Where byte `at` of each group's records is.
#[inline(always)]
unsafe fn records(of: &[u8], span: &Span<'_>, at: usize) -> [*const u8; GROUPS] {
    let (start, bytes) = (of.as_ptr(), record_bytes(span.job.d));
    let mut records = [start; GROUPS];
    for c in 0..GROUPS {
        records[c] = start.add(span.groups[c] * bytes + at);
    }
    records
}

/// Adds the products of the keys from `keys` on with one digit of each of `M` queries.
#[inline(always)]
unsafe fn dot<const M: usize>(
    sums: &mut [[__m512i; GROUPS]; M],
    keys: [*const u8; GROUPS],
    digits: [*const i8; M],
    quads: usize,
) {
    for quad in 0..quads {
        let mut key = [_mm512_setzero_si512(); GROUPS];
        for c in 0..GROUPS {
            key[c] = _mm512_loadu_si512(keys[c].add(quad * VECTOR).cast());
        }
        for m in 0..M {
            let digit = four(digits[m].add(4 * quad).cast());
            for c in 0..GROUPS {
                sums[m][c] = _mm512_dpbusd_epi32(sums[m][c], key[c], digit);
            }
        }
    }
}

/// The weights of a span, times the values' scales, in codes of a byte, and what a code counts.
#[inline(always)]
unsafe fn shares(weights: &[f32; SPAN], scales: [*const u8; GROUPS], codes: &mut [u8; SPAN]) -> f32 {
    let mut shares = [_mm512_setzero_ps(); GROUPS];
    let mut largest = _mm512_setzero_si512();
    for c in 0..GROUPS {
        let weight = _mm512_loadu_ps(weights.as_ptr().add(c * KEY_GROUP));
        // What nobody sees may have a scale that is not a number.
        let seen = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(weight, _mm512_setzero_ps());
        shares[c] = _mm512_maskz_mul_ps(seen, weight, _mm512_loadu_ps(scales[c].cast()));
        // As magnitudes compare: NaN above all.
        let magnitude = _mm512_and_si512(_mm512_castps_si512(shares[c]), _mm512_set1_epi32(i32::MAX));
        largest = _mm512_max_epi32(largest, magnitude);
    }
    let largest = f32::from_bits(_mm512_reduce_max_epi32(largest).cast_unsigned());
    let (factor, count) = factor_of(largest, WEIGHT_MAX);
    for c in 0..GROUPS {
        let code = _mm512_cvtps_epi32(_mm512_mul_ps(shares[c], _mm512_set1_ps(factor)));
        let to = codes.as_mut_ptr().add(c * KEY_GROUP);
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(code));
    }
    count
}

impl Source<Avx512> for Codes<'_> {
    #[inline(always)]
    unsafe fn scores<const M: usize>(
        &self,
        span: &Span<'_>,
        first: usize,
        _: &Range<usize>,
        scores: &mut [[f32; SPAN]; M],
    ) {
        let (queries, parts) = (&self.queries, span.job.d.div_ceil(PART));
        for part in 0..parts {
            let scales = records(self.records.k, span, part * STRIDE);
            let codes = records(self.records.k, span, part * STRIDE + SCALES);
            let quads = (queries.width - part * PART).min(PART) / 4;
            let (mut upper, mut lower) = ([queries.upper.as_ptr(); M], [queries.lower.as_ptr(); M]);
            for m in 0..M {
                let at = (first + m) * queries.width + part * PART;
                (upper[m], lower[m]) = (upper[m].add(at), lower[m].add(at));
            }
            let mut sums = [[_mm512_setzero_si512(); GROUPS]; M];
            dot(&mut sums, codes, upper, quads);
            for m in 0..M {
                let start = _mm512_set1_epi32(*queries.starts.as_ptr().add((first + m) * parts + part));
                for c in 0..GROUPS {
                    sums[m][c] = _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[m][c]), start);
                }
            }
            dot(&mut sums, codes, lower, quads);
            for m in 0..M {
                let scale = _mm512_set1_ps(*queries.scales.as_ptr().add(first + m));
                for c in 0..GROUPS {
                    let scale = _mm512_mul_ps(_mm512_loadu_ps(scales[c].cast()), scale);
                    let to = scores[m].as_mut_ptr().add(c * KEY_GROUP);
                    let score = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][c]), scale);
                    let before = if part > 0 {
                        _mm512_loadu_ps(to)
                    } else {
                        _mm512_setzero_ps()
                    };
                    _mm512_storeu_ps(to, _mm512_add_ps(before, score));
                }
            }
        }
    }

    /// As [`Span::weigh`], in registers but for reading and storing.
    #[inline(always)]
    unsafe fn weigh(
        &self,
        span: &Span<'_>,
        visible: &Range<usize>,
        scores: &mut [f32; SPAN],
        running: &mut Running,
    ) -> Option<f32> {
        if visible.is_empty() || span.job.options.softcap.is_some() {
            return span.weigh::<Avx512>(visible, scores, running);
        }
        let seen = u64::MAX >> (SPAN - visible.len()) << visible.start;
        let (mut score, mut largest) = ([_mm512_setzero_ps(); GROUPS], _mm512_set1_ps(running.max));
        for c in 0..GROUPS {
            score[c] = _mm512_loadu_ps(scores.as_ptr().add(c * KEY_GROUP));
            let seen = (seen >> (c * KEY_GROUP)) as u16;
            largest = _mm512_mask_max_ps(largest, seen, largest, score[c]);
        }
        let largest = _mm512_reduce_max_ps(largest);
        let mut sums = _mm512_setzero_ps();
        for c in 0..GROUPS {
            let below = _mm512_sub_ps(score[c], _mm512_set1_ps(largest));
            let weight = exp2(_mm512_mul_ps(below, _mm512_set1_ps(LOG2_E)));
            let weight = _mm512_maskz_mov_ps((seen >> (c * KEY_GROUP)) as u16, weight);
            sums = _mm512_add_ps(sums, weight);
            _mm512_storeu_ps(scores.as_mut_ptr().add(c * KEY_GROUP), weight);
        }
        running.add(largest, _mm512_reduce_add_ps(sums))
    }

    #[inline(always)]
    unsafe fn values<const M: usize>(
        &self,
        span: &Span<'_>,
        seen: &Range<usize>,
        weights: &[[f32; SPAN]; M],
        outs: [*mut f32; M],
    ) {
        for (number, start) in (0..span.job.d).step_by(PART).enumerate() {
            let dims = (span.job.d - start).min(PART);
            let scales = records(self.records.v, span, number * STRIDE);
            let (mut codes, mut counts) = ([[0; SPAN]; M], [0.0; M]);
            for m in 0..M {
                counts[m] = shares(&weights[m], scales, &mut codes[m]);
            }
            let part = Part {
                values: records(self.records.v, span, number * STRIDE + SCALES),
                groups: seen.start / KEY_GROUP..seen.end.div_ceil(KEY_GROUP),
                start,
                dims,
            };
            if dims == PART {
                part.add::<M, GROUPS>(&codes, &counts, outs, 0);
            } else {
                for at in (0..dims).step_by(KEY_GROUP) {
                    part.add::<M, 1>(&codes, &counts, outs, at);
                }
            }
        }
    }
}

/// A part of the values of a span.
struct Part {
    values: [*const u8; GROUPS],
    /// The groups that somebody sees.
    groups: Range<usize>,
    /// Its first dimension, and how many it has.
    start: usize,
    dims: usize,
}

impl Part {
    /// Adds to `C` vectors of each output, from element `at` of the part on; the last one may pass its end.
    #[inline(always)]
    unsafe fn add<const M: usize, const C: usize>(
        &self,
        codes: &[[u8; SPAN]; M],
        counts: &[f32; M],
        outs: [*mut f32; M],
        at: usize,
    ) {
        let last = (self.dims - at).min(C * KEY_GROUP) - (C - 1) * KEY_GROUP;
        let (bytes, last) = (u64::MAX >> (VECTOR - 4 * last), first(last));
        let mut sums = [[_mm512_setzero_si512(); C]; M];
        for group in self.groups.clone() {
            for quad in 0..KEY_GROUP / 4 {
                let from = self.values[group].add(4 * (quad * self.dims + at));
                let mut value = [_mm512_setzero_si512(); C];
                for c in 0..C {
                    value[c] = if c + 1 < C {
                        _mm512_loadu_si512(from.add(c * VECTOR).cast())
                    } else {
                        _mm512_maskz_loadu_epi8(bytes, from.add(c * VECTOR).cast())
                    };
                }
                for m in 0..M {
                    let weight = four(codes[m].as_ptr().add(group * KEY_GROUP + 4 * quad));
                    for c in 0..C {
                        sums[m][c] = _mm512_dpbusd_epi32(sums[m][c], weight, value[c]);
                    }
                }
            }
        }
        for m in 0..M {
            let count = _mm512_set1_ps(counts[m]);
            for c in 0..C {
                let to = outs[m].add(self.start + at + c * KEY_GROUP);
                let mask = if c + 1 < C { u16::MAX } else { last };
                let sum = _mm512_fmadd_ps(
                    _mm512_cvtepi32_ps(sums[m][c]),
                    count,
                    _mm512_maskz_loadu_ps(mask, to),
                );
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }
}
