//! Rounding of what products meet.

use super::common::Rng;
use super::kernels;
use super::machine::Machine;
use crate::cuda::packed::{Rounded, round};

kernels! {
    round_rows: rounding;
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
    };
    machine.launch(&round(machine.address(&input), stride, norm, &shape));
    Operand {
        codes,
        scales,
        shares,
        shape,
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
