//! The codes of a panel's groups in AVX-512 registers, whatever their width, and what is asked for ahead of them.

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

use std::arch::x86_64::*;

use super::operand::HEIGHT_MAX;
use crate::packed::{Bits, LINE, LINES, Layout, Panel, unpack::Lines};

/// A group's lines in registers.
pub(super) trait Codes {
    /// Bytes of a group of a panel.
    const BYTES: usize;
    /// # Safety
    /// The processor has AVX-512, and a group lies there.
    unsafe fn group(from: *const u8) -> [__m512i; LINES];
}

pub(super) struct Four;
pub(super) struct Five;
pub(super) struct Six;
pub(super) struct Eight;

#[inline(always)]
unsafe fn line(from: *const u8, line: usize) -> __m512i {
    _mm512_loadu_si512(from.add(line * LINE).cast())
}

#[inline(always)]
unsafe fn nibbles(from: *const u8) -> [__m512i; LINES] {
    let mask = _mm512_set1_epi8(15);
    let mut lines = [_mm512_setzero_si512(); LINES];
    for j in 0..4 {
        let both = line(from, j);
        lines[j] = _mm512_and_si512(both, mask);
        lines[j + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
    }
    lines
}

/// `lines[j] | (plane shifted by SHIFT & mask)`; bits that cross into the neighbour byte are masked away.
#[inline(always)]
unsafe fn join<const LEFT: u32, const RIGHT: u32>(low: __m512i, plane: __m512i, mask: __m512i) -> __m512i {
    let shifted = _mm512_srli_epi16::<RIGHT>(_mm512_slli_epi16::<LEFT>(plane));
    // (shifted & mask) | low
    _mm512_ternarylogic_epi64::<0xea>(shifted, mask, low)
}

impl Codes for Four {
    const BYTES: usize = Bits::Four.group_bytes();
    #[inline(always)]
    unsafe fn group(from: *const u8) -> [__m512i; LINES] {
        nibbles(from)
    }
}

impl Codes for Five {
    const BYTES: usize = Bits::Five.group_bytes();
    #[inline(always)]
    unsafe fn group(from: *const u8) -> [__m512i; LINES] {
        let (plane, bit, l) = (line(from, 4), _mm512_set1_epi8(16), nibbles(from));
        [
            join::<4, 0>(l[0], plane, bit),
            join::<3, 0>(l[1], plane, bit),
            join::<2, 0>(l[2], plane, bit),
            join::<1, 0>(l[3], plane, bit),
            join::<0, 0>(l[4], plane, bit),
            join::<0, 1>(l[5], plane, bit),
            join::<0, 2>(l[6], plane, bit),
            join::<0, 3>(l[7], plane, bit),
        ]
    }
}

impl Codes for Six {
    const BYTES: usize = Bits::Six.group_bytes();
    #[inline(always)]
    unsafe fn group(from: *const u8) -> [__m512i; LINES] {
        let (first, second, bits, l) = (line(from, 4), line(from, 5), _mm512_set1_epi8(48), nibbles(from));
        [
            join::<4, 0>(l[0], first, bits),
            join::<2, 0>(l[1], first, bits),
            join::<0, 0>(l[2], first, bits),
            join::<0, 2>(l[3], first, bits),
            join::<4, 0>(l[4], second, bits),
            join::<2, 0>(l[5], second, bits),
            join::<0, 0>(l[6], second, bits),
            join::<0, 2>(l[7], second, bits),
        ]
    }
}

impl Codes for Eight {
    const BYTES: usize = Bits::Eight.group_bytes();
    #[inline(always)]
    unsafe fn group(from: *const u8) -> [__m512i; LINES] {
        let mut lines = [_mm512_setzero_si512(); LINES];
        for j in 0..LINES {
            lines[j] = line(from, j);
        }
        lines
    }
}

/// The next panel's codes and scales, to be on their way when their turn comes: processors foresee a stream, but not where
/// the next one starts.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    codes: *const u8,
    group_bytes: usize,
    scales: *const u8,
    /// Rounded up: a record may serve several groups.
    group_scale_bytes: usize,
    /// Whether the first-level cache takes it: it holds this panel too, and waits for few lines at once, so that a whole
    /// block of rows would find its own loads behind those.
    near: bool,
}

/// Panels of at most this go to the first-level cache: half of the smallest that there is, and less a quarter for all else.
const NEAR_BYTES: usize = 12 << 10;

impl Ahead {
    pub(super) fn of(panel: Panel<'_>, bits: Bits) -> Self {
        let groups = (panel.codes.len() / bits.group_bytes()).max(1);
        let bytes = panel.codes.len() + panel.scales.len();
        Self {
            codes: panel.codes.as_ptr().wrapping_add(bytes),
            group_bytes: bits.group_bytes(),
            scales: panel.scales.as_ptr().wrapping_add(bytes),
            group_scale_bytes: panel.scales.len().div_ceil(groups),
            near: bytes <= NEAR_BYTES,
        }
    }

    /// Asks for what a group needs, which may lie behind the last panel: that harms nothing.
    #[inline(always)]
    pub(super) unsafe fn group<const R: usize>(self, group: usize) {
        if self.near && R < HEIGHT_MAX {
            self.ask::<_MM_HINT_T0>(group);
        } else {
            self.ask::<_MM_HINT_T1>(group);
        }
    }

    #[inline(always)]
    unsafe fn ask<const HINT: i32>(self, group: usize) {
        for line in (0..self.group_bytes).step_by(LINE) {
            let at = self.codes.wrapping_add(group * self.group_bytes + line);
            _mm_prefetch::<HINT>(at.cast());
        }
        let scales = self.scales.wrapping_add(group * self.group_scale_bytes);
        _mm_prefetch::<HINT>(scales.cast());
    }
}

/// Leaves a panel's codes in `lines`, a byte each and less their offset where they have one, which makes them signed; asks
/// for the next panel.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn signed_codes(layout: Layout, panel: Panel<'_>, lines: &mut [Lines]) {
    let ahead = Ahead::of(panel, layout.bits);
    let offset = layout.scales.offset().unwrap_or(0) as i8;
    match layout.bits {
        Bits::Four => leave::<Four>(panel, offset, ahead, lines),
        Bits::Five => leave::<Five>(panel, offset, ahead, lines),
        Bits::Six => leave::<Six>(panel, offset, ahead, lines),
        Bits::Eight => leave::<Eight>(panel, offset, ahead, lines),
    }
}

#[inline(always)]
unsafe fn leave<C: Codes>(panel: Panel<'_>, offset: i8, ahead: Ahead, lines: &mut [Lines]) {
    // Of 128 the byte is the same with either sign.
    let offset = _mm512_set1_epi8(offset);
    for (group, (bytes, lines)) in panel.codes.chunks_exact(C::BYTES).zip(lines).enumerate() {
        ahead.group::<HEIGHT_MAX>(group);
        for (codes, line) in C::group(bytes.as_ptr()).into_iter().zip(lines) {
            _mm512_storeu_si512(line.as_mut_ptr().cast(), _mm512_sub_epi8(codes, offset));
        }
    }
}
