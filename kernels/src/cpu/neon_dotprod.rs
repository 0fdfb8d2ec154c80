//! NEON with dot products of four bytes (Armv8.2 and later): the packed products of `neon`.

#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "the bodies are single instructions under the trait's one contract"
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
    arch::{aarch64::*, asm, is_aarch64_feature_detected},
    ops::Range,
};

use super::{
    Kernels, neon,
    packed::{PackedJob, Tiles, Unpacked, panels},
};
use crate::packed::{
    GROUP, LINE, LINES, Layout, PANEL, Panel,
    unpack::{self, Lines, Rows, Scaling},
};

/// Rows of a panel that one vector holds.
const LANES: usize = 4;
/// Vectors of a panel's rows that are summed at once.
const SIDE: usize = 2;
/// Bytes of a vector, and of the numbers that it takes of a row: those of as many lines as it has lanes.
const VECTOR: usize = 16;

static KERNELS: Kernels = Kernels {
    name: "neon-dotprod",
    linear_packed,
    ..neon::KERNELS
};

/// The table, where the processor has the instructions.
pub(super) fn detect() -> Option<&'static Kernels> {
    is_aarch64_feature_detected!("dotprod").then_some(&KERNELS)
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn linear_packed(job: &PackedJob<'_>, range: Range<usize>) {
    panels::<Dotprod>(job, range);
}

struct Dotprod;

impl Scaling for Dotprod {
    #[inline(always)]
    unsafe fn widen(halves: &[u8; 2 * PANEL]) -> Rows {
        let mut out = [0.0; PANEL];
        for at in (0..PANEL).step_by(LANES) {
            let narrow = vld1_u8(halves.as_ptr().add(2 * at));
            vst1q_f32(
                out.as_mut_ptr().add(at),
                vcvt_f32_f16(vreinterpret_f16_u8(narrow)),
            );
        }
        out
    }
}

impl Tiles for Dotprod {
    #[inline(always)]
    unsafe fn unpack(layout: Layout, panel: Panel<'_>, lines: &mut [Lines]) {
        unpack::codes(layout.bits, panel, lines);
        // Signed, as the instruction wants them. Of 128 the byte is the same with either sign.
        let Some(offset) = layout.scales.offset() else {
            return;
        };
        for code in lines.as_flattened_mut().as_flattened_mut() {
            *code = code.wrapping_sub(offset.cast_unsigned() as u8);
        }
    }

    #[inline(always)]
    unsafe fn unpacked(job: &PackedJob<'_>, panel: usize, rows: Range<usize>, unpacked: &Unpacked) {
        let mut first = rows.start;
        while first < rows.end {
            first += match rows.end - first {
                4.. => tile::<4>(job, panel, first, unpacked),
                2.. => tile::<2>(job, panel, first, unpacked),
                _ => tile::<1>(job, panel, first, unpacked),
            };
        }
    }
}

/// The results of `R` activation rows from row `first` on; returns `R`.
#[inline(always)]
unsafe fn tile<const R: usize>(
    job: &PackedJob<'_>,
    panel: usize,
    first: usize,
    unpacked: &Unpacked,
) -> usize {
    let (x, halves) = (job.x, job.weight.layout().scales.halves());
    let (parts, lines) = (x.groups() * halves, LINES / halves);
    let mut out = [[0.0; PANEL]; R];
    for column in (0..PANEL).step_by(SIDE * LANES) {
        let mut sums = [[vdupq_n_f32(0.0); SIDE]; R];
        for part in 0..parts {
            let codes: *const i8 = unpacked.codes.as_ptr().add(part * lines).cast();
            let codes = codes.add(4 * column);
            // The tile's rows are side by side in their block.
            let at = x.numbers(first, part / halves) + part % halves * 4 * lines;
            let mut products = digits::<R>(codes, lines, x.upper.as_ptr().add(at));
            if x.is_wide() {
                let lower = digits::<R>(codes, lines, x.lower.as_ptr().add(at));
                for r in 0..R {
                    for v in 0..SIDE {
                        products[r][v] = vaddq_s32(vshlq_n_s32::<8>(products[r][v]), lower[r][v]);
                    }
                }
            }
            let (scale_at, share_at) = (
                x.place(first, part / halves, x.groups()),
                x.place(first, part, parts),
            );
            for v in 0..SIDE {
                let scales = vld1q_f32(unpacked.scales[part].as_ptr().add(column + v * LANES));
                for r in 0..R {
                    let scale = vmulq_n_f32(scales, x.scales[scale_at + r]);
                    sums[r][v] = vfmaq_f32(sums[r][v], vcvtq_f32_s32(products[r][v]), scale);
                }
                if job.corrections.shares.is_empty() {
                    continue;
                }
                let mins = vld1q_f32(unpacked.mins[part].as_ptr().add(column + v * LANES));
                for r in 0..R {
                    sums[r][v] = vfmaq_n_f32(sums[r][v], mins, job.corrections.shares[share_at + r]);
                }
            }
        }
        for r in 0..R {
            for v in 0..SIDE {
                vst1q_f32(out[r].as_mut_ptr().add(column + v * LANES), sums[r][v]);
            }
        }
    }
    for r in 0..R {
        job.finish(first + r, panel, &out[r]);
    }
    R
}

/// The whole-number sums of lines, four or eight of them, with one digit of `R` rows of a block.
#[inline(always)]
unsafe fn digits<const R: usize>(
    codes: *const i8,
    lines: usize,
    numbers: *const i8,
) -> [[int32x4_t; SIDE]; R] {
    let mut sums = [[vdupq_n_s32(0); SIDE]; R];
    for four in 0..lines / LANES {
        let mut rows = [vdupq_n_s8(0); R];
        for r in 0..R {
            rows[r] = vld1q_s8(numbers.add(GROUP * r + VECTOR * four));
        }
        let codes = codes.add(four * LANES * LINE);
        // Written out, as the lane is a part of the instruction.
        line::<0, R>(codes, &rows, &mut sums);
        line::<1, R>(codes, &rows, &mut sums);
        line::<2, R>(codes, &rows, &mut sums);
        line::<3, R>(codes, &rows, &mut sums);
    }
    sums
}

/// Adds line `L`'s codes times each row's number of that lane.
#[inline(always)]
unsafe fn line<const L: usize, const R: usize>(
    codes: *const i8,
    rows: &[int8x16_t; R],
    sums: &mut [[int32x4_t; SIDE]; R],
) {
    for v in 0..SIDE {
        let codes = vld1q_s8(codes.add(L * LINE + v * VECTOR));
        for r in 0..R {
            sums[r][v] = dot::<L>(sums[r][v], codes, rows[r]);
        }
    }
}

/// Adds to each lane the four signed products of its bytes with the four of lane `L`: an instruction that stable Rust has
/// no function for.
#[inline(always)]
unsafe fn dot<const L: usize>(mut sums: int32x4_t, codes: int8x16_t, numbers: int8x16_t) -> int32x4_t {
    asm!(
        "sdot {sums:v}.4s, {codes:v}.16b, {numbers:v}.4b[{lane}]",
        sums = inout(vreg) sums, codes = in(vreg) codes, numbers = in(vreg) numbers, lane = const L,
        options(pure, nomem, nostack, preserves_flags),
    );
    sums
}
