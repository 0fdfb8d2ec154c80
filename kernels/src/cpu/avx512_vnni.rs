//! AVX-512 with VNNI: dot products of four bytes in each of sixteen lanes.

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

use std::{arch::x86_64::*, ops::Range, ptr};

use super::{
    Kernels,
    attend::attention_vnni,
    avx512::{self, four},
    avx512_codes::{Ahead, Codes, Eight, Five, Four, Six},
    operand::HEIGHT_MAX,
    packed::{PackedJob, Tiles, Unpacked, panels},
};
use crate::packed::{
    Bits, GROUP, LINE, LINES, Layout, PANEL,
    unpack::{Rows, Scaling},
};

pub(super) static KERNELS: Kernels = Kernels {
    name: "avx512-vnni",
    linear_packed,
    attention: attention_vnni,
    ..avx512::KERNELS
};

/// The table, where the processor has the instructions.
pub(super) fn detect() -> Option<&'static Kernels> {
    let has = avx512::detect().is_some() && is_x86_feature_detected!("avx512vnni");
    has.then_some(&KERNELS)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn linear_packed(job: &PackedJob<'_>, range: Range<usize>) {
    panels::<Vnni>(job, range);
}

/// What is known of a product when it is compiled.
struct Shape<const HALVES: usize, const MINIMA: bool, const WIDE: bool>;

/// Where a tile reads.
#[derive(Clone, Copy)]
struct Source {
    codes: *const u8,
    scales: *const Rows,
    mins: *const Rows,
    ahead: Option<Ahead>,
    /// Where codes are left, a byte each; null if nowhere.
    keep: *mut u8,
}

/// `R` activation rows of a block, from row `first` on.
struct Numbers {
    upper: *const i8,
    lower: *const i8,
    scales: *const f32,
    starts: *const i32,
    shares: *const f32,
    height: usize,
    groups: usize,
}

impl Numbers {
    #[inline(always)]
    unsafe fn new(job: &PackedJob<'_>, first: usize, halves: usize) -> Self {
        let (x, corrections) = (job.x, job.corrections);
        let (number, part) = (x.numbers(first, 0), x.place(first, 0, x.groups() * halves));
        // Offsets into empty buffers are never dereferenced.
        Self {
            upper: x.upper.as_ptr().wrapping_add(number),
            lower: x.lower.as_ptr().wrapping_add(number),
            scales: x.scales.as_ptr().wrapping_add(x.place(first, 0, x.groups())),
            starts: corrections.starts.as_ptr().wrapping_add(part),
            shares: corrections.shares.as_ptr().wrapping_add(part),
            height: x.height,
            groups: x.groups(),
        }
    }

    /// Rows of a block, known where `R` fill one.
    #[inline(always)]
    fn height<const R: usize>(&self) -> usize {
        if R == HEIGHT_MAX { HEIGHT_MAX } else { self.height }
    }

    /// The digits of `R` rows in a group, a row's [`GROUP`] after the other's.
    #[inline(always)]
    unsafe fn group<const R: usize>(&self, digits: *const i8, group: usize) -> *const i8 {
        digits.add(GROUP * self.height::<R>() * group)
    }
}

impl<const HALVES: usize, const MINIMA: bool, const WIDE: bool> Shape<HALVES, MINIMA, WIDE> {
    /// The sums of `R` activation rows with a panel's sixteen rows.
    #[inline(always)]
    unsafe fn sums<C: Codes, const R: usize>(from: Source, x: &Numbers) -> [__m512; R] {
        let mut sums = [_mm512_setzero_ps(); R];
        for group in 0..x.groups {
            let codes = C::group(from.codes.add(group * C::BYTES));
            if let Some(ahead) = from.ahead {
                ahead.group::<R>(group);
            }
            if !from.keep.is_null() {
                let to = from.keep.add(group * LINES * LINE);
                for j in 0..LINES {
                    _mm512_store_si512(to.add(j * LINE).cast(), codes[j]);
                }
            }
            // Written out, as codes whose index is not a constant would leave their registers.
            Self::add::<R, 0>(&codes, from, x, group, &mut sums);
            if HALVES == 2 {
                Self::add::<R, 1>(&codes, from, x, group, &mut sums);
            }
        }
        sums
    }

    /// Adds what a group makes, or half of it.
    #[inline(always)]
    unsafe fn add<const R: usize, const HALF: usize>(
        codes: &[__m512i; LINES],
        from: Source,
        x: &Numbers,
        group: usize,
        sums: &mut [__m512; R],
    ) {
        let products = Self::products::<R, HALF>(codes, x, group);
        let part = group * HALVES + HALF;
        let scales = _mm512_loadu_ps(from.scales.add(part).cast());
        for r in 0..R {
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(*x.scales.add(group * x.height::<R>() + r)));
            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r]), scale, sums[r]);
        }
        if MINIMA {
            let mins = _mm512_loadu_ps(from.mins.add(part).cast());
            for r in 0..R {
                let share = _mm512_set1_ps(*x.shares.add(part * x.height::<R>() + r));
                sums[r] = _mm512_fmadd_ps(mins, share, sums[r]);
            }
        }
    }

    /// The whole-number sums of a group, or of half of it.
    #[inline(always)]
    unsafe fn products<const R: usize, const HALF: usize>(
        codes: &[__m512i; LINES],
        x: &Numbers,
        group: usize,
    ) -> [__m512i; R] {
        let lines = HALF * LINES / HALVES..(HALF + 1) * LINES / HALVES;
        let mut products = [_mm512_setzero_si512(); R];
        if WIDE {
            let numbers = x.group::<R>(x.upper, group);
            for j in lines.clone() {
                for r in 0..R {
                    let quad = four(numbers.add(GROUP * r + 4 * j).cast());
                    products[r] = _mm512_dpbusd_epi32(products[r], codes[j], quad);
                }
            }
            for r in 0..R {
                products[r] = _mm512_slli_epi32::<8>(products[r]);
            }
        }
        if !MINIMA {
            let starts = x.starts.add((group * HALVES + HALF) * x.height::<R>());
            for r in 0..R {
                products[r] = _mm512_add_epi32(products[r], _mm512_set1_epi32(*starts.add(r)));
            }
        }
        let numbers = x.group::<R>(if WIDE { x.lower } else { x.upper }, group);
        for j in lines {
            for r in 0..R {
                let quad = four(numbers.add(GROUP * r + 4 * j).cast());
                products[r] = _mm512_dpbusd_epi32(products[r], codes[j], quad);
            }
        }
        products
    }

    /// Rows `rows` of a panel, as many at once as registers hold. A function of its own for each kind of product: together
    /// they take the compiler minutes.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn rows<C: Codes>(job: &PackedJob<'_>, panel: usize, rows: Range<usize>, mut from: Source) {
        let mut first = rows.start;
        while first < rows.end {
            let x = Numbers::new(job, first, HALVES);
            first += match rows.end - first {
                8.. => Self::tile::<C, 8>(job, panel, first, from, &x),
                4.. => Self::tile::<C, 4>(job, panel, first, from, &x),
                2.. => Self::tile::<C, 2>(job, panel, first, from, &x),
                _ => Self::tile::<C, 1>(job, panel, first, from, &x),
            };
            // Once is enough.
            (from.ahead, from.keep) = (None, ptr::null_mut());
        }
    }

    #[inline(always)]
    unsafe fn tile<C: Codes, const R: usize>(
        job: &PackedJob<'_>,
        panel: usize,
        first: usize,
        from: Source,
        x: &Numbers,
    ) -> usize {
        let sums = Self::sums::<C, R>(from, x);
        for r in 0..R {
            store(job, panel, first + r, sums[r]);
        }
        R
    }
}

/// Stores the sums of activation row `row` with a panel's rows.
#[inline(always)]
pub(super) unsafe fn store(job: &PackedJob<'_>, panel: usize, row: usize, sums: __m512) {
    if (panel + 1) * PANEL <= job.weight.rows() {
        let to = job.target.whole::<PANEL>(row, panel * PANEL);
        let sums = match to.addends {
            Some(addends) => _mm512_add_ps(sums, _mm512_loadu_ps(addends.as_ptr())),
            None => sums,
        };
        _mm512_storeu_ps(to.out.as_mut_ptr(), sums);
    } else {
        let mut out = [0.0; PANEL];
        _mm512_storeu_ps(out.as_mut_ptr(), sums);
        job.finish(row, panel, &out);
    }
}

/// Calls `rows` of the shape that a job has.
#[inline(always)]
unsafe fn wide_or_not<C: Codes, const HALVES: usize, const MINIMA: bool>(
    job: &PackedJob<'_>,
    panel: usize,
    rows: Range<usize>,
    from: Source,
) {
    if job.x.is_wide() {
        Shape::<HALVES, MINIMA, true>::rows::<C>(job, panel, rows, from);
    } else {
        Shape::<HALVES, MINIMA, false>::rows::<C>(job, panel, rows, from);
    }
}

pub(super) struct Vnni;

impl Scaling for Vnni {
    #[inline(always)]
    unsafe fn widen(halves: &[u8; 2 * PANEL]) -> Rows {
        let mut out = [0.0; PANEL];
        let wide = _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast()));
        _mm512_storeu_ps(out.as_mut_ptr(), wide);
        out
    }

    #[inline(always)]
    unsafe fn multiples<const SIGNED: bool>(scale: &Rows, bytes: &[u8; PANEL]) -> Rows {
        let narrow = _mm_loadu_si128(bytes.as_ptr().cast());
        let factors = if SIGNED {
            _mm512_cvtepi8_epi32(narrow)
        } else {
            _mm512_cvtepu8_epi32(narrow)
        };
        let mut out = [0.0; PANEL];
        let product = _mm512_mul_ps(_mm512_loadu_ps(scale.as_ptr()), _mm512_cvtepi32_ps(factors));
        _mm512_storeu_ps(out.as_mut_ptr(), product);
        out
    }
}

impl Tiles for Vnni {
    const DIRECT: usize = HEIGHT_MAX;

    #[inline(always)]
    unsafe fn direct(job: &PackedJob<'_>, panel: usize, unpacked: &mut Unpacked) {
        let (now, rows) = (job.weight.panel(panel), 0..job.n.min(Self::DIRECT));
        let keep = if rows.len() < job.n {
            unpacked.lines(job.weight.groups()).as_mut_ptr().cast()
        } else {
            ptr::null_mut()
        };
        let from = Source {
            codes: now.codes.as_ptr(),
            scales: unpacked.scales.as_ptr(),
            mins: unpacked.mins.as_ptr(),
            ahead: Some(Ahead::of(now, job.weight.layout().bits)),
            keep,
        };
        let Layout { bits, scales } = job.weight.layout();
        // The layouts that formats have.
        match (bits, scales.halves(), scales.offset().is_none()) {
            (Bits::Four, 1, false) => wide_or_not::<Four, 1, false>(job, panel, rows, from),
            (Bits::Four, 1, true) => wide_or_not::<Four, 1, true>(job, panel, rows, from),
            (Bits::Four, 2, false) => wide_or_not::<Four, 2, false>(job, panel, rows, from),
            (Bits::Four, 2, true) => wide_or_not::<Four, 2, true>(job, panel, rows, from),
            (Bits::Five, 1, false) => wide_or_not::<Five, 1, false>(job, panel, rows, from),
            (Bits::Five, 1, true) => wide_or_not::<Five, 1, true>(job, panel, rows, from),
            (Bits::Six, 2, false) => wide_or_not::<Six, 2, false>(job, panel, rows, from),
            (Bits::Eight, 1, false) => wide_or_not::<Eight, 1, false>(job, panel, rows, from),
            _ => unreachable!("{:?} has no kernel. This is a bug.", job.weight.layout()),
        }
    }

    #[inline(always)]
    unsafe fn unpacked(job: &PackedJob<'_>, panel: usize, rows: Range<usize>, unpacked: &Unpacked) {
        let from = Source {
            codes: unpacked.codes.as_ptr().cast(),
            scales: unpacked.scales.as_ptr(),
            mins: unpacked.mins.as_ptr(),
            ahead: None,
            keep: ptr::null_mut(),
        };
        let scales = job.weight.layout().scales;
        match (scales.halves(), scales.offset().is_none()) {
            (1, false) => wide_or_not::<Eight, 1, false>(job, panel, rows, from),
            (1, true) => wide_or_not::<Eight, 1, true>(job, panel, rows, from),
            (_, false) => wide_or_not::<Eight, 2, false>(job, panel, rows, from),
            (_, true) => wide_or_not::<Eight, 2, true>(job, panel, rows, from),
        }
    }
}
