//! The CUDA kernels against what the card can do: `cargo bench -p rempart-kernels --features cuda --bench cuda`.
//!
//! The roof of bytes is a copy within the card's memory, measured first. A figure is the median of several rounds of many
//! calls in a row, so that the time to start a kernel shows only where that is what limits. Weights take turns, so that no
//! cache holds them.

#![expect(clippy::print_stdout, reason = "the table is what it is run for")]

use std::time::Instant;

use bytes::Bytes;
use candle_core::{DType, Device, Result, Tensor};
use rempart_kernels::{
    Activations, AttentionOptions, AttentionRow, Format, KvCache, KvDtype, Matrix, Weight, linear, open_cuda,
    paged_attention, rms_norm, write_kv,
};

const ROUNDS: usize = 7;
/// More than the card's caches hold.
const TURNS_BYTES: usize = 512 << 20;

fn main() -> Result<()> {
    let device = open_cuda()?;
    let roof = copy(&device)?;
    println!("copy: {:.0} GB/s, bytes read and written", roof / 1e9);
    small(&device)?;
    for format in [Format::Q4K, Format::Q6K, Format::Q8_0, Format::Bf16, Format::F16] {
        for (rows, k) in [(4096, 4096), (14336, 4096), (4096, 14336)] {
            products(&device, format, (rows, k), roof)?;
        }
    }
    for (sequences, new, context) in [
        (1, 1, 1024),
        (1, 1, 8192),
        (32, 1, 1024),
        (32, 1, 8192),
        (1, 512, 512),
        (1, 512, 8192),
        (1, 2048, 2048),
    ] {
        for dtype in [KvDtype::Bf16, KvDtype::Int8] {
            attention(&device, dtype, (sequences, new, context), roof)?;
        }
    }
    Ok(())
}

/// The median over rounds of the seconds that one of `calls` takes.
fn seconds(device: &Device, calls: usize, mut call: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..=ROUNDS {
        device.synchronize()?;
        let began = Instant::now();
        for i in 0..calls {
            call(i)?;
        }
        device.synchronize()?;
        times.push(began.elapsed().as_secs_f64() / calls as f64);
    }
    // The first one warms up.
    times.remove(0);
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

/// Bytes per second of a copy, read and written.
fn copy(device: &Device) -> Result<f64> {
    let bytes = 2 << 30;
    let from = Tensor::zeros(bytes / 4, DType::F32, device)?;
    let time = seconds(device, 10, |_| from.copy().map(|_| ()))?;
    Ok(2.0 * bytes as f64 / time)
}

/// What a kernel costs that has next to nothing to do.
fn small(device: &Device) -> Result<()> {
    let x = Tensor::ones((1, 4096), DType::F32, device)?;
    let weight = Tensor::ones(4096, DType::F32, device)?;
    let time = seconds(device, 1000, |_| rms_norm(&x, &weight, 1e-5).map(|_| ()))?;
    println!("rms_norm of one row: {:.2} us a call", time * 1e6);
    Ok(())
}

fn weights(format: Format, rows: usize, cols: usize, device: &Device) -> Result<Weight> {
    let mut bytes = vec![0x2e; rows * format.row_bytes(cols)];
    for (i, byte) in bytes.iter_mut().enumerate().filter(|(i, _)| i % 5 == 3) {
        *byte = (i / 7 % 61) as u8;
    }
    let matrix = Matrix::new(format, rows, cols, Bytes::from(bytes)).map_err(candle_core::Error::wrap)?;
    Weight::new(matrix, Activations::Int8).to_device(device)
}

fn products(device: &Device, format: Format, (rows, k): (usize, usize), roof: f64) -> Result<()> {
    let bytes = rows * format.row_bytes(k);
    let turns = (0..TURNS_BYTES.div_ceil(bytes))
        .map(|_| weights(format, rows, k, device))
        .collect::<Result<Vec<_>>>()?;
    for n in [1, 8, 16, 32, 64, 128, 512, 2048] {
        let x = Tensor::randn(0.0_f32, 1.0, (n, k), device)?;
        let calls = if n > 64 { 20 } else { 200 };
        let time = seconds(device, calls, |i| {
            linear(&x, &turns[i % turns.len()], None).map(|_| ())
        })?;
        let (rate, operations) = (bytes as f64 / time, 2.0 * (n * rows * k) as f64 / time);
        println!(
            "product {:5} {rows:5} x {k:5}, n = {n:4}: {:8.1} us, {:5.0} GB/s of weights = {:3.0} % of the copy, {:6.1} T operations/s",
            format.name(),
            time * 1e6,
            rate / 1e9,
            100.0 * rate / roof,
            operations / 1e12
        );
    }
    Ok(())
}

/// Heads of Llama 3 8B.
fn attention(
    device: &Device,
    dtype: KvDtype,
    (sequences, new, context): (usize, usize, usize),
    roof: f64,
) -> Result<()> {
    let (heads, kv_heads, d, block_size) = (32, 8, 128, 16);
    let blocks = context / block_size;
    let cache = KvCache::new(sequences * blocks, block_size, kv_heads, d, dtype, device)?;
    let kv = Tensor::randn(0.0_f32, 1.0, (context, kv_heads * d), device)?;
    for sequence in 0..sequences {
        let slots: Vec<u32> = (0..context).map(|i| (sequence * context + i) as u32).collect();
        write_kv(&cache, &kv, &kv, &slots)?;
    }
    let rows: Vec<_> = (0..sequences)
        .map(|i| AttentionRow {
            tokens: i * new..(i + 1) * new,
            context_len: context,
            block_table: ((i * blocks) as u32..((i + 1) * blocks) as u32).collect(),
        })
        .collect();
    let q = Tensor::randn(0.0_f32, 1.0, (sequences * new, heads * d), device)?;
    let options = AttentionOptions {
        scale: 0.088,
        window: None,
        softcap: None,
    };
    let calls = if new > 1 { 10 } else { 100 };
    let time = seconds(device, calls, |_| {
        paged_attention(&q, &cache, &rows, &options).map(|_| ())
    })?;
    let bytes = (sequences * context / 16 * kv_heads * 2 * dtype.group_bytes(d)) as f64 / time;
    // Pairs of a query and what it sees.
    let pairs = sequences * new * (2 * context - new + 1) / 2;
    let operations = 4.0 * (pairs * heads * d) as f64 / time;
    println!(
        "attention in {dtype:?}, {sequences:2} x {new:4} tokens at the end of {context:4}: {:8.1} us, {:5.0} GB/s of cache = {:3.0} % of the copy, {:6.1} T operations/s",
        time * 1e6,
        bytes / 1e9,
        100.0 * bytes / roof,
        operations / 1e12
    );
    Ok(())
}
