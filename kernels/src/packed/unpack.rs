//! Panels back to codes of a byte each and scales in `f32`: written once, compiled for each instruction set by its caller.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use super::{Bits, GROUP, LINE, LINES, PANEL, Packed, Panel, Scales};
use crate::cpu::f16;

/// What the panel's rows hold in one place.
pub(crate) type Rows = [f32; PANEL];

/// A group's codes, a byte each.
pub(crate) type Lines = [[u8; LINE]; LINES];

/// A panel's codes, a byte each, into one element of `out` per group.
#[inline(always)]
pub(crate) fn codes(bits: Bits, panel: Panel<'_>, out: &mut [Lines]) {
    for (group, out) in panel.codes.chunks_exact(bits.group_bytes()).zip(out) {
        group_codes(bits, group, out);
    }
}

#[inline(always)]
fn group_codes(bits: Bits, group: &[u8], out: &mut Lines) {
    let (lines, _) = group.as_chunks::<LINE>();
    if bits == Bits::Eight {
        out.copy_from_slice(lines);
        return;
    }
    let (low, high) = out.split_at_mut(4);
    for ((low, high), line) in low.iter_mut().zip(high).zip(lines) {
        for ((low, high), byte) in low.iter_mut().zip(high).zip(line) {
            *low = byte & 15;
            *high = byte >> 4;
        }
    }
    for (j, line) in out.iter_mut().enumerate() {
        let (plane, shift, mask) = match bits {
            Bits::Four | Bits::Eight => return,
            Bits::Five => (&lines[4], j, 1),
            Bits::Six => (&lines[4 + j / 4], j % 4 * 2, 3),
        };
        for (code, plane) in line.iter_mut().zip(plane) {
            *code |= (plane >> shift & mask) << 4;
        }
    }
}

/// How an instruction set makes scales of what records hold.
pub(crate) trait Scaling {
    /// Sixteen f16 numbers, little-endian.
    ///
    /// # Safety
    /// As for the instruction set.
    unsafe fn widen(halves: &[u8; 2 * PANEL]) -> Rows;

    /// Each row's scale times its byte, which has a sign where `SIGNED`. Written by hand where it matters: compilers make
    /// sixteen single multiplications of the plain loop.
    ///
    /// # Safety
    /// As for the instruction set.
    #[inline(always)]
    unsafe fn multiples<const SIGNED: bool>(scale: &Rows, bytes: &[u8; PANEL]) -> Rows {
        let mut out = [0.0; PANEL];
        for row in 0..PANEL {
            let factor = if SIGNED {
                f32::from(bytes[row].cast_signed())
            } else {
                f32::from(bytes[row])
            };
            out[row] = scale[row] * factor;
        }
        out
    }
}

/// By arithmetic alone, for every processor.
pub(crate) struct Software;

impl Scaling for Software {
    #[inline(always)]
    unsafe fn widen(halves: &[u8; 2 * PANEL]) -> Rows {
        let mut out = [0.0; PANEL];
        for (out, half) in out.iter_mut().zip(halves.as_chunks::<2>().0) {
            *out = f16(*half);
        }
        out
    }
}

/// A panel's scales and minima into one element of each per group, or two where 16 weights share a scale. Where the
/// layout has no minima, `mins` is not touched.
///
/// # Safety
/// As for [`Scaling`].
#[inline(always)]
pub(crate) unsafe fn scales<S: Scaling>(
    scales: Scales,
    panel: Panel<'_>,
    out: &mut [Rows],
    mins: &mut [Rows],
) {
    let records = panel.scales.chunks_exact(scales.record_bytes());
    match scales {
        Scales::Half { .. } => {
            for (record, out) in records.zip(out) {
                // SAFETY: the caller's promise, here and below.
                *out = unsafe { halves::<S>(record, 0) };
            }
        }
        Scales::HalfMin => {
            for ((record, out), min) in records.zip(out).zip(mins) {
                // SAFETY: as above.
                (*out, *min) = unsafe { (halves::<S>(record, 0), halves::<S>(record, 1)) };
            }
        }
        Scales::Super { parts } => {
            let (out, mins) = (out.chunks_exact_mut(parts), mins.chunks_exact_mut(parts));
            for ((record, out), mins) in records.zip(out).zip(mins) {
                // SAFETY: as above.
                let (scale, mut min) = unsafe { (halves::<S>(record, 0), halves::<S>(record, 1)) };
                // What is subtracted is added with the other sign.
                for min in &mut min {
                    *min = -*min;
                }
                let (factors, _) = record[4 * PANEL..].as_chunks::<PANEL>();
                for (factors, (out, to)) in factors.as_chunks::<2>().0.iter().zip(out.iter_mut().zip(mins)) {
                    // SAFETY: as above.
                    unsafe {
                        *out = S::multiples::<false>(&scale, &factors[0]);
                        *to = S::multiples::<false>(&min, &factors[1]);
                    }
                }
            }
        }
        Scales::Signed { .. } => {
            for (record, out) in records.zip(out.chunks_exact_mut(16)) {
                // SAFETY: as above.
                let scale = unsafe { halves::<S>(record, 0) };
                let (factors, _) = record[2 * PANEL..].as_chunks::<PANEL>();
                for (out, factors) in out.iter_mut().zip(factors) {
                    // SAFETY: as above.
                    *out = unsafe { S::multiples::<true>(&scale, factors) };
                }
            }
        }
    }
}

/// The rows' f16 number `i` of a record.
///
/// # Safety
/// As for [`Scaling`].
#[inline(always)]
unsafe fn halves<S: Scaling>(record: &[u8], i: usize) -> Rows {
    let (numbers, _) = record.as_chunks::<{ 2 * PANEL }>();
    // SAFETY: the caller's promise.
    unsafe { S::widen(&numbers[i]) }
}

/// Row number `row` of a panel as weights.
pub(super) fn row(packed: &Packed, row: usize, panel: Panel<'_>, out: &mut [f32]) {
    let (layout, halves) = (packed.layout(), packed.layout().scales.halves());
    let mut factors = vec![[0.0; PANEL]; packed.groups() * halves];
    let mut mins = factors.clone();
    // SAFETY: every processor can.
    unsafe { scales::<Software>(layout.scales, panel, &mut factors, &mut mins) };
    let mut lines = [[0; LINE]; LINES];
    let groups = panel.codes.chunks_exact(layout.bits.group_bytes());
    for (group, (bytes, out)) in groups.zip(out.as_chunks_mut::<GROUP>().0).enumerate() {
        group_codes(layout.bits, bytes, &mut lines);
        for (i, out) in out.iter_mut().enumerate() {
            let code = lines[i / 4][4 * row + i % 4];
            let part = group * halves + i * halves / GROUP;
            *out = match layout.scales.offset() {
                Some(offset) => (i32::from(code) - offset) as f32 * factors[part][row],
                None => f32::from(code) * factors[part][row] + mins[part][row],
            };
        }
    }
}
