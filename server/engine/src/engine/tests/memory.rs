use super::speculation::{answers, guessing, make_small};
use super::*;

#[test]
fn steps_that_find_no_memory_change_no_answer() {
    const ENOUGH: usize = usize::MAX;
    let (mut short, mut preempted) = (0, 0);
    for seed in 0..200 {
        let small = |config: &mut EngineConfig| make_small(config, seed);
        let (plain, _) = answers(&mut guessing(0, 2, small), seed);
        for (forward, sample) in [(1, ENOUGH), (3, ENOUGH), (ENOUGH, 2), (9, 4)] {
            for speculative_tokens in [0, 4] {
                let mut engine = guessing(speculative_tokens, 2, small);
                engine.runner().limit_memory(forward, sample);
                let (said, total) = answers(&mut engine, seed);
                assert_eq!(said, plain, "seed {seed}, {forward} and {sample} tokens");
                assert!(engine.runner().batch_tokens <= forward.min(sample));
                short += usize::from(total.out_of_memory);
                preempted += total.preemptions;
            }
        }
    }
    assert!(short > 1_000 && preempted > 300, "{short}, {preempted}");
}

#[test]
fn steps_grow_again_once_there_is_memory() {
    let mut engine = engine(CONFIG);
    engine.add(RequestId(0), request(&text(0, 12), 3), 0).unwrap();
    engine.runner().limit_memory(3, usize::MAX);
    let report = engine.step(0).unwrap();
    assert!(report.out_of_memory && engine.has_work());
    assert_eq!(report.prefill_tokens, 0);
    // 8 and 4 tokens found none.
    assert!(engine.step(0).unwrap().out_of_memory);
    assert_eq!(engine.step(0).unwrap().prefill_tokens, 2);
    run_all(&mut engine);
    engine.runner().limit_memory(usize::MAX, usize::MAX);
    let mut largest = Vec::new();
    for id in 1..=300 {
        let prompt: Vec<Token> = (0..9).map(|at| ((id * 7 + at * 3) % 50) as Token).collect();
        engine.add(RequestId(id), request(&prompt, 1), 0).unwrap();
        let mut tokens = 0;
        while engine.has_work() {
            engine.step(0).unwrap();
            engine.check_integrity();
            tokens = tokens.max(engine.runner().batch_tokens);
        }
        largest.push(tokens);
    }
    largest.dedup();
    assert_eq!(
        (largest.first(), largest.last()),
        (Some(&2), Some(&8)),
        "{largest:?}"
    );
    assert!(largest.contains(&4), "by and by: {largest:?}");
}

#[test]
fn a_step_of_one_token_that_finds_no_memory_fails() {
    let mut engine = engine(CONFIG);
    engine.add(RequestId(0), request(&text(0, 9), 3), 0).unwrap();
    engine.runner().limit_memory(0, usize::MAX);
    for _ in 0..3 {
        assert!(engine.step(0).unwrap().out_of_memory);
    }
    assert_eq!(engine.step(0).unwrap_err(), FakeError::OutOfMemory);
    assert_eq!(finishes(&engine.fail_step().outputs), [(0, 0, Finish::Failed)]);
    engine.check_integrity();
    engine.runner().limit_memory(usize::MAX, usize::MAX);
    engine.add(RequestId(1), request(&text(0, 9), 3), 0).unwrap();
    assert_eq!(finishes(&run_all(&mut engine)), [(1, 0, Finish::Length)]);
}

#[test]
fn what_is_computed_again_is_charged_once() {
    let charged = |engine: &mut Engine<FakeRunner>| {
        let mut tokens = Vec::new();
        for _ in 0..STEPS_MAX {
            if !engine.has_work() {
                return tokens.last().copied();
            }
            engine.step(0).unwrap();
            tokens.extend(engine.flow_stats().map(|flow| flow.tokens).max());
        }
        panic!("{STEPS_MAX} steps and no end");
    };
    let flow = Flow { id: 7, weight: 3 };
    let with_memory = |tokens: usize| {
        let mut engine = engine(CONFIG);
        let asked = Request {
            flow,
            ..request(&text(0, 18), 6)
        };
        engine.add(RequestId(0), asked, 0).unwrap();
        engine.runner().limit_memory(tokens, usize::MAX);
        charged(&mut engine)
    };
    assert_eq!(with_memory(3), with_memory(usize::MAX));
}

/// Under a limit that stays, larger steps are tried ever more rarely, and what has worked is what they fall back to.
#[test]
fn larger_steps_are_tried_ever_more_rarely() {
    let mut engine = engine(EngineConfig {
        step_tokens_max: 32,
        blocks: 64,
        ..CONFIG
    });
    engine.runner().limit_memory(9, usize::MAX);
    let (mut failed, mut computed, mut next) = (Vec::new(), 0, 0);
    while computed < 400 {
        if engine.stats().waiting == 0 {
            let prompt: Vec<Token> = (0..60).map(|at| ((next * 7 + at * 3) % 50) as Token).collect();
            engine.add(RequestId(next), request(&prompt, 1), 0).unwrap();
            next += 1;
        }
        if engine.step(0).unwrap().out_of_memory {
            failed.push((computed, engine.runner().batch_tokens));
        } else {
            computed += 1;
            assert!(engine.runner().batch_tokens <= 9);
        }
        engine.check_integrity();
    }
    assert_eq!(failed[..2], [(0, 32), (0, 16)]);
    let pauses: Vec<usize> = failed[1..].windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert_eq!(pauses, [16, 32, 64, 128], "{failed:?}");
    assert!(failed[2..].iter().all(|(_, tokens)| *tokens == 16), "{failed:?}");
    // There is less still: what has worked is no longer gone by.
    engine.runner().limit_memory(5, usize::MAX);
    while !engine.step(0).unwrap().out_of_memory {}
    assert!(engine.step(0).unwrap().prefill_tokens <= 4);
}
