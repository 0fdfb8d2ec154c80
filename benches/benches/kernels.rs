//! The kernels against what this machine can do: `cargo bench -p rempart-bench --bench kernels`.
//!
//! First it measures the roof: bytes read per second and fused multiply-adds per second, on all threads. Then, beside
//! Criterion's times, each linear layer is printed as a share of whichever roof is nearer. Other load on the machine
//! lowers roofs and results at different moments: compare on an idle one.

#![expect(
    clippy::print_stdout,
    reason = "the shares of the roof are what it is run for"
)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::Bytes;
use candle_core::{Device, Result, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use rempart_kernels::{
    Activations, AttentionOptions, AttentionRow, Format, KvCache, KvDtype, Matrix, Packed, Weight, cpu,
    linear, paged_attention, pool, write_kv,
};

/// What bounds every kernel: bytes from memory and arithmetic, each per second.
struct Roof {
    bytes: f64,
    products: f64,
}

/// The shortest of some runs, in seconds: what the kernel takes where nothing disturbs it.
fn fastest(runs: usize, mut work: impl FnMut()) -> f64 {
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..runs)
        .map(|_| time(&mut work))
        .min()
        .unwrap_or_default()
        .max(Duration::from_nanos(1))
        .as_secs_f64()
}

/// Reads memory that no cache holds, and multiplies a panel that the first cache does.
fn roof() -> Result<Roof> {
    let memory: Vec<u64> = (0..64 << 20).collect();
    let part = memory.len().div_ceil(pool::threads() * 8);
    let read = fastest(5, || {
        pool::run(pool::threads() * 8, |i| {
            let part = &memory[(i * part).min(memory.len())..((i + 1) * part).min(memory.len())];
            black_box(part.iter().fold(0, |sum: u64, x| sum ^ x));
        });
    });
    // A panel that the second cache holds, so that nothing but arithmetic takes time.
    let (k, rows, n) = (256, 512, 768);
    let weight = Weight::from(weights(Format::F32, rows, k));
    let x = Tensor::ones((n, k), candle_core::DType::F32, &Device::Cpu)?;
    let products = fastest(30, || {
        black_box(
            linear(&x, &weight, None)
                .map(|out| out.elem_count())
                .unwrap_or_default(),
        );
    });
    Ok(Roof {
        bytes: (memory.len() * 8) as f64 / read,
        products: (k * rows * n) as f64 / products,
    })
}

/// Weights whose scales are ordinary numbers, as subnormal ones would be slow.
fn weights(format: Format, rows: usize, cols: usize) -> Matrix {
    let mut bytes = vec![0x2e; rows * format.row_bytes(cols)];
    for (i, byte) in bytes.iter_mut().enumerate().filter(|(i, _)| i % 5 == 3) {
        *byte = (i / 7 % 61) as u8;
    }
    Matrix::new(format, rows, cols, Bytes::from(bytes)).expect("the length is that of the shape")
}

/// A layer of 9.4 million weights in every format, at the batches of one stream, a few, many, and a prompt.
fn bench_linear(criterion: &mut Criterion, roof: &Roof) -> Result<()> {
    let mut group = criterion.benchmark_group("linear");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    for format in Format::ALL {
        let (rows, k) = (6144, 1536);
        let matrix = weights(format, rows, k);
        let bytes = Packed::bytes_of(format, rows, k);
        let weight = Weight::new(matrix, Activations::default());
        for n in [1, 8, 32, 512] {
            let x = Tensor::ones((n, k), candle_core::DType::F32, &Device::Cpu)?;
            group.throughput(Throughput::Elements((rows * k * n) as u64));
            group.bench_function(BenchmarkId::new(format.name(), n), |bench| {
                bench.iter(|| linear(&x, &weight, None));
            });
            let seconds = fastest(if n > 100 { 5 } else { 100 }, || {
                black_box(
                    linear(&x, &weight, None)
                        .map(|out| out.elem_count())
                        .unwrap_or_default(),
                );
            });
            let (bytes, products) = (bytes as f64 / seconds, (rows * k * n) as f64 / seconds);
            println!(
                "    {:5} n={n:<3} {:7.1} us, {:5.1} GB/s = {:3.0} % of the bytes, {:5.1} GFMA/s = {:3.0} % of the products",
                format.name(),
                seconds * 1e6,
                bytes / 1e9,
                100.0 * bytes / roof.bytes,
                products / 1e9,
                100.0 * products / roof.products
            );
        }
    }
    group.finish();
    Ok(())
}

/// Attention of `sequences` rows of `new` tokens each at the end of `context` tokens, with Qwen2.5-0.5B's heads.
fn bench_attention(criterion: &mut Criterion) -> Result<()> {
    let (kv_heads, heads, d, block_size) = (2, 14, 64, 16);
    let mut group = criterion.benchmark_group("attention");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    for (sequences, new, context) in [
        (1, 1, 512),
        (1, 1, 4096),
        (32, 1, 512),
        (1, 512, 512),
        (1, 512, 4096),
    ] {
        let blocks = context / block_size;
        let cache = KvCache::new(sequences * blocks, block_size, kv_heads, d, KvDtype::Bf16)?;
        let slots: Vec<u32> = (0..(sequences * context) as u32).collect();
        let kv = Tensor::ones((slots.len(), kv_heads * d), candle_core::DType::F32, &Device::Cpu)?;
        write_kv(&cache, &kv, &kv, &slots)?;
        let rows: Vec<AttentionRow> = (0..sequences)
            .map(|i| AttentionRow {
                tokens: i * new..(i + 1) * new,
                context_len: context,
                block_table: ((i * blocks) as u32..((i + 1) * blocks) as u32).collect(),
            })
            .collect();
        let q = Tensor::ones(
            (sequences * new, heads * d),
            candle_core::DType::F32,
            &Device::Cpu,
        )?;
        let options = AttentionOptions {
            scale: 0.125,
            window: None,
            softcap: None,
        };
        // Each query with each position it sees, in both products.
        let products = sequences * heads * d * 2 * new * (context - (new - 1) / 2);
        group.throughput(Throughput::Elements(products as u64));
        group.bench_function(format!("{sequences}x{new} of {context}"), |bench| {
            bench.iter(|| paged_attention(&q, &cache, &rows, &options));
        });
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let roof = roof()?;
    println!(
        "{} on {} threads: {:.1} GB/s from memory, {:.1} GFMA/s",
        cpu::best().name,
        pool::threads(),
        roof.bytes / 1e9,
        roof.products / 1e9
    );
    bench_linear(&mut criterion, &roof)?;
    bench_attention(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
