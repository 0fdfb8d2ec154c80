//! Products with packed weights by AVX2: pairs of bytes to 16 bits, pairs of these to 32.

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

use std::{arch::x86_64::*, ops::Range};

use super::packed::{PackedJob, Tiles, Unpacked};
use crate::packed::{
    Bits, GROUP, LINE, LINES, PANEL,
    unpack::{Rows, Scaling},
};

/// Rows of a panel that one vector holds.
const LANES: usize = 8;

pub(super) struct Avx2Tiles;

impl Scaling for Avx2Tiles {
    #[inline(always)]
    unsafe fn widen(halves: &[u8; 2 * PANEL]) -> Rows {
        let mut out = [0.0; PANEL];
        for side in 0..PANEL / LANES {
            let narrow = _mm_loadu_si128(halves.as_ptr().add(2 * LANES * side).cast());
            _mm256_storeu_ps(out.as_mut_ptr().add(LANES * side), _mm256_cvtph_ps(narrow));
        }
        out
    }

    #[inline(always)]
    unsafe fn multiples<const SIGNED: bool>(scale: &Rows, bytes: &[u8; PANEL]) -> Rows {
        let mut out = [0.0; PANEL];
        for at in [0, LANES] {
            let narrow = _mm_loadl_epi64(bytes.as_ptr().add(at).cast());
            let factors = if SIGNED {
                _mm256_cvtepi8_epi32(narrow)
            } else {
                _mm256_cvtepu8_epi32(narrow)
            };
            let scale = _mm256_loadu_ps(scale.as_ptr().add(at));
            let product = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(factors));
            _mm256_storeu_ps(out.as_mut_ptr().add(at), product);
        }
        out
    }
}

impl Tiles for Avx2Tiles {
    #[inline(always)]
    unsafe fn unpacked(job: &PackedJob<'_>, panel: usize, rows: Range<usize>, unpacked: &Unpacked) {
        // Sixteen bits hold two products of codes of up to six bits; wider ones go as two digits.
        if job.weight.layout().bits == Bits::Eight {
            blocks::<true>(job, panel, rows, unpacked);
        } else {
            blocks::<false>(job, panel, rows, unpacked);
        }
    }
}

#[inline(always)]
unsafe fn blocks<const BYTES: bool>(
    job: &PackedJob<'_>,
    panel: usize,
    rows: Range<usize>,
    unpacked: &Unpacked,
) {
    let mut first = rows.start;
    while first < rows.end {
        first += match rows.end - first {
            4.. => tile::<BYTES, 4>(job, panel, first, unpacked),
            2.. => tile::<BYTES, 2>(job, panel, first, unpacked),
            _ => tile::<BYTES, 1>(job, panel, first, unpacked),
        };
    }
}

/// The results of `R` activation rows from row `first` on; returns `R`.
#[inline(always)]
unsafe fn tile<const BYTES: bool, const R: usize>(
    job: &PackedJob<'_>,
    panel: usize,
    first: usize,
    unpacked: &Unpacked,
) -> usize {
    let (x, halves) = (job.x, job.weight.layout().scales.halves());
    let (parts, lines) = (x.groups() * halves, LINES / halves);
    let mut out = [[0.0; PANEL]; R];
    for side in 0..PANEL / LANES {
        let mut sums = [_mm256_setzero_ps(); R];
        for part in 0..parts {
            let codes: *const u8 = unpacked.codes.as_ptr().add(part * lines).cast();
            let codes = codes.add(side * LINE / 2);
            // The tile's rows are side by side in their block.
            let at = x.numbers(first, part / halves) + part % halves * 4 * lines;
            let (scale_at, correction) = (
                x.place(first, part / halves, x.groups()),
                x.place(first, part, parts),
            );
            let mut products = digits::<BYTES, R>(codes, lines, x.upper.as_ptr().add(at));
            if x.is_wide() {
                let lower = digits::<BYTES, R>(codes, lines, x.lower.as_ptr().add(at));
                for r in 0..R {
                    products[r] = _mm256_add_epi32(_mm256_slli_epi32::<8>(products[r]), lower[r]);
                }
            }
            let scales = _mm256_loadu_ps(unpacked.scales[part].as_ptr().add(side * LANES));
            for r in 0..R {
                let scale = _mm256_set1_ps(x.scales[scale_at + r]);
                if let Some(start) = job.corrections.starts.get(correction + r) {
                    products[r] = _mm256_add_epi32(products[r], _mm256_set1_epi32(*start));
                }
                sums[r] = _mm256_fmadd_ps(
                    _mm256_cvtepi32_ps(products[r]),
                    _mm256_mul_ps(scales, scale),
                    sums[r],
                );
                if let Some(share) = job.corrections.shares.get(correction + r) {
                    let mins = _mm256_loadu_ps(unpacked.mins[part].as_ptr().add(side * LANES));
                    sums[r] = _mm256_fmadd_ps(mins, _mm256_set1_ps(*share), sums[r]);
                }
            }
        }
        for r in 0..R {
            _mm256_storeu_ps(out[r].as_mut_ptr().add(side * LANES), sums[r]);
        }
    }
    for r in 0..R {
        job.finish(first + r, panel, &out[r]);
    }
    R
}

/// The whole-number sums of an even number of half lines with one digit of `R` rows of a block.
#[inline(always)]
unsafe fn digits<const BYTES: bool, const R: usize>(
    codes: *const u8,
    lines: usize,
    numbers: *const i8,
) -> [__m256i; R] {
    let (one, nibble) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15));
    let mut sums = [_mm256_setzero_si256(); R];
    for pair in 0..lines / 2 {
        let a = _mm256_loadu_si256(codes.add(2 * pair * LINE).cast());
        let b = _mm256_loadu_si256(codes.add((2 * pair + 1) * LINE).cast());
        let low = [_mm256_and_si256(a, nibble), _mm256_and_si256(b, nibble)];
        let high = [upper_nibbles(a), upper_nibbles(b)];
        for r in 0..R {
            let first = numbers.add(GROUP * r + 8 * pair);
            let numbers = [four(first), four(first.add(4))];
            if BYTES {
                let low = _mm256_madd_epi16(products(low, numbers), one);
                let high = _mm256_madd_epi16(products(high, numbers), _mm256_set1_epi16(16));
                sums[r] = _mm256_add_epi32(sums[r], _mm256_add_epi32(low, high));
            } else {
                let both = products([a, b], numbers);
                sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(both, one));
            }
        }
    }
    sums
}

// Functions rather than closures, which the compiler may leave without the caller's target features.

#[inline(always)]
unsafe fn four(from: *const i8) -> __m256i {
    _mm256_set1_epi32(from.cast::<i32>().read_unaligned())
}

#[inline(always)]
unsafe fn upper_nibbles(bytes: __m256i) -> __m256i {
    _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15))
}

#[inline(always)]
unsafe fn products(codes: [__m256i; 2], numbers: [__m256i; 2]) -> __m256i {
    _mm256_add_epi16(
        _mm256_maddubs_epi16(codes[0], numbers[0]),
        _mm256_maddubs_epi16(codes[1], numbers[1]),
    )
}
