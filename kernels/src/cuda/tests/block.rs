//! Norms and gates.

use super::common::Rng;
use super::kernels;
use super::machine::{Machine, assert_close};
use crate::cpu::scalar::activated;
use crate::cuda::Address;
use crate::cuda::block::{self, NormArgs};
use crate::op::Activation;

kernels! {
    rms_norm: norm;
    gate: gated;
}

pub(super) fn normalised(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    let pairs = x.iter().zip(weight);
    pairs
        .map(|(&x, &w)| f64::from(x) * scale * f64::from(w))
        .collect()
}

fn norm<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    // A block takes 1,024 numbers at a time.
    let d_max = [70, 700, 2600][rng.below(3)];
    let (n, d) = (1 + rng.below(5), 1 + rng.below(d_max));
    let (x, weight) = (rng.floats(n * d), rng.floats(d));
    let residual = seed.is_multiple_of(2).then(|| rng.floats(n * d));
    let (input, factors) = (machine.upload(&x), machine.upload(&weight));
    let added = residual.as_ref().map(|residual| machine.upload(residual));
    let [out] = machine.in_every_order(|| {
        let out = machine.poisoned(n * d * 4);
        let args = NormArgs {
            x: machine.address(&input),
            weight: machine.address(&factors),
            residual: added
                .as_ref()
                .map_or(Address::default(), |added| machine.address(added)),
            out: machine.address(&out),
            d: d as u32,
            eps: 1e-5,
        };
        machine.launch(&block::rms_norm(n, args));
        [out]
    });
    let mut expected: Vec<f64> = x.chunks(d).flat_map(|x| normalised(x, &weight, 1e-5)).collect();
    for (expected, residual) in expected.iter_mut().zip(residual.iter().flatten()) {
        *expected += f64::from(*residual);
    }
    assert_close(&machine.download::<f32>(&out), &expected, 1e-6, "rms_norm");
}

fn gated<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (n, d) = (1 + rng.below(5), 1 + rng.below(300));
    let activation = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
    ][rng.below(4)];
    let x = rng.floats(n * 2 * d);
    let input = machine.upload(&x);
    let [out] = machine.in_every_order(|| {
        let out = machine.poisoned(n * d * 4);
        let (from, to) = (machine.address(&input), machine.address(&out));
        machine.launch(&block::gate(from, to, n, d, activation));
        [out]
    });
    let mut expected = Vec::new();
    for row in x.chunks(2 * d) {
        let pairs = row[..d].iter().zip(&row[d..]);
        expected.extend(pairs.map(|(&gate, &up)| f64::from(activated(activation, gate)) * f64::from(up)));
    }
    assert_close(&machine.download::<f32>(&out), &expected, 1e-6, "gate");
}
