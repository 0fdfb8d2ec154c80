//! Rounding of what products meet.

use half::{bf16, f16};

use super::common::Rng;
use super::kernels;
use super::machine::Machine;
use crate::Format;
use crate::cuda::Address;
use crate::cuda::packed::{Rounded, round, round_16};

kernels! {
    round_rows: rounding;
    round_rows_16: rounding_16;
}

const GROUP: usize = 32;

/// Rounded activations in a machine's memory.
pub(super) struct Operand<B> {
    codes: B,
    scales: B,
    shares: B,
    pub(super) shape: Rounded,
}

/// `n` rows of `k` numbers, `stride` apart, normalised before where there is a weight and an epsilon.
pub(super) fn rounded<M: Machine>(
    machine: &M,
    x: &[f32],
    (n, k, stride): (usize, usize, usize),
    norm: Option<(&[f32], f32)>,
) -> Operand<M::Buffer> {
    let input = machine.upload(x);
    let weight = norm.map(|(weight, eps)| (machine.upload(weight), eps));
    let norm = weight
        .as_ref()
        .map(|(weight, eps)| (machine.address(weight), *eps));
    let [codes, scales, shares] = Rounded::bytes(n, k).map(|bytes| machine.poisoned(bytes));
    let shape = Rounded {
        n,
        k,
        codes: machine.address(&codes),
        scales: machine.address(&scales),
        shares: machine.address(&shares),
        bf16: Address::default(),
        f16: Address::default(),
        f16_scales: Address::default(),
    };
    machine.launch(&round(machine.address(&input), stride, norm, &shape));
    Operand {
        codes,
        scales,
        shares,
        shape,
    }
}

/// Activations of 16 bits in a machine's memory.
pub(super) struct Operand16<B> {
    numbers: B,
    scales: B,
    pub(super) shape: Rounded,
    format: Format,
}

/// The same as [`rounded`] to numbers in bf16 or f16.
pub(super) fn rounded_16<M: Machine>(
    machine: &M,
    format: Format,
    x: &[f32],
    (n, k, stride): (usize, usize, usize),
    norm: Option<(&[f32], f32)>,
) -> Operand16<M::Buffer> {
    let input = machine.upload(x);
    let weight = norm.map(|(weight, eps)| (machine.upload(weight), eps));
    let norm = weight
        .as_ref()
        .map(|(weight, eps)| (machine.address(weight), *eps));
    let numbers = machine.poisoned(Rounded::bytes_16(n, k));
    let scales = machine.poisoned(Rounded::padded(n) * 4);
    let nowhere = Address::default();
    let shape = Rounded {
        n,
        k,
        codes: nowhere,
        scales: nowhere,
        shares: nowhere,
        bf16: machine.address(&numbers),
        f16: machine.address(&numbers),
        f16_scales: machine.address(&scales),
    };
    machine.launch(&round_16(format, (machine.address(&input), stride), norm, &shape));
    Operand16 {
        numbers,
        scales,
        shape,
        format,
    }
}

/// What its numbers stand for, `[n, k]`; those that fill the last group up are 0.
pub(super) fn values_16<M: Machine>(machine: &M, operand: &Operand16<M::Buffer>) -> Vec<f64> {
    let bits: Vec<u16> = machine.download(&operand.numbers);
    let scales: Vec<f32> = machine.download(&operand.scales);
    let Rounded { n, k, .. } = operand.shape;
    let mut values = Vec::with_capacity(n * k);
    for (row, bits) in bits.chunks(k.next_multiple_of(GROUP)).take(n).enumerate() {
        let (own, behind) = bits.split_at(k);
        assert!(
            behind.iter().all(|bits| *bits == 0),
            "behind the end of row {row}"
        );
        values.extend(own.iter().map(|bits| match operand.format {
            Format::F16 => f16::from_bits(*bits).to_f64() * f64::from(scales[row]),
            _ => bf16::from_bits(*bits).to_f64(),
        }));
    }
    values
}

/// Every number is the nearest there is, whatever its row's largest is.
fn rounding_16<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (n, k) = match seed % 16 {
        0 => (90 + rng.below(60), 600 + rng.below(600)),
        1 => (1 + rng.below(3), 600 + rng.below(4_000)),
        _ => (1 + rng.below(12), 1 + rng.below(640)),
    };
    let format = [Format::Bf16, Format::F16][rng.below(2)];
    let stride = k + 4 * rng.below(3);
    let mut x = rng.floats(n * stride);
    // Far beyond what f16 can hold, and far below.
    for row in x.chunks_mut(stride) {
        let size = [1.0, 1e9, 1e30, 1e-9, 0.0][rng.below(5)];
        for x in row {
            *x *= size;
        }
    }
    let none = (rng.below(8) == 0).then(|| rng.below(n));
    if let Some(row) = none {
        x[row * stride + rng.below(k)] = [f32::NAN, f32::INFINITY][rng.below(2)];
    }
    let norm = (rng.below(2) == 0).then(|| (rng.floats(k), 1e-5_f32));
    let run = || {
        let norm = norm.as_ref().map(|(weight, eps)| (&**weight, *eps));
        rounded_16(machine, format, &x, (n, k, stride), norm)
    };
    machine.in_every_order(|| {
        let Operand16 { numbers, scales, .. } = run();
        [numbers, scales]
    });
    let values = values_16(machine, &run());
    // Half a unit in the last place of 8 or 11 bits, and what f32 is off by.
    let unit = if format == Format::Bf16 { 256.0 } else { 2048.0 };
    for (row, values) in values.chunks(k).enumerate() {
        let x = &x[row * stride..][..k];
        if none == Some(row) {
            assert!(
                values.iter().any(|value| !value.is_finite()),
                "what is none must show"
            );
            continue;
        }
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / k as f64;
        if norm.is_some() && !(mean as f32).is_finite() {
            continue;
        }
        let expected: Vec<f64> = (0..k)
            .map(|i| match &norm {
                Some((weight, eps)) => {
                    f64::from(x[i]) / (mean + f64::from(*eps)).sqrt() * f64::from(weight[i])
                }
                None => f64::from(x[i]),
            })
            .collect();
        let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        for (value, expected) in values.iter().zip(&expected) {
            // Numbers in f16 end at 2^-24, those of a row at as much below its largest.
            let most = expected.abs() * (1.0 / unit + 1e-5) + largest * 2_f64.powi(-38);
            assert!(
                (value - expected).abs() <= most,
                "{value} is not {expected}, of {largest}"
            );
        }
    }
}

/// Every number is the nearest whole one of its scale, and sums are those of the numbers.
fn rounding<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    // Many rows leave few blocks for each, and a long one takes several steps of its block.
    let (n, k) = match seed % 16 {
        0 => (90 + rng.below(60), GROUP * (20 + rng.below(20))),
        1 => (1 + rng.below(3), GROUP * (20 + rng.below(120))),
        _ => (1 + rng.below(12), GROUP * (1 + rng.below(20))),
    };
    let stride = k + 4 * rng.below(3);
    let mut x = rng.floats(n * stride);
    if rng.below(8) == 0 {
        x[..GROUP].fill(0.0);
    }
    // What is no number, or infinite, must show in its scale.
    let none = (rng.below(8) == 0).then(|| rng.below(n));
    if let Some(row) = none {
        let numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        x[row * stride + rng.below(k)] = numbers[rng.below(3)];
    }
    let norm = (rng.below(2) == 0).then(|| (rng.floats(k), 1e-5_f32));
    let [codes, scales, shares] = machine.in_every_order(|| {
        let norm = norm.as_ref().map(|(weight, eps)| (&**weight, *eps));
        let Operand {
            codes,
            scales,
            shares,
            ..
        } = rounded(machine, &x, (n, k, stride), norm);
        [codes, scales, shares]
    });
    let codes: Vec<i8> = machine.download(&codes);
    let scales: Vec<f32> = machine.download(&scales);
    let shares: Vec<f32> = machine.download(&shares);
    let padded = Rounded::padded(n);
    for row in 0..n {
        let x = &x[row * stride..][..k];
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / k as f64;
        let value = |i: usize| match &norm {
            Some((weight, eps)) => f64::from(x[i]) / (mean + f64::from(*eps)).sqrt() * f64::from(weight[i]),
            None => f64::from(x[i]),
        };
        for group in 0..k / GROUP {
            let scale = f64::from(scales[group * padded + row]);
            if (0..GROUP).any(|i| !value(group * GROUP + i).is_finite()) {
                assert!(scale.is_nan(), "{scale} hides what is no number");
                continue;
            }
            let largest = (0..GROUP).fold(0.0, |largest: f64, i| largest.max(value(group * GROUP + i).abs()));
            assert!(
                (scale * 127.0 - largest).abs() <= 1e-5 * largest,
                "scale {scale} of {largest}"
            );
            let mut expected = [0, 0];
            for i in 0..GROUP {
                let place = i / 4 % 4 * 8 + i / 16 * 4 + i % 4;
                let code = codes[row * k + group * GROUP + place];
                let off = (f64::from(code) * scale - value(group * GROUP + i)).abs();
                assert!(off <= 0.5001 * scale + 1e-5 * largest, "{code} of {scale}");
                expected[i / 16] += i32::from(code);
            }
            let sums = [expected[0] + expected[1], expected[0], expected[1]];
            for (i, sum) in sums.into_iter().enumerate() {
                let share = scales[group * padded + row] * sum as f32;
                assert_eq!(shares[(group * 3 + i) * padded + row].to_bits(), share.to_bits());
            }
        }
    }
}

/// What `codes` and `scales` stand for, `[n, k]`.
pub(super) fn values<M: Machine>(machine: &M, operand: &Operand<M::Buffer>) -> Vec<f64> {
    let codes: Vec<i8> = machine.download(&operand.codes);
    let scales: Vec<f32> = machine.download(&operand.scales);
    let Rounded { n, k, .. } = operand.shape;
    let value = |at: usize| {
        let (row, group, i) = (at / k, at % k / GROUP, at % GROUP);
        let place = i / 4 % 4 * 8 + i / 16 * 4 + i % 4;
        let code = codes[row * k + group * GROUP + place];
        f64::from(code) * f64::from(scales[group * Rounded::padded(n) + row])
    };
    (0..n * k).map(value).collect()
}
