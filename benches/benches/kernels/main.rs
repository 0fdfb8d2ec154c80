//! The kernels against what this machine can do: `cargo bench -p rempart-bench --bench kernels`.
//!
//! First it measures the roof: bytes read per second and products made per second, on all threads. Then, beside Criterion's
//! times, each linear layer is printed as a share of both. `-- large` measures only what is larger than any cache: one row
//! with a gigabyte of weights, and a prompt of 512 rows with a square of 4,096.

#![expect(
    clippy::print_stdout,
    reason = "the shares of the roof are what it is run for"
)]

use std::{hint::black_box, time::Duration};

use bytes::Bytes;
use candle_core::{Device, Result, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use rempart_kernels::{
    Activations, AttentionOptions, AttentionRow, Format, KvCache, KvDtype, Matrix, Packed, Weight, cpu,
    linear, paged_attention, pool,
    roof::{Memory, Roof, fastest, in_turns},
    write_kv,
};

/// Weights whose scales are ordinary numbers, as subnormal ones would be slow.
fn weights(format: Format, rows: usize, cols: usize) -> Matrix {
    let mut bytes = vec![0x2e; rows * format.row_bytes(cols)];
    for (i, byte) in bytes.iter_mut().enumerate().filter(|(i, _)| i % 5 == 3) {
        *byte = (i / 7 % 61) as u8;
    }
    Matrix::new(format, rows, cols, Bytes::from(bytes)).expect("the length is that of the shape")
}

/// Prints what a product of `n` activation rows reached in so many seconds, as shares of the roofs.
fn print_share(format: Format, n: usize, weight: &Weight, seconds: f64, roof: &Roof) {
    let (rows, k) = (weight.rows(), weight.cols());
    let bytes = Packed::bytes_of(format, rows, k) as f64 / seconds;
    let products = (rows * k * n) as f64 / seconds;
    println!(
        "    {:5} {rows}x{k} n={n:<3} {:9.1} us, {:5.1} GB/s = {:3.0} % of the bytes, {:6.1} G products/s = {:3.0} % of the products",
        format.name(),
        seconds * 1e6,
        bytes / 1e9,
        100.0 * bytes / roof.bytes,
        products / 1e9,
        100.0 * products / roof.products
    );
}

fn multiply(x: &Tensor, weight: &Weight) {
    let out = linear(x, weight, None).map(|out| out.elem_count());
    black_box(out.unwrap_or_default());
}

/// One row with a gigabyte of packed weights, in turns with reading a gigabyte, and a prompt's rows with a large square.
fn large(roof: Roof) -> Result<()> {
    let (k, memory, mut roof) = (4096, Memory::take(), roof);
    for format in [Format::Q4_1, Format::Q5_0, Format::Q8_0, Format::Q4K, Format::Q6K] {
        let input = |n: usize| Tensor::ones((n, k), candle_core::DType::F32, &Device::Cpu);
        let rows = (1 << 30) / Packed::bytes_of(format, 16, k) * 16;
        let (one, weight) = (
            input(1)?,
            Weight::new(weights(format, rows, k), Activations::default()),
        );
        let (read, product) = in_turns(31, || memory.read(), || multiply(&one, &weight));
        roof.bytes = memory.bytes() as f64 / read;
        print_share(format, 1, &weight, product, &roof);
        let (prompt, weight) = (
            input(512)?,
            Weight::new(weights(format, k, k), Activations::default()),
        );
        let seconds = fastest(15, || multiply(&prompt, &weight));
        print_share(format, 512, &weight, seconds, &roof);
    }
    Ok(())
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
        let weight = Weight::new(matrix, Activations::default());
        for n in [1, 8, 32, 512] {
            let x = Tensor::ones((n, k), candle_core::DType::F32, &Device::Cpu)?;
            group.throughput(Throughput::Elements((rows * k * n) as u64));
            group.bench_function(BenchmarkId::new(format.name(), n), |bench| {
                bench.iter(|| linear(&x, &weight, None));
            });
            let seconds = fastest(if n > 100 { 5 } else { 100 }, || multiply(&x, &weight));
            print_share(format, n, &weight, seconds, roof);
        }
    }
    group.finish();
    Ok(())
}

/// Attention of `sequences` rows of `new` tokens each at the end of `context` tokens, with Qwen2.5-0.5B's heads.
fn bench_attention(criterion: &mut Criterion, dtype: KvDtype) -> Result<()> {
    let (kv_heads, heads, d, block_size) = (2, 14, 64, 16);
    let mut group = criterion.benchmark_group(format!("attention, {dtype:?}"));
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
        let cache = KvCache::new(sequences * blocks, block_size, kv_heads, d, dtype, &Device::Cpu)?;
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
    let roof = Roof::measure();
    println!(
        "{} on {} threads: {:.1} GB/s from memory, {:.1} G products/s by {}",
        cpu::best().name,
        pool::threads(),
        roof.bytes / 1e9,
        roof.products / 1e9,
        roof.instruction
    );
    if std::env::args().any(|argument| argument == "large") {
        return large(roof);
    }
    let mut criterion = Criterion::default().configure_from_args();
    bench_linear(&mut criterion, &roof)?;
    for dtype in [KvDtype::Int8, KvDtype::Bf16] {
        bench_attention(&mut criterion, dtype)?;
    }
    criterion.final_summary();
    Ok(())
}
