//! This machine's rates, measured with its kernels on weights of a model's formats and shapes.

use std::hint::black_box;

use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use rempart_kernels::{
    Activations, AttentionOptions, AttentionRow, Format, Matrix, Packed, RopeOptions, RopeStyle, Weight,
    linear, paged_attention, roof::median, rope, write_kv,
};

use super::{FormatRates, Product, Rates, Step, Work};
use crate::{KvCache, Result};

/// Weights that are read one matrix after the other: more than caches hold, or all that the model has.
const WEIGHTS_BYTES_MAX: usize = 256 << 20;
/// Rows whose products are measured, beside those of a whole chunk.
const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Matrices that so many rows and more are multiplied by: reading them is no longer what takes the time.
const MANY_ROWS: usize = 64;
const MANY_ROWS_MATRICES: usize = 4;
/// How often each is measured.
const RUNS: usize = 5;
/// Sequences and tokens of each in the attention of a decoding step.
const SEQUENCES: usize = 8;
const CONTEXT: usize = 1024;
const BLOCK_SIZE: usize = 16;
/// Numbers of keys, and of values, that are written to be read: of very wide models fewer sequences and tokens.
const WRITTEN_MAX: usize = 64 << 20;
/// Least share of an operation's time that is not its start.
const SHARE_MIN: f64 = 0.1;
/// Rows of what lies between products.
const ELEMENT_ROWS: usize = 32;

impl Rates {
    /// Measures what a step of `work` is made of, on the CPU, with batches of up to `chunk` rows. Takes some seconds, in which nothing else
    /// should run.
    ///
    /// # Errors
    /// When a kernel refuses the model's shape.
    pub fn measure(work: &Work, activations: Activations, chunk: usize) -> Result<Self> {
        let start = start(activations)?;
        let mut formats: Vec<FormatRates> = Vec::new();
        let all = work
            .products
            .iter()
            .map(Product::bytes)
            .fold(0, usize::saturating_add);
        for product in &work.products {
            let largest = |other: &&Product| other.format == product.format;
            let typical = work
                .products
                .iter()
                .filter(largest)
                .max_by(|a, b| a.weights().total_cmp(&b.weights()));
            if formats.iter().any(|known| known.format == product.format) {
                continue;
            }
            let points = products(typical.unwrap_or(product), activations, all, chunk, start)?;
            formats.push(FormatRates {
                format: product.format,
                points,
            });
        }
        let (kv_byte, attention) = attention(work, chunk, start)?;
        let element = element(work)?;
        Ok(Self {
            formats,
            kv_byte,
            attention,
            element,
            // Written once and looked through once.
            logit: 2.0 * element,
            start,
        })
    }
}

/// Weights whose scales are ordinary numbers, as subnormal ones would be slow.
fn matrix(format: Format, rows: usize, cols: usize) -> Result<Matrix> {
    let mut bytes = vec![0x2e; rows * format.row_bytes(cols)];
    for (i, byte) in bytes.iter_mut().enumerate().skip(3).step_by(5) {
        *byte = (i / 7 % 61) as u8;
    }
    Ok(Matrix::new(format, rows, cols, Bytes::from(bytes)).map_err(candle_core::Error::wrap)?)
}

fn input(rows: usize, cols: usize) -> Result<Tensor> {
    let values: Vec<f32> = (0..rows * cols).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
    Ok(Tensor::from_vec(values, (rows, cols), &Device::Cpu)?)
}

/// Seconds that an operation takes that has nothing to do.
fn start(activations: Activations) -> Result<f64> {
    let (weight, x) = (
        Weight::new(matrix(Format::Q8_0, 32, 32)?, activations),
        input(1, 32)?,
    );
    linear(&x, &weight, None)?;
    let many = 1000;
    Ok(median(RUNS, || {
        (0..many).for_each(|_| drop(black_box(linear(&x, &weight, None))));
    }) / f64::from(many))
}

/// What an operation takes beside its start: of the smallest ones it is hard to tell, and something.
fn without_start(seconds: f64, start: f64) -> f64 {
    (seconds - start).max(SHARE_MIN * seconds)
}

/// The points of one format, on matrices of one shape that take the bytes of the whole model, or enough.
fn products(
    product: &Product,
    activations: Activations,
    model_bytes: usize,
    chunk: usize,
    start: f64,
) -> Result<Vec<(usize, f64)>> {
    let Product {
        format, rows, cols, ..
    } = *product;
    let matrix = matrix(format, rows, cols)?;
    let copies = model_bytes
        .min(WEIGHTS_BYTES_MAX)
        .div_ceil(Packed::bytes_of(format, rows, cols).max(1));
    let weights: Vec<Weight> = (0..copies)
        .map(|_| Weight::new(matrix.clone(), activations))
        .collect();
    let mut points = Vec::new();
    for n in ROWS.into_iter().chain([MANY_ROWS, chunk]).filter(|&n| n <= chunk) {
        let used = if n < MANY_ROWS {
            copies
        } else {
            copies.min(MANY_ROWS_MATRICES)
        };
        let x = input(n, cols)?;
        linear(&x, &weights[0], None)?;
        let seconds = median(RUNS, || {
            for weight in &weights[..used] {
                drop(black_box(linear(&x, weight, None)));
            }
        });
        let each = without_start(seconds / used as f64, start) / (rows * cols) as f64;
        if points.last().is_none_or(|&(last, _)| last < n) {
            points.push((n, each));
        }
    }
    Ok(points)
}

/// Seconds for a byte of keys and values as sequences decode, and for a multiplication of a prompt's attention.
fn attention(work: &Work, chunk: usize, start: f64) -> Result<(f64, f64)> {
    let mut config = work.config().clone();
    (config.layers, config.windows) = (1, vec![None]);
    let one_layer = Work::of_shape(&config, Format::F32, work.kv_dtype);
    let slots = (WRITTEN_MAX / config.kv_size()).max(1);
    let sequences = (slots / CONTEXT).clamp(1, SEQUENCES);
    let decode = Step {
        sequences,
        tokens: 1,
        context: slots.min(CONTEXT),
        sampled: false,
    };
    // Layer after layer has keys and values of its own, which no cache holds all of.
    let blocks = sequences * decode.context.div_ceil(BLOCK_SIZE);
    let layers = WEIGHTS_BYTES_MAX / (blocks * KvCache::block_bytes(&config, BLOCK_SIZE, work.kv_dtype));
    let decoding = attend(&one_layer, decode, layers.clamp(1, work.config().layers))?;
    let prompt = Step {
        sequences: 1,
        tokens: chunk,
        context: chunk,
        sampled: false,
    };
    let prefilling = attend(&one_layer, prompt, 1)?;
    let each = |seconds: f64, parts: f64| without_start(seconds, start) / parts;
    Ok((
        each(decoding, one_layer.kv_bytes(&decode)),
        each(prefilling, one_layer.attention(&prompt)),
    ))
}

/// Seconds that attention takes in one layer.
fn attend(one_layer: &Work, step: Step, layers: usize) -> Result<f64> {
    let config = one_layer.config();
    let blocks = step.context.div_ceil(BLOCK_SIZE);
    let slots: Vec<u32> = (0..(step.sequences * blocks * BLOCK_SIZE) as u32).collect();
    let kv = input(slots.len(), config.kv_size())?;
    let cache = |_| {
        let (blocks, dtype) = (step.sequences * blocks, one_layer.kv_dtype);
        let cache = KvCache::new(config, blocks, BLOCK_SIZE, dtype, &Device::Cpu)?;
        write_kv(cache.layer(0), &kv, &kv, &slots)?;
        Ok(cache)
    };
    let caches: Vec<KvCache> = (0..layers).map(cache).collect::<Result<_>>()?;
    let row = |i: usize| AttentionRow {
        tokens: i * step.tokens..(i + 1) * step.tokens,
        context_len: step.context,
        block_table: ((i * blocks) as u32..((i + 1) * blocks) as u32).collect(),
    };
    let rows: Vec<AttentionRow> = (0..step.sequences).map(row).collect();
    let q = input(step.sequences * step.tokens, config.query_size())?;
    let options = AttentionOptions {
        scale: config.attention_scale,
        window: None,
        softcap: None,
    };
    paged_attention(&q, caches[0].layer(0), &rows, &options)?;
    let seconds = median(RUNS, || {
        for cache in &caches {
            drop(black_box(paged_attention(&q, cache.layer(0), &rows, &options)));
        }
    });
    Ok(seconds / layers as f64)
}

/// Seconds for a number that is rotated: of what lies between products the most common.
fn element(work: &Work) -> Result<f64> {
    let config = work.config();
    let x = input(ELEMENT_ROWS, config.query_size())?;
    let inv_freq = Tensor::ones(config.head_dim / 2, DType::F32, &Device::Cpu)?;
    let options = RopeOptions {
        inv_freq: &inv_freq,
        attention_factor: 1.0,
        style: RopeStyle::Halves,
        norm: None,
        factors: None,
    };
    let positions: Vec<u32> = (0..ELEMENT_ROWS as u32).collect();
    rope(&x, &options, &positions)?;
    let seconds = median(10 * RUNS, || drop(black_box(rope(&x, &options, &positions))));
    Ok(seconds / x.elem_count() as f64)
}
