//! In which order flows are served, and what they take from each other.

use super::*;
use crate::request::FLOW_WEIGHT_MAX;

pub(super) fn of(id: u64, weight: u32, request: Request) -> Request {
    Request {
        flow: Flow { id, weight },
        ..request
    }
}

/// Adds requests, each of a flow of weight 1, whose ids are ten times the flow's and more.
pub(super) fn add(engine: &mut Engine<FakeRunner>, id: u64, prompt: usize, max_tokens: usize) {
    let tokens = vec![id as Token; prompt];
    let request = of(id / 10, 1, request(&tokens, max_tokens));
    engine.add(RequestId(id), request, 0).unwrap();
}

pub(super) fn starts(outputs: &[Output]) -> Vec<u64> {
    let started = |output: &&Output| matches!(output.event, Event::Started { .. });
    let started = outputs.iter().filter(started);
    started.map(|output| output.request.0).collect()
}

/// How many sequences of each flow run.
pub(super) fn running(engine: &Engine<FakeRunner>) -> Vec<(u64, usize)> {
    let flows = engine.flow_stats();
    flows.map(|flow| (flow.flow, flow.running)).collect()
}

fn tokens(engine: &Engine<FakeRunner>, flow: u64) -> u64 {
    let mut flows = engine.flow_stats();
    flows.find(|stats| stats.flow == flow).unwrap().tokens
}

pub(super) const ROOMY: EngineConfig = EngineConfig {
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
fn who_gave_up_a_place_goes_on_where_it_was() {
    // In the smaller pool the newcomer and the one that runs get the block that was begun, and the one before it.
    for (blocks, computed) in [(32, 1), (7, 6)] {
        let mut engine = engine(EngineConfig {
            blocks,
            sequences_max: 2,
            ..ROOMY
        });
        for id in [10, 11] {
            add(&mut engine, id, 6, 12);
        }
        for _ in 0..5 {
            engine.step(0).unwrap();
        }
        add(&mut engine, 20, 4, 3);
        let report = engine.step(0).unwrap();
        assert_eq!((starts(&report.outputs), report.preemptions), (vec![20], 1));
        let resumed = (0..10).find_map(|_| {
            engine.step(0).unwrap();
            engine.check_integrity();
            let rows = &engine.runner().rows;
            rows.iter().find(|row| row.seq == SeqId(1)).cloned()
        });
        assert_eq!(resumed.unwrap().tokens.len(), computed, "{blocks} blocks");
        run_all(&mut engine);
    }
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
            // They end at different times.
            ..request(&[id.0 as Token % 50; 6], 4 + step % 7)
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
        add(&mut engine, id, 6, 3 * (id as usize - 9));
    }
    engine.step(0).unwrap();
    // All but two blocks.
    add(&mut engine, 20, 55, 1);
    let steps = steps_to_start(&mut engine, others, 20);
    assert!((12..30).contains(&steps), "{steps}");
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
fn growth_takes_blocks_from_the_flow_that_holds_most() {
    for weight in [1, FLOW_WEIGHT_MAX] {
        let mut engine = engine(EngineConfig {
            blocks: 14,
            step_tokens_max: 64,
            prefix_cache: false,
            ..ROOMY
        });
        for (id, weight) in [(10, weight), (11, weight), (12, weight), (20, 1)] {
            let request = of(id / 10, weight, request(&[1; 7], 20));
            engine.add(RequestId(id), request, 0).unwrap();
        }
        engine.step(0).unwrap();
        assert_eq!(running(&engine), [(1, 3), (2, 1)]);
        let mut preemptions = 0;
        for _ in 0..18 {
            preemptions += engine.step(0).unwrap().preemptions;
            // It is the youngest, but alone of its flow.
            assert_eq!(running(&engine)[1], (2, 1));
        }
        assert!(preemptions > 0);
    }
}
