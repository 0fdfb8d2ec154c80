//! One token from one row of logits, at the vocabulary sizes of SmolLM2 and Qwen.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rempart_engine::rng::uniform;
use rempart_engine::sampling::sample;
use rempart_engine::{SampleKind, SampleRow, SamplingParams, Token};

fn cases() -> Vec<(&'static str, SamplingParams)> {
    let plain = SamplingParams::default();
    vec![
        (
            "greedy",
            SamplingParams {
                temperature: 0.0,
                ..plain.clone()
            },
        ),
        (
            "greedy, 20 logprobs",
            SamplingParams {
                temperature: 0.0,
                logprobs: Some(20),
                ..plain.clone()
            },
        ),
        ("temperature", plain.clone()),
        (
            "top_k 40",
            SamplingParams {
                top_k: 40,
                ..plain.clone()
            },
        ),
        (
            "top_p 0.95",
            SamplingParams {
                top_p: 0.95,
                ..plain.clone()
            },
        ),
        (
            "top_k 20, top_p 0.95",
            SamplingParams {
                top_k: 20,
                top_p: 0.95,
                temperature: 0.7,
                ..plain.clone()
            },
        ),
        (
            "penalties",
            SamplingParams {
                repetition_penalty: 1.1,
                frequency_penalty: 0.2,
                ..plain
            },
        ),
    ]
}

fn sampling(criterion: &mut Criterion) {
    let prompt: Vec<Token> = (0..2048).collect();
    for vocab in [49_152_u64, 151_936] {
        // Roughly the shape of a model's logits: a bell of width 2.5 and a few tokens far above it.
        let bell = |token| (0..6).map(|draw| uniform(draw, token)).sum::<f64>() - 3.0;
        let mut logits: Vec<f32> = (0..vocab).map(|token| (bell(token) * 3.5) as f32).collect();
        (0..20_usize).for_each(|rank| logits[rank * 997] = 18.0 - rank as f32 * 0.5);
        let mut scratch = logits.clone();
        for (name, params) in cases() {
            let row = SampleRow {
                params: &params,
                prompt: &prompt,
                output: &prompt[..256],
                position: 2304,
                seed: 1,
                banned: &[],
                allowed: None,
                kind: SampleKind::Sample,
                logprobs: params.logprobs,
            };
            criterion.bench_function(&format!("{name}, vocabulary {vocab}"), |bencher| {
                bencher.iter(|| {
                    scratch.copy_from_slice(&logits);
                    black_box(sample(&mut scratch, &row))
                });
            });
        }
    }
}

criterion_group!(benches, sampling);
criterion_main!(benches);
