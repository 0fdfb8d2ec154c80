//! Paged attention against a plain one in `f64`, and against itself in other batches.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use candle_core::{Device, Tensor};
use common::{Rng, assert_close, bits, values};
use half::bf16;
use proptest::prelude::*;
use rempart_kernels::{
    AttentionOptions, AttentionRow, InputNorm, KvCache, KvDtype, RopeOptions, RopeStyle, cpu,
    paged_attention, rope, rope_and_write_kv, write_kv,
};

#[derive(Debug, Clone)]
struct Scene {
    kv_heads: usize,
    group: usize,
    d: usize,
    block_size: usize,
    /// Context length and new tokens of each row.
    rows: Vec<(usize, usize)>,
    options: AttentionOptions,
    dtype: KvDtype,
    seed: u64,
}

fn scenes() -> impl Strategy<Value = Scene> {
    let row = (1_usize..200).prop_flat_map(|context| (Just(context), 0..context.min(50) + 1));
    let shape = (
        1_usize..4,
        1_usize..8,
        prop::sample::select(vec![1, 3, 8, 20, 64, 66, 80, 128, 130, 256]),
        prop::sample::select(vec![16, 32, 48]),
    );
    let options = (prop::option::of(1_usize..150), prop::option::of(1.0_f32..30.0));
    let dtype = prop::sample::select(vec![KvDtype::F32, KvDtype::Bf16, KvDtype::Int8]);
    (
        shape,
        prop::collection::vec(row, 0..4),
        options,
        dtype,
        any::<u64>(),
    )
        .prop_map(
            |((kv_heads, group, d, block_size), rows, (window, softcap), dtype, seed)| Scene {
                kv_heads,
                group,
                d,
                block_size,
                rows,
                options: AttentionOptions {
                    scale: 0.3,
                    window,
                    softcap,
                },
                dtype,
                seed,
            },
        )
}

/// A scene's tensors. Slots that hold no token are not a number: reading one would show.
struct Built {
    q: Tensor,
    cache: KvCache,
    rows: Vec<AttentionRow>,
    /// Keys and values of each row, `[context, kv_heads, d]`.
    contexts: Vec<(Vec<f32>, Vec<f32>)>,
}

/// A tensor's numbers as a cache of heads of `d` holds them.
fn stored(x: &Tensor, d: usize, dtype: KvDtype) -> Vec<f32> {
    match dtype {
        KvDtype::F32 => values(x),
        KvDtype::Bf16 => values(x).iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        KvDtype::Int8 => values(x)
            .chunks(d)
            .flat_map(|head| head.chunks(64))
            .flat_map(|part| {
                let largest = part.iter().fold(0_f32, |largest, x| largest.max(x.abs()));
                let code = move |x: &f32| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0);
                part.iter().map(code).collect::<Vec<f32>>()
            })
            .collect(),
    }
}

fn build(scene: &Scene) -> Built {
    let Scene {
        kv_heads,
        group,
        d,
        block_size,
        ..
    } = *scene;
    let mut rng = Rng(scene.seed);
    let blocks: usize = scene
        .rows
        .iter()
        .map(|&(context, _)| context.div_ceil(block_size))
        .sum::<usize>()
        + 1;
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    let cache = KvCache::new(blocks, block_size, kv_heads, d, scene.dtype, &Device::Cpu).unwrap();
    let slots: Vec<u32> = (0..(blocks * block_size) as u32).collect();
    let nan = (Tensor::ones(
        (slots.len(), kv_heads * d),
        candle_core::DType::F32,
        &candle_core::Device::Cpu,
    )
    .unwrap()
        * f64::NAN)
        .unwrap();
    write_kv(&cache, &nan, &nan, &slots).unwrap();
    let (mut rows, mut contexts, mut tokens) = (Vec::new(), Vec::new(), 0);
    for &(context_len, new) in &scene.rows {
        let block_table: Vec<u32> = (0..context_len.div_ceil(block_size))
            .map(|_| free.swap_remove(rng.below(free.len())))
            .collect();
        let (k, v) = (
            rng.tensor(&[context_len, kv_heads * d]),
            rng.tensor(&[context_len, kv_heads * d]),
        );
        let slots: Vec<u32> = (0..context_len)
            .map(|t| block_table[t / block_size] * block_size as u32 + (t % block_size) as u32)
            .collect();
        write_kv(&cache, &k, &v, &slots).unwrap();
        contexts.push((stored(&k, d, scene.dtype), stored(&v, d, scene.dtype)));
        rows.push(AttentionRow {
            tokens: tokens..tokens + new,
            context_len,
            block_table,
        });
        tokens += new;
    }
    Built {
        q: rng.tensor(&[tokens, kv_heads * group * d]),
        cache,
        rows,
        contexts,
    }
}

fn exact(scene: &Scene, built: &Built) -> Vec<f64> {
    let Scene {
        kv_heads,
        group,
        d,
        options,
        ..
    } = scene;
    let q = values(&built.q);
    let mut out = Vec::new();
    for (row, (k, v)) in built.rows.iter().zip(&built.contexts) {
        for (i, head) in row
            .tokens
            .clone()
            .flat_map(|i| (0..kv_heads * group).map(move |head| (i, head)))
        {
            let end = row.context_len - (row.tokens.end - 1 - i);
            let start = options.window.map_or(0, |window| end.saturating_sub(window));
            let at = |t: usize| (t * kv_heads + head / group) * d;
            let scores: Vec<f64> = (start..end)
                .map(|t| {
                    let q = &q[(i * kv_heads * group + head) * d..][..*d];
                    let dot: f64 = q
                        .iter()
                        .zip(&k[at(t)..])
                        .map(|(&q, &k)| f64::from(q) * f64::from(k))
                        .sum();
                    let score = dot * f64::from(options.scale);
                    options
                        .softcap
                        .map(f64::from)
                        .map_or(score, |cap| cap * (score / cap).tanh())
                })
                .collect();
            let sum: f64 = scores.iter().map(|score| score.exp()).sum();
            let mut head_out = vec![0.0; *d];
            for (t, score) in (start..end).zip(&scores) {
                for (out, &v) in head_out.iter_mut().zip(&v[at(t)..]) {
                    *out += score.exp() / sum * f64::from(v);
                }
            }
            out.extend(head_out);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn equals_the_exact_one(scene in scenes()) {
        let built = build(&scene);
        let exact = exact(&scene, &built);
        for table in cpu::all() {
            let out = cpu::with_table(table, || paged_attention(&built.q, &built.cache, &built.rows, &scene.options));
            // In whole numbers a weight is off by half a code, 1/510 of the span's largest; values are below 6.
            let whole = scene.dtype == KvDtype::Int8 && ["amx", "avx512-bf16", "avx512-vnni"].contains(&table.name);
            assert_close(&values(&out.unwrap()), &exact, |_| if whole { 2e-2 } else { 1e-5 }, table.name);
        }
    }

    /// A token's result is the same bits in one chunk, in two, and alone.
    #[test]
    fn does_not_depend_on_the_chunk(scene in scenes(), cut in 0_usize..50) {
        let built = build(&scene);
        let width = scene.kv_heads * scene.group * scene.d;
        for table in cpu::all() {
            let attend = |rows: &[AttentionRow]| {
                bits(&cpu::with_table(table, || paged_attention(&built.q, &built.cache, rows, &scene.options)).unwrap())
            };
            let whole = attend(&built.rows);
            for row in built.rows.iter().filter(|row| !row.tokens.is_empty()) {
                let middle = row.tokens.start + cut % row.tokens.len();
                for tokens in [row.tokens.start..middle, middle..row.tokens.end, middle..middle + 1] {
                    let context_len = row.context_len - (row.tokens.end - tokens.end);
                    let part = attend(&[AttentionRow { tokens: tokens.clone(), context_len, ..row.clone() }]);
                    let range = tokens.start * width..tokens.end * width;
                    assert_eq!(part[range.clone()], whole[range], "{} {tokens:?} of {:?}", table.name, row.tokens);
                }
            }
        }
    }
}

fn one_row(dtype: KvDtype) -> Scene {
    Scene {
        kv_heads: 1,
        group: 1,
        d: 8,
        block_size: 16,
        rows: vec![(40, 40)],
        options: AttentionOptions {
            scale: 1.0,
            window: None,
            softcap: None,
        },
        dtype,
        seed: 1,
    }
}

/// Whatever holds it, and whoever else sees it: what a query sees that is no number shows in its result.
#[test]
fn not_a_number_is_not_hidden() {
    for (dtype, bad) in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8]
        .into_iter()
        .flat_map(|dtype| [f32::NAN, f32::INFINITY].map(|bad| (dtype, bad)))
    {
        let mut scene = one_row(dtype);
        scene.options.scale = 0.01;
        for place in 0..3 {
            let built = build(&scene);
            let spoilt = |x: Tensor| {
                let mut all = values(&x);
                all[3] = bad;
                Tensor::from_vec(all, x.shape(), x.device()).unwrap()
            };
            let (mut q, mut rng) = (built.q, Rng(7));
            let (mut k, mut v) = (rng.tensor(&[1, 8]), rng.tensor(&[1, 8]));
            match place {
                0 => q = spoilt(q),
                1 => k = spoilt(k),
                _ => v = spoilt(v),
            }
            // The first token, which all the others see.
            let slot = built.rows[0].block_table[0] * 16;
            write_kv(&built.cache, &k, &v, &[slot]).unwrap();
            for table in cpu::all() {
                let out = cpu::with_table(table, || {
                    values(&paged_attention(&q, &built.cache, &built.rows, &scene.options).unwrap())
                });
                let hidden = out[..8].iter().all(|x| x.is_finite());
                assert!(!hidden, "{} {dtype:?} {bad} {place}", table.name);
            }
        }
    }
}

#[test]
fn tokens_of_no_row_are_zero() {
    let scene = Scene {
        group: 2,
        rows: vec![(9, 3), (5, 2)],
        ..one_row(KvDtype::Bf16)
    };
    let built = build(&scene);
    let out = values(&paged_attention(&built.q, &built.cache, &built.rows[1..], &scene.options).unwrap());
    assert!(out[..3 * 16].iter().all(|&x| x == 0.0));
    assert!(out[3 * 16..].iter().all(|&x| x.is_finite()));
}

const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;

/// Rotates and stores twenty tokens, in one or one after the other; rotated queries, and what attention makes of them.
fn rotated_and_attended(device: &Device, dtype: KvDtype, style: RopeStyle, in_one: bool) -> [Tensor; 2] {
    let (mut rng, n) = (Rng(5), 20);
    let mut tensor = |shape: &[usize]| rng.tensor(shape).to_device(device).unwrap();
    let qkv = [2 * KV_HEADS, KV_HEADS, KV_HEADS].map(|heads| tensor(&[n, heads * HEAD_DIM]));
    let [inv_freq, of_q, of_k] = [HEAD_DIM / 2, HEAD_DIM, HEAD_DIM].map(|len| tensor(&[len]));
    let [times_q, times_k] = [2 * KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM].map(|len| tensor(&[len]));
    let options =
        [(&of_q, 1e-5, &times_q), (&of_k, 0.1, &times_k)].map(|(weight, eps, factors)| RopeOptions {
            inv_freq: &inv_freq,
            attention_factor: 1.1,
            style,
            norm: Some(InputNorm { weight, eps }),
            factors: Some(factors),
        });
    let positions: Vec<u32> = (7..7 + n as u32).collect();
    let slots: Vec<u32> = (16..16 + n as u32).collect();
    let cache = KvCache::new(3, 16, KV_HEADS, HEAD_DIM, dtype, device).unwrap();
    let rotated = if in_one {
        rope_and_write_kv(&cache, qkv.each_ref(), options.each_ref(), &positions, &slots).unwrap()
    } else {
        let rotated = rope(&qkv[1], &options[1], &positions).unwrap();
        write_kv(&cache, &rotated, &qkv[2], &slots).unwrap();
        rope(&qkv[0], &options[0], &positions).unwrap()
    };
    let rows = [AttentionRow {
        tokens: 0..n,
        context_len: n,
        block_table: vec![1, 2],
    }];
    let options = AttentionOptions {
        scale: 0.1,
        window: None,
        softcap: None,
    };
    let attended = paged_attention(&rotated, &cache, &rows, &options).unwrap();
    [rotated, attended]
}

/// Rotating and storing in one is the same as one after the other.
#[test]
fn rotated_keys_are_stored() {
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
        for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
            let made =
                |in_one| rotated_and_attended(&Device::Cpu, dtype, style, in_one).map(|made| bits(&made));
            assert_eq!(made(true), made(false), "{dtype:?} {style:?}");
        }
    }
}

/// A card's are those of the processor.
#[cfg(feature = "cuda")]
#[test]
fn rotated_keys_are_stored_on_a_card() {
    let card = Device::new_cuda(0).unwrap();
    for dtype in [KvDtype::Bf16, KvDtype::Int8] {
        for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
            for in_one in [true, false] {
                let expected = rotated_and_attended(&Device::Cpu, dtype, style, in_one);
                let actual = rotated_and_attended(&card, dtype, style, in_one);
                for ((expected, actual), tolerance) in expected.iter().zip(&actual).zip([1e-4, 3e-2]) {
                    let actual = actual.to_device(&Device::Cpu).unwrap();
                    let expected: Vec<f64> = values(expected).into_iter().map(f64::from).collect();
                    assert_close(&values(&actual), &expected, |_| tolerance, "on a card");
                }
            }
        }
    }
}
