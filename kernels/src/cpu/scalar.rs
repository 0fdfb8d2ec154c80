//! The plain kernels: the specification that every other table is tested against.

use std::{
    f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI},
    ops::Range,
};

use super::{
    Kernels, dequantize,
    jobs::{AttentionJob, LinearJob, Tile},
    operand::round_row,
    packed::{PackedJob, Plain, panels},
    panel,
    stored::{Cache, Cells, KEY_GROUP},
};
use crate::{Format, op::Activation, op::RopeStyle};

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
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
    panel: panel::plain,
    activate,
    layer_norm,
    exponentials,
};

pub(super) const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// Widens whole blocks: `bytes` of `format` to `out`, as many weights as both hold.
pub(crate) fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    dequantize::blocks(format, bytes, out);
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// # Safety
/// No other thread may write the same rows' results.
unsafe fn linear(job: &LinearJob<'_>, rows: Range<usize>) {
    let k = job.weight.cols();
    let mut weights = vec![0.0; k];
    for row in rows {
        dequantize(
            job.weight.format(),
            job.weight.rows_bytes(row..row + 1),
            &mut weights,
        );
        for i in 0..job.n {
            // SAFETY: the caller's promise.
            unsafe { job.finish(i, row, &[dot(&job.x[i * k..][..k], &weights)]) }
        }
    }
}

/// # Safety
/// No other thread may write the same panels' results.
unsafe fn linear_packed(job: &PackedJob<'_>, range: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { panels::<Plain>(job, range) }
}

fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

fn rope(style: RopeStyle, x: &[f32], (cos, sin): (&[f32], &[f32]), out: &mut [f32]) {
    let d = 2 * cos.len();
    for head in (0..x.len()).step_by(d.max(1)) {
        for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
            let (a, b) = match style {
                RopeStyle::Halves => (head + i, head + i + d / 2),
                RopeStyle::Interleaved => (head + 2 * i, head + 2 * i + 1),
            };
            out[a] = x[a] * cos - x[b] * sin;
            out[b] = x[b] * cos + x[a] * sin;
        }
    }
}

fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &x), up) in out.iter_mut().zip(gate).zip(up) {
        *out = activated(activation, x) * up;
    }
}

pub(crate) fn activated(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => (0.5 * f64::from(x) * (1.0 + erf(f64::from(x) * FRAC_1_SQRT_2))) as f32,
        Activation::GeluTanh => 0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh()),
        Activation::Relu => x.max(0.0),
    }
}

/// The error function, to eight digits: its Taylor series, and 1 where that has no more digits to give.
fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 4.2 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    FRAC_2_SQRT_PI * sum
}

fn activate(activation: Activation, row: &mut [f32]) {
    for x in row {
        *x = activated(activation, *x);
    }
}

fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let mean = row.iter().sum::<f32>() / row.len() as f32;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / row.len() as f32;
    let scale = 1.0 / (variance + eps).sqrt();
    for (i, x) in row.iter_mut().enumerate() {
        *x = (*x - mean) * scale * weight[i] + bias.get(i).copied().unwrap_or(0.0);
    }
}

fn exponentials(row: &mut [f32], scale: f32) -> f32 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in &mut *row {
        *x = (scale * (*x - most)).exp();
    }
    row.iter().sum()
}

/// # Safety
/// No other thread may write the same queries' results.
unsafe fn attention(job: &AttentionJob<'_>, tile: &Tile) {
    let group = KEY_GROUP * job.d;
    // SAFETY: the caller's promise.
    unsafe {
        match job.cache {
            Cache::F32(Cells { k, v }) => attend(
                job,
                tile,
                |at, i| k[at / KEY_GROUP * group + i * KEY_GROUP + at % KEY_GROUP],
                |at, i| v[at * job.d + i],
            ),
            Cache::Bf16(Cells { k, v }) => attend(
                job,
                tile,
                |at, i| k[at / KEY_GROUP * group + i * KEY_GROUP + at % KEY_GROUP].to_f32(),
                |at, i| v[at * job.d + i].to_f32(),
            ),
            Cache::Int8(records) => attend(
                job,
                tile,
                |at, i| records.key(job.d, at, i),
                |at, i| records.value(job.d, at, i),
            ),
        }
    }
}

/// `key` and `value` are element `i` of the slot `at`, counted over all heads: its group times [`KEY_GROUP`] plus its place
/// there.
///
/// # Safety
/// As for [`attention`].
unsafe fn attend(
    job: &AttentionJob<'_>,
    tile: &Tile,
    key: impl Fn(usize, usize) -> f32,
    value: impl Fn(usize, usize) -> f32,
) {
    let (row, d) = (&job.rows[tile.row], job.d);
    for i in 0..tile.tokens.len() * job.group() {
        let at = job.query(tile, i);
        let (query, positions) = (
            &job.q[at..][..d],
            job.visible(row, tile.tokens.start + i / job.group()),
        );
        let slot =
            |position: usize| job.key_group(row, tile.kv_head, position) * KEY_GROUP + position % KEY_GROUP;
        let score = |position: usize| {
            let products = query.iter().enumerate().map(|(i, q)| q * key(slot(position), i));
            let score = products.sum::<f32>() * job.options.scale;
            job.options
                .softcap
                .map_or(score, |cap| cap * (score / cap).tanh())
        };
        let scores: Vec<f32> = positions.clone().map(score).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = scores.iter().map(|score| (score - max).exp()).sum();
        // SAFETY: the caller's promise.
        let out = unsafe { job.out.slice(at, d) };
        for (position, score) in positions.zip(&scores) {
            let weight = (score - max).exp() / sum;
            for (i, out) in out.iter_mut().enumerate() {
                *out += weight * value(slot(position), i);
            }
        }
    }
}
