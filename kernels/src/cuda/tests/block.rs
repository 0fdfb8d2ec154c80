//! Norms, gates, rotation and the cache's keys and values.

use half::bf16;

use super::common::Rng;
use super::kernels;
use super::kv_int8::{PART, PART_BYTES, SCALES_BYTES, Side, code_place};
use super::machine::{Machine, assert_close};
use crate::cpu::quantise;
use crate::cpu::scalar::activated;
use crate::cuda::Address;
use crate::cuda::block::{self, NormArgs, RopeArgs, WriteArgs};
use crate::op::{Activation, KvDtype, RopeStyle};

kernels! {
    rms_norm: norm;
    gate: gated;
    rope: rotated;
    write_kv: written;
    write_kv_int8: written_in_8_bits;
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

/// Numbers of many sizes. One run of [`PART`] in eight has [`awkward`] ones, and one in eight has ties between codes; a run is a
/// part of the cache only where no padding stands before it.
fn seldom_awkward(rng: &mut Rng, len: usize) -> Vec<f32> {
    let mut numbers = rng.floats(len);
    for run in numbers.chunks_mut(PART) {
        let size = [1e-6, 1e-3, 1.0, 1e3, 1e6][rng.below(5)];
        match rng.below(8) {
            0 => run.copy_from_slice(&awkward(rng, run.len())),
            // At the scale 1 every second one is halfway between two codes.
            1 => {
                run.fill_with(|| rng.below(509) as f32 / 2.0 - 127.0);
                run[0] = 127.0;
            }
            _ => {
                for x in run {
                    *x *= size;
                }
            }
        }
    }
    numbers
}

/// Tokens whose keys and values go to a cache of three blocks, each to a slot of its own.
struct Tokens {
    n: usize,
    heads: usize,
    d: usize,
    block_size: usize,
    k: Vec<f32>,
    v: Vec<f32>,
    strides: [usize; 2],
    slots: Vec<u32>,
}

const BLOCKS: usize = 3;

impl Tokens {
    fn random(rng: &mut Rng, d: usize, numbers: fn(&mut Rng, usize) -> Vec<f32>) -> Self {
        let (n, heads, block_size) = (1 + rng.below(5), 1 + rng.below(3), 16 * (1 + rng.below(2)));
        let strides = [heads * d + rng.below(5), heads * d + rng.below(5)];
        let mut slots: Vec<u32> = (0..(BLOCKS * block_size) as u32).collect();
        for i in 0..n {
            let other = i + rng.below(slots.len() - i);
            slots.swap(i, other);
        }
        slots.truncate(n);
        Self {
            n,
            heads,
            d,
            block_size,
            k: numbers(rng, n * strides[0]),
            v: numbers(rng, n * strides[1]),
            strides,
            slots,
        }
    }

    /// Writes them to a cache of so many bytes, keys and values each.
    fn write<M: Machine>(&self, machine: &M, dtype: KvDtype, bytes: usize) -> [M::Buffer; 2] {
        let (k, v) = (machine.upload(&self.k), machine.upload(&self.v));
        let slots = machine.upload(&self.slots);
        machine.in_every_order(|| {
            let (keys, values) = (machine.poisoned(bytes), machine.poisoned(bytes));
            let args = WriteArgs {
                k: machine.address(&k),
                v: machine.address(&v),
                slots: machine.address(&slots),
                keys: machine.address(&keys),
                values: machine.address(&values),
                k_stride: self.strides[0] as u64,
                v_stride: self.strides[1] as u64,
                kv_heads: self.heads as u32,
                d: self.d as u32,
                block_size: self.block_size as u32,
                pad: 0,
            };
            machine.launch(&block::write_kv(self.n, dtype, args));
            [keys, values]
        })
    }

    /// Each token's slot, the group of 16 positions that this is in of each head, and the head's numbers.
    fn each(&self, mut look: impl FnMut(usize, usize, [&[f32]; 2])) {
        for (token, &slot) in self.slots.iter().enumerate() {
            let slot = slot as usize;
            let (block, group) = (slot / self.block_size, slot % self.block_size / 16);
            for head in 0..self.heads {
                let group = (block * self.heads + head) * (self.block_size / 16) + group;
                let [k, v] = self.strides.map(|stride| token * stride + head * self.d);
                look(slot, group, [&self.k[k..][..self.d], &self.v[v..][..self.d]]);
            }
        }
    }
}

fn written<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let d_max = [70, 260][rng.below(2)];
    let d = 1 + rng.below(d_max);
    let tokens = Tokens::random(rng, d, awkward);
    let len = BLOCKS * tokens.block_size * tokens.heads * d;
    let [keys, values] = tokens.write(machine, KvDtype::Bf16, len * 2);
    let (mut expected_k, mut expected_v) = (vec![0xffff; len], vec![0xffff; len]);
    tokens.each(|slot, group, [k, v]| {
        for i in 0..d {
            expected_k[(group * 16 + slot % 16) * d + i] = bf16::from_f32(k[i]).to_bits();
            expected_v[(group * d + i) * 16 + slot % 16] = bf16::from_f32(v[i]).to_bits();
        }
    });
    assert_eq!(machine.download::<u16>(&keys), expected_k);
    assert_eq!(machine.download::<u16>(&values), expected_v);
}

/// The numbers are those that a processor's cache has.
fn written_in_8_bits<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let d = [64, 128, 256][rng.below(3)];
    let tokens = Tokens::random(rng, d, seldom_awkward);
    let len = BLOCKS * tokens.block_size * tokens.heads * d / 16 / PART * PART_BYTES;
    let actual = tokens.write(machine, KvDtype::Int8, len);
    let mut expected = [vec![0xff; len], vec![0xff; len]];
    tokens.each(|slot, group, both| {
        for (side, (x, expected)) in [Side::Keys, Side::Values]
            .into_iter()
            .zip(both.into_iter().zip(&mut expected))
        {
            for (part, x) in x.chunks(PART).enumerate() {
                let to = &mut expected[(group * d / PART + part) * PART_BYTES..];
                let (codes, scale) = quantise(x);
                to[slot % 16 * 4..][..4].copy_from_slice(&scale.to_le_bytes());
                for (dim, code) in codes.into_iter().enumerate() {
                    to[SCALES_BYTES + code_place(side, slot % 16, dim)] = code.cast_unsigned() ^ 128;
                }
            }
        }
    });
    for (actual, expected) in actual.iter().zip(expected) {
        assert_eq!(machine.download::<u8>(actual), expected);
    }
}
