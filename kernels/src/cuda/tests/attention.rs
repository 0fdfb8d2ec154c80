//! Attention against sums in f64 over numbers rounded to bf16.

use half::bf16;

use super::common::Rng;
use super::machine::{Machine, assert_close};
use super::on_every_machine;
use crate::Heads;
use crate::cuda::attention::{Arrays, HEAD_DIMS, Plan, Tensors, attention};
use crate::op::{AttentionOptions, AttentionRow};

on_every_machine!(agrees, tokens_alone);

const BLOCKS: usize = 40;

/// A cache of ordinary numbers, and poison in the slots that no context reaches.
struct Cache {
    heads: Heads,
    /// `[blocks * block_size, kv_heads, d]`, rounded.
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    fn random(rng: &mut Rng, heads: Heads) -> Self {
        let len = BLOCKS * heads.block_size * heads.kv_heads * heads.d;
        let mut numbers = || {
            rng.floats(len)
                .into_iter()
                .map(|x| bf16::from_f32(x).to_f32())
                .collect()
        };
        Self {
            heads,
            k: numbers(),
            v: numbers(),
        }
    }

    /// Keys and values as the kernels have them; slots that are not `written` hold numbers that are none.
    fn laid_out(&self, written: &[bool]) -> [Vec<u16>; 2] {
        let Heads {
            kv_heads,
            d,
            block_size,
            ..
        } = self.heads;
        let (mut keys, mut values) = (vec![0xffff; self.k.len()], vec![0xffff; self.v.len()]);
        for slot in (0..BLOCKS * block_size).filter(|&slot| written[slot]) {
            for head in 0..kv_heads {
                let group =
                    (slot / block_size * kv_heads + head) * (block_size / 16) + slot % block_size / 16;
                for i in 0..d {
                    let at = (slot * kv_heads + head) * d + i;
                    keys[(group * 16 + slot % 16) * d + i] = bf16::from_f32(self.k[at]).to_bits();
                    values[(group * d + i) * 16 + slot % 16] = bf16::from_f32(self.v[at]).to_bits();
                }
            }
        }
        [keys, values]
    }

    fn slot(&self, row: &AttentionRow, position: usize) -> usize {
        let block_size = self.heads.block_size;
        row.block_table[position / block_size] as usize * block_size + position % block_size
    }
}

fn compute<M: Machine>(
    machine: &M,
    cache: &Cache,
    q: &[f32],
    rows: &[AttentionRow],
    options: &AttentionOptions,
) -> Vec<f32> {
    let heads = &cache.heads;
    let mut written = vec![false; BLOCKS * heads.block_size];
    for row in rows {
        for position in 0..row.context_len {
            written[cache.slot(row, position)] = true;
        }
    }
    let [keys, values] = cache.laid_out(&written).map(|side| machine.upload(&side));
    let (query, out) = (machine.upload(q), machine.poisoned(q.len() * 4));
    let plan = Plan::new(rows, heads);
    let (parts, blocks) = (
        machine.poisoned(plan.parts(heads) * 4),
        machine.upload(&plan.blocks),
    );
    let tensors = Tensors {
        q: machine.address(&query),
        keys: machine.address(&keys),
        values: machine.address(&values),
        out: machine.address(&out),
        parts: machine.address(&parts),
    };
    for (work, few) in [(&plan.few, true), (&plan.many, false)] {
        let (sequences, tiles) = (machine.upload(&work.sequences), machine.upload(&work.tiles));
        let arrays = Arrays {
            sequences: machine.address(&sequences),
            tiles: machine.address(&tiles),
            blocks: machine.address(&blocks),
        };
        for launch in attention(work, few, arrays, &tensors, heads, options) {
            machine.launch(&launch);
        }
    }
    machine.download(&out)
}

/// Random rows over blocks of their own, behind one another among the tokens.
fn rows(rng: &mut Rng, heads: &Heads) -> (Vec<AttentionRow>, usize) {
    let (mut rows, mut n) = (Vec::new(), 0);
    let mut free: Vec<u32> = (0..BLOCKS as u32).collect();
    for i in 0..free.len() {
        let other = i + rng.below(free.len() - i);
        free.swap(i, other);
    }
    for _ in 0..=rng.below(3) {
        let tokens = [1, 1, 2, 5, 20, 33][rng.below(6)];
        let context = (tokens + rng.below(200)).min(12 * heads.block_size);
        let tokens = tokens.min(context);
        let block_table = free.split_off(free.len() - context.div_ceil(heads.block_size));
        rows.push(AttentionRow {
            tokens: n..n + tokens,
            context_len: context,
            block_table,
        });
        n += tokens;
    }
    (rows, n)
}

fn shape(rng: &mut Rng) -> (Heads, AttentionOptions) {
    let kv_heads = 1 + rng.below(2);
    let heads = Heads {
        heads: kv_heads * (1 + rng.below(4)),
        kv_heads,
        d: HEAD_DIMS[rng.below(HEAD_DIMS.len())],
        block_size: 16 * (1 + rng.below(2)),
    };
    let options = AttentionOptions {
        scale: 1.0 / (heads.d as f32).sqrt(),
        window: (rng.below(3) == 0).then(|| 1 + rng.below(200)),
        softcap: (rng.below(4) == 0).then_some(5.0),
    };
    (heads, options)
}

fn agrees<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (heads, options) = shape(rng);
    let cache = Cache::random(rng, heads);
    let (rows, n) = rows(rng, &heads);
    let q: Vec<f32> = rng.floats(n * heads.heads * heads.d);
    let actual = compute(machine, &cache, &q, &rows, &options);
    let (d, group) = (heads.d, heads.heads / heads.kv_heads);
    let mut expected = vec![0.0; q.len()];
    for row in &rows {
        for (i, token) in row.tokens.clone().enumerate() {
            let position = row.context_len - row.tokens.len() + i;
            let from = options
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..heads.heads {
                let at = (token * heads.heads + head) * d;
                let place = |position| (cache.slot(row, position) * heads.kv_heads + head / group) * d;
                let score = |key: usize| {
                    let products = q[at..at + d].iter().zip(&cache.k[place(key)..]);
                    let product: f64 = products
                        .map(|(q, k)| f64::from(bf16::from_f32(*q).to_f32()) * f64::from(*k))
                        .sum();
                    let score = product * f64::from(options.scale);
                    options
                        .softcap
                        .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = (from..=position).map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (key, weight) in (from..=position).zip(&weights) {
                    for i in 0..d {
                        expected[at + i] += weight / sum * f64::from(cache.v[place(key) + i]);
                    }
                }
            }
        }
    }
    // Weights are rounded to bf16: 2^-9 of each.
    assert_close(
        &actual,
        &expected,
        4e-3,
        &format!("{heads:?} {options:?} {rows:?}"),
    );
}

/// A token's result is the same bits alone and inside a chunk, whichever kernel computes it.
fn tokens_alone<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (heads, options) = shape(rng);
    let cache = Cache::random(rng, heads);
    let (rows, n) = rows(rng, &heads);
    let width = heads.heads * heads.d;
    let q: Vec<f32> = rng.floats(n * width);
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let all = compute(machine, &cache, &q, &rows, &options);
    for row in &rows {
        let last = row.tokens.end - 1;
        let alone = AttentionRow {
            tokens: 0..1,
            ..row.clone()
        };
        let one = compute(machine, &cache, &q[last * width..][..width], &[alone], &options);
        assert_eq!(
            bits(&all[last * width..][..width]),
            bits(&one),
            "{heads:?} {row:?}"
        );
    }
}
