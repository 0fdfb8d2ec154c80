use super::*;
use crate::rng::draw;

/// An engine whose model knows so few tokens that guesses are often right: with one token, always.
pub(super) fn guessing(
    speculative_tokens: usize,
    vocab: usize,
    change: impl Fn(&mut EngineConfig),
) -> Engine<FakeRunner> {
    let mut config = EngineConfig {
        step_tokens_max: 32,
        speculative_tokens,
        ..CONFIG
    };
    change(&mut config);
    // A text of one token only must not end in NaN.
    let nan_one_in = if vocab > 1 { 40 } else { 0 };
    Engine::new(FakeRunner::new(FakeModel { vocab, nan_one_in }, &config), config)
}

/// So few blocks that sequences are preempted, of a size and with or without a prefix cache by the seed.
pub(super) fn make_small(config: &mut EngineConfig, seed: u64) {
    config.block_size = 1 + (seed % 4) as usize;
    config.blocks = 42 / config.block_size;
    config.context_max = 40;
    config.prefix_cache = !seed.is_multiple_of(3);
}

/// Any request, of few words.
fn any_request(seed: u64) -> Request {
    let dice = |index: u64, sides: u64| (draw(seed, index) % sides) as usize;
    let prompt = (0..=dice(0, 12) as u64).map(|position| dice(100 + position, 2) as Token);
    let stops: &[&[Token]] = &[&[], &[], &[1], &[0, 1]];
    Request {
        n: 1 + dice(1, 3),
        sampling: SamplingParams {
            temperature: [0.0, 1.0, 1.7][dice(2, 3)],
            top_p: [1.0, 0.8][dice(3, 2)],
            top_k: [0, 0, 1][dice(4, 3)],
            min_p: [0.0, 0.2][dice(5, 2)],
            repetition_penalty: [1.0, 1.4][dice(6, 2)],
            presence_penalty: [0.0, 0.5][dice(7, 2)],
            frequency_penalty: [0.0, 0.3, -0.3][dice(8, 3)],
            logit_bias: [Vec::new(), vec![(1, 0.7)]][dice(9, 2)].clone(),
            seed: draw(seed, 10),
            logprobs: [None, Some(0), Some(2)][dice(11, 3)],
        },
        stop: StopRules {
            tokens: stops[dice(12, 4)].to_vec(),
            max_tokens: dice(13, 30),
            min_tokens: [0, 0, 5][dice(14, 3)],
        },
        prompt_logprobs: [None, None, Some(1)][dice(15, 3)],
        grammar: None,
        ..request(&prompt.collect::<Vec<_>>(), 0)
    }
}

/// What a request's sequences say, by request and index. How much was cached may differ.
pub(super) fn answers(engine: &mut Engine<FakeRunner>, seed: u64) -> (Vec<Vec<Event>>, StepReport) {
    const REQUESTS: usize = 3;
    const SEQUENCES: usize = 3;
    let mut said = vec![Vec::new(); REQUESTS * SEQUENCES];
    let mut total = StepReport::default();
    for step in 0..STEPS_MAX {
        // The second and third come while others run.
        if step % 4 == 0 && step / 4 < REQUESTS {
            let id = (step / 4) as u64;
            engine.add(RequestId(id), any_request(seed * 8 + id), 0).unwrap();
        } else if step / 4 >= REQUESTS && !engine.has_work() {
            return (said, total);
        }
        let report = engine.step(0).unwrap();
        engine.check_integrity();
        total.drafted_tokens += report.drafted_tokens;
        total.accepted_tokens += report.accepted_tokens;
        total.preemptions += report.preemptions;
        total.out_of_memory |= report.out_of_memory;
        for output in report.outputs {
            if !matches!(output.event, Event::Started { .. }) {
                said[output.request.0 as usize * SEQUENCES + output.index].push(output.event);
            }
        }
    }
    panic!("{STEPS_MAX} steps and no end: {:?}", engine.stats());
}

#[test]
fn guesses_change_no_answer() {
    let mut totals = [0; 3];
    for seed in 0..400 {
        let small = |config: &mut EngineConfig| make_small(config, seed);
        let (plain, _) = answers(&mut guessing(0, 2, small), seed);
        for speculative_tokens in [1, 4, 8] {
            let (said, total) = answers(&mut guessing(speculative_tokens, 2, small), seed);
            assert_eq!(said, plain, "seed {seed}, {speculative_tokens} guesses");
            totals[0] += total.accepted_tokens;
            totals[1] += total.drafted_tokens - total.accepted_tokens;
            totals[2] += total.preemptions;
        }
    }
    assert!(totals.iter().all(|count| *count > 100), "{totals:?}");
}

#[test]
fn right_guesses_save_steps() {
    let mut engine = guessing(8, 1, |_| ());
    engine.add(RequestId(0), request(&[0; 5], 40), 0).unwrap();
    let mut rows = Vec::new();
    let mut counts = [0; 4];
    while engine.has_work() {
        let report = engine.step(0).unwrap();
        rows.push(engine.runner().batch_tokens);
        counts[0] += report.decode_tokens;
        counts[1] += report.drafted_tokens;
        counts[2] += report.accepted_tokens;
        counts[3] += report.drafts;
    }
    // Twice as many each time, and at last only as many as can be of use.
    assert_eq!(rows, [5, 3, 5, 9, 9, 9, 4]);
    // The first step computes the prompt, for which nothing is guessed.
    assert_eq!(counts, [6, 33, 33, 6]);
}

#[test]
fn guesses_take_nothing_from_others() {
    // The drafts of each step, for so many sequences and tokens in a step.
    let drafted = |sequences: u64, change: fn(&mut EngineConfig)| {
        let mut engine = guessing(8, 1, change);
        for id in 0..sequences {
            engine.add(RequestId(id), request(&[0; 4], 9), 0).unwrap();
        }
        let mut drafted = Vec::new();
        while engine.has_work() {
            let report = engine.step(0).unwrap();
            engine.check_integrity();
            assert_eq!(report.preemptions, 0);
            drafted.push(report.drafted_tokens);
        }
        drafted
    };
    assert_eq!(drafted(1, |_| ()), [0, 2, 4]);
    assert_eq!(drafted(2, |_| ()), [0, 4, 8]);
    // With three of them a step is worth its weights.
    assert_eq!(drafted(3, |_| ()), [0; 9]);
    // One token of a step stays for a newcomer.
    let narrow = |config: &mut EngineConfig| {
        config.step_tokens_max = 4;
        config.sequences_max = 2;
    };
    assert_eq!(drafted(1, narrow), [0, 2, 2, 1]);
    // Three blocks for each: the one that the other may need next is not for guesses.
    let tight = |config: &mut EngineConfig| {
        config.blocks = 6;
        config.prefix_cache = false;
    };
    assert_eq!(drafted(2, tight), [0, 4, 0, 6]);
}

#[test]
fn prompts_come_before_guesses() {
    let mut engine = guessing(8, 1, |config| config.step_tokens_max = 8);
    engine.add(RequestId(0), request(&[0; 4], 20), 0).unwrap();
    engine.step(0).unwrap();
    engine.add(RequestId(1), request(&[0; 20], 1), 0).unwrap();
    // From the step that admits the newcomer there are none until its prompt is done.
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 7)]);
    assert_eq!(step_rows(&mut engine), [(0, 1), (1, 7)]);
}
