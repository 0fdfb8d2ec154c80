//! Norms, gates, rotation and the cache's keys and values.

use half::bf16;

use super::common::Rng;
use super::kernels;
use super::machine::{Machine, assert_close};
use crate::cpu::scalar::activated;
use crate::cuda::Address;
use crate::cuda::block::{self, NormArgs, RopeArgs, WriteArgs};
use crate::op::{Activation, RopeStyle};

kernels! {
    rms_norm: norm;
    gate: gated;
    rope: rotated;
    write_kv: written;
}

fn normalised(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
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

fn rotated<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (n, heads, d) = (1 + rng.below(4), 1 + rng.below(3), 2 * (1 + rng.below(70)));
    let width = heads * d;
    let (interleaved, stride) = (rng.below(2) == 0, width + rng.below(3));
    let style = [RopeStyle::Halves, RopeStyle::Interleaved][usize::from(interleaved)];
    let x = rng.floats(n * stride);
    let positions: Vec<u32> = (0..n).map(|_| rng.below(3000) as u32).collect();
    let inv_freq: Vec<f32> = (0..d / 2)
        .map(|i| 10_000_f32.powf(-(i as f32) / d as f32))
        .collect();
    let weight = seed.is_multiple_of(2).then(|| rng.floats(d));
    let factors = seed.is_multiple_of(3).then(|| rng.floats(width));
    let (input, at, freq) = (
        machine.upload(&x),
        machine.upload(&positions),
        machine.upload(&inv_freq),
    );
    let weights = weight.as_ref().map(|weight| machine.upload(weight));
    let multiply = factors.as_ref().map(|factors| machine.upload(factors));
    let place =
        |buffer: &Option<M::Buffer>| buffer.as_ref().map_or(Address::default(), |b| machine.address(b));
    let [out] = machine.in_every_order(|| {
        let out = machine.poisoned(n * width * 4);
        machine.launch(&block::rope(RopeArgs {
            x: machine.address(&input),
            positions: machine.address(&at),
            inv_freq: machine.address(&freq),
            weight: place(&weights),
            factors: place(&multiply),
            out: machine.address(&out),
            stride: stride as u64,
            n: n as u32,
            heads: heads as u32,
            d: d as u32,
            eps: 1e-6,
            attention_factor: 1.25,
            interleaved: block::interleaved(style),
        }));
        [out]
    });
    let mut expected = vec![0.0; n * width];
    for (token, out) in expected.chunks_mut(width).enumerate() {
        for (head, out) in out.chunks_mut(d).enumerate() {
            let x = &x[token * stride + head * d..][..d];
            let x = match &weight {
                Some(weight) => normalised(x, weight, 1e-6),
                None => x.iter().map(|&x| f64::from(x)).collect(),
            };
            for pair in 0..d / 2 {
                let (i, j) = if interleaved {
                    (2 * pair, 2 * pair + 1)
                } else {
                    (pair, pair + d / 2)
                };
                let angle = f64::from(positions[token] as f32 * inv_freq[pair]);
                let (s, c) = (angle.sin() * 1.25, angle.cos() * 1.25);
                out[i] = x[i] * c - x[j] * s;
                out[j] = x[j] * c + x[i] * s;
            }
            for (i, out) in out.iter_mut().enumerate() {
                *out *= factors
                    .as_ref()
                    .map_or(1.0, |factors| f64::from(factors[head * d + i]));
            }
        }
    }
    assert_close(&machine.download::<f32>(&out), &expected, 1e-6, "rope");
}

/// Numbers of which some are halfway between two in bf16, and some are none or infinite.
fn awkward(rng: &mut Rng, len: usize) -> Vec<f32> {
    let mut numbers = rng.floats(len);
    for x in &mut numbers {
        match rng.below(8) {
            0 => *x = f32::from_bits(x.to_bits() & 0xffff_0000 | 0x8000),
            1 => {
                *x = [
                    f32::NAN,
                    f32::from_bits(0x7f80_0001),
                    f32::INFINITY,
                    f32::MAX,
                    -0.0,
                ][rng.below(5)];
            }
            _ => {}
        }
    }
    numbers
}

fn written<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let d_max = [70, 260][rng.below(2)];
    let (n, heads, d, block_size) = (
        1 + rng.below(5),
        1 + rng.below(3),
        1 + rng.below(d_max),
        16 * (1 + rng.below(2)),
    );
    let (width, blocks) = (heads * d, 3);
    let (k_stride, v_stride) = (width + rng.below(5), width + rng.below(5));
    let (k, v) = (awkward(rng, n * k_stride), awkward(rng, n * v_stride));
    // Each slot once.
    let mut slots: Vec<u32> = (0..(blocks * block_size) as u32).collect();
    for i in 0..n {
        let other = i + rng.below(slots.len() - i);
        slots.swap(i, other);
    }
    slots.truncate(n);
    let (keys_in, values_in, at) = (machine.upload(&k), machine.upload(&v), machine.upload(&slots));
    let len = blocks * block_size * width;
    let [keys, values] = machine.in_every_order(|| {
        let (keys, values) = (machine.poisoned(len * 2), machine.poisoned(len * 2));
        machine.launch(&block::write_kv(
            n,
            WriteArgs {
                k: machine.address(&keys_in),
                v: machine.address(&values_in),
                slots: machine.address(&at),
                keys: machine.address(&keys),
                values: machine.address(&values),
                k_stride: k_stride as u64,
                v_stride: v_stride as u64,
                kv_heads: heads as u32,
                d: d as u32,
                block_size: block_size as u32,
                pad: 0,
            },
        ));
        [keys, values]
    });
    let (mut expected_k, mut expected_v) = (vec![0xffff; len], vec![0xffff; len]);
    for (token, &slot) in slots.iter().enumerate() {
        let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
        for head in 0..heads {
            let group = (block * heads + head) * (block_size / 16) + offset / 16;
            for i in 0..d {
                let (k, v) = (
                    k[token * k_stride + head * d + i],
                    v[token * v_stride + head * d + i],
                );
                expected_k[(group * 16 + offset % 16) * d + i] = bf16::from_f32(k).to_bits();
                expected_v[(group * d + i) * 16 + offset % 16] = bf16::from_f32(v).to_bits();
            }
        }
    }
    assert_eq!(machine.download::<u16>(&keys), expected_k);
    assert_eq!(machine.download::<u16>(&values), expected_v);
}
