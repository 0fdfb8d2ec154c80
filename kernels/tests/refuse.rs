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
    Activation, Activations, AttentionOptions, AttentionRow, Error, Format, InputNorm, KvCache, KvDtype,
    Matrix, Projection, RopeOptions, RopeStyle, Weight, edit, embed, gated_projections, linear, linear_add,
    paged_attention, projections, rms_norm, rms_norm_add, rope, rope_and_write_kv, write_kv,
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
fn products_of_several_matrices() {
    let weight =
        |rows, k, activations| Weight::new(matrix(&mut Rng(1), Format::Q8_0, rows, k, 0), activations);
    let part = |weight| Projection { weight, bias: None };
    let (one, other) = (
        weight(4, 32, Activations::Int8),
        weight(4, 32, Activations::Int16),
    );
    let (wide, long) = (weight(4, 64, Activations::Int8), weight(8, 32, Activations::Int8));
    let x = zeros(&[2, 32]);
    let norm = |size| zeros(&[size]);
    refused(projections(&x, None, &[]), "no weight");
    refused(projections(&x, None, &[part(&one), part(&other)]), "activations");
    let dense = Weight::from(matrix(&mut Rng(1), Format::F32, 4, 32, 0));
    refused(
        projections(&x, None, &[part(&dense), part(&one), part(&other)]),
        "activations",
    );
    refused(projections(&x, None, &[part(&one), part(&wide)]), "[4, 64]");
    let weight = norm(33);
    let bad = Some(InputNorm {
        weight: &weight,
        eps: 1e-5,
    });
    refused(projections(&x, bad, &[part(&one)]), "norm");
    refused(
        gated_projections(&x, None, [part(&one), part(&long)], Activation::Silu),
        "up 8",
    );
    refused(linear_add(&x, &one, &zeros(&[2, 5])), "residual");
    refused(linear_add(&x, &one, &zeros(&[3, 4])), "residual");
    assert!(linear_add(&x, &one, &zeros(&[2, 4])).is_ok());
}

/// Rotation by angles alone.
fn options(inv_freq: &Tensor) -> RopeOptions<'_> {
    RopeOptions {
        inv_freq,
        attention_factor: 1.0,
        style: RopeStyle::Halves,
        norm: None,
        factors: None,
    }
}

#[test]
fn elementwise_shapes() {
    refused(rms_norm(&zeros(&[2, 3]), &zeros(&[2]), 1e-5), "rms_norm");
    refused(rms_norm(&zeros(&[]), &zeros(&[0]), 1e-5), "no dimension");
    assert_eq!(
        rms_norm(&zeros(&[2, 0]), &zeros(&[0]), 1e-5).unwrap().dims(),
        [2, 0]
    );
    refused(edit(&zeros(&[2, 2]).to_dtype(DType::F64).unwrap(), |_| ()), "f32");
    refused(edit(&zeros(&[2, 3]).t().unwrap(), |_| ()), "contiguous");
    refused(
        rms_norm_add(&zeros(&[2, 3]), &zeros(&[3]), 1e-5, &zeros(&[3, 3])),
        "residual",
    );
    let (freq, none, three) = (zeros(&[2]), zeros(&[0]), zeros(&[3]));
    let two = options(&freq);
    refused(rope(&zeros(&[2, 1, 4]), &two, &[0, 0]), "[n, width]");
    refused(rope(&zeros(&[2, 4]), &two, &[0]), "positions");
    let factors = RopeOptions {
        factors: Some(&three),
        ..two
    };
    refused(rope(&zeros(&[2, 4]), &factors, &[0, 1]), "3 factors");
    refused(rope(&zeros(&[2, 5]), &two, &[0, 1]), "frequencies");
    refused(rope(&zeros(&[2, 5]), &options(&none), &[0, 1]), "frequencies");
    refused(rope(&zeros(&[4, 2]).t().unwrap(), &two, &[0, 1]), "contiguous");
    let weight = zeros(&[3]);
    let norm = Some(InputNorm {
        weight: &weight,
        eps: 1e-5,
    });
    refused(
        rope(&zeros(&[2, 4]), &RopeOptions { norm, ..two }, &[0, 1]),
        "norm",
    );
}

#[test]
fn rotation_into_a_cache() {
    let cache = KvCache::new(2, 16, 1, 8, KvDtype::Bf16, &Device::Cpu).unwrap();
    let (freq, other, small) = (zeros(&[4]), zeros(&[4]), zeros(&[2]));
    let (right, twice) = (options(&freq), options(&other));
    let (q, kv, positions) = (zeros(&[2, 16]), zeros(&[2, 8]), [0, 1]);
    let store = |options: [&RopeOptions<'_>; 2], kv: &Tensor, positions: &[u32], slots: &[u32]| {
        rope_and_write_kv(&cache, [&q, kv, kv], options, positions, slots)
    };
    let rotated = store([&right; 2], &kv, &positions, &[0, 31]).unwrap();
    assert_eq!(rotated.dims(), [2, 16]);
    refused(store([&right, &twice], &kv, &positions, &[0, 1]), "must share");
    refused(
        store([&options(&small); 2], &kv, &positions, &[0, 1]),
        "must share",
    );
    refused(store([&right; 2], &kv, &[0], &[0, 1]), "positions");
    refused(
        store([&right; 2], &zeros(&[2, 7]), &positions, &[0, 1]),
        "frequencies",
    );
    refused(
        store([&right; 2], &zeros(&[2, 16]), &positions, &[0, 1]),
        "cache is",
    );
    refused(store([&right; 2], &kv, &positions, &[0, 32]), "slot 32");
}

#[test]
fn cache_slots() {
    let cache = KvCache::new(2, 16, 1, 8, KvDtype::Bf16, &Device::Cpu).unwrap();
    let new = zeros(&[2, 8]);
    assert!(write_kv(&cache, &new, &new, &[0, 31]).is_ok());
    refused(write_kv(&cache, &new, &new, &[0, 32]), "slot 32");
    refused(write_kv(&cache, &new, &new, &[0]), "1 slots");
    refused(write_kv(&cache, &new, &zeros(&[3, 8]), &[0, 1]), "differ");
    refused(
        write_kv(&cache, &zeros(&[2, 16]), &zeros(&[2, 16]), &[0, 1]),
        "cache is",
    );
    refused(
        write_kv(&cache, &zeros(&[2, 1, 8]), &zeros(&[2, 1, 8]), &[0, 1]),
        "[n, width]",
    );
    for size in [0, 4, 24] {
        refused(
            KvCache::new(2, size, 1, 8, KvDtype::F32, &Device::Cpu),
            "multiple of 16",
        );
    }
}

#[test]
fn attention_rows() {
    let cache = KvCache::new(4, 16, 2, 8, KvDtype::F32, &Device::Cpu).unwrap();
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
    assert!(attend(&[3, 32], &[(0..3, 3, &[1])]).is_ok());
    assert!(attend(&[3, 32], &[(0..0, 0, &[])]).is_ok());
    refused(attend(&[3, 32], &[(0..3, 2, &[1])]), "do not agree");
    refused(attend(&[3, 32], &[(0..3, 17, &[1])]), "do not agree");
    refused(attend(&[3, 32], &[(0..3, 3, &[4])]), "block 4");
    refused(attend(&[3, 32], &[(0..4, 4, &[1])]), "tokens");
    refused(attend(&[3, 32], &[(0..2, 2, &[1]), (1..3, 2, &[2])]), "overlap");
    refused(attend(&[3, 0], &[(0..3, 3, &[1])]), "0 heads");
    let blind = AttentionOptions {
        window: Some(0),
        ..options
    };
    refused(paged_attention(&zeros(&[3, 32]), &cache, &[], &blind), "window");
    refused(
        KvCache::new(1 << 40, 1 << 20, 8, 64, KvDtype::Bf16, &Device::Cpu),
        "too large",
    );
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
        refused(
            KvCache::new(1, 16, 1, usize::MAX / 16, dtype, &Device::Cpu),
            "at most 1048576 dimensions",
        );
    }
    refused(attend(&[3, 24], &[(0..3, 3, &[1])]), "q is");
    refused(attend(&[3, 4, 8], &[(0..3, 3, &[1])]), "q is");
}
