//! Every operation refuses arguments that do not fit, with a message and without a panic.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use bytes::Bytes;
use candle_core::{DType, Device, Result, Tensor};
use common::{Rng, matrix};
use rempart_kernels::{
    Activation, AttentionOptions, AttentionRow, Error, Format, KvCache, Matrix, RopeStyle, Weight, embed,
    gated, linear, paged_attention, rms_norm, rope, write_kv,
};

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T>, part: &str) {
    let message = result.expect_err("accepted").to_string();
    assert!(message.contains(part), "{message:?} does not say {part:?}");
}

#[test]
fn matrices_of_wrong_sizes() {
    let new = |format, rows, cols, len| {
        Matrix::new(format, rows, cols, Bytes::from(vec![0; len])).map(|m| m.rows())
    };
    assert_eq!(new(Format::Q4_0, 2, 64, 72), Ok(2));
    assert!(matches!(
        new(Format::Q4_0, 2, 33, 36),
        Err(Error::PartialBlock { .. })
    ));
    assert!(matches!(
        new(Format::Q6K, 1, 32, 210),
        Err(Error::PartialBlock { .. })
    ));
    assert!(matches!(
        new(Format::F32, 2, 2, 15),
        Err(Error::Length {
            expected: 16,
            actual: 15,
            ..
        })
    ));
    assert!(matches!(
        new(Format::F32, usize::MAX, 2, 8),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        new(Format::Q4_0, 1 << 60, 32 << 10, 8),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        new(Format::Q2K, 1, 256 << 54, 8),
        Err(Error::TooLarge { .. })
    ));
    assert_eq!(new(Format::F16, 0, 7, 0), Ok(0));
}

#[test]
fn linear_arguments() {
    let weight = Weight::from(matrix(&mut Rng(1), Format::Q8_0, 4, 32, 0));
    refused(linear(&zeros(&[2, 31]), &weight, None), "[4, 32]");
    refused(linear(&zeros(&[32]), &weight, None), "[n, 32]");
    refused(linear(&zeros(&[1, 32]), &weight, Some(&zeros(&[5]))), "bias");
    refused(linear(&zeros(&[32, 2]).t().unwrap(), &weight, None), "contiguous");
    refused(
        linear(&zeros(&[1, 32]).to_dtype(DType::F64).unwrap(), &weight, None),
        "f32",
    );
}

#[test]
fn embed_ids() {
    let weight = Weight::from(matrix(&mut Rng(1), Format::Q8_0, 4, 32, 0));
    refused(embed(&weight, &[0, 4], 1.0), "token 4");
    assert_eq!(embed(&weight, &[], 1.0).unwrap().dims(), [0, 32]);
}

#[test]
fn elementwise_shapes() {
    refused(gated(&zeros(&[2, 3]), &zeros(&[3, 2]), Activation::Silu), "gated");
    refused(rms_norm(&zeros(&[2, 3]), &zeros(&[2]), 1e-5), "rms_norm");
    refused(
        rope(&zeros(&[2, 3]), &[1.0], 1.0, &[0, 0], RopeStyle::Halves),
        "[n, heads, d]",
    );
    refused(
        rope(&zeros(&[2, 1, 4]), &[1.0, 1.0], 1.0, &[0], RopeStyle::Halves),
        "positions",
    );
    refused(
        rope(
            &zeros(&[2, 1, 5]),
            &[1.0, 1.0],
            1.0,
            &[0, 1],
            RopeStyle::Interleaved,
        ),
        "frequencies",
    );
}

#[test]
fn cache_slots() {
    let cache = KvCache::new(2, 4, 1, 8).unwrap();
    let new = zeros(&[2, 1, 8]);
    assert!(write_kv(&cache, &new, &new, &[0, 7]).is_ok());
    refused(write_kv(&cache, &new, &new, &[0, 8]), "slot 8");
    refused(write_kv(&cache, &new, &new, &[0]), "1 slots");
    refused(write_kv(&cache, &new, &zeros(&[3, 1, 8]), &[0, 1]), "differ");
    refused(
        write_kv(&cache, &zeros(&[2, 2, 8]), &zeros(&[2, 2, 8]), &[0, 1]),
        "cache is",
    );
    refused(
        write_kv(&KvCache::new(2, 0, 1, 8).unwrap(), &new, &new, &[0, 1]),
        "write_kv",
    );
}

#[test]
fn attention_rows() {
    let cache = KvCache::new(4, 4, 2, 8).unwrap();
    let options = AttentionOptions {
        scale: 1.0,
        window: None,
        softcap: None,
    };
    let attend = |q: &[usize], rows: &[(std::ops::Range<usize>, usize, &[u32])]| {
        let row = |(tokens, context_len, table): &(std::ops::Range<usize>, usize, &[u32])| AttentionRow {
            tokens: tokens.clone(),
            context_len: *context_len,
            block_table: table.to_vec(),
        };
        paged_attention(
            &zeros(q),
            &cache,
            &rows.iter().map(row).collect::<Vec<_>>(),
            &options,
        )
    };
    assert!(attend(&[3, 4, 8], &[(0..3, 3, &[1])]).is_ok());
    assert!(attend(&[3, 4, 8], &[(0..0, 0, &[])]).is_ok());
    refused(attend(&[3, 4, 8], &[(0..3, 2, &[1])]), "do not agree");
    refused(attend(&[3, 4, 8], &[(0..3, 5, &[1])]), "do not agree");
    refused(attend(&[3, 4, 8], &[(0..3, 3, &[4])]), "block 4");
    refused(attend(&[3, 4, 8], &[(0..4, 4, &[1])]), "tokens");
    refused(attend(&[3, 4, 8], &[(0..2, 2, &[1]), (1..3, 2, &[2])]), "overlap");
    refused(attend(&[3, 0, 8], &[(0..3, 3, &[1])]), "0 heads");
    let blind = AttentionOptions {
        window: Some(0),
        ..options
    };
    refused(paged_attention(&zeros(&[3, 4, 8]), &cache, &[], &blind), "window");
    refused(KvCache::new(1 << 40, 1 << 20, 8, 64), "too large");
    refused(attend(&[3, 3, 8], &[(0..3, 3, &[1])]), "q is");
    refused(attend(&[3, 4, 4], &[(0..3, 3, &[1])]), "q is");
    refused(attend(&[3, 32], &[(0..3, 3, &[1])]), "q is");
}
