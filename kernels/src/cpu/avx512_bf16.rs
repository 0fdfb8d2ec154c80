//! AVX-512 with BF16: dot products of two bf16 numbers in each of sixteen lanes.

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

use std::{arch::x86_64::*, mem::transmute};

use super::{
    Kernels,
    avx512::Avx512,
    avx512_vnni,
    panel::{self, Floats, Line, PanelJob, PanelOut},
};
use crate::{
    Precision,
    dense::{PANEL, pair},
};

pub(super) static KERNELS: Kernels = Kernels {
    name: "avx512-bf16",
    bf16_words: 1,
    operand,
    panel,
    ..avx512_vnni::KERNELS
};

/// The table, where the processor has the instructions.
pub(super) fn detect() -> Option<&'static Kernels> {
    let has = avx512_vnni::detect().is_some() && is_x86_feature_detected!("avx512bf16");
    has.then_some(&KERNELS)
}

/// Lines and rows of pairs in bf16.
struct Pairs;

impl Line<Avx512> for Pairs {
    const WORDS: usize = 1;

    #[inline(always)]
    unsafe fn add<const M: usize, const V: usize>(
        sums: &mut [[__m512; V]; M],
        x: [*const u32; M],
        line: *const u32,
    ) {
        let mut w = [_mm512_setzero_si512(); V];
        for v in 0..V {
            w[v] = _mm512_loadu_si512(line.add(v * 16).cast());
        }
        for m in 0..M {
            let x = _mm512_set1_epi32(x[m].read().cast_signed());
            for v in 0..V {
                sums[m][v] = _mm512_dpbf16_ps(
                    sums[m][v],
                    transmute::<__m512i, __m512bh>(x),
                    transmute::<__m512i, __m512bh>(w[v]),
                );
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn panel(job: &PanelJob<'_>, to: &mut PanelOut<'_>) {
    const V: usize = PANEL / 16;
    match job.precision {
        Precision::Bf16 => panel::panel::<Avx512, Pairs, V>(job, to),
        Precision::F32 => panel::panel::<Avx512, Floats, V>(job, to),
    }
}

/// Rounds an even number of activations to bf16: a word for two.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn operand(x: &[f32], to: &mut [u32]) {
    let ((x, x_rest), (to, to_rest)) = (x.as_chunks::<32>(), to.as_chunks_mut::<16>());
    for (x, to) in x.iter().zip(to) {
        let x = x.as_ptr();
        let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x.add(16)), _mm512_loadu_ps(x));
        _mm512_storeu_si512(to.as_mut_ptr().cast(), transmute::<__m512bh, __m512i>(pairs));
    }
    for (x, to) in x_rest.as_chunks::<2>().0.iter().zip(to_rest) {
        *to = pair(x[0], x[1]);
    }
}
