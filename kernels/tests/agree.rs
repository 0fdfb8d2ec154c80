//! Every table of kernels against Candle, an exact reference and itself.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use candle_core::{Device, Tensor, quantized::ggml_file::qtensor_from_ggml};
use common::{Rng, assert_close, bits, ggml, matrix, values};
use proptest::prelude::*;
use rempart_kernels::{
    Activation, Activations, Format, InputNorm, Matrix, Projection, RopeOptions, RopeStyle, Weight,
    cpu::{self, Kernels},
    edit, embed, gated_projections, linear, linear_add, projections, rms_norm, rms_norm_add, rope,
};

fn formats() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::ALL.to_vec())
}

fn each_table(mut check: impl FnMut(&'static Kernels)) {
    for table in cpu::all() {
        cpu::with_table(table, || check(table));
    }
}

/// A gate and its other half as the products of a column with one weight each.
fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Tensor {
    let weight = |x: &Tensor| {
        let values = values(x);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Weight::from(Matrix::new(Format::F32, values.len(), 1, bytes.into()).unwrap())
    };
    let (gate, up) = (weight(gate), weight(up));
    let parts = [&gate, &up].map(|weight| Projection { weight, bias: None });
    let one = Tensor::ones((1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
    gated_projections(&one, None, parts, activation).unwrap()
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// `x * weight^T + bias` in `f64`, and the sum of the products' magnitudes.
fn exact_linear(x: &[f32], weight: &Matrix, bias: Option<&[f32]>) -> Vec<(f64, f64)> {
    let (k, w) = (weight.cols(), weight.dequantize());
    let row = |x: &[f32], r: usize| {
        let start = bias.map_or(0.0, |bias| f64::from(bias[r]));
        x.iter()
            .zip(&w[r * k..])
            .fold((start, start.abs()), |(sum, size), (x, w)| {
                let product = f64::from(*x) * f64::from(*w);
                (sum + product, size + product.abs())
            })
    };
    x.chunks(k.max(1))
        .flat_map(|x| (0..weight.rows()).map(move |r| row(x, r)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any bytes, infinite and subnormal scales included: every table widens them to the bits that Candle does.
    #[test]
    fn dequantisation_equals_candle(format in formats(), blocks in 0_usize..9, seed: u64, offset in 0_usize..5) {
        let mut bytes = Rng(seed).bytes(offset + blocks * format.block_bytes());
        bytes.drain(..offset);
        let len = blocks * format.block_len();
        let candle = if len == 0 {
            Vec::new()
        } else {
            let tensor = qtensor_from_ggml(ggml(format), &bytes, vec![len], &Device::Cpu).unwrap();
            values(&tensor.dequantize(&Device::Cpu).unwrap())
        };
        each_table(|table| {
            let mut out = vec![0.0; len];
            table.dequantize(format, &bytes, &mut out);
            for (i, (&ours, &theirs)) in out.iter().zip(&candle).enumerate() {
                assert!(same(ours, theirs), "{} {format:?} {i}: {ours:e}, candle {theirs:e}", table.name);
            }
        });
    }

    #[test]
    fn linear_equals_the_exact_product(
        format in formats(),
        (n, rows, blocks) in (0_usize..20, 0_usize..40, 0_usize..5),
        (seed, offset, biased) in (any::<u64>(), 0_usize..5, any::<bool>()),
    ) {
        let mut rng = Rng(seed);
        // Formats without blocks also get widths that fill no vector.
        let k = if format.block_len() == 1 { blocks * 37 } else { blocks * format.block_len() };
        let weight = matrix(&mut rng, format, rows, k, offset);
        let x = rng.tensor(&[n, k]);
        let bias = biased.then(|| rng.tensor(&[rows]));
        let bias_values = bias.as_ref().map(values);
        let exact = if k == 0 {
            vec![bias_values.unwrap_or_else(|| vec![0.0; rows]); n].concat().iter().map(|&b| (b.into(), 0.0)).collect()
        } else {
            exact_linear(&values(&x), &weight, bias_values.as_deref())
        };
        let (sums, sizes): (Vec<f64>, Vec<f64>) = exact.into_iter().unzip();
        each_table(|table| {
            let out = linear(&x, &Weight::Dense(weight.clone()), bias.as_ref()).unwrap();
            assert_eq!(out.dims(), [n, rows]);
            let unit = f64::from(f32::EPSILON) * (k + 1) as f64;
            assert_close(&values(&out), &sums, |i| sizes[i] * unit, &format!("{} {format:?}", table.name));
        });
    }

    /// The bar that batching stands on: a row's result is the same bits alone and at any place of any batch.
    #[test]
    fn linear_does_not_depend_on_the_batch(
        format in formats(),
        (n, rows, blocks) in (1_usize..30, 1_usize..70, 1_usize..4),
        seed: u64,
    ) {
        let mut rng = Rng(seed);
        let k = if format.block_len() == 1 { blocks * 53 } else { blocks * format.block_len() };
        let weight = Weight::Dense(matrix(&mut rng, format, rows, k, 0));
        let x = rng.tensor(&[n, k]);
        each_table(|table| {
            let together = bits(&linear(&x, &weight, None).unwrap());
            for i in 0..n {
                let alone = bits(&linear(&x.narrow(0, i, 1).unwrap(), &weight, None).unwrap());
                assert_eq!(alone, together[i * rows..][..rows], "{} {format:?} row {i} of {n}", table.name);
            }
        });
    }

    #[test]
    fn embed_selects_and_scales(format in formats(), blocks in 1_usize..3, ids in prop::collection::vec(0_u32..9, 0..7), seed: u64) {
        let weight = matrix(&mut Rng(seed), format, 9, blocks * format.block_len(), 0);
        let selected = weight.select_rows(&ids).dequantize();
        each_table(|_| {
            let out = embed(&Weight::Dense(weight.clone()), &ids, 3.0).unwrap();
            assert_eq!(values(&out), selected.iter().map(|x| x * 3.0).collect::<Vec<_>>());
        });
    }

    #[test]
    fn rms_norm_equals_the_exact_one((n, d) in (0_usize..9, 1_usize..100), seed: u64) {
        let mut rng = Rng(seed);
        let (x, weight) = (rng.tensor(&[n, d]), rng.tensor(&[d]));
        let (x_values, w) = (values(&x), values(&weight));
        let exact: Vec<f64> = x_values.chunks(d).flat_map(|x| {
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / d as f64;
            let scale = 1.0 / (mean + 1e-5).sqrt();
            x.iter().zip(&w).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect::<Vec<_>>()
        }).collect();
        each_table(|table| {
            let out = values(&rms_norm(&x, &weight, 1e-5).unwrap());
            assert_close(&out, &exact, |i| 1e-6 + 1e-5 * exact[i].abs(), table.name);
        });
    }

    #[test]
    fn rope_rotates((n, heads, half) in (0_usize..5, 1_usize..4, 1_usize..40), halves: bool, seed: u64) {
        let mut rng = Rng(seed);
        let d = 2 * half;
        let x = rng.tensor(&[n, heads * d]);
        let positions: Vec<u32> = (0..n).map(|_| rng.below(100_000) as u32).collect();
        let freq: Vec<f32> = (0..half).map(|i| 10_000_f32.powf(-(i as f32) / half as f32)).collect();
        let style = if halves { RopeStyle::Halves } else { RopeStyle::Interleaved };
        let mut exact: Vec<f64> = values(&x).into_iter().map(f64::from).collect();
        for (row, head) in (0..n).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            for (i, freq) in freq.iter().enumerate() {
                // The angle is an f32 in the reference implementations too.
                let (sin, cos) = f64::from(positions[row] as f32 * freq).sin_cos();
                let start = (row * heads + head) * d;
                let (a, b) = if halves { (start + i, start + i + half) } else { (start + 2 * i, start + 2 * i + 1) };
                (exact[a], exact[b]) = (1.5 * (exact[a] * cos - exact[b] * sin), 1.5 * (exact[b] * cos + exact[a] * sin));
            }
        }
        each_table(|table| {
            let inv_freq = Tensor::from_slice(&freq, half, &Device::Cpu).unwrap();
            let options = RopeOptions { inv_freq: &inv_freq, attention_factor: 1.5, style, norm: None, factors: None };
            let out = values(&rope(&x, &options, &positions).unwrap());
            assert_close(&out, &exact, |_| 2e-6, table.name);
        });
    }

    #[test]
    fn gated_equals_the_exact_one(n in 0_usize..200, size in 0.1_f32..40.0, seed: u64) {
        let mut rng = Rng(seed);
        let gate = (rng.tensor(&[n]) * f64::from(size)).unwrap();
        let up = rng.tensor(&[n]);
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Relu] {
            let exact: Vec<f64> = values(&gate).iter().zip(values(&up)).map(|(&g, u)| {
                let g = f64::from(g);
                let activated = match activation {
                    Activation::Silu => g / (1.0 + (-g).exp()),
                    // Its values are tables' in tests/encoder.rs.
                    Activation::Gelu => unreachable!(),
                    Activation::Relu => g.max(0.0),
                    Activation::GeluTanh => {
                        0.5 * g * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * (g + 0.044_715 * g.powi(3))).tanh())
                    }
                };
                activated * f64::from(u)
            }).collect();
            each_table(|table| {
                let out = values(&gated(&gate, &up, activation));
                assert_close(&out, &exact, |i| 1e-6 * (1.0 + exact[i].abs()), table.name);
            });
        }
    }
}

/// Rows of activations, their width, and the rows of three matrices: none, few, and no whole panel among them.
const FUSED: [(usize, usize, [usize; 3]); 5] = [
    (1, 256, [40, 16, 16]),
    (9, 512, [130, 48, 64]),
    (70, 768, [576, 192, 192]),
    (0, 256, [7, 1, 16]),
    (5, 256, [7, 1, 16]),
];

/// Calls `check` with every scene: its random numbers, its activations and its sizes.
fn each_fused(check: impl Fn(&mut Rng, Activations, (usize, usize, [usize; 3]))) {
    for (seed, scene) in FUSED.into_iter().enumerate() {
        for activations in [Activations::Int8, Activations::Int16] {
            check(&mut Rng(seed as u64), activations, scene);
        }
    }
}

/// Fusing changes no bit: products of several matrices, normalised, biased or added, are what their parts make.
#[test]
fn fused_products_are_their_parts() {
    let eps = 1e-5;
    each_fused(|rng, activations, (n, k, sizes)| {
        let formats = [Format::Q4K, Format::Q6K, Format::Bf16];
        let weights: Vec<Weight> = formats
            .iter()
            .zip(sizes)
            .map(|(&format, rows)| Weight::new(matrix(rng, format, rows, k, 0), activations))
            .collect();
        let biases = sizes.map(|rows| rng.tensor(&[rows]));
        let (x, scale) = (rng.tensor(&[n, k]), rng.tensor(&[k]));
        each_table(|table| {
            let normed = rms_norm(&x, &scale, eps).unwrap();
            let biased = |(weight, bias)| Projection {
                weight,
                bias: Some(bias),
            };
            let parts: Vec<Projection<'_>> = weights.iter().zip(&biases).map(biased).collect();
            let norm = Some(InputNorm { weight: &scale, eps });
            let together = projections(&x, norm, &parts).unwrap();
            let alone: Vec<Tensor> = parts
                .iter()
                .map(|part| linear(&normed, part.weight, part.bias).unwrap())
                .collect();
            assert_eq!(
                bits(&together),
                bits(&Tensor::cat(&alone, 1).unwrap()),
                "{}",
                table.name
            );
            for weight in &weights {
                let plain = linear(&normed, weight, None).unwrap();
                let residual = Rng(99).tensor(plain.dims());
                let added = linear_add(&normed, weight, &residual).unwrap();
                assert_eq!(
                    bits(&added),
                    bits(&(&plain + &residual).unwrap()),
                    "{}",
                    table.name
                );
            }
        });
    });
}

/// Two packed matrices, two dense ones, and one of each: what gates what is the same.
#[test]
fn fused_gates_are_their_parts() {
    let eps = 1e-5;
    each_fused(|rng, activations, (n, k, sizes)| {
        let [q4, q6, half] = [Format::Q4K, Format::Q6K, Format::F16]
            .map(|format| Weight::new(matrix(rng, format, sizes[0], k, 0), activations));
        let (x, scale, bias) = (rng.tensor(&[n, k]), rng.tensor(&[k]), rng.tensor(&[sizes[0]]));
        let part = |weight, biased: bool| Projection {
            weight,
            bias: biased.then_some(&bias),
        };
        each_table(|table| {
            let norm = Some(InputNorm { weight: &scale, eps });
            let normed = rms_norm(&x, &scale, eps).unwrap();
            for pair in [
                [part(&q4, true), part(&q6, false)],
                [part(&q6, false), part(&q4, false)],
                [part(&q4, false), part(&half, true)],
                [part(&half, false), part(&q6, false)],
            ] {
                let fused = gated_projections(&x, norm, pair, Activation::Silu).unwrap();
                assert_eq!(fused.dims(), [n, sizes[0]]);
                let [gate, up] = pair.map(|part| linear(&normed, part.weight, part.bias).unwrap());
                if n > 0 {
                    assert_eq!(
                        bits(&fused),
                        bits(&gated(&gate, &up, Activation::Silu)),
                        "{}",
                        table.name
                    );
                }
            }
        });
    });
}

/// Norms before a rotation and before a sum, likewise.
#[test]
fn fused_norms_are_their_parts() {
    let (eps, n, mut rng) = (1e-5, 70, Rng(4));
    let (x, scale, head) = (rng.tensor(&[n, 768]), rng.tensor(&[768]), rng.tensor(&[32]));
    // The columns of a wider tensor, as attention sees them.
    let part = rng.tensor(&[n, 96]).narrow(1, 32, 64).unwrap();
    let freq: Vec<f32> = (0..16).map(|i| 1.0 / (i + 1) as f32).collect();
    let freq = Tensor::from_vec(freq, 16, &Device::Cpu).unwrap();
    let positions: Vec<u32> = (0..n as u32).collect();
    let plain = RopeOptions {
        inv_freq: &freq,
        attention_factor: 1.0,
        style: RopeStyle::Halves,
        norm: None,
        factors: None,
    };
    let norm = Some(InputNorm { weight: &head, eps });
    each_table(|table| {
        let normed = rms_norm(&x, &scale, eps).unwrap();
        let sum = rms_norm_add(&x, &scale, eps, &x).unwrap();
        assert_eq!(bits(&sum), bits(&(&normed + &x).unwrap()), "{}", table.name);
        let rotated = rope(&part, &RopeOptions { norm, ..plain }, &positions).unwrap();
        let heads = part.contiguous().unwrap().reshape((n, 2, 32)).unwrap();
        let heads = rms_norm(&heads, &head, eps).unwrap().reshape((n, 64)).unwrap();
        let expected = rope(&heads, &plain, &positions).unwrap();
        assert_eq!(bits(&rotated), bits(&expected), "{}", table.name);
        let factors: Vec<f32> = (0..64).map(|i| 0.25 * (i % 5) as f32).collect();
        let factors = Tensor::from_vec(factors, 64, &Device::Cpu).unwrap();
        let scaled = RopeOptions {
            norm,
            factors: Some(&factors),
            ..plain
        };
        let scaled = rope(&part, &scaled, &positions).unwrap();
        let expected = expected.broadcast_mul(&factors).unwrap();
        assert_eq!(bits(&scaled), bits(&expected), "{}", table.name);
    });
}

/// What is edited is the tensor itself.
#[test]
fn editing_changes_the_tensor() {
    let x = Rng(1).tensor(&[3, 5]);
    let before = values(&x);
    let sum = edit(&x, |all| {
        for x in &mut *all {
            *x += 1.0;
        }
        all.len()
    });
    assert_eq!(sum.unwrap(), 15);
    assert_eq!(values(&x), before.iter().map(|x| x + 1.0).collect::<Vec<_>>());
}

/// Wide enough for several threads, panels and tasks, which the random shapes above are not.
#[test]
fn large_linear_layers_do_not_depend_on_the_batch() {
    for format in [
        Format::F32,
        Format::Bf16,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q4K,
        Format::Q6K,
    ] {
        let mut rng = Rng(7);
        let weight = Weight::Dense(matrix(&mut rng, format, 1030, 768, 0));
        let x = rng.tensor(&[67, 768]);
        let together = bits(&linear(&x, &weight, None).unwrap());
        for (start, len) in [(0, 1), (3, 2), (5, 3), (11, 4), (15, 7), (22, 32), (66, 1)] {
            let part = bits(&linear(&x.narrow(0, start, len).unwrap(), &weight, None).unwrap());
            assert_eq!(
                part,
                together[start * 1030..][..len * 1030],
                "{format:?} rows {start}..{}",
                start + len
            );
        }
    }
}

#[test]
fn extreme_activations_stay_finite() {
    let gate = Tensor::new(&[-1e6_f32, -1000.0, -90.0, 0.0, 90.0, 1000.0, 1e10], &Device::Cpu).unwrap();
    let up = Tensor::ones(7, candle_core::DType::F32, &Device::Cpu).unwrap();
    each_table(|table| {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Relu] {
            let out = values(&gated(&gate, &up, activation));
            assert!(
                out[..4].iter().all(|x| x.abs() < 1e-30),
                "{} {activation:?}: {out:?}",
                table.name
            );
            assert_eq!(out[4..], [90.0, 1000.0, 1e10], "{} {activation:?}", table.name);
        }
    });
}

#[test]
fn not_a_number_is_not_hidden() {
    let gate = Tensor::new(&[f32::NAN, 1.0], &Device::Cpu).unwrap();
    each_table(|table| {
        let out = values(&gated(&gate, &gate, Activation::Silu));
        assert!(out[0].is_nan() && out[1].is_finite(), "{}: {out:?}", table.name);
    });
}

/// Whoever runs these tests for the sake of a table says so, lest its absence go unnoticed.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test has no other way to be told")]
fn the_best_table_is_the_expected_one() {
    if let Ok(expected) = std::env::var("REMPART_TEST_KERNELS") {
        assert_eq!(cpu::best().name, expected);
    }
}
