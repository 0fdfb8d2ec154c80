use super::*;
use crate::request::FLOW_WEIGHT_MAX;

fn of(id: u64, weight: u32, request: Request) -> Request {
    Request {
        flow: Flow { id, weight },
        ..request
    }
}

/// Adds requests, each of a flow of weight 1, whose ids are ten times the flow's and more.
fn add(engine: &mut Engine<FakeRunner>, id: u64, prompt: usize, max_tokens: usize) {
    let tokens = vec![id as Token; prompt];
    let request = of(id / 10, 1, request(&tokens, max_tokens));
    engine.add(RequestId(id), request, 0).unwrap();
}

fn starts(outputs: &[Output]) -> Vec<u64> {
    let started = |output: &&Output| matches!(output.event, Event::Started { .. });
    let started = outputs.iter().filter(started);
    started.map(|output| output.request.0).collect()
}

/// How many sequences of each flow run.
fn running(engine: &Engine<FakeRunner>) -> Vec<(u64, usize)> {
    let flows = engine.flow_stats();
    flows.map(|flow| (flow.flow, flow.running)).collect()
}

fn tokens(engine: &Engine<FakeRunner>, flow: u64) -> u64 {
    let mut flows = engine.flow_stats();
    flows.find(|stats| stats.flow == flow).unwrap().tokens
}

const ROOMY: EngineConfig = EngineConfig {
    queue_requests_max: 100,
    queue_tokens_max: 1000,
    ..CONFIG
};

const ONE_PLACE: EngineConfig = EngineConfig {
    sequences_max: 1,
    ..ROOMY
};

#[test]
fn the_flow_that_was_served_least_is_next() {
    let mut engine = engine(ONE_PLACE);
    for id in [10, 11, 12, 20, 21, 30] {
        add(&mut engine, id, 3, 4);
    }
    // In order of arrival within a flow.
    assert_eq!(starts(&run_all(&mut engine)), [10, 20, 30, 11, 21, 12]);

    let mut engine = self::engine(ONE_PLACE);
    for id in [10, 20, 11, 21, 12, 22, 13, 23] {
        let weight = if id < 20 { 1 } else { 2 };
        let request = of(id / 10, weight, request(&[id as Token; 2], 4));
        engine.add(RequestId(id), request, 0).unwrap();
    }
    // After one of each the second flow has one more until it was served as much as the first.
    assert_eq!(starts(&run_all(&mut engine)), [10, 20, 21, 11, 22, 23, 12, 13]);
}

#[test]
fn priority_comes_before_flows() {
    let mut engine = engine(ONE_PLACE);
    for (id, priority) in [(10, 0), (11, -1), (12, -1), (20, 0), (21, 1)] {
        let request = Request {
            priority,
            ..of(id / 10, 1, request(&[1; 4], 2))
        };
        engine.add(RequestId(id), request, 0).unwrap();
    }
    assert_eq!(starts(&run_all(&mut engine)), [11, 12, 20, 10, 21]);
}

#[test]
fn nobody_saves_up_while_it_is_idle() {
    let mut engine = engine(ONE_PLACE);
    add(&mut engine, 20, 4, 1);
    run_all(&mut engine);
    // The second flow asks for nothing while the first is served.
    for id in 10..14 {
        add(&mut engine, id, 4, 20);
    }
    for _ in 0..70 {
        engine.step(0).unwrap();
    }
    for id in [20, 21, 22, 14, 15] {
        add(&mut engine, id, 4, 20);
    }
    let order = starts(&run_all(&mut engine));
    assert_eq!(order, [20, 14, 21, 15, 22]);
}

#[test]
fn who_had_more_than_its_share_is_remembered_until_the_others_have_caught_up() {
    let flows =
        |engine: &Engine<FakeRunner>| -> Vec<u64> { engine.flow_stats().map(|flow| flow.flow).collect() };
    let mut engine = engine(ONE_PLACE);
    for id in [10, 20, 30] {
        add(&mut engine, id, 2, 1);
    }
    // Everything ends, and with it all memory.
    run_all(&mut engine);
    engine.step(0).unwrap();
    assert_eq!(flows(&engine), []);

    let mut engine = self::engine(ONE_PLACE);
    for id in [20, 10, 11, 12, 13, 14, 15] {
        add(&mut engine, id, if id == 20 { 20 } else { 4 }, 3);
    }
    let mut order = Vec::new();
    while !order.contains(&10) {
        order.extend(starts(&engine.step(0).unwrap().outputs));
    }
    assert_eq!(flows(&engine), [1, 2]);
    // It comes back at once, and is still ahead.
    add(&mut engine, 21, 4, 3);
    order.extend(starts(&run_all(&mut engine)));
    assert_eq!(order, [20, 10, 11, 12, 13, 21, 14, 15]);
}

#[test]
fn a_flood_gives_up_places_to_others_and_no_more_than_their_share() {
    let mut engine = engine(EngineConfig {
        step_tokens_max: 40,
        prefix_cache: false,
        ..ROOMY
    });
    for id in 10..16 {
        add(&mut engine, id, 2, 25);
    }
    engine.step(0).unwrap();
    assert_eq!(running(&engine), [(1, 4)]);
    for id in 20..24 {
        add(&mut engine, id, 2, 25);
    }
    let report = engine.step(0).unwrap();
    let taken = (vec![20, 21], 2);
    assert_eq!((starts(&report.outputs), report.preemptions), taken);
    // The youngest gave way: the two that are left computed a token each, beside the prompts.
    assert_eq!(engine.runner().batch_tokens, 2 + 4);
    engine.check_integrity();
    for _ in 0..20 {
        let report = engine.step(0).unwrap();
        assert_eq!((starts(&report.outputs), report.preemptions), (vec![], 0));
        assert_eq!(running(&engine), [(1, 2), (2, 2)]);
    }
    // A third has a share of one place, and takes it from the first or second, which keep theirs.
    add(&mut engine, 30, 2, 25);
    let report = engine.step(0).unwrap();
    assert_eq!((starts(&report.outputs), report.preemptions), (vec![30], 1));
    let places: usize = running(&engine).iter().map(|(_, places)| places).sum();
    assert_eq!(places, 4);
    assert_eq!(finishes(&run_all(&mut engine)).len(), 11);
}

#[test]
fn the_first_in_order_keeps_its_place() {
    let mut engine = engine(EngineConfig {
        sequences_max: 2,
        ..ROOMY
    });
    // Two places and three flows: each has a share of one.
    for id in [10, 11, 20, 30] {
        add(&mut engine, id, 2, 20);
    }
    engine.step(0).unwrap();
    assert_eq!(running(&engine), [(1, 1), (2, 1), (3, 0)]);
    let mut preempted = 0;
    for _ in 0..15 {
        preempted += engine.step(0).unwrap().preemptions;
        assert!(engine.runner().rows.iter().any(|row| row.seq == SeqId(0)));
    }
    assert_eq!(preempted, 0);
}

#[test]
fn a_flood_gives_up_blocks_to_others() {
    let mut engine = engine(EngineConfig {
        blocks: 16,
        step_tokens_max: 64,
        sequences_max: 8,
        prefix_cache: false,
        ..ROOMY
    });
    // Five sequences of three blocks take all but one.
    for id in 10..15 {
        add(&mut engine, id, 11, 1 + 10);
    }
    for _ in 0..2 {
        engine.step(0).unwrap();
    }
    let before = engine.stats().running;
    assert!(before >= 4, "{before}");
    add(&mut engine, 20, 11, 1);
    let report = engine.step(0).unwrap();
    assert_eq!(starts(&report.outputs), [20]);
    assert!(report.preemptions > 0);
    // What is more than its share does not get a flow blocks of others.
    add(&mut engine, 30, 40, 1);
    let report = engine.step(0).unwrap();
    assert_eq!((starts(&report.outputs), report.preemptions), (vec![], 0));
    assert_eq!(finishes(&run_all(&mut engine)).len(), 6);
}

#[test]
fn a_long_prompt_leaves_room_for_the_first_chunk_of_another_flow() {
    let mut engine = engine(ROOMY);
    add(&mut engine, 10, 60, 1);
    add(&mut engine, 11, 40, 1);
    engine.step(0).unwrap();
    add(&mut engine, 20, 5, 9);
    // The first in order gets what is left.
    assert_eq!(step_rows(&mut engine), [(0, 3), (2, 5)]);
    add(&mut engine, 30, 20, 1);
    // Nothing is left, but it gets a token.
    assert_eq!(step_rows(&mut engine), [(0, 1), (2, 1), (3, 6)]);
    assert_eq!((tokens(&engine, 1), tokens(&engine, 3)), (12, 6));
}

/// Adds requests of a flow so that some always wait, and steps until another's request has started.
fn steps_to_start(engine: &mut Engine<FakeRunner>, flow: Flow, awaited: u64) -> usize {
    for step in 0..STEPS_MAX {
        let id = RequestId(1000 + step as u64);
        let request = Request {
            flow,
            ..request(&[id.0 as Token % 50; 6], 8)
        };
        let _ = engine.add(id, request, 0);
        if starts(&engine.step(0).unwrap().outputs).contains(&awaited) {
            return step;
        }
        engine.check_integrity();
    }
    panic!("{STEPS_MAX} steps and no start");
}

#[test]
fn a_large_request_is_not_passed_for_ever() {
    let config = EngineConfig {
        blocks: 16,
        step_tokens_max: 64,
        ..ROOMY
    };
    let mut engine = engine(config);
    let others = Flow { id: 1, weight: 1 };
    for id in 10..14 {
        add(&mut engine, id, 6, 8);
    }
    engine.step(0).unwrap();
    // All but two blocks.
    add(&mut engine, 20, 55, 1);
    let steps = steps_to_start(&mut engine, others, 20);
    assert!((2..60).contains(&steps), "{steps}");
}

#[test]
fn the_least_weight_is_served_beside_the_greatest() {
    let mut engine = engine(EngineConfig {
        step_tokens_max: 64,
        ..ROOMY
    });
    let heavy = Flow {
        id: 1,
        weight: FLOW_WEIGHT_MAX,
    };
    for id in 0..4 {
        let request = Request {
            flow: heavy,
            ..request(&[1; 6], 30)
        };
        engine.add(RequestId(id), request, 0).unwrap();
    }
    engine.step(0).unwrap();
    add(&mut engine, 20, 6, 2);
    assert_eq!(steps_to_start(&mut engine, heavy, 20), 0);
    // It has had a thousand times what it is due, but no more than a step's worth.
    add(&mut engine, 21, 6, 60);
    assert!(steps_to_start(&mut engine, heavy, 21) <= 10);
}

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
