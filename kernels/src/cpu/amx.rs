//! AMX: one instruction multiplies eight activation rows with a group of a panel's sixteen rows.
//!
//! A tile's whole numbers are exact, as every table's are, and are scaled in vectors as VNNI's: the results have the same
//! bits. Scaling bounds the speed: three vector instructions a row and group (four with minima) on two ports, for which VNNI
//! needs eleven. Few rows are read by VNNI, as memory bounds those.
//!
//! Intel's Software Developer's Manual, volume 1, chapter 18; `AMX` intrinsics are not in stable Rust, so tiles are `asm!`,
//! each step in one block, as the compiler does not know of the tile registers between two of them.

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
    arch::{asm, x86_64::*},
    marker::PhantomData,
    ops::Range,
    sync::OnceLock,
};

use super::{
    Kernels, avx512_bf16,
    avx512_codes::signed_codes,
    avx512_vnni::{self, Vnni, store},
    operand::HEIGHT_MAX,
    packed::{PackedJob, Tiles, Unpacked, panels},
};
use crate::packed::{
    GROUP, LINE, LINES, Layout, PANEL, Panel,
    unpack::{Lines, Rows, Scaling},
};

/// Rows that tiles compute at once: two blocks of the operand.
const ROWS: usize = 2 * HEIGHT_MAX;

static KERNELS: Kernels = Kernels {
    name: "amx",
    linear_packed,
    ..avx512_bf16::KERNELS
};

static EMULATED: Kernels = Kernels {
    name: "amx-emulated",
    linear_packed: linear_emulated,
    ..avx512_vnni::KERNELS
};

/// The table, where the processor has the instructions, the system grants their registers, and they do what they should.
pub(super) fn detect() -> Option<&'static Kernels> {
    static USABLE: OnceLock<bool> = OnceLock::new();
    let usable = || avx512_bf16::detect().is_some() && granted() && agrees();
    USABLE.get_or_init(usable).then_some(&KERNELS)
}

/// The table with tiles of plain loops, where the processor has the rest: how tests reach this code without AMX.
pub(super) fn emulated() -> Option<&'static Kernels> {
    avx512_vnni::detect().is_some().then_some(&EMULATED)
}

/// Asks the processor, and the system once for all threads: it saves the tiles' 8 KiB only for those who ask.
fn granted() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (TILE | INT8) == TILE | INT8 && ask()
}

/// Whether tiles compute what plain loops do. Those who wrote this had no such processor: it must prove itself on each.
fn agrees() -> bool {
    let number = |i: usize| (i * 89 + i / 256 * 7) as u8;
    let lines: [u8; LINES * LINE] = std::array::from_fn(number);
    let blocks: [i8; ROWS * GROUP] = std::array::from_fn(|i| number(i + 3).cast_signed());
    // SAFETY: each unit finds two blocks and a group's lines; the processor has the instructions and was granted them.
    unsafe { products_of::<Amx>(&blocks, &lines) == products_of::<Emulated>(&blocks, &lines) }
}

/// A group's products, then those of half of it.
unsafe fn products_of<U: Unit>(blocks: &[i8; ROWS * GROUP], lines: &[u8; LINES * LINE]) -> [Products; 2] {
    let mut products = [Products([[0; PANEL]; ROWS]); 2];
    let rows = [blocks.as_ptr(), blocks[ROWS / 2 * GROUP..].as_ptr()];
    let _configured = Configured::<U>::new();
    U::multiply::<false>(rows, lines.as_ptr(), &mut products[0]);
    U::multiply::<true>(rows, lines.as_ptr(), &mut products[1]);
    products
}

#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call has no memory to touch; systems that do not know it say so.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn linear_packed(job: &PackedJob<'_>, range: Range<usize>) {
    linear::<Amx>(job, range);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn linear_emulated(job: &PackedJob<'_>, range: Range<usize>) {
    linear::<Emulated>(job, range);
}

#[inline(always)]
unsafe fn linear<U: Unit>(job: &PackedJob<'_>, range: Range<usize>) {
    if pays(job) {
        let _configured = Configured::<U>::new();
        panels::<Blocks<U>>(job, range);
    } else {
        panels::<Vnni>(job, range);
    }
}

/// One block of rows or fewer is bound by memory. Two digits are asked for to be exact, not fast. Tiles multiply one group
/// ahead, so that there must be one.
fn pays(job: &PackedJob<'_>) -> bool {
    job.n > HEIGHT_MAX && job.x.groups() > 0 && !job.x.is_wide()
}

/// The whole-number sums of [`ROWS`] activation rows with a panel's rows in a group, or in half of one.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
struct Products([[i32; PANEL]; ROWS]);

/// What multiplies tiles: the processor, or for tests something that does the same.
///
/// # Safety
/// The processor has the instructions, and the system granted them.
trait Unit {
    /// Gives the calling thread's tiles their shapes.
    unsafe fn configure();
    /// Gives the tiles back, so that the system need not save them.
    unsafe fn release();
    /// The products of two blocks of activations, eight rows of [`GROUP`] each, with a group's lines; or, of a `HALF`, of the
    /// first 16 of each row with four lines. All are signed.
    ///
    /// # Safety
    /// The thread's tiles are [`Configured`], and all that is read exists.
    unsafe fn multiply<const HALF: bool>(activations: [*const i8; 2], lines: *const u8, out: &mut Products);
}

/// The calling thread's tiles have their shapes for as long as it lives. What runs meanwhile (copies of memory, an
/// allocation) is taken not to use tiles: by the platform's convention whoever calls must expect them to change.
struct Configured<U: Unit>(PhantomData<U>);

impl<U: Unit> Configured<U> {
    /// # Safety
    /// As for [`Unit`].
    #[inline(always)]
    unsafe fn new() -> Self {
        U::configure();
        Self(PhantomData)
    }
}

impl<U: Unit> Drop for Configured<U> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: who made it promised what this asks for.
        unsafe { U::release() }
    }
}

struct Amx;

/// Shapes of the eight tiles: bytes of a row, and rows.
const SHAPES: [(u16, u8); 8] = [
    // The sums of two blocks.
    (LINE as u16, HEIGHT_MAX as u8),
    (LINE as u16, HEIGHT_MAX as u8),
    // Halves of two blocks.
    (GROUP as u16 / 2, HEIGHT_MAX as u8),
    (GROUP as u16 / 2, HEIGHT_MAX as u8),
    // A group's lines.
    (LINE as u16, LINES as u8),
    // Two blocks.
    (GROUP as u16, HEIGHT_MAX as u8),
    (GROUP as u16, HEIGHT_MAX as u8),
    // Half a group's lines.
    (LINE as u16, LINES as u8 / 2),
];

/// What `ldtilecfg` reads: the palette, then at 16 the tiles' bytes of a row, at 48 their rows.
static CONFIG: [u8; 64] = {
    let mut config = [0; 64];
    config[0] = 1;
    let mut i = 0;
    while i < SHAPES.len() {
        let bytes = SHAPES[i].0.to_le_bytes();
        config[16 + 2 * i] = bytes[0];
        config[17 + 2 * i] = bytes[1];
        config[48 + i] = SHAPES[i].1;
        i += 1;
    }
    config
};

impl Unit for Amx {
    #[inline(always)]
    unsafe fn configure() {
        asm!(
            "ldtilecfg [{}]", in(reg) CONFIG.as_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly, preserves_flags),
        );
    }

    #[inline(always)]
    unsafe fn release() {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem, preserves_flags),
        );
    }

    #[inline(always)]
    unsafe fn multiply<const HALF: bool>(activations: [*const i8; 2], lines: *const u8, out: &mut Products) {
        let [first, second] = activations;
        let sums: *mut i32 = out.0.as_mut_ptr().cast();
        // Without `nomem`: the block reads and writes memory, in an order that the compiler must keep.
        if HALF {
            asm!(
                "tileloadd tmm7, [{lines} + {line}*1]",
                "tilezero tmm0",
                "tileloadd tmm2, [{first} + {row}*1]",
                "tdpbssd tmm0, tmm2, tmm7",
                "tilezero tmm1",
                "tileloadd tmm3, [{second} + {row}*1]",
                "tdpbssd tmm1, tmm3, tmm7",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 512], tmm1",
                lines = in(reg) lines, first = in(reg) first, second = in(reg) second, sums = in(reg) sums,
                line = in(reg) LINE, row = in(reg) GROUP,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        } else {
            asm!(
                "tileloadd tmm4, [{lines} + {line}*1]",
                "tilezero tmm0",
                "tileloadd tmm5, [{first} + {row}*1]",
                "tdpbssd tmm0, tmm5, tmm4",
                "tilezero tmm1",
                "tileloadd tmm6, [{second} + {row}*1]",
                "tdpbssd tmm1, tmm6, tmm4",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 512], tmm1",
                lines = in(reg) lines, first = in(reg) first, second = in(reg) second, sums = in(reg) sums,
                line = in(reg) LINE, row = in(reg) GROUP,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// The second block's sums lie this far behind the first's, as the instructions above say.
const _: () = assert!(HEIGHT_MAX * LINE == 512);

struct Emulated;

impl Unit for Emulated {
    unsafe fn configure() {}
    unsafe fn release() {}

    unsafe fn multiply<const HALF: bool>(activations: [*const i8; 2], lines: *const u8, out: &mut Products) {
        let len = if HALF { GROUP / 2 } else { GROUP };
        for (i, sums) in out.0.iter_mut().enumerate() {
            let numbers = activations[i / HEIGHT_MAX].add(i % HEIGHT_MAX * GROUP);
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = 0;
                for at in 0..len {
                    let code = *lines.add(at / 4 * LINE + 4 * row + at % 4);
                    *sum += i32::from(code.cast_signed()) * i32::from(*numbers.add(at));
                }
            }
        }
    }
}

/// Tiles of one or two blocks of rows, whose scaling is VNNI's.
struct Blocks<U>(PhantomData<U>);

impl<U> Scaling for Blocks<U> {
    #[inline(always)]
    unsafe fn widen(halves: &[u8; 2 * PANEL]) -> Rows {
        Vnni::widen(halves)
    }

    #[inline(always)]
    unsafe fn multiples<const SIGNED: bool>(scale: &Rows, bytes: &[u8; PANEL]) -> Rows {
        Vnni::multiples::<SIGNED>(scale, bytes)
    }
}

impl<U: Unit> Tiles for Blocks<U> {
    #[inline(always)]
    unsafe fn unpack(layout: Layout, panel: Panel<'_>, lines: &mut [Lines]) {
        signed_codes(layout, panel, lines);
    }

    #[inline(always)]
    unsafe fn unpacked(job: &PackedJob<'_>, panel: usize, rows: Range<usize>, unpacked: &Unpacked) {
        let scales = job.weight.layout().scales;
        match (scales.halves(), scales.offset().is_none()) {
            (1, false) => Self::rows::<1, false>(job, panel, rows, unpacked),
            (1, true) => Self::rows::<1, true>(job, panel, rows, unpacked),
            (_, false) => Self::rows::<2, false>(job, panel, rows, unpacked),
            (_, true) => Self::rows::<2, true>(job, panel, rows, unpacked),
        }
    }
}

impl<U: Unit> Blocks<U> {
    /// Rows of a panel, of which the last block may have fewer than it has room for: what lies there is not stored.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn rows<const HALVES: usize, const MINIMA: bool>(
        job: &PackedJob<'_>,
        panel: usize,
        rows: Range<usize>,
        unpacked: &Unpacked,
    ) {
        for first in rows.clone().step_by(ROWS) {
            let left = (rows.end - first).min(ROWS);
            let sums = if left > HEIGHT_MAX {
                Self::sums::<2, HALVES, MINIMA>(job, first, unpacked)
            } else {
                Self::sums::<1, HALVES, MINIMA>(job, first, unpacked)
            };
            for (r, sum) in sums.into_iter().take(left).enumerate() {
                store(job, panel, first + r, sum);
            }
        }
    }

    /// The sums of `BLOCKS` blocks from row `first` on.
    #[inline(always)]
    unsafe fn sums<const BLOCKS: usize, const HALVES: usize, const MINIMA: bool>(
        job: &PackedJob<'_>,
        first: usize,
        unpacked: &Unpacked,
    ) -> [__m512; ROWS] {
        let x = Numbers::new::<BLOCKS>(job, first, HALVES);
        let parts = job.x.groups() * HALVES;
        let mut sums = [_mm512_setzero_ps(); ROWS];
        // While one part's products are scaled, tiles make those of the next.
        let mut products = [Products([[0; PANEL]; ROWS]); 2];
        Self::multiply::<HALVES>(&x, 0, unpacked, &mut products[0]);
        for part in 0..parts {
            let [even, odd] = &mut products;
            let (now, next) = if part % 2 == 0 { (even, odd) } else { (odd, even) };
            if part + 1 < parts {
                Self::multiply::<HALVES>(&x, part + 1, unpacked, next);
            }
            let scales = _mm512_loadu_ps(unpacked.scales[part].as_ptr());
            for i in 0..BLOCKS * HEIGHT_MAX {
                let (block, r) = (i / HEIGHT_MAX, i % HEIGHT_MAX);
                let scale = _mm512_set1_ps(*x.scales[block].add(part / HALVES * HEIGHT_MAX + r));
                let product = _mm512_cvtepi32_ps(_mm512_load_si512(now.0[i].as_ptr().cast()));
                sums[i] = _mm512_fmadd_ps(product, _mm512_mul_ps(scales, scale), sums[i]);
            }
            if MINIMA {
                let mins = _mm512_loadu_ps(unpacked.mins[part].as_ptr());
                for i in 0..BLOCKS * HEIGHT_MAX {
                    let (block, r) = (i / HEIGHT_MAX, i % HEIGHT_MAX);
                    let share = _mm512_set1_ps(*x.shares[block].add(part * HEIGHT_MAX + r));
                    sums[i] = _mm512_fmadd_ps(mins, share, sums[i]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn multiply<const HALVES: usize>(
        x: &Numbers,
        part: usize,
        unpacked: &Unpacked,
        out: &mut Products,
    ) {
        let lines = unpacked.codes.as_ptr().add(part * LINES / HALVES).cast();
        let at = part / HALVES * HEIGHT_MAX * GROUP + part % HALVES * GROUP / 2;
        let rows = [x.digits[0].add(at), x.digits[1].add(at)];
        if HALVES == 2 {
            U::multiply::<true>(rows, lines, out);
        } else {
            U::multiply::<false>(rows, lines, out);
        }
    }
}

/// Two blocks of activations; twice the same where there is one.
struct Numbers {
    digits: [*const i8; 2],
    scales: [*const f32; 2],
    shares: [*const f32; 2],
}

impl Numbers {
    #[inline(always)]
    unsafe fn new<const BLOCKS: usize>(job: &PackedJob<'_>, first: usize, halves: usize) -> Self {
        let (x, second) = (job.x, first + (BLOCKS - 1) * HEIGHT_MAX);
        let scales = |row| x.scales.as_ptr().wrapping_add(x.place(row, 0, x.groups()));
        // Where there are no minima, the pointer into nothing is not read.
        let shares = |row| {
            let at = x.place(row, 0, x.groups() * halves);
            job.corrections.shares.as_ptr().wrapping_add(at)
        };
        let digits = |row| x.upper.as_ptr().wrapping_add(x.numbers(row, 0));
        Self {
            digits: [digits(first), digits(second)],
            scales: [scales(first), scales(second)],
            shares: [shares(first), shares(second)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor that has the instructions must not fall back to VNNI unnoticed. Others can't tell.
    #[test]
    fn tiles_agree_with_plain_loops() {
        if avx512_vnni::detect().is_some() && granted() {
            assert!(agrees());
        }
    }
}
