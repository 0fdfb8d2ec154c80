//! AVX2 with FMA and F16C.

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

use std::{arch::x86_64::*, ops::Range};

use half::bf16;

use super::{
    Kernels, attend,
    avx2_packed::Avx2Tiles,
    dequantize as plain,
    jobs::{AttentionJob, LinearJob, Tile},
    operand::{OperandBlock, round_row},
    packed::{PackedJob, panels},
    panel::{self, Floats, PanelJob, PanelOut, Widened},
    rows,
    simd::Simd,
    vector,
};
use crate::{Format, Precision, dense::PANEL, op::Activation, op::RopeStyle};

static KERNELS: Kernels = Kernels {
    name: "avx2",
    dequantize,
    linear,
    linear_packed,
    round,
    attention,
    rms_norm,
    rope,
    gated,
    bf16_words: 2,
    operand,
    panel,
    activate,
    layer_norm,
    exponentials,
};

/// The table, where the processor has the instructions.
pub(super) fn detect() -> Option<&'static Kernels> {
    let has = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    has.then_some(&KERNELS)
}

struct Avx2;

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const BATCH: usize = 3;
    const TILE: usize = 3;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        _mm256_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, len: usize) -> __m256 {
        _mm256_maskload_ps(from, first(len))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m256 {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> [__m256; 2] {
        let pairs = _mm256_loadu_si256(from.cast());
        let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
        [_mm256_slli_epi32::<16>(pairs), upper].map(|v| _mm256_castsi256_ps(v))
    }
    #[inline(always)]
    unsafe fn unsigned_bytes(from: *const u8, i: usize) -> __m256 {
        let fours = _mm256_loadu_si256(from.cast());
        let byte = _mm256_srl_epi32(fours, _mm_cvtsi32_si128(8 * i32::from(i as u8)));
        _mm256_cvtepi32_ps(_mm256_and_si256(byte, _mm256_set1_epi32(0xff)))
    }
    #[inline(always)]
    unsafe fn signed_bytes(from: *const u8, i: usize) -> __m256 {
        let fours = _mm256_loadu_si256(from.cast());
        let high = _mm256_sll_epi32(fours, _mm_cvtsi32_si128(24 - 8 * i32::from(i as u8)));
        _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(high))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        _mm256_storeu_ps(to, v);
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, len: usize, v: __m256) {
        _mm256_maskstore_ps(to, first(len), v);
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn round(v: __m256) -> __m256 {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
    }
    #[inline(always)]
    unsafe fn pow2(v: __m256) -> __m256 {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
    }
    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), sums);
        out
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m256) -> f32 {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ps(v, _mm_movehdup_ps(v)))
    }
    #[inline(always)]
    unsafe fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
        dequantize(format, bytes, out);
    }
}

/// A mask of the first `len` lanes.
#[inline(always)]
unsafe fn first(len: usize) -> __m256i {
    _mm256_cmpgt_epi32(
        _mm256_set1_epi32((len as u32).cast_signed()),
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
    )
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    plain::blocks(format, bytes, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn linear(job: &LinearJob<'_>, rows: Range<usize>) {
    vector::panels::<Avx2>(job, rows);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn linear_packed(job: &PackedJob<'_>, range: Range<usize>) {
    panels::<Avx2Tiles>(job, range);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn round(x: &[f32], block: &mut OperandBlock<'_>, r: usize) {
    round_row(x, block, r);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn attention(job: &AttentionJob<'_>, tile: &Tile) {
    attend::attention::<Avx2>(job, tile);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    vector::rms_norm::<Avx2>(x, weight, eps, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rope(style: RopeStyle, x: &[f32], angles: (&[f32], &[f32]), out: &mut [f32]) {
    vector::rope(style, x, angles, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    vector::gated::<Avx2>(activation, gate, up, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn operand(x: &[f32], to: &mut [u32]) {
    panel::rounded(x, to);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel(job: &PanelJob<'_>, to: &mut PanelOut<'_>) {
    const V: usize = PANEL / Avx2::LANES;
    match job.precision {
        Precision::Bf16 => panel::panel::<Avx2, Widened, V>(job, to),
        Precision::F32 => panel::panel::<Avx2, Floats, V>(job, to),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn activate(activation: Activation, row: &mut [f32]) {
    rows::activate_row::<Avx2>(activation, row);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    rows::layer_norm::<Avx2>(row, weight, bias, eps);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn exponentials(row: &mut [f32], scale: f32) -> f32 {
    rows::exponentials::<Avx2>(row, scale)
}
