//! A real encoder against sentence-transformers (`scripts/fixtures/encoders_minilm.py`): 200 texts of 1 to 256 tokens, alone
//! and all together. Needs `python3 scripts/models.py fetch minilm`.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;

use half::f16;
use rempart_models::{EncoderBatch, EncoderOptions, Precision, load_encoder};
use serde::Deserialize;

/// Least cosine between our vector of a text and theirs.
const COSINE_MIN: f32 = 0.9999;

#[derive(Deserialize)]
struct Fixture {
    tokens: Vec<Vec<u32>>,
    vectors: Vec<String>,
}

/// Numbers of 16 bits in hexadecimal digits, little endian.
fn halves(digits: &str) -> Vec<f32> {
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    let half = |at: usize| f16::from_le_bytes([byte(at), byte(at + 2)]).to_f32();
    (0..digits.len()).step_by(4).map(half).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn model() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
    let folder = std::env::var("REMPART_MODELS").map_or_else(
        |_| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.cache/models"),
        PathBuf::from,
    );
    let path = folder.join("all-MiniLM-L6-v2");
    assert!(
        path.is_dir(),
        "{}: not there; run `python3 scripts/models.py fetch minilm`",
        path.display()
    );
    path
}

fn compare(precision: Precision) {
    let options = EncoderOptions {
        precision,
        ..EncoderOptions::default()
    };
    let model = load_encoder(&model(), &options).unwrap();
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/minilm.json")).unwrap();
    let embed = |texts: &[Vec<u32>]| {
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let batch = EncoderBatch {
            tokens: &texts.concat(),
            token_types: &[],
            lengths: &lengths,
        };
        model.embed(&batch).unwrap()
    };
    let together = embed(&fixture.tokens);
    let mut least = 1.0_f32;
    for (i, vector) in together.iter().enumerate() {
        let alone = embed(&fixture.tokens[i..=i]);
        assert_eq!(&alone[0], vector, "text {i} alone and among all");
        least = least.min(cosine(vector, &halves(&fixture.vectors[i])));
    }
    assert!(least >= COSINE_MIN, "{precision:?}: a cosine of {least}");
}

#[test]
fn minilm_in_bf16_equals_sentence_transformers() {
    compare(Precision::Bf16);
}

#[test]
fn minilm_in_f32_equals_sentence_transformers() {
    compare(Precision::F32);
}
