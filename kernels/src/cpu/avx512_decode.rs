//! Weight blocks decoded in AVX-512 registers.
//!
//! Where a group has 16 or 32 possible weights they are computed once per group, by the reference's own operations,
//! and looked up: a permute replaces conversion, multiplication and addition, with the same bits.

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

use std::arch::x86_64::*;

use super::{
    avx512::Avx512,
    blocks::{Decode, Sink},
};

pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// 0, 1, .. 15.
#[inline(always)]
unsafe fn iota() -> __m512 {
    _mm512_setr_ps(
        0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
    )
}

/// The half at `from`, in all lanes.
#[inline(always)]
unsafe fn half(from: *const u8) -> __m512 {
    let bits = i32::from(from.cast::<u16>().read_unaligned());
    _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
}

/// 16 bytes, each in a 32-bit lane.
#[inline(always)]
unsafe fn bytes(from: *const u8) -> __m512i {
    _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))
}

/// The table's entries for the low four bits of each lane.
#[inline(always)]
unsafe fn pick(table: __m512, index: __m512i) -> __m512 {
    _mm512_permutexvar_ps(index, table)
}

/// As [`pick`], from `high` in the lanes of `fifth`.
#[inline(always)]
unsafe fn pick5(low: __m512, high: __m512, fifth: __mmask16, index: __m512i) -> __m512 {
    _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(index, low), fifth, index, high)
}

impl Decode<Avx512> for F16 {
    const LEN: usize = 16;
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        sink.take(0, _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())));
    }
}

impl Decode<Avx512> for Bf16 {
    const LEN: usize = 16;
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        sink.take(0, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)));
    }
}

/// The 16 low and the 16 high nibbles of 16 bytes, through a table.
#[inline(always)]
unsafe fn nibbles(from: *const u8, table: __m512, sink: &mut impl Sink<Avx512>) {
    let q = bytes(from);
    sink.take(0, pick(table, q));
    sink.take(16, pick(table, _mm512_srli_epi32::<4>(q)));
}

/// As [`nibbles`], with a plane of fifth bits.
#[inline(always)]
unsafe fn nibbles5(from: *const u8, plane: *const u8, tables: [__m512; 2], sink: &mut impl Sink<Avx512>) {
    let (q, plane) = (bytes(from), plane.cast::<u32>().read_unaligned());
    sink.take(0, pick5(tables[0], tables[1], plane as u16, q));
    sink.take(
        16,
        pick5(
            tables[0],
            tables[1],
            (plane >> 16) as u16,
            _mm512_srli_epi32::<4>(q),
        ),
    );
}

impl Decode<Avx512> for Q4_0 {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let table = _mm512_mul_ps(_mm512_sub_ps(iota(), _mm512_set1_ps(8.0)), half(from));
        nibbles(from.add(2), table, sink);
    }
}

impl Decode<Avx512> for Q4_1 {
    const LEN: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let table = _mm512_add_ps(_mm512_mul_ps(iota(), half(from)), half(from.add(2)));
        nibbles(from.add(4), table, sink);
    }
}

impl Decode<Avx512> for Q5_0 {
    const LEN: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let d = half(from);
        let low = _mm512_mul_ps(_mm512_sub_ps(iota(), _mm512_set1_ps(16.0)), d);
        nibbles5(from.add(6), from.add(2), [low, _mm512_mul_ps(iota(), d)], sink);
    }
}

impl Decode<Avx512> for Q5_1 {
    const LEN: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let (d, m) = (half(from), half(from.add(2)));
        let low = _mm512_add_ps(_mm512_mul_ps(iota(), d), m);
        let high = _mm512_add_ps(_mm512_mul_ps(_mm512_add_ps(iota(), _mm512_set1_ps(16.0)), d), m);
        nibbles5(from.add(8), from.add(4), [low, high], sink);
    }
}

impl Decode<Avx512> for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let d = half(from);
        for at in [0, 16] {
            let q = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.add(2 + at).cast()));
            sink.take(at, _mm512_mul_ps(_mm512_cvtepi32_ps(q), d));
        }
    }
}

/// The scales and minimums of the eight groups of a `Q4_K` or `Q5_K` block.
#[inline(always)]
unsafe fn scales(from: *const u8) -> ([f32; 8], [f32; 8]) {
    let word = |at: usize| from.add(4 + at).cast::<u32>().read_unaligned();
    let (a, b, c) = (word(0), word(4), word(8));
    let high_scales = c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030;
    let high_mins = c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030;
    (
        eight(a & 0x3f3f_3f3f, high_scales, half(from)),
        eight(b & 0x3f3f_3f3f, high_mins, half(from.add(2))),
    )
}

/// Eight bytes as floats, times a factor.
#[inline(always)]
unsafe fn eight(low: u32, high: u32, factor: __m512) -> [f32; 8] {
    let bytes = _mm_cvtsi64_si128((u64::from(high) << 32 | u64::from(low)).cast_signed());
    let floats = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    let mut out = [0.0; 8];
    _mm256_storeu_ps(
        out.as_mut_ptr(),
        _mm256_mul_ps(_mm512_castps512_ps256(factor), floats),
    );
    out
}

/// The weights of 0..16, or of other sixteen numbers, in a group.
#[inline(always)]
unsafe fn table(numbers: __m512, scale: f32, min: f32) -> __m512 {
    _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(scale), numbers), _mm512_set1_ps(min))
}

impl Decode<Avx512> for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let (scales, mins) = scales(from);
        for pair in 0..4 {
            let low = table(iota(), scales[2 * pair], mins[2 * pair]);
            let high = table(iota(), scales[2 * pair + 1], mins[2 * pair + 1]);
            let (q0, q1) = (bytes(from.add(16 + 32 * pair)), bytes(from.add(32 + 32 * pair)));
            sink.take(64 * pair, pick(low, q0));
            sink.take(64 * pair + 16, pick(low, q1));
            sink.take(64 * pair + 32, pick(high, _mm512_srli_epi32::<4>(q0)));
            sink.take(64 * pair + 48, pick(high, _mm512_srli_epi32::<4>(q1)));
        }
    }
}

impl Decode<Avx512> for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let (scales, mins) = scales(from);
        let plane = _mm256_loadu_si256(from.add(16).cast());
        for group in 0..8 {
            let low = table(iota(), scales[group], mins[group]);
            let upper = _mm512_add_ps(iota(), _mm512_set1_ps(16.0));
            let high = table(upper, scales[group], mins[group]);
            let fifth = _mm256_test_epi8_mask(plane, _mm256_set1_epi8((1_u8 << group).cast_signed()));
            let shift = _mm_cvtsi32_si128(if group % 2 > 0 { 4 } else { 0 });
            for side in 0..2 {
                let q = _mm512_srl_epi32(bytes(from.add(48 + group / 2 * 32 + side * 16)), shift);
                sink.take(
                    32 * group + 16 * side,
                    pick5(low, high, (fifth >> (16 * side)) as u16, q),
                );
            }
        }
    }
}

impl Decode<Avx512> for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    unsafe fn block(from: *const u8, sink: &mut impl Sink<Avx512>) {
        let mut scales = [0.0; 16];
        let widened = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.add(192).cast())));
        _mm512_storeu_ps(scales.as_mut_ptr(), _mm512_mul_ps(half(from.add(208)), widened));
        let (nibble, pair) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48));
        for part in 0..2 {
            let a = _mm256_loadu_si256(from.add(64 * part).cast());
            let b = _mm256_loadu_si256(from.add(64 * part + 32).cast());
            let high = _mm256_loadu_si256(from.add(128 + 32 * part).cast());
            let quarters = [
                (a, _mm256_slli_epi16::<4>(high)),
                (b, _mm256_slli_epi16::<2>(high)),
                (_mm256_srli_epi16::<4>(a), high),
                (_mm256_srli_epi16::<4>(b), _mm256_srli_epi16::<2>(high)),
            ];
            for (i, (low, high)) in quarters.into_iter().enumerate() {
                let q = _mm256_or_si256(_mm256_and_si256(low, nibble), _mm256_and_si256(high, pair));
                let q = _mm256_sub_epi8(q, _mm256_set1_epi8(32));
                for (side, q) in [_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q)]
                    .into_iter()
                    .enumerate()
                {
                    let weight = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q));
                    let scale = _mm512_set1_ps(scales[8 * part + 2 * i + side]);
                    sink.take(128 * part + 32 * i + 16 * side, _mm512_mul_ps(scale, weight));
                }
            }
        }
    }
}
