//! What encoders compute, on every table of kernels, against plain loops in `f64`.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use candle_core::Tensor;
use common::{Rng, assert_close, bits, matrix, values};
use half::bf16;
use proptest::prelude::*;
use rempart_kernels::{
    Activation, Dense, Format, Matrix, Precision,
    cpu::{self, Kernels},
    op::{
        Around, BidirectionalOptions, DenseLayer, FeedForwardLayers, LayerNorm, bidirectional_attention,
        dense, feed_forward, layer_norm,
    },
};

fn each_table(mut check: impl FnMut(&'static Kernels)) {
    for table in cpu::all() {
        cpu::with_table(table, || check(table));
    }
}

fn precisions() -> impl Strategy<Value = Precision> {
    prop::sample::select(vec![Precision::Bf16, Precision::F32])
}

fn activations() -> impl Strategy<Value = Activation> {
    let all = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
    ];
    prop::sample::select(all.to_vec())
}

/// As the precision keeps a number.
fn kept(x: f32, precision: Precision) -> f64 {
    match precision {
        Precision::Bf16 => bf16::from_f32(x).to_f64(),
        Precision::F32 => x.into(),
    }
}

/// `x * weight^T + bias` and the sums of the products' magnitudes.
fn exact(x: &[f32], weight: &Matrix, bias: &[f32], precision: Precision) -> (Vec<f64>, Vec<f64>) {
    let (k, w) = (weight.cols(), weight.dequantize());
    let one = |x: &[f32], r: usize| {
        let start = f64::from(bias.get(r).copied().unwrap_or(0.0));
        x.iter()
            .zip(&w[r * k..])
            .fold((start, start.abs()), |(sum, size), (x, w)| {
                let product = kept(*x, precision) * kept(*w, precision);
                (sum + product, size + product.abs())
            })
    };
    x.chunks(k)
        .flat_map(|x| (0..weight.rows()).map(move |r| one(x, r)))
        .unzip()
}

fn exact_norm(x: &[f64], norm: LayerNorm<'_>) -> Vec<f64> {
    let d = norm.weight.len();
    let row = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / d as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
        let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
        let bias = |i: usize| f64::from(norm.bias.get(i).copied().unwrap_or(0.0));
        let one = |(i, x): (usize, &f64)| (x - mean) * scale * f64::from(norm.weight[i]) + bias(i);
        x.iter().enumerate().map(one).collect::<Vec<_>>()
    };
    x.chunks(d).flat_map(row).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// The rows of a tensor that `take` names.
fn narrow(x: &Tensor, start: usize, len: usize) -> Tensor {
    x.narrow(0, start, len).unwrap().contiguous().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn dense_equals_the_exact_product(
        (n, rows, k) in (0_usize..130, 1_usize..100, 1_usize..90),
        (seed, biased, precision) in (any::<u64>(), any::<bool>(), precisions()),
    ) {
        let mut rng = Rng(seed);
        let (first, second) = (matrix(&mut rng, Format::F32, rows, k, 1), matrix(&mut rng, Format::Bf16, 3, k, 0));
        let x = rng.tensor(&[n, k]);
        let bias = if biased { rng.floats(rows + 3) } else { Vec::new() };
        let both: Vec<u8> = [first.dequantize(), second.dequantize()].concat().iter().flat_map(|x| x.to_le_bytes()).collect();
        let both = Matrix::new(Format::F32, rows + 3, k, both.into()).unwrap();
        let weight = Dense::pack(&[&first, &second], precision);
        let (sums, sizes) = exact(&values(&x), &both, &bias, precision);
        each_table(|table| {
            let layer = DenseLayer { weight: &weight, bias: &bias };
            let out = dense(&x, layer, &Around::default()).unwrap();
            assert_eq!(out.dims(), [n, rows + 3]);
            let unit = f64::from(f32::EPSILON) * (k + 1) as f64;
            assert_close(&values(&out), &sums, |i| sizes[i] * unit, table.name);
        });
    }

    /// Tables round alike, so that a model's answers are nearly the same on all machines; rows do not see each other.
    #[test]
    fn feed_forward_is_its_parts_and_does_not_depend_on_the_batch(
        (n, inner, k) in (1_usize..150, 1_usize..80, 2_usize..50),
        (seed, gated, activation, precision) in (any::<u64>(), any::<bool>(), activations(), precisions()),
    ) {
        let mut rng = Rng(seed);
        let mut pack = |rows, cols| Dense::pack(&[&matrix(&mut rng, Format::F32, rows, cols, 0)], precision);
        let (up, gate, down) = (pack(inner, k), pack(inner, k), pack(k, inner));
        let (x, weight, bias) = (rng.tensor(&[n, k]), rng.floats(k), rng.floats(k));
        let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
        let layer = |weight| DenseLayer { weight, bias: &[] };
        let layers = FeedForwardLayers {
            up: layer(&up),
            gate: gated.then(|| layer(&gate)),
            activation,
            down: DenseLayer { weight: &down, bias: &bias },
        };
        let mut all = Vec::new();
        each_table(|table| {
            let around = Around { norm: Some(norm), residual: Some(&x), post_norm: Some(norm) };
            let out = feed_forward(&x, &layers, &around).unwrap();
            let at = rng.below(n);
            let one = narrow(&x, at, 1);
            let alone = feed_forward(&one, &layers, &Around { residual: Some(&one), ..around }).unwrap();
            assert_eq!(bits(&alone), bits(&narrow(&out, at, 1)), "{}", table.name);
            all.push((table.name, values(&out)));
        });
        // A sum next to the middle of two bf16 numbers may be rounded either way.
        let tolerance = if precision == Precision::Bf16 { 0.1 } else { 2e-3 };
        let (_, plain) = all.last().unwrap().clone();
        for (name, out) in all {
            assert_close(&out, &wide(&plain), |_| tolerance, name);
        }
    }

    #[test]
    fn layer_norm_equals_its_definition((n, d) in (0_usize..9, 1_usize..70), biased: bool, seed: u64) {
        let mut rng = Rng(seed);
        let x = ((rng.tensor(&[n, d]) + 3.0).unwrap() * 2.0).unwrap();
        let (weight, bias) = (rng.floats(d), rng.floats(if biased { d } else { 0 }));
        let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
        let expected = exact_norm(&wide(&values(&x)), norm);
        each_table(|table| {
            let out = layer_norm(&x, norm).unwrap();
            // Of one element, or of equal ones, rounding is all that there is.
            let tolerance = if d < 3 { 1e-1 } else { 1e-3 };
            assert_close(&values(&out), &expected, |_| tolerance, table.name);
        });
    }

    #[test]
    fn attention_equals_its_definition(
        lengths in prop::collection::vec(prop_oneof![0_usize..40, 40_usize..120], 0..5),
        (heads, d, window) in (1_usize..4, 1_usize..70, prop::option::of(0_usize..60)),
        (seed, precision) in (any::<u64>(), precisions()),
    ) {
        let mut rng = Rng(seed);
        let (n, width) = (lengths.iter().sum::<usize>(), heads * d);
        let qkv = rng.tensor(&[n, 3 * width]);
        let part = |i: usize| qkv.narrow(1, i * width, width).unwrap();
        let options = BidirectionalOptions { head_dim: d, scale: 0.3, window, precision };
        let expected = attended(&qkv, &lengths, heads, &options);
        // Some tables round inputs to eight bits of mantissa then, and the values' weights.
        let tolerance = if precision == Precision::Bf16 { 1e-2 } else { 1e-4 };
        each_table(|table| {
            let out = bidirectional_attention(&part(0), &part(1), &part(2), &lengths, &options).unwrap();
            assert_close(&values(&out), &expected, |_| tolerance, table.name);
            let mut start = 0;
            for &len in &lengths {
                let part = |i: usize| part(i).narrow(0, start, len).unwrap();
                let alone = bidirectional_attention(&part(0), &part(1), &part(2), &[len], &options).unwrap();
                assert_eq!(bits(&alone), bits(&narrow(&out, start, len)), "{}", table.name);
                start += len;
            }
        });
    }
}

/// Attention by plain loops, of `[n, 3 * heads * d]`.
fn attended(qkv: &Tensor, lengths: &[usize], heads: usize, options: &BidirectionalOptions) -> Vec<f64> {
    let (d, x, width) = (options.head_dim, wide(&values(qkv)), 3 * heads * options.head_dim);
    let mut out = Vec::new();
    let mut start = 0;
    for &len in lengths {
        for i in 0..len {
            for head in 0..heads {
                let at = |token: usize, part: usize| (start + token) * width + (part * heads + head) * d;
                let seen = |j: &usize| options.window.is_none_or(|window| i.abs_diff(*j) <= window);
                let keys: Vec<usize> = (0..len).filter(seen).collect();
                let score = |j: &usize| -> f64 {
                    let products = (0..d).map(|e| x[at(i, 0) + e] * x[at(*j, 1) + e]);
                    (products.sum::<f64>() * f64::from(options.scale)).exp()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                let value = |e: usize| {
                    keys.iter()
                        .zip(&scores)
                        .map(|(j, s)| s * x[at(*j, 2) + e])
                        .sum::<f64>()
                        / sum
                };
                out.extend((0..d).map(value));
            }
        }
        start += len;
    }
    out
}

/// What is asked of a kernel and cannot be is an error.
#[test]
fn shapes_that_disagree_are_refused() {
    let mut rng = Rng(1);
    let weight = Dense::pack(&[&matrix(&mut rng, Format::F32, 4, 6, 0)], Precision::F32);
    let layer = DenseLayer {
        weight: &weight,
        bias: &[],
    };
    let x = rng.tensor(&[2, 6]);
    let refused = |x: &Tensor, layer: DenseLayer<'_>, around: &Around<'_>| dense(x, layer, around).is_err();
    assert!(refused(&rng.tensor(&[2, 5]), layer, &Around::default()));
    assert!(refused(&rng.tensor(&[6]), layer, &Around::default()));
    assert!(refused(
        &x,
        DenseLayer {
            bias: &[1.0],
            ..layer
        },
        &Around::default()
    ));
    assert!(refused(
        &x,
        layer,
        &Around {
            residual: Some(&x),
            ..Around::default()
        }
    ));
    let norm = LayerNorm {
        weight: &[1.0; 4],
        bias: &[],
        eps: 1e-5,
    };
    assert!(refused(
        &x,
        layer,
        &Around {
            norm: Some(norm),
            ..Around::default()
        }
    ));
    let options = |head_dim, scale| BidirectionalOptions {
        head_dim,
        scale,
        window: None,
        precision: Precision::F32,
    };
    let attend = |lengths: &[usize], options| bidirectional_attention(&x, &x, &x, lengths, &options).is_ok();
    assert!(attend(&[2], options(3, 1.0)));
    assert!(!attend(&[1], options(3, 1.0)));
    assert!(!attend(&[usize::MAX, 3], options(3, 1.0)));
    assert!(!attend(&[2], options(4, 1.0)));
    assert!(!attend(&[2], options(0, 1.0)));
    assert!(!attend(&[2], options(3, f32::NAN)));
}

/// To the eighth digit where sums are exact: the error function's values from tables.
#[test]
fn gelu_has_the_values_of_tables() {
    let table = [
        (0.0, 0.0),
        (0.5, 0.345_731_23),
        (1.0, 0.841_344_75),
        (-1.0, -0.158_655_25),
        (-3.0, -0.004_049_693_6),
        (8.0, 8.0),
    ];
    let one = Matrix::new(Format::F32, 1, 1, 1.0_f32.to_le_bytes().to_vec().into()).unwrap();
    let one = Dense::pack(&[&one], Precision::F32);
    let layer = DenseLayer {
        weight: &one,
        bias: &[],
    };
    let layers = FeedForwardLayers {
        up: layer,
        gate: None,
        activation: Activation::Gelu,
        down: layer,
    };
    let x: Vec<f32> = table.iter().map(|(x, _)| *x).collect();
    let x = Tensor::from_vec(x, (table.len(), 1), &candle_core::Device::Cpu).unwrap();
    let expected: Vec<f64> = table.iter().map(|(_, y)| *y).collect();
    each_table(|table| {
        let out = feed_forward(&x, &layers, &Around::default()).unwrap();
        assert_close(&values(&out), &expected, |_| 4e-7, table.name);
    });
}
