//! Products of activations with packed weights: what the instruction sets share.
//!
//! A sum is made the same way in every table, whatever the batch: a group's codes times whole-number activations is
//! exact, and the groups' sums are scaled and added from first to last with fused multiply-adds. So every table gives
//! the same bits.

#![expect(
    clippy::inline_always,
    reason = "the caller's target features must reach these bodies"
)]

use std::{cell::RefCell, ops::Range};

use super::{
    jobs::Target,
    operand::{Corrections, Operand},
};
use crate::packed::{
    LINE, Layout, PANEL, Packed, Panel,
    unpack::{self, Lines, Rows, Scaling, Software},
};

/// `x * weight^T` into `target`.
pub(super) struct PackedJob<'a> {
    pub(super) x: &'a Operand,
    pub(super) corrections: &'a Corrections,
    pub(super) n: usize,
    pub(super) weight: &'a Packed,
    pub(super) target: Target<'a>,
}

impl PackedJob<'_> {
    /// Stores activation row `i`'s results of a panel.
    ///
    /// # Safety
    /// No other thread may write this panel's results.
    #[inline(always)]
    pub(super) unsafe fn finish(&self, i: usize, panel: usize, sums: &Rows) {
        let first = panel * PANEL;
        let len = PANEL.min(self.weight.rows() - first);
        // SAFETY: the caller's promise.
        unsafe {
            if len == PANEL {
                // Of a length that the compiler knows: it makes no call of it.
                let to = self.target.whole::<PANEL>(i, first);
                *to.out = *sums;
                for (out, addend) in to.out.iter_mut().zip(to.addends.into_iter().flatten()) {
                    *out += addend;
                }
            } else {
                self.target.store(i, first, &sums[..len]);
            }
        }
    }
}

/// A panel's scales and, where several blocks of activation rows use them, its codes a byte each as [`Tiles::unpack`] or
/// [`Tiles::direct`] left them.
#[derive(Default)]
pub(super) struct Unpacked {
    pub(super) codes: Vec<Line64>,
    pub(super) scales: Vec<Rows>,
    pub(super) mins: Vec<Rows>,
}

/// A line where a vector load does not cross a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line64(pub(super) [u8; LINE]);

thread_local! {
    /// Taken and put back, as in `vector`.
    static SCRATCH: RefCell<Unpacked> = RefCell::default();
}

impl Unpacked {
    /// # Safety
    /// As for [`Scaling`].
    #[inline(always)]
    unsafe fn scales<S: Scaling>(&mut self, weight: &Packed, panel: Panel<'_>) {
        let parts = weight.groups() * weight.layout().scales.halves();
        self.scales.resize(parts, [0.0; PANEL]);
        if weight.layout().scales.offset().is_none() {
            self.mins.resize(parts, [0.0; PANEL]);
        }
        // SAFETY: the caller's promise.
        unsafe { unpack::scales::<S>(weight.layout().scales, panel, &mut self.scales, &mut self.mins) }
    }

    /// Room for the codes of `groups`.
    #[inline(always)]
    pub(super) fn lines(&mut self, groups: usize) -> &mut [Lines] {
        let lines = size_of::<Lines>() / LINE;
        self.codes.resize(groups * lines, Line64([0; LINE]));
        // SAFETY: a run of lines has the layout of an array of them, and `Lines` asks for no alignment.
        unsafe { std::slice::from_raw_parts_mut(self.codes.as_mut_ptr().cast::<Lines>(), groups) }
    }
}

/// What differs between instruction sets: the sums of some activation rows with one panel.
pub(super) trait Tiles: Scaling {
    /// Activation rows that go without a detour through unpacked codes.
    const DIRECT: usize = 0;

    /// Computes the job's first rows, at most [`Tiles::DIRECT`], from the panel's own lines; where there are more rows, it
    /// leaves the codes in `unpacked`, a byte each.
    ///
    /// # Safety
    /// As for the instruction set; no other thread may write this panel's results. `unpacked` has the panel's scales.
    unsafe fn direct(_job: &PackedJob<'_>, _panel: usize, _unpacked: &mut Unpacked) {
        unreachable!("no row goes without unpacked codes. This is a bug.");
    }

    /// Leaves a panel's codes for [`Tiles::unpacked`], in one element of `lines` per group.
    ///
    /// # Safety
    /// As for the instruction set.
    #[inline(always)]
    unsafe fn unpack(layout: Layout, panel: Panel<'_>, lines: &mut [Lines]) {
        unpack::codes(layout.bits, panel, lines);
    }

    /// Computes rows `rows` of the job, which start at a multiple of a block's, from unpacked codes.
    ///
    /// # Safety
    /// As for [`Tiles::direct`]; `unpacked` has the panel's codes too.
    unsafe fn unpacked(job: &PackedJob<'_>, panel: usize, rows: Range<usize>, unpacked: &Unpacked);
}

/// Computes some panels of the output.
///
/// # Safety
/// As for [`Tiles`]; no other thread may write these panels' results.
#[inline(always)]
pub(super) unsafe fn panels<T: Tiles>(job: &PackedJob<'_>, panels: Range<usize>) {
    let mut unpacked = SCRATCH.take();
    for panel in panels {
        let bytes = job.weight.panel(panel);
        // SAFETY: the caller's promise.
        unsafe {
            unpacked.scales::<T>(job.weight, bytes);
            if T::DIRECT > 0 {
                T::direct(job, panel, &mut unpacked);
            } else {
                T::unpack(job.weight.layout(), bytes, unpacked.lines(job.weight.groups()));
            }
            if job.n > T::DIRECT {
                T::unpacked(job, panel, T::DIRECT..job.n, &unpacked);
            }
        }
    }
    SCRATCH.set(unpacked);
}

/// The plain sums: the specification of every table's.
pub(super) struct Plain;

impl Scaling for Plain {
    #[inline(always)]
    unsafe fn widen(halves: &[u8; 2 * PANEL]) -> Rows {
        // SAFETY: every processor can.
        unsafe { Software::widen(halves) }
    }
}

impl Tiles for Plain {
    #[inline(always)]
    unsafe fn unpacked(job: &PackedJob<'_>, panel: usize, rows: Range<usize>, unpacked: &Unpacked) {
        let (x, corrections, halves) = (job.x, job.corrections, job.weight.layout().scales.halves());
        let lines = 8 / halves;
        let parts = x.groups() * halves;
        for i in rows {
            let mut sums = [0.0; PANEL];
            for part in 0..parts {
                let scale = x.scales[x.place(i, part / halves, x.groups())];
                let correction = x.place(i, part, parts);
                let codes = &unpacked.codes[part * lines..][..lines];
                let first = x.numbers(i, part / halves) + part % halves * 4 * lines;
                let number = |quad: usize| first + 4 * quad;
                let upper = products(codes, |quad| &x.upper[number(quad)..]);
                let start = corrections.starts.get(correction).copied().unwrap_or(0);
                let lower = if x.is_wide() {
                    products(codes, |quad| &x.lower[number(quad)..])
                } else {
                    [0; PANEL]
                };
                let weight = if x.is_wide() { 256 } else { 1 };
                for row in 0..PANEL {
                    let sum = (upper[row] * weight + lower[row] + start) as f32;
                    sums[row] = sum.mul_add(unpacked.scales[part][row] * scale, sums[row]);
                    if let Some(share) = corrections.shares.get(correction) {
                        sums[row] = unpacked.mins[part][row].mul_add(*share, sums[row]);
                    }
                }
            }
            // SAFETY: the caller's promise.
            unsafe { job.finish(i, panel, &sums) }
        }
    }
}

/// The sums of some lines' codes with the numbers of one activation row, four for each line.
#[inline(always)]
fn products<'a>(lines: &[Line64], numbers: impl Fn(usize) -> &'a [i8]) -> [i32; PANEL] {
    let mut sums = [0; PANEL];
    for (quad, line) in lines.iter().enumerate() {
        for (sum, codes) in sums.iter_mut().zip(line.0.as_chunks::<4>().0) {
            for (code, number) in codes.iter().zip(&numbers(quad)[..4]) {
                *sum += i32::from(*code) * i32::from(*number);
            }
        }
    }
    sums
}
