//! What the engine adds to a step: everything but the model, whose answers here cost nothing.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rempart_engine::{
    Batch, Engine, EngineConfig, Flow, ModelRunner, Request, RequestId, SampleRow, Sampled, SamplingParams,
    StopRules,
};

struct Instant;

impl ModelRunner for Instant {
    type Logits = ();
    type Error = String;

    fn forward(&mut self, batch: &Batch) -> Result<(), String> {
        black_box(batch);
        Ok(())
    }

    fn sample(&mut self, (): (), rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, String> {
        Ok(rows
            .iter()
            .map(|row| Sampled {
                token: row.position as u32 & 1023,
                logprob: None,
            })
            .collect())
    }
}

const CONFIG: EngineConfig = EngineConfig {
    blocks: 16_384,
    block_size: 16,
    step_tokens_max: 2048,
    sequences_max: 64,
    queue_requests_max: 4096,
    queue_tokens_max: 1 << 24,
    flow_blocks_share_max: 100,
    speculative_tokens: 0,
    context_max: 131_072,
    prefix_cache: true,
    cache_secret: 7,
};

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        prompt,
        n: 1,
        sampling: SamplingParams::default(),
        stop: StopRules {
            tokens: Vec::new(),
            max_tokens,
            min_tokens: 0,
        },
        prompt_logprobs: None,
        prediction: Vec::new(),
        grammar: None,
        cache_salt: 0,
        priority: 0,
        deadline_ms: None,
        flow: Flow::default(),
    }
}

/// An engine in which `running` sequences of `context` tokens decode and `waiting` more wait.
fn busy(running: u64, waiting: u64, context: u32) -> Engine<Instant> {
    let mut engine = Engine::new(
        Instant,
        EngineConfig {
            sequences_max: running as usize,
            ..CONFIG
        },
    );
    for id in 0..running + waiting {
        let prompt = (0..context).map(|token| token ^ id as u32).collect();
        engine
            .add(RequestId(id), request(prompt, 100_000), 0)
            .expect("the queue is large enough");
    }
    while engine.step(0).expect("the runner never fails").prefill_tokens > 0 {}
    engine
}

fn decode(criterion: &mut Criterion) {
    for (running, waiting) in [(1, 0), (64, 0), (64, 1000)] {
        let name = format!("256 steps, {running} decode, {waiting} wait");
        criterion.bench_function(&name, |bencher| {
            let steps = |engine: &mut Engine<Instant>| {
                for _ in 0..256 {
                    let report = engine.step(0).expect("the runner never fails");
                    assert_eq!(report.decode_tokens, running as usize);
                }
            };
            bencher.iter_batched_ref(|| busy(running, waiting, 1024), steps, BatchSize::LargeInput);
        });
    }
}

fn prompt(criterion: &mut Criterion) {
    let prompt: Vec<u32> = (0..8192).collect();
    for cached in [false, true] {
        let mut engine = Engine::new(
            Instant,
            EngineConfig {
                prefix_cache: cached,
                ..CONFIG
            },
        );
        let mut id = 0;
        let name = if cached {
            "8k prompt, found in the cache"
        } else {
            "8k prompt, computed"
        };
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                id += 1;
                engine
                    .add(RequestId(id), request(prompt.clone(), 1), 0)
                    .expect("the queue is empty");
                while engine.has_work() {
                    engine.step(0).expect("the runner never fails");
                }
            });
        });
    }
}

criterion_group!(benches, decode, prompt);
criterion_main!(benches);
