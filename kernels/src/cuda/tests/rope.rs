//! Rotation, and what the cache gets of keys and values.

use half::bf16;

use super::block::normalised;
use super::common::Rng;
use super::kernels;
use super::kv_int8::{PART, PART_BYTES, SCALES_BYTES, Side, code_place};
use super::machine::{Machine, assert_close};
use crate::cpu::quantise;
use crate::cuda::Address;
use crate::cuda::block::{self, RopeArgs, RotatedArgs};
use crate::op::{KvDtype, RopeStyle};

kernels! {
    rope: in_16_bits;
    rope_int8: in_8_bits;
}

const ATTENTION_FACTOR: f32 = 1.25;
/// Blocks of the cache.
const BLOCKS: usize = 3;

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

/// Heads of some tokens, queries or keys, and what multiplies them.
struct Rotated {
    heads: usize,
    stride: usize,
    x: Vec<f32>,
    weight: Option<Vec<f32>>,
    factors: Option<Vec<f32>>,
    eps: f32,
}

impl Rotated {
    fn random(rng: &mut Rng, (n, heads, d): (usize, usize, usize)) -> Self {
        let stride = heads * d + rng.below(3);
        Self {
            heads,
            stride,
            x: rng.floats(n * stride),
            weight: (rng.below(2) == 0).then(|| rng.floats(d)),
            factors: (rng.below(3) == 0).then(|| rng.floats(heads * d)),
            eps: [1e-6, 0.1][rng.below(2)],
        }
    }

    fn upload<M: Machine>(&self, machine: &M) -> [M::Buffer; 3] {
        let optional = |numbers: &Option<Vec<f32>>| machine.upload(numbers.as_deref().unwrap_or(&[0.0]));
        [
            machine.upload(&self.x),
            optional(&self.weight),
            optional(&self.factors),
        ]
    }

    fn args<M: Machine>(&self, machine: &M, [x, weight, factors]: &[M::Buffer; 3]) -> RotatedArgs {
        let place = |numbers: &Option<Vec<f32>>, buffer| {
            numbers
                .as_ref()
                .map_or(Address::default(), |_| machine.address(buffer))
        };
        RotatedArgs {
            x: machine.address(x),
            weight: place(&self.weight, weight),
            factors: place(&self.factors, factors),
            stride: self.stride as u64,
            heads: self.heads as u32,
            eps: self.eps,
        }
    }
}

/// Tokens whose queries are rotated and whose keys and values go to a cache, each to a slot of its own.
struct Tokens {
    d: usize,
    style: RopeStyle,
    /// None where keys are stored as they are.
    inv_freq: Option<Vec<f32>>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    block_size: usize,
    q: Rotated,
    k: Rotated,
    v: Vec<f32>,
    v_stride: usize,
}

impl Tokens {
    fn random(rng: &mut Rng, d: usize, rotates: bool, numbers: fn(&mut Rng, usize) -> Vec<f32>) -> Self {
        let (n, block_size) = (1 + rng.below(5), 16 * (1 + rng.below(2)));
        // Without queries, or without keys, but not without both.
        let kv_heads = if rotates { rng.below(3) } else { 1 + rng.below(3) };
        let q_heads = usize::from(rotates) * (usize::from(kv_heads == 0) + rng.below(3));
        let mut slots: Vec<u32> = (0..(BLOCKS * block_size) as u32).collect();
        for i in 0..n {
            let other = i + rng.below(slots.len() - i);
            slots.swap(i, other);
        }
        slots.truncate(n);
        let freq = |i| 10_000_f32.powf(-(i as f32) / d as f32);
        let v_stride = kv_heads * d + rng.below(5);
        let (q, mut k) = (
            Rotated::random(rng, (n, q_heads, d)),
            Rotated::random(rng, (n, kv_heads, d)),
        );
        if !rotates {
            k.x = numbers(rng, k.x.len());
        }
        Self {
            d,
            style: [RopeStyle::Halves, RopeStyle::Interleaved][rng.below(2)],
            inv_freq: rotates.then(|| (0..d / 2).map(freq).collect()),
            positions: (0..n).map(|_| rng.below(3000) as u32).collect(),
            slots,
            block_size,
            q,
            k,
            v: numbers(rng, n * v_stride),
            v_stride,
        }
    }

    /// Queries, and a cache of so many bytes, keys and values each.
    fn run<M: Machine>(
        &self,
        machine: &M,
        [q, k]: [Option<&Rotated>; 2],
        dtype: KvDtype,
        bytes: usize,
    ) -> [M::Buffer; 3] {
        let inv_freq = machine.upload(self.inv_freq.as_deref().unwrap_or(&[0.0]));
        let (positions, slots) = (machine.upload(&self.positions), machine.upload(&self.slots));
        let v = machine.upload(&self.v);
        let uploaded = [q, k].map(|of| of.map(|of| of.upload(machine)));
        let args_of = |of: Option<&Rotated>, uploaded: &Option<[M::Buffer; 3]>| {
            let both = of.zip(uploaded.as_ref());
            both.map_or(RotatedArgs::default(), |(of, uploaded)| {
                of.args(machine, uploaded)
            })
        };
        let len = self.positions.len() * q.map_or(0, |q| q.heads) * self.d;
        machine.in_every_order(|| {
            let made = [len.max(1) * 4, bytes, bytes].map(|bytes| machine.poisoned(bytes));
            let [out, keys, values] = made.each_ref().map(|buffer| machine.address(buffer));
            let args = RopeArgs {
                q: args_of(q, &uploaded[0]),
                k: args_of(k, &uploaded[1]),
                v: machine.address(&v),
                v_stride: self.v_stride as u64,
                positions: machine.address(&positions),
                inv_freq: self
                    .inv_freq
                    .as_ref()
                    .map_or(Address::default(), |_| machine.address(&inv_freq)),
                out,
                slots: machine.address(&slots),
                keys,
                values,
                n: self.positions.len() as u32,
                d: self.d as u32,
                block_size: self.block_size as u32,
                attention_factor: ATTENTION_FACTOR,
                interleaved: block::interleaved(self.style),
                pad: 0,
            };
            machine.launch(&block::rope(dtype, args));
            made
        })
    }

    /// Rotated heads `[n, heads * d]` by the plain arithmetic.
    fn rotated(&self, of: &Rotated, inv_freq: &[f32]) -> Vec<f64> {
        let mut all = Vec::new();
        for (token, position) in self.positions.iter().enumerate() {
            for head in 0..of.heads {
                let x = &of.x[token * of.stride + head * self.d..][..self.d];
                let x = match &of.weight {
                    Some(weight) => normalised(x, weight, of.eps),
                    None => x.iter().map(|&x| f64::from(x)).collect(),
                };
                let mut out = vec![0.0; self.d];
                for (pair, freq) in inv_freq.iter().enumerate() {
                    let (i, j) = match self.style {
                        RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                        RopeStyle::Halves => (pair, pair + self.d / 2),
                    };
                    let (sin, cos) = f64::from(*position as f32 * freq).sin_cos();
                    out[i] = f64::from(ATTENTION_FACTOR) * (x[i] * cos - x[j] * sin);
                    out[j] = f64::from(ATTENTION_FACTOR) * (x[j] * cos + x[i] * sin);
                }
                let factor = |i| {
                    of.factors
                        .as_ref()
                        .map_or(1.0, |all| f64::from(all[head * self.d + i]))
                };
                all.extend(out.iter().enumerate().map(|(i, x)| x * factor(i)));
            }
        }
        all
    }

    /// The keys `[n, kv_heads * d]` that are to be stored: what the kernel makes of them as queries, which is looked at.
    fn keys<M: Machine>(&self, machine: &M, dtype: KvDtype) -> Vec<f32> {
        let Some(inv_freq) = &self.inv_freq else {
            let rows = self.k.x.chunks(self.k.stride);
            return rows
                .flat_map(|row| row[..self.k.heads * self.d].to_vec())
                .collect();
        };
        if self.k.heads == 0 {
            return Vec::new();
        }
        let [out, ..] = self.run(machine, [Some(&self.k), None], dtype, 4);
        let out = machine.download::<f32>(&out);
        assert_close(&out, &self.rotated(&self.k, inv_freq), 1e-6, "keys");
        out
    }

    /// The queries are looked at; of the cache, keys and values, so many bytes are given back.
    fn check<M: Machine>(&self, machine: &M, dtype: KvDtype, bytes: usize) -> [M::Buffer; 2] {
        let [out, keys, values] = self.run(machine, [Some(&self.q), Some(&self.k)], dtype, bytes);
        if let Some(inv_freq) = self.inv_freq.as_ref().filter(|_| self.q.heads > 0) {
            let expected = self.rotated(&self.q, inv_freq);
            assert_close(&machine.download::<f32>(&out), &expected, 1e-6, "queries");
        }
        [keys, values]
    }

    /// Each token's slot, the group of 16 positions that this is in of each head, and the head's keys and values.
    fn each(&self, keys: &[f32], mut look: impl FnMut(usize, usize, [&[f32]; 2])) {
        let (heads, d) = (self.k.heads, self.d);
        for (token, &slot) in self.slots.iter().enumerate() {
            let slot = slot as usize;
            let (block, group) = (slot / self.block_size, slot % self.block_size / 16);
            for head in 0..heads {
                let group = (block * heads + head) * (self.block_size / 16) + group;
                let k = &keys[(token * heads + head) * d..][..d];
                let v = &self.v[token * self.v_stride + head * d..][..d];
                look(slot, group, [k, v]);
            }
        }
    }
}

fn in_16_bits<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let rotates = !seed.is_multiple_of(3);
    let d_max = [70, 260][rng.below(2)];
    let d = 1 + rng.below(d_max);
    let d = if rotates { d.next_multiple_of(2) } else { d };
    let tokens = Tokens::random(rng, d, rotates, awkward);
    let len = BLOCKS * tokens.block_size * tokens.k.heads * d;
    let [keys, values] = tokens.check(machine, KvDtype::Bf16, len * 2);
    let (mut expected_k, mut expected_v) = (vec![0xffff; len], vec![0xffff; len]);
    tokens.each(&tokens.keys(machine, KvDtype::Bf16), |slot, group, [k, v]| {
        for i in 0..d {
            expected_k[(group * 16 + slot % 16) * d + i] = bf16::from_f32(k[i]).to_bits();
            expected_v[(group * d + i) * 16 + slot % 16] = bf16::from_f32(v[i]).to_bits();
        }
    });
    assert_eq!(machine.download::<u16>(&keys), expected_k);
    assert_eq!(machine.download::<u16>(&values), expected_v);
}

/// The numbers are those that a processor's cache has.
fn in_8_bits<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let d = [64, 128, 256][rng.below(3)];
    let tokens = Tokens::random(rng, d, !seed.is_multiple_of(3), seldom_awkward);
    let len = BLOCKS * tokens.block_size * tokens.k.heads * d / 16 / PART * PART_BYTES;
    let actual = tokens.check(machine, KvDtype::Int8, len);
    let mut expected = [vec![0xff; len], vec![0xff; len]];
    tokens.each(&tokens.keys(machine, KvDtype::Int8), |slot, group, both| {
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
