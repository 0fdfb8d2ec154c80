//! A layer of an encoder, part by part: `cargo bench -p rempart-bench --bench encoder`.
//!
//! The shape is all-MiniLM-L6-v2's; texts have 128 tokens each. Times are of a whole batch, throughputs are products: each
//! weight with each row, each query with each key and value. Whole models are measured by `scripts/bench-encoders`.

use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use rempart_kernels::{
    Activation, Dense, Format, Matrix, Precision,
    op::{
        Around, BidirectionalOptions, DenseLayer, FeedForwardLayers, LayerNorm, bidirectional_attention,
        dense, feed_forward,
    },
};

const HIDDEN: usize = 384;
const INNER: usize = 1536;
const HEAD: usize = 32;
const TEXT: usize = 128;

fn pack(rows: usize, cols: usize, precision: Precision) -> Dense {
    let weight = |i: usize| (i % 1009) as f32 / 1009.0 - 0.5;
    let bytes: Vec<u8> = (0..rows * cols).flat_map(|i| weight(i).to_le_bytes()).collect();
    let matrix = Matrix::new(Format::F32, rows, cols, bytes.into()).expect("the length is that of the shape");
    Dense::pack(&[&matrix], precision)
}

fn layer(weight: &Dense) -> DenseLayer<'_> {
    DenseLayer { weight, bias: &[] }
}

fn bench_products(criterion: &mut Criterion, precision: Precision) -> Result<()> {
    let (qkv, up, down) = (
        pack(3 * HIDDEN, HIDDEN, precision),
        pack(INNER, HIDDEN, precision),
        pack(HIDDEN, INNER, precision),
    );
    let layers = FeedForwardLayers {
        up: layer(&up),
        gate: None,
        activation: Activation::Gelu,
        down: layer(&down),
    };
    let ones = [1.0; HIDDEN];
    let norm = LayerNorm {
        weight: &ones,
        bias: &ones,
        eps: 1e-12,
    };
    let mut group = criterion.benchmark_group(format!("encoder, {precision:?}"));
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    for n in [16, 128, 1024] {
        let x = Tensor::ones((n, HIDDEN), DType::F32, &Device::Cpu)?;
        group.throughput(Throughput::Elements((n * 3 * HIDDEN * HIDDEN) as u64));
        group.bench_function(BenchmarkId::new("projections", n), |bench| {
            bench.iter(|| dense(&x, layer(&qkv), &Around::default()));
        });
        let around = Around {
            residual: Some(&x),
            post_norm: Some(norm),
            norm: None,
        };
        group.throughput(Throughput::Elements((n * 2 * HIDDEN * INNER) as u64));
        group.bench_function(BenchmarkId::new("feed forward", n), |bench| {
            bench.iter(|| feed_forward(&x, &layers, &around));
        });
    }
    group.finish();
    Ok(())
}

fn bench_attention(criterion: &mut Criterion, precision: Precision) -> Result<()> {
    let mut group = criterion.benchmark_group(format!("encoder, attention, {precision:?}"));
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    let options = BidirectionalOptions {
        head_dim: HEAD,
        scale: 0.18,
        window: None,
        precision,
    };
    for texts in [1, 8] {
        let x = Tensor::ones((texts * TEXT, HIDDEN), DType::F32, &Device::Cpu)?;
        group.throughput(Throughput::Elements((2 * texts * TEXT * TEXT * HIDDEN) as u64));
        group.bench_function(BenchmarkId::new("texts", texts), |bench| {
            bench.iter(|| bidirectional_attention(&x, &x, &x, &vec![TEXT; texts], &options));
        });
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    for precision in [Precision::Bf16, Precision::F32] {
        bench_products(&mut criterion, precision)?;
        bench_attention(&mut criterion, precision)?;
    }
    criterion.final_summary();
    Ok(())
}
