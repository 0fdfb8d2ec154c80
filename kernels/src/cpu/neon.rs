//! NEON, which every 64-bit Arm processor has.

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
    reason = "the kernels' inner loops must not call functions"
)]

use std::{arch::aarch64::*, ops::Range};

use half::bf16;

use super::{
    Kernels, attend, dequantize as plain,
    jobs::{AttentionJob, LinearJob, Tile},
    operand::round_row,
    packed::{PackedJob, Plain, panels},
    panel::{self, Floats, PanelJob, PanelOut, Widened},
    rows,
    simd::Simd,
    vector,
};
use crate::{Format, Precision, dense::PANEL, op::Activation, op::RopeStyle};

pub(super) static KERNELS: Kernels = Kernels {
    name: "neon",
    dequantize,
    linear,
    linear_packed,
    round: round_row,
    attention,
    rms_norm,
    rope,
    gated,
    bf16_words: 2,
    operand: panel::rounded,
    panel,
    activate,
    layer_norm,
    exponentials,
};

struct Neon;

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const BATCH: usize = 6;
    const TILE: usize = 3;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        vdupq_n_f32(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        vld1q_f32(from)
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, len: usize) -> float32x4_t {
        let mut lanes = [0.0; 4];
        from.copy_to_nonoverlapping(lanes.as_mut_ptr(), len);
        vld1q_f32(lanes.as_ptr())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> float32x4_t {
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> [float32x4_t; 2] {
        let pairs = vld1q_u32(from);
        let upper = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
        [
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)),
            vreinterpretq_f32_u32(upper),
        ]
    }
    #[inline(always)]
    unsafe fn unsigned_bytes(from: *const u8, i: usize) -> float32x4_t {
        let fours = vreinterpretq_u32_u8(vld1q_u8(from));
        let byte = vshlq_u32(fours, vdupq_n_s32(-8 * i32::from(i as u8)));
        vcvtq_f32_u32(vandq_u32(byte, vdupq_n_u32(0xff)))
    }
    #[inline(always)]
    unsafe fn signed_bytes(from: *const u8, i: usize) -> float32x4_t {
        let fours = vreinterpretq_s32_u8(vld1q_u8(from));
        let high = vshlq_s32(fours, vdupq_n_s32(24 - 8 * i32::from(i as u8)));
        vcvtq_f32_s32(vshrq_n_s32::<24>(high))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: float32x4_t) {
        vst1q_f32(to, v);
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, len: usize, v: float32x4_t) {
        let mut lanes = [0.0; 4];
        vst1q_f32(lanes.as_mut_ptr(), v);
        to.copy_from_nonoverlapping(lanes.as_ptr(), len);
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vsubq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vdivq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vbslq_f32(vcgtq_f32(a, b), a, b)
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vbslq_f32(vcltq_f32(a, b), a, b)
    }
    #[inline(always)]
    unsafe fn round(v: float32x4_t) -> float32x4_t {
        vrndnq_f32(v)
    }
    #[inline(always)]
    unsafe fn pow2(v: float32x4_t) -> float32x4_t {
        vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(v), vdupq_n_s32(127))))
    }
    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [float32x4_t; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        vst1q_f32(out.as_mut_ptr(), vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
        out
    }
    #[inline(always)]
    unsafe fn max_lane(v: float32x4_t) -> f32 {
        vmaxvq_f32(v)
    }
    #[inline(always)]
    unsafe fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
        plain::blocks(format, bytes, out);
    }
}

fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    plain::blocks(format, bytes, out);
}

unsafe fn linear(job: &LinearJob<'_>, rows: Range<usize>) {
    vector::panels::<Neon>(job, rows);
}

unsafe fn linear_packed(job: &PackedJob<'_>, range: Range<usize>) {
    panels::<Plain>(job, range);
}

unsafe fn attention(job: &AttentionJob<'_>, tile: &Tile) {
    attend::attention::<Neon>(job, tile);
}

unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    vector::rms_norm::<Neon>(x, weight, eps, out);
}

fn rope(style: RopeStyle, x: &[f32], angles: (&[f32], &[f32]), out: &mut [f32]) {
    vector::rope(style, x, angles, out);
}

unsafe fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    vector::gated::<Neon>(activation, gate, up, out);
}

unsafe fn panel(job: &PanelJob<'_>, to: &mut PanelOut<'_>) {
    const V: usize = PANEL / Neon::LANES;
    match job.precision {
        Precision::Bf16 => panel::panel::<Neon, Widened, V>(job, to),
        Precision::F32 => panel::panel::<Neon, Floats, V>(job, to),
    }
}

unsafe fn activate(activation: Activation, row: &mut [f32]) {
    rows::activate_row::<Neon>(activation, row);
}

unsafe fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    rows::layer_norm::<Neon>(row, weight, bias, eps);
}

unsafe fn exponentials(row: &mut [f32], scale: f32) -> f32 {
    rows::exponentials::<Neon>(row, scale)
}
