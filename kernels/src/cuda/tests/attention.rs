//! Attention against sums in f64 over numbers rounded to bf16, or to 8 bits.

use half::bf16;

use super::common::Rng;
use super::kv_int8::{PART, PART_BYTES, SCALES_BYTES, Side, code_place};
use super::machine::{Machine, assert_close, assert_near};
use super::{kernels, on_every_machine};
use crate::Heads;
use crate::card::HEAD_DIMS;
use crate::cuda::attention::{Arrays, Plan, SPLIT, Tensors, attention};
use crate::op::{AttentionOptions, AttentionRow, KvDtype};

kernels! {
    attend_few_64: |machine, seed| agrees(machine, seed, &FEW, (64, KvDtype::Bf16), None);
    attend_few_128: |machine, seed| agrees(machine, seed, &FEW, (128, KvDtype::Bf16), None);
    attend_few_256: |machine, seed| agrees(machine, seed, &FEW, (256, KvDtype::Bf16), None);
    attend_few_int8_64: |machine, seed| agrees(machine, seed, &FEW, (64, KvDtype::Int8), None);
    attend_few_int8_128: |machine, seed| agrees(machine, seed, &FEW, (128, KvDtype::Int8), None);
    attend_few_int8_256: |machine, seed| agrees(machine, seed, &FEW, (256, KvDtype::Int8), None);
    attend_few_capped_64: |machine, seed| agrees(machine, seed, &FEW, (64, KvDtype::Bf16), CAP);
    attend_few_capped_128: |machine, seed| agrees(machine, seed, &FEW, (128, KvDtype::Bf16), CAP);
    attend_few_capped_256: |machine, seed| agrees(machine, seed, &FEW, (256, KvDtype::Bf16), CAP);
    attend_few_capped_int8_64: |machine, seed| agrees(machine, seed, &FEW, (64, KvDtype::Int8), CAP);
    attend_few_capped_int8_128: |machine, seed| agrees(machine, seed, &FEW, (128, KvDtype::Int8), CAP);
    attend_few_capped_int8_256: |machine, seed| agrees(machine, seed, &FEW, (256, KvDtype::Int8), CAP);
    attend_many_64: |machine, seed| agrees(machine, seed, &MANY, (64, KvDtype::Bf16), None);
    attend_many_128: |machine, seed| agrees(machine, seed, &MANY, (128, KvDtype::Bf16), None);
    attend_many_256: |machine, seed| agrees(machine, seed, &MANY, (256, KvDtype::Bf16), None);
    attend_many_int8_64: |machine, seed| agrees(machine, seed, &MANY, (64, KvDtype::Int8), None);
    attend_many_int8_128: |machine, seed| agrees(machine, seed, &MANY, (128, KvDtype::Int8), None);
    attend_many_int8_256: |machine, seed| agrees(machine, seed, &MANY, (256, KvDtype::Int8), None);
    attend_many_capped_64: |machine, seed| agrees(machine, seed, &MANY, (64, KvDtype::Bf16), CAP);
    attend_many_capped_128: |machine, seed| agrees(machine, seed, &MANY, (128, KvDtype::Bf16), CAP);
    attend_many_capped_256: |machine, seed| agrees(machine, seed, &MANY, (256, KvDtype::Bf16), CAP);
    attend_many_capped_int8_64: |machine, seed| agrees(machine, seed, &MANY, (64, KvDtype::Int8), CAP);
    attend_many_capped_int8_128: |machine, seed| agrees(machine, seed, &MANY, (128, KvDtype::Int8), CAP);
    attend_many_capped_int8_256: |machine, seed| agrees(machine, seed, &MANY, (256, KvDtype::Int8), CAP);
    attend_merge_64: |machine, seed| agrees(machine, seed, &LONG, (64, KvDtype::Bf16), None);
    attend_merge_128: |machine, seed| agrees(machine, seed, &LONG, (128, KvDtype::Bf16), None);
    attend_merge_256: |machine, seed| agrees(machine, seed, &LONG, (256, KvDtype::Bf16), None);
}
on_every_machine!(tokens_alone);

const BLOCKS: usize = 64;
const CAP: Option<f32> = Some(5.0);

/// Sequences of a batch: tokens of the first one, of the others, and what a context has besides.
struct Sequences {
    first: &'static [usize],
    others: &'static [usize],
    before_max: usize,
    heads_max: usize,
}

const FEW: Sequences = Sequences {
    first: &[1, 1, 1, 2, 5],
    others: &[1, 1, 2, 5, 20],
    before_max: 200,
    heads_max: 4,
};
/// At least 64 rows of queries, with two heads to a key.
const MANY: Sequences = Sequences {
    first: &[32, 33, 40],
    others: &[1, 2, 5],
    before_max: 150,
    heads_max: 3,
};
const LONG: Sequences = Sequences {
    first: &[1],
    others: &[1, 3],
    before_max: 320,
    heads_max: 4,
};

/// A cache of ordinary numbers, and poison in the slots that no context reaches.
struct Cache {
    heads: Heads,
    dtype: KvDtype,
    k: Numbers,
    v: Numbers,
}

/// Keys or values: whole numbers and what these count, for each slot and key head.
struct Numbers {
    /// `[blocks * block_size, kv_heads, d]`
    codes: Vec<i8>,
    /// `[blocks * block_size, kv_heads, d / 64]`
    scales: Vec<f32>,
}

impl Numbers {
    /// In bf16 multiples of 2^-6 up to 2, which are exact; in 8 bits any.
    fn random(rng: &mut Rng, len: usize, dtype: KvDtype) -> Self {
        let codes = rng.bytes(len).into_iter().map(u8::cast_signed).collect();
        let scales = match dtype {
            KvDtype::Int8 => rng
                .floats(len / PART)
                .iter()
                .map(|x| (0.2 + x.abs()) / 64.0)
                .collect(),
            _ => vec![1.0 / 64.0; len / PART],
        };
        Self { codes, scales }
    }

    /// As the kernels have them in bf16; slots that are not `written` hold numbers that are none.
    fn in_bf16(&self, heads: &Heads, written: &[bool], side: Side) -> Vec<u8> {
        let mut out = vec![0xffff_u16; self.codes.len()];
        for slot in (0..written.len()).filter(|&slot| written[slot]) {
            for head in 0..heads.kv_heads {
                let group = group_of(heads, slot, head);
                for i in 0..heads.d {
                    let at = (slot * heads.kv_heads + head) * heads.d + i;
                    let to = match side {
                        Side::Keys => (group * 16 + slot % 16) * heads.d + i,
                        Side::Values => (group * heads.d + i) * 16 + slot % 16,
                    };
                    let number = f32::from(self.codes[at]) * self.scales[at / PART];
                    out[to] = bf16::from_f32(number).to_bits();
                }
            }
        }
        out.into_iter().flat_map(u16::to_le_bytes).collect()
    }

    /// As the kernels have them in 8 bits; scales of slots that are not `written` are none.
    fn in_8_bits(&self, heads: &Heads, written: &[bool], side: Side) -> Vec<u8> {
        let mut out = vec![0xff; self.codes.len() + self.scales.len() * 4];
        for slot in (0..written.len()).filter(|&slot| written[slot]) {
            for head in 0..heads.kv_heads {
                for i in 0..heads.d {
                    let at = (slot * heads.kv_heads + head) * heads.d + i;
                    let part =
                        &mut out[(group_of(heads, slot, head) * heads.d / PART + i / PART) * PART_BYTES..];
                    part[slot % 16 * 4..][..4].copy_from_slice(&self.scales[at / PART].to_le_bytes());
                    part[SCALES_BYTES + code_place(side, slot % 16, i % PART)] =
                        self.codes[at].cast_unsigned() ^ 128;
                }
            }
        }
        out
    }
}

fn group_of(heads: &Heads, slot: usize, head: usize) -> usize {
    (slot / heads.block_size * heads.kv_heads + head) * (heads.block_size / 16) + slot % heads.block_size / 16
}

impl Cache {
    fn random(rng: &mut Rng, heads: Heads, dtype: KvDtype) -> Self {
        let len = BLOCKS * heads.block_size * heads.kv_heads * heads.d;
        Self {
            heads,
            dtype,
            k: Numbers::random(rng, len, dtype),
            v: Numbers::random(rng, len, dtype),
        }
    }

    fn laid_out(&self, written: &[bool]) -> [Vec<u8>; 2] {
        [(&self.k, Side::Keys), (&self.v, Side::Values)].map(|(numbers, side)| match self.dtype {
            KvDtype::Int8 => numbers.in_8_bits(&self.heads, written, side),
            _ => numbers.in_bf16(&self.heads, written, side),
        })
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
) -> M::Buffer {
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
        dtype: cache.dtype,
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
    out
}

/// Random rows over blocks of their own, behind one another among the tokens.
fn rows(rng: &mut Rng, heads: &Heads, of: &Sequences) -> (Vec<AttentionRow>, usize) {
    let (mut rows, mut n) = (Vec::new(), 0);
    let mut free: Vec<u32> = (0..BLOCKS as u32).collect();
    for i in 0..free.len() {
        let other = i + rng.below(free.len() - i);
        free.swap(i, other);
    }
    for number in 0..=rng.below(3) {
        let tokens = if number == 0 { of.first } else { of.others };
        let tokens = tokens[rng.below(tokens.len())];
        let context = tokens + rng.below(of.before_max);
        let needed = context.div_ceil(heads.block_size);
        if needed > free.len() {
            break;
        }
        rows.push(AttentionRow {
            tokens: n..n + tokens,
            context_len: context,
            block_table: free.split_off(free.len() - needed),
        });
        n += tokens;
    }
    (rows, n)
}

fn shape(rng: &mut Rng, of: &Sequences, d: usize, softcap: Option<f32>) -> (Heads, AttentionOptions) {
    let kv_heads = 1 + rng.below(2);
    let group_min = if of.first[0] > 5 { 2 } else { 1 };
    let heads = Heads {
        heads: kv_heads * (group_min + rng.below(of.heads_max - group_min + 1)),
        kv_heads,
        d,
        block_size: 16 * (1 + rng.below(2)),
    };
    // Sharp at times, so that a chunk's largest score is far above the last one's.
    let sharp = if rng.below(2) == 0 { 4.0 } else { 1.0 };
    let options = AttentionOptions {
        scale: sharp / (d as f32).sqrt(),
        window: (rng.below(3) == 0).then(|| 1 + rng.below(200)),
        softcap,
    };
    (heads, options)
}

/// The query `q` of a head over the positions that it sees: softmax over the scores, in f64. As the kernels do, weights are
/// rounded to bf16 relative to the largest score of their split until the end of their chunk, in 8 bits times the value's scale.
fn attended(
    cache: &Cache,
    (row, position, kv_head): (&AttentionRow, usize, usize),
    q: &[f32],
    options: &AttentionOptions,
) -> Vec<f64> {
    let Heads { kv_heads, d, .. } = cache.heads;
    let from = options
        .window
        .map_or(0, |window| (position + 1).saturating_sub(window));
    let place = |position| (cache.slot(row, position) * kv_heads + kv_head) * d;
    let q: Vec<f64> = q.iter().map(|q| f64::from(bf16::from_f32(*q).to_f32())).collect();
    let score = |position: usize| {
        let at = place(position);
        let key = |i: usize| f64::from(cache.k.codes[at + i]) * f64::from(cache.k.scales[(at + i) / PART]);
        let products = q.iter().enumerate().map(|(i, q)| q * key(i));
        let score = products.sum::<f64>() * f64::from(options.scale);
        options
            .softcap
            .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    };
    let scores: Vec<f64> = (from..=position).map(score).collect();
    let most = |scores: &[f64]| scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (largest, chunk) = (most(&scores), if d > 128 { 32 } else { 64 });
    let (mut out, mut sum, mut so_far) = (vec![0.0; d], 0.0, 0.0);
    for at in from..=position {
        let score = scores[at - from];
        if at == from || at % chunk == 0 {
            let (begin, end) = (at / SPLIT * SPLIT, (at / chunk + 1) * chunk);
            so_far = most(&scores[begin.max(from) - from..end.min(position + 1) - from]);
        }
        let weight = (score - so_far).exp();
        sum += (score - largest).exp();
        for (i, out) in out.iter_mut().enumerate() {
            let (code, scale) = (
                cache.v.codes[place(at) + i],
                cache.v.scales[(place(at) + i) / PART],
            );
            let scale = f64::from(scale);
            let weighed = match cache.dtype {
                KvDtype::Int8 => bf16::from_f64(weight * scale).to_f64(),
                _ => bf16::from_f64(weight).to_f64() * scale,
            };
            *out += weighed * (so_far - largest).exp() * f64::from(code);
        }
    }
    for out in &mut out {
        *out /= sum;
    }
    out
}

fn agrees<M: Machine>(
    machine: &M,
    seed: u64,
    of: &Sequences,
    (d, dtype): (usize, KvDtype),
    softcap: Option<f32>,
) {
    let rng = &mut Rng(seed);
    let (heads, options) = shape(rng, of, d, softcap);
    let cache = Cache::random(rng, heads, dtype);
    let (rows, n) = rows(rng, &heads, of);
    let q: Vec<f32> = rng.floats(n * heads.heads * d);
    let [out] = machine.in_every_order(|| [compute(machine, &cache, &q, &rows, &options)]);
    let actual: Vec<f32> = machine.download(&out);
    let group = heads.heads / heads.kv_heads;
    let mut expected = Vec::with_capacity(q.len());
    for row in &rows {
        for (i, token) in row.tokens.clone().enumerate() {
            let position = row.context_len - row.tokens.len() + i;
            for head in 0..heads.heads {
                let q = &q[(token * heads.heads + head) * d..][..d];
                expected.extend(attended(&cache, (row, position, head / group), q, &options));
            }
        }
    }
    let what = format!("{heads:?} {dtype:?} {options:?} {rows:?}");
    assert_near(&actual, &expected, 1e-3, &what);
    // Where a weight is halfway between two numbers in bf16, either is right: 2^-8 of it.
    assert_close(&actual, &expected, 4e-3, &what);
}

/// A token's result is the same bits alone and inside a chunk, whichever kernel computes it.
fn tokens_alone<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (of, d) = (
        if rng.below(2) == 0 { &FEW } else { &MANY },
        HEAD_DIMS[rng.below(3)],
    );
    let softcap = (rng.below(4) == 0).then_some(5.0);
    let (heads, options) = shape(rng, of, d, softcap);
    let dtype = [KvDtype::Bf16, KvDtype::Int8][rng.below(2)];
    let cache = Cache::random(rng, heads, dtype);
    let (rows, n) = rows(rng, &heads, of);
    let width = heads.heads * heads.d;
    let q: Vec<f32> = rng.floats(n * width);
    let compute = |q: &[f32], rows: &[AttentionRow]| {
        let out = compute(machine, &cache, q, rows, &options);
        machine.download::<u32>(&out)
    };
    let all = compute(&q, &rows);
    for row in &rows {
        let last = row.tokens.end - 1;
        let alone = AttentionRow {
            tokens: 0..1,
            ..row.clone()
        };
        let one = compute(&q[last * width..][..width], &[alone]);
        assert_eq!(all[last * width..][..width], one, "{heads:?} {row:?}");
    }
}

/// Neither the longest context nor the widest row of a batch makes those of others larger.
#[test]
fn parts_are_by_the_splits_and_rows_of_each_sequence() {
    let heads = Heads {
        heads: 32,
        kv_heads: 8,
        d: 128,
        block_size: 16,
    };
    let row = |tokens: std::ops::Range<usize>, context: usize| AttentionRow {
        tokens,
        context_len: context,
        block_table: vec![0; context.div_ceil(16)],
    };
    let plan = Plan::new(&[row(0..1, 1 << 17), row(1..6, 100), row(6..506, 500)], &heads);
    // 1,024 splits of four rows; two tiles, of which the first has sixteen; none of what tiles of four warps compute.
    let rows = 8 * 1024 * 4 + 2 * 8 * 16;
    assert_eq!(plan.parts(&heads), rows * 130);
    assert_eq!(plan.many.tiles.len() % 4, 0);
}
