use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::batch::{Batch, SampleRow};
use crate::report::Queued;
use crate::request::{Event, Flow, Output, Sampled, SamplingParams, StopRules, Token};
use crate::sim::{FakeError, FakeModel, FakeRunner, Fault};

mod fairness;
mod faults;
mod flow_limits;
mod grammar;
mod limits;
mod load;
mod meanwhile;
mod memory;
mod returning;
mod speculation;

const CONFIG: EngineConfig = EngineConfig {
    blocks: 32,
    block_size: 4,
    step_tokens_max: 8,
    sequences_max: 4,
    queue_requests_max: 8,
    queue_tokens_max: 100,
    flow_blocks_share_max: 100,
    speculative_tokens: 0,
    context_max: 64,
    prefix_cache: true,
    cache_secret: 9,
};

fn engine(config: EngineConfig) -> Engine<FakeRunner> {
    Engine::new(
        FakeRunner::new(
            FakeModel {
                vocab: 50,
                nan_one_in: 0,
            },
            &config,
        ),
        config,
    )
}

fn request(prompt: &[Token], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
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

fn text(from: Token, len: Token) -> Vec<Token> {
    (from..from + len).collect()
}

/// The rows of a step: sequence and number of tokens.
fn step_rows(engine: &mut Engine<FakeRunner>) -> Vec<(u64, usize)> {
    let report = engine.step(0).unwrap();
    engine.check_integrity();
    if report.prefill_tokens + report.decode_tokens == 0 {
        return Vec::new();
    }
    engine
        .runner()
        .rows
        .iter()
        .map(|row| (row.seq.0, row.tokens.len()))
        .collect()
}

fn finishes(outputs: &[Output]) -> Vec<(u64, usize, Finish)> {
    let finish = |output: &Output| match output.event {
        Event::Finished(finish) => Some((output.request.0, output.index, finish)),
        _ => None,
    };
    outputs.iter().filter_map(finish).collect()
}

/// More steps than any scene here takes.
const STEPS_MAX: usize = 1000;

/// Steps until nothing is left.
fn run_all(engine: &mut Engine<FakeRunner>) -> Vec<Output> {
    let mut outputs = Vec::new();
    for _ in 0..STEPS_MAX {
        if !engine.has_work() {
            return outputs;
        }
        outputs.extend(engine.step(0).unwrap().outputs);
        engine.check_integrity();
    }
    panic!("{STEPS_MAX} steps and no end: {:?}", engine.stats());
}

#[test]
fn long_prompts_come_in_chunks_beside_decodes() {
    let mut engine = engine(CONFIG);
    engine.add(RequestId(0), request(&text(0, 3), 20), 0).unwrap();
    engine.add(RequestId(1), request(&text(10, 18), 20), 0).unwrap();
    engine.add(RequestId(2), request(&text(30, 5), 20), 0).unwrap();
    assert_eq!(step_rows(&mut engine), [(0, 3), (1, 5)]);
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 7)]);
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 6), (2, 1)]);
    // The first two decode, the third gets what is left of the budget.
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 1), (2, 4)]);
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 1), (2, 1)]);
}

#[test]
fn prefill_is_limited_only_beside_decodes() {
    let mut engine = engine(CONFIG);
    engine.limit_prefill(2);
    engine.add(RequestId(0), request(&text(0, 11), 9), 0).unwrap();
    engine.add(RequestId(1), request(&text(20, 7), 9), 0).unwrap();
    engine.add(RequestId(2), request(&text(40, 3), 9), 0).unwrap();
    // Nobody decodes: the whole step.
    assert_eq!(step_rows(&mut engine), [(0, 8)]);
    assert_eq!(step_rows(&mut engine), [(0, 3), (1, 5)]);
    // The first decodes from here on, and each step leaves two tokens to the others.
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 2)]);
    assert_eq!(engine.stats().decoding, 2);
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 1), (2, 2)]);
    engine.limit_prefill(0);
    engine.add(RequestId(3), request(&text(30, 5), 9), 0).unwrap();
    let report = engine.step(0).unwrap();
    assert_eq!((report.decode_tokens, report.prefill_tokens), (2, 2));
    // The third's last token counts as a decode; the fourth got the one token that is never denied.
    let rows: Vec<usize> = engine.runner().rows.iter().map(|row| row.tokens.len()).collect();
    assert_eq!((rows, report.prefill_limited), (vec![1, 1, 1, 1], true));
    engine.limit_prefill(usize::MAX);
    let report = engine.step(0).unwrap();
    assert_eq!((report.prefill_tokens, report.prefill_limited), (4, false));
    assert_eq!(finishes(&run_all(&mut engine)).len(), 4);

    // A limit that leaves as much as the step has room for is none.
    engine.add(RequestId(4), request(&text(0, 2), 9), 0).unwrap();
    engine.step(0).unwrap();
    engine.limit_prefill(7);
    engine.add(RequestId(5), request(&[45; 9], 9), 0).unwrap();
    let report = engine.step(0).unwrap();
    assert_eq!((report.prefill_tokens, report.prefill_limited), (7, false));
}

#[test]
fn reports_tell_prefill_from_decode() {
    let mut engine = engine(CONFIG);
    engine.add(RequestId(0), request(&text(0, 9), 3), 5).unwrap();
    assert_eq!(engine.stats().waiting_since_ms, Some(5));
    assert_eq!(
        (engine.stats().waiting_requests, engine.stats().waiting_tokens),
        (1, 9)
    );
    let counts = |report: &StepReport| (report.prefill_tokens, report.decode_tokens);
    assert_eq!(counts(&engine.step(0).unwrap()), (8, 0));
    // One token, but of the prompt.
    let report = engine.step(0).unwrap();
    assert_eq!(counts(&report), (1, 0));
    assert_eq!((report.stats.blocks_used, report.stats.blocks_total), (3, 32));
    assert_eq!(counts(&engine.step(0).unwrap()), (0, 1));
    let last = engine.step(0).unwrap();
    assert_eq!(counts(&last), (0, 1));
    assert_eq!(finishes(&last.outputs), [(0, 0, Finish::Length)]);
    let stats = Stats {
        blocks_total: 32,
        blocks_cached: 2,
        ..Stats::default()
    };
    assert_eq!((engine.stats(), engine.has_work()), (stats, false));
}

#[test]
fn priority_first_then_arrival() {
    let mut engine = engine(EngineConfig {
        sequences_max: 1,
        ..CONFIG
    });
    for (id, priority) in [(0, 1), (1, 0), (2, 1), (3, -1)] {
        engine
            .add(
                RequestId(id),
                Request {
                    priority,
                    ..request(&text(0, 2), 1)
                },
                0,
            )
            .unwrap();
    }
    let order: Vec<u64> = finishes(&run_all(&mut engine))
        .iter()
        .map(|(request, ..)| *request)
        .collect();
    assert_eq!(order, [3, 1, 0, 2]);
}

#[test]
fn the_youngest_is_preempted_and_resumes_before_newcomers() {
    let config = EngineConfig {
        blocks: 6,
        block_size: 2,
        step_tokens_max: 12,
        prefix_cache: false,
        ..CONFIG
    };
    let mut engine = engine(config);
    engine.add(RequestId(0), request(&text(0, 3), 9), 0).unwrap();
    engine.add(RequestId(1), request(&text(10, 3), 3), 0).unwrap();
    engine.add(RequestId(2), request(&text(20, 1), 1), 0).unwrap();
    // Two blocks each, and one more for each that runs: nothing is left to start the third.
    assert_eq!(step_rows(&mut engine), [(0, 3), (1, 3)]);
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 1)]);
    // Both need a third block.
    let report = engine.step(0).unwrap();
    assert_eq!((report.preemptions, report.decode_tokens), (0, 2));
    assert_eq!(finishes(&report.outputs), [(1, 0, Finish::Length)]);
    let rest = finishes(&run_all(&mut engine));
    assert_eq!(rest, [(2, 0, Finish::Length), (0, 0, Finish::Length)]);

    let mut engine = self::engine(config);
    engine.add(RequestId(0), request(&text(0, 3), 9), 0).unwrap();
    engine.add(RequestId(1), request(&text(10, 3), 5), 0).unwrap();
    engine.add(RequestId(2), request(&text(20, 1), 1), 0).unwrap();
    let mut preempted = Vec::new();
    let mut order = Vec::new();
    for step in 0..30 {
        let report = engine.step(0).unwrap();
        engine.check_integrity();
        if report.preemptions > 0 {
            preempted.push(step);
            // The first goes on alone; nobody starts in a step that preempted.
            assert_eq!(engine.runner().rows.len(), 1);
            assert_eq!((report.stats.running, report.stats.waiting), (1, 2));
            assert_eq!(report.stats.waiting_tokens, 7 + 1);
        }
        order.extend(finishes(&report.outputs).into_iter().map(|(request, ..)| request));
    }
    assert_eq!(preempted, [4]);
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn siblings_share_the_prompt_even_without_prefix_cache() {
    for prefix_cache in [true, false] {
        let mut engine = engine(EngineConfig {
            prefix_cache,
            ..CONFIG
        });
        engine
            .add(
                RequestId(0),
                Request {
                    n: 3,
                    ..request(&text(0, 9), 2)
                },
                0,
            )
            .unwrap();
        assert_eq!(engine.stats().waiting_tokens, 9 + 1 + 1);
        assert_eq!(step_rows(&mut engine), [(0, 8)]);
        assert_eq!(step_rows(&mut engine), [(0, 1)]);
        let report = engine.step(0).unwrap();
        assert_eq!((report.cache_query_tokens, report.cache_hit_tokens), (18, 16));
        assert_eq!(report.stats.blocks_used, 2 + 2);
        run_all(&mut engine);
        // Another request with the same prompt.
        engine.add(RequestId(1), request(&text(0, 9), 1), 0).unwrap();
        let hit = engine.step(0).unwrap().cache_hit_tokens;
        assert_eq!(hit, if prefix_cache { 8 } else { 0 });
        run_all(&mut engine);
        engine
            .add(
                RequestId(2),
                Request {
                    cache_salt: 1,
                    ..request(&text(0, 9), 1)
                },
                0,
            )
            .unwrap();
        assert_eq!(engine.step(0).unwrap().cache_hit_tokens, 0);
    }
}

#[test]
fn siblings_differ_and_repeat() {
    let tokens = |n| {
        let mut engine = engine(CONFIG);
        engine
            .add(
                RequestId(0),
                Request {
                    n,
                    ..request(&text(0, 5), 12)
                },
                0,
            )
            .unwrap();
        let mut texts = vec![Vec::new(); n];
        for output in run_all(&mut engine) {
            if let Event::Token(sampled) = output.event {
                texts[output.index].push(sampled.token);
            }
        }
        texts
    };
    let three = tokens(3);
    assert_eq!(tokens(3), three);
    assert_eq!(tokens(1)[0], three[0]);
    assert!(three[0] != three[1] && three[1] != three[2] && three[0] != three[2]);
}

#[test]
fn prompts_are_scored_in_chunks_without_the_cache() {
    let config = EngineConfig {
        step_tokens_max: 200,
        context_max: 400,
        blocks: 100,
        sequences_max: 2,
        ..CONFIG
    };
    let config = EngineConfig {
        queue_tokens_max: 1000,
        ..config
    };
    let mut engine = engine(config);
    let prompt: Vec<Token> = (0..150).map(|position| position % 50).collect();
    engine.add(RequestId(0), request(&prompt, 1), 0).unwrap();
    run_all(&mut engine);
    let scoring = Request {
        prompt_logprobs: Some(2),
        n: 2,
        ..request(&prompt, 0)
    };
    engine.add(RequestId(1), scoring.clone(), 0).unwrap();
    // One row of logits is kept for the other sequence that could run.
    assert_eq!(config.logits_max(), 66);
    assert_eq!(step_rows(&mut engine), [(1, 65)]);
    assert_eq!(step_rows(&mut engine), [(1, 65)]);
    let outputs = run_all(&mut engine);
    let scores = FakeModel {
        vocab: 50,
        nan_one_in: 0,
    }
    .alone(&scoring, 0, 400)
    .scores
    .unwrap();
    assert_eq!(scores.len(), 150);
    let events = |index| {
        outputs
            .iter()
            .filter(move |output| output.index == index)
            .map(|output| &output.event)
    };
    let end = [
        &Event::PromptLogprobs(scores.into()),
        &Event::Finished(Finish::Length),
    ];
    assert_eq!(events(0).collect::<Vec<_>>(), end);
    let started = Event::Started { cached_tokens: 148 };
    assert_eq!(events(1).collect::<Vec<_>>(), [&started, end[0], end[1]]);
}

#[test]
fn prompts_scored_in_one_step_share_its_logits() {
    let mut engine = engine(EngineConfig {
        step_tokens_max: 200,
        sequences_max: 2,
        ..CONFIG
    });
    for id in 0..2 {
        let scoring = Request {
            prompt_logprobs: Some(0),
            ..request(&[id as Token; 50], 0)
        };
        engine.add(RequestId(id), scoring, 0).unwrap();
    }
    assert_eq!(engine.scheduler.config.logits_max(), 66);
    // The first has 49 tokens to score, the second gets the rows that are left.
    assert_eq!(step_rows(&mut engine), [(0, 50), (1, 17)]);
    assert_eq!(step_rows(&mut engine), [(1, 33)]);
}
