//! What a flow may hold of the blocks and of the queue.

use super::fairness::{ROOMY, add, of, running, starts};
use super::*;

#[test]
fn no_flow_holds_more_blocks_than_the_cap_beside_others() {
    let mut engine = engine(EngineConfig {
        blocks: 16,
        step_tokens_max: 64,
        sequences_max: 8,
        prefix_cache: false,
        flow_blocks_share_max: 50,
        ..ROOMY
    });
    let held = |engine: &Engine<FakeRunner>, flow| {
        let mut flows = engine.flow_stats();
        flows
            .find(|stats| stats.flow == flow)
            .map_or(0, |stats| stats.blocks_used)
    };
    for id in 10..14 {
        add(&mut engine, id, 10, 20);
    }
    engine.step(0).unwrap();
    // Alone it may.
    assert_eq!(held(&engine, 1), 12);
    add(&mut engine, 20, 2, 30);
    for _ in 0..15 {
        engine.step(0).unwrap();
        engine.check_integrity();
        assert!((1..=8).contains(&held(&engine, 1)), "{}", held(&engine, 1));
    }
    engine.abort(RequestId(20));
    for _ in 0..5 {
        engine.step(0).unwrap();
    }
    assert!(held(&engine, 1) > 8, "{}", held(&engine, 1));
    assert_eq!(finishes(&run_all(&mut engine)).len(), 3);
}

#[test]
fn one_sequence_may_exceed_the_cap() {
    let mut engine = engine(EngineConfig {
        blocks: 16,
        step_tokens_max: 64,
        flow_blocks_share_max: 25,
        ..ROOMY
    });
    add(&mut engine, 20, 2, 20);
    engine.step(0).unwrap();
    add(&mut engine, 10, 30, 6);
    add(&mut engine, 11, 4, 2);
    let report = engine.step(0).unwrap();
    assert_eq!(starts(&report.outputs), [10]);
    let mut ended = Vec::new();
    while engine.has_work() {
        let report = engine.step(0).unwrap();
        assert_eq!(report.preemptions, 0);
        ended.extend(finishes(&report.outputs));
    }
    let order: Vec<u64> = ended.iter().map(|(request, ..)| *request).collect();
    // A second one of its flow waits until it has ended.
    assert_eq!(order, [10, 11, 20]);
}

#[test]
fn a_flow_may_fill_half_of_what_is_left_of_the_queue() {
    let mut engine = engine(EngineConfig {
        queue_requests_max: 12,
        queue_tokens_max: 64,
        ..ROOMY
    });
    let mut fill = |flow: u64, tokens: usize| {
        let full = |id: u64| {
            let request = of(flow, 1, request(&vec![1; tokens], 1));
            engine.add(RequestId(flow * 100 + id), request, 0).err()
        };
        let refused = (0..20)
            .map(full)
            .enumerate()
            .find_map(|(id, error)| Some((id, error?)));
        refused.unwrap()
    };
    let (taken, refused) = fill(1, 1);
    assert_eq!(taken, 6);
    assert_eq!(
        refused.to_string(),
        "flow 1 fills its part of the queue: 6 of its requests and 6 of its prompt tokens wait, this request has 1 \
         tokens, and 6 requests and 58 tokens are left free"
    );
    assert_eq!(fill(2, 1).0, 3);
    // 55 tokens and three requests are left.
    let (taken, refused) = fill(3, 20);
    assert_eq!(taken, 1);
    assert!(
        matches!(
            refused,
            AddError::FlowQueueFull {
                flow: 3,
                tokens: 20,
                ..
            }
        ),
        "{refused}"
    );
    // Flow 0 takes all the rest.
    let (taken, refused) = fill(0, 1);
    assert_eq!(taken, 2);
    assert!(matches!(refused, AddError::QueueFull { .. }), "{refused}");
    assert!(matches!(fill(4, 1).1, AddError::QueueFull { .. }));
}

#[test]
fn what_was_preempted_keeps_nobody_out_of_the_queue() {
    let mut engine = engine(EngineConfig {
        queue_tokens_max: 30,
        step_tokens_max: 64,
        prefix_cache: false,
        ..ROOMY
    });
    for id in 10..14 {
        add(&mut engine, id, 6, 25);
        engine.step(0).unwrap();
    }
    for _ in 0..18 {
        engine.step(0).unwrap();
    }
    add(&mut engine, 20, 10, 3);
    assert_eq!(engine.step(0).unwrap().preemptions, 1);
    let stats = engine.stats();
    assert_eq!(
        (stats.waiting, stats.waiting_tokens > 20, stats.unstarted_tokens),
        (1, true, 0)
    );
    assert_eq!((stats.flows, stats.queued()), (2, Queued::default()));
    add(&mut engine, 30, 20, 1);
    let of_three = engine.flow_stats().last().unwrap();
    assert_eq!(
        of_three.queued,
        Queued {
            requests: 1,
            tokens: 20
        }
    );
    assert_eq!(finishes(&run_all(&mut engine)).len(), 6);
}

#[test]
fn weights_and_caps_are_checked() {
    let mut engine = engine(ROOMY);
    for weight in [0, 1001] {
        let refused = engine.add(RequestId(0), of(1, weight, request(&[1], 1)), 0);
        let says = format!("the weight of the flow is {weight}, it must be 1 to 1000");
        assert_eq!(refused.unwrap_err().to_string(), says);
    }
    for percent in [0, 101] {
        let config = EngineConfig {
            flow_blocks_share_max: percent,
            ..ROOMY
        };
        let says = format!("flow_blocks_share_max is {percent}, it must be 1 to 100 (percent)");
        assert_eq!(config.check().unwrap_err().to_string(), says);
    }
}

#[test]
fn the_latest_weight_holds_and_what_ends_early_is_counted_off() {
    let mut engine = engine(ROOMY);
    for (id, weight) in [(10, 1000), (11, 3)] {
        let siblings = Request {
            n: 3,
            deadline_ms: (id == 11).then_some(5),
            ..of(1, weight, request(&[1; 6], 9))
        };
        engine.add(RequestId(id), siblings, 0).unwrap();
    }
    let stats = engine.flow_stats().next().unwrap();
    let queued = Queued {
        requests: 2,
        tokens: 16,
    };
    assert_eq!((stats.weight, stats.queued, stats.waiting), (3, queued, 6));
    engine.check_integrity();
    engine.step(0).unwrap();
    engine.abort_sequence(RequestId(10), 1);
    engine.check_integrity();
    engine.step(5).unwrap();
    engine.check_integrity();
    let stats = engine.flow_stats().next().unwrap();
    assert_eq!(
        (stats.queued, stats.waiting + stats.running),
        (Queued::default(), 2)
    );
    engine.abort(RequestId(10));
    assert_eq!(engine.stats().flows, 0);
    run_all(&mut engine);
    // A failed step ends its sequences, and the flow's with them.
    add(&mut engine, 20, 3, 3);
    engine.runner().fail_next(Fault::ForwardError);
    engine.step(9).unwrap_err();
    assert_eq!(engine.fail_step().stats.flows, 0);
    engine.check_integrity();
}

#[test]
fn blocks_found_with_who_gives_way_count_for_the_cap() {
    let mut engine = engine(EngineConfig {
        step_tokens_max: 128,
        flow_blocks_share_max: 30,
        ..ROOMY
    });
    add(&mut engine, 20, 12, 30);
    for id in [10, 11] {
        add(&mut engine, id, 2, 30);
    }
    let shared = vec![7; 18];
    let request = |flow| of(flow, 1, request(&shared, 30));
    engine.add(RequestId(12), request(1), 0).unwrap();
    engine.step(0).unwrap();
    assert_eq!(running(&engine), [(1, 3), (2, 1)]);
    // The youngest of the other flow holds most of what it finds.
    engine.add(RequestId(21), request(2), 0).unwrap();
    let report = engine.step(0).unwrap();
    assert_eq!((starts(&report.outputs), report.preemptions), (vec![], 0));
    assert_eq!(finishes(&run_all(&mut engine)).len(), 5);
}

/// What gives way gives back the rows of logits that were set aside for it, also if it wanted none: prompts whose likelihoods
/// are asked for take all that is left of a step.
#[test]
fn one_that_samples_nothing_gives_way_to_one_that_scores() {
    const PLACES: EngineConfig = EngineConfig {
        blocks: 256,
        step_tokens_max: 256,
        sequences_max: 2,
        context_max: 400,
        queue_tokens_max: 4_000,
        ..ROOMY
    };
    let scoring = |id: u64, prompt: usize| Request {
        prompt_logprobs: Some(0),
        ..of(id / 10, 1, request(&vec![id as Token; prompt], 0))
    };
    // Whenever the other flow comes, also as the youngest of the first has nothing but its last token left.
    for (last, steps) in (1..8).flat_map(|last| (0..8).map(move |steps| (last, steps))) {
        let mut engine = engine(PLACES);
        // It was served before, so that the long prompt of the first flow takes its part of the step first.
        engine.add(RequestId(21), scoring(21, 240), 0).unwrap();
        run_all(&mut engine);
        engine.add(RequestId(10), scoring(10, 300), 0).unwrap();
        engine.add(RequestId(11), scoring(11, last), 0).unwrap();
        for _ in 0..steps {
            engine.step(0).unwrap();
            engine.check_integrity();
        }
        engine.add(RequestId(20), scoring(20, 150), 0).unwrap();
        let ended = finishes(&run_all(&mut engine));
        assert!(
            ended.iter().all(|(.., finish)| *finish == Finish::Length),
            "{last} {steps}: {ended:?}"
        );
    }
}
