//! AVX-512 (F, BW, DQ, VL).

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
    avx512_decode as decode, blocks, dequantize as plain,
    jobs::{AttentionJob, LinearJob, Tile},
    operand::{DIGIT_MAX, DIGITS_MAX, Digits, OperandBlock, factor_of},
    packed::{PackedJob, panels},
    panel::{self, Floats, PanelJob, PanelOut, Widened},
    rows,
    simd::Simd,
    vector,
};
use crate::{Format, Precision, dense::PANEL, op::Activation, op::RopeStyle, packed::GROUP};

pub(super) static KERNELS: Kernels = Kernels {
    name: "avx512",
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
    let has = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    has.then_some(&KERNELS)
}

pub(super) struct Avx512;

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const BATCH: usize = 6;
    const TILE: usize = 12;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, len: usize) -> __m512 {
        _mm512_maskz_loadu_ps(first(len), from)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> [__m512; 2] {
        let pairs = _mm512_loadu_si512(from.cast());
        let upper = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
        [_mm512_slli_epi32::<16>(pairs), upper].map(|v| _mm512_castsi512_ps(v))
    }
    #[inline(always)]
    unsafe fn unsigned_bytes(from: *const u8, i: usize) -> __m512 {
        let fours = _mm512_loadu_si512(from.cast());
        let byte = _mm512_srl_epi32(fours, _mm_cvtsi32_si128(8 * i32::from(i as u8)));
        _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(0xff)))
    }
    #[inline(always)]
    unsafe fn signed_bytes(from: *const u8, i: usize) -> __m512 {
        let fours = _mm512_loadu_si512(from.cast());
        let high = _mm512_sll_epi32(fours, _mm_cvtsi32_si128(24 - 8 * i32::from(i as u8)));
        _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(high))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        _mm512_storeu_ps(to, v);
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, len: usize, v: __m512) {
        _mm512_mask_storeu_ps(to, first(len), v);
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
    }
    #[inline(always)]
    unsafe fn pow2(v: __m512) -> __m512 {
        _mm512_scalef_ps(_mm512_set1_ps(1.0), v)
    }
    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // Halves of two vectors side by side, then quarters of four, then each quarter's four lanes.
        let ab = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x44>(a, b),
            _mm512_shuffle_f32x4::<0xee>(a, b),
        );
        let cd = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x44>(c, d),
            _mm512_shuffle_f32x4::<0xee>(c, d),
        );
        let quarters = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x88>(ab, cd),
            _mm512_shuffle_f32x4::<0xdd>(ab, cd),
        );
        let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0b10_11_00_01>(quarters));
        let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b01_00_11_10>(pairs));
        let mut out = [0.0; 4];
        _mm_storeu_ps(
            out.as_mut_ptr(),
            _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sums)),
        );
        out
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m512) -> f32 {
        _mm512_reduce_max_ps(v)
    }
    #[inline(always)]
    unsafe fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
        dequantize(format, bytes, out);
    }
}

/// The first `len` lanes.
#[inline(always)]
pub(super) fn first(len: usize) -> __mmask16 {
    ((1_u32 << len) - 1) as __mmask16
}

/// Four bytes in every lane.
#[inline(always)]
pub(super) unsafe fn four(from: *const u8) -> __m512i {
    _mm512_set1_epi32(from.cast::<i32>().read_unaligned())
}

/// The upper of two digits of numbers, as `operand::digits` has it.
#[inline(always)]
pub(super) unsafe fn upper_digits(numbers: __m512i) -> __m512i {
    _mm512_srai_epi32::<8>(_mm512_add_epi32(numbers, _mm512_set1_epi32(128)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    match format {
        Format::Q4_0 => blocks::widen::<Avx512, decode::Q4_0>(bytes, out),
        Format::Q4_1 => blocks::widen::<Avx512, decode::Q4_1>(bytes, out),
        Format::Q5_0 => blocks::widen::<Avx512, decode::Q5_0>(bytes, out),
        Format::Q5_1 => blocks::widen::<Avx512, decode::Q5_1>(bytes, out),
        Format::Q8_0 => blocks::widen::<Avx512, decode::Q8_0>(bytes, out),
        Format::Q4K => blocks::widen::<Avx512, decode::Q4K>(bytes, out),
        Format::Q5K => blocks::widen::<Avx512, decode::Q5K>(bytes, out),
        Format::Q6K => blocks::widen::<Avx512, decode::Q6K>(bytes, out),
        Format::F32 | Format::F16 | Format::Bf16 | Format::Q2K | Format::Q3K => {
            plain::blocks(format, bytes, out);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn linear(job: &LinearJob<'_>, rows: Range<usize>) {
    match job.n {
        1 => few::<1>(job, rows),
        2 => few::<2>(job, rows),
        3 => few::<3>(job, rows),
        _ => vector::panels::<Avx512>(job, rows),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn few<const M: usize>(job: &LinearJob<'_>, rows: Range<usize>) {
    let whole = job.weight.cols().is_multiple_of(Avx512::LANES);
    match job.weight.format() {
        Format::F16 if whole => blocks::fused::<Avx512, decode::F16, M>(job, rows),
        Format::Bf16 if whole => blocks::fused::<Avx512, decode::Bf16, M>(job, rows),
        Format::Q4_0 => blocks::fused::<Avx512, decode::Q4_0, M>(job, rows),
        Format::Q4_1 => blocks::fused::<Avx512, decode::Q4_1, M>(job, rows),
        Format::Q5_0 => blocks::fused::<Avx512, decode::Q5_0, M>(job, rows),
        Format::Q5_1 => blocks::fused::<Avx512, decode::Q5_1, M>(job, rows),
        Format::Q8_0 => blocks::fused::<Avx512, decode::Q8_0, M>(job, rows),
        Format::Q4K => blocks::fused::<Avx512, decode::Q4K, M>(job, rows),
        Format::Q5K => blocks::fused::<Avx512, decode::Q5K, M>(job, rows),
        Format::Q6K => blocks::fused::<Avx512, decode::Q6K, M>(job, rows),
        _ => vector::panels::<Avx512>(job, rows),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn linear_packed(job: &PackedJob<'_>, range: Range<usize>) {
    panels::<Avx2Tiles>(job, range);
}

/// As `operand::round_row`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn round(x: &[f32], block: &mut OperandBlock<'_>, r: usize) {
    let wide = block.is_wide();
    for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let x = [
            _mm512_loadu_ps(x.as_ptr()),
            _mm512_loadu_ps(x.as_ptr().add(GROUP / 2)),
        ];
        let bits = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
        let magnitude = _mm512_reduce_max_epi32(_mm512_max_epi32(bits(x[0]), bits(x[1])));
        let largest = if wide { DIGITS_MAX } else { DIGIT_MAX };
        let (factor, scale) = factor_of(f32::from_bits(magnitude.cast_unsigned()), largest);
        // What is not finite becomes the least number, whose digits are 0.
        let number = |x| _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor)));
        let (first, second) = (number(x[0]), number(x[1]));
        let lower = narrow(first, second);
        let mut sums = half_sums(lower);
        let numbers = if wide {
            let upper = narrow(upper_digits(first), upper_digits(second));
            for (sum, upper) in sums.iter_mut().zip(half_sums(upper)) {
                *sum += 256 * upper;
            }
            Digits {
                upper: bytes(upper),
                lower: Some(bytes(lower)),
            }
        } else {
            Digits {
                upper: bytes(lower),
                lower: None,
            }
        };
        block.put(group, r, &numbers, scale, sums);
    }
}

/// The low bytes of two halves of a group.
#[inline(always)]
unsafe fn narrow(first: __m512i, second: __m512i) -> __m256i {
    _mm256_set_m128i(_mm512_cvtepi32_epi8(second), _mm512_cvtepi32_epi8(first))
}

#[inline(always)]
unsafe fn bytes(digits: __m256i) -> [i8; GROUP] {
    let mut bytes = [0; GROUP];
    _mm256_storeu_si256(bytes.as_mut_ptr().cast(), digits);
    bytes
}

/// The sums of the first and of the second half.
#[inline(always)]
unsafe fn half_sums(digits: __m256i) -> [i32; 2] {
    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), digits);
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    let eights = _mm_hadd_epi32(
        _mm256_castsi256_si128(fours),
        _mm256_extracti128_si256::<1>(fours),
    );
    let halves = _mm_hadd_epi32(eights, eights);
    [_mm_extract_epi32::<0>(halves), _mm_extract_epi32::<1>(halves)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn attention(job: &AttentionJob<'_>, tile: &Tile) {
    attend::attention::<Avx512>(job, tile);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    vector::rms_norm::<Avx512>(x, weight, eps, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rope(style: RopeStyle, x: &[f32], angles: (&[f32], &[f32]), out: &mut [f32]) {
    vector::rope(style, x, angles, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    vector::gated::<Avx512>(activation, gate, up, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn operand(x: &[f32], to: &mut [u32]) {
    panel::rounded(x, to);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn panel(job: &PanelJob<'_>, to: &mut PanelOut<'_>) {
    const V: usize = PANEL / Avx512::LANES;
    match job.precision {
        Precision::Bf16 => panel::panel::<Avx512, Widened, V>(job, to),
        Precision::F32 => panel::panel::<Avx512, Floats, V>(job, to),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn activate(activation: Activation, row: &mut [f32]) {
    rows::activate_row::<Avx512>(activation, row);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    rows::layer_norm::<Avx512>(row, weight, bias, eps);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn exponentials(row: &mut [f32], scale: f32) -> f32 {
    rows::exponentials::<Avx512>(row, scale)
}
