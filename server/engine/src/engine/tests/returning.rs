//! Clients that ask again as soon as they have their answer, beside a flood: when the next one begins.

use std::collections::BTreeSet;

use super::load::{Blank, LOAD};
use super::*;
use crate::rng;

const PLACES: EngineConfig = EngineConfig {
    sequences_max: 8,
    queue_requests_max: 32,
    step_tokens_max: 512,
    ..LOAD
};
const PROMPT: usize = 39;
/// What a step takes, and each token of an answer and of a prompt: microseconds of a small model on two cores.
const STEP_US: u64 = 12_000;
const DECODED_US: u64 = 3_300;
const PREFILLED_US: u64 = 2_000;
/// From the last token of an answer to the next request, at least.
const RETURN_US: u64 = 8_000;
const REFUSED_US: u64 = 1_500_000;

/// Has one request at a time.
struct Client {
    flow: Flow,
    /// Tokens of its answers, from the first number to the second.
    answer: (u64, u64),
    /// It waits for up to so long between them.
    pause_us: u64,
    /// When it asks, or asked.
    at_us: u64,
    asked: Option<RequestId>,
    waits: bool,
}

impl Client {
    fn new(id: u64, weight: u32, answer: (u64, u64), pause_us: u64) -> Self {
        Self {
            flow: Flow { id, weight },
            answer,
            pause_us,
            at_us: 0,
            asked: None,
            waits: false,
        }
    }
}

struct World {
    engine: Engine<Blank>,
    clients: Vec<Client>,
    now_us: u64,
    drawn: u64,
}

impl World {
    fn draw(&mut self, (from, to): (u64, u64)) -> u64 {
        self.drawn += 1;
        from + rng::draw(7, self.drawn) % (to - from + 1)
    }

    fn ask(&mut self, index: usize) {
        let (flow, answer) = (self.clients[index].flow, self.clients[index].answer);
        let tokens = self.draw(answer) as usize;
        let id = RequestId(self.drawn);
        let prompt: Vec<Token> = (0..PROMPT as u64)
            .map(|at| rng::draw(id.0, at) as Token)
            .collect();
        let request = Request {
            flow,
            ..request(&prompt, tokens)
        };
        let client = &mut self.clients[index];
        match self.engine.add(id, request, 0) {
            Ok(()) => (client.asked, client.waits) = (Some(id), true),
            Err(_) => client.at_us = self.now_us + REFUSED_US,
        }
    }

    /// Takes a step; the times to the first token of those clients, and of which, that got it.
    fn step(&mut self) -> Vec<(usize, u64)> {
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            if client.asked.is_none() && client.at_us <= self.now_us {
                self.ask(index);
            }
        }
        let report = self.engine.step(0).unwrap();
        let decoded = report.decode_tokens as u64 * DECODED_US;
        self.now_us += STEP_US + decoded + report.prefill_tokens as u64 * PREFILLED_US;
        let (mut answered, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for output in report.outputs {
            match output.event {
                Event::Token(_) => drop(answered.insert(output.request)),
                Event::Finished(_) => drop(ended.insert(output.request)),
                _ => {}
            }
        }
        let mut times = Vec::new();
        for index in 0..self.clients.len() {
            let Some(asked) = self.clients[index].asked else {
                continue;
            };
            if answered.contains(&asked) && std::mem::take(&mut self.clients[index].waits) {
                times.push((index, self.now_us - self.clients[index].at_us));
            }
            if ended.contains(&asked) {
                let pause_us = self.draw((0, self.clients[index].pause_us));
                let client = &mut self.clients[index];
                client.at_us = self.now_us + RETURN_US + pause_us;
                client.asked = None;
            }
        }
        times
    }
}

/// Median and 95th percentile of the times to the first token of a client with short answers and pauses, and of one that always
/// asks, of a project of the weight 2 beside so many others of one of the weight 1.
fn times(others: usize, prefill_max: usize) -> [[u64; 2]; 2] {
    let mut clients = vec![
        Client::new(2, 2, (8, 16), 100_000),
        Client::new(2, 2, (24, 72), 0),
    ];
    clients.extend((0..others).map(|_| Client::new(1, 1, (24, 72), 0)));
    let mut world = World {
        engine: Engine::new(Blank, PLACES),
        clients,
        now_us: 0,
        drawn: 0,
    };
    let mut all = [Vec::new(), Vec::new()];
    for step in 0..24_000 {
        world.engine.limit_prefill(prefill_max);
        let of_project = world.step().into_iter().filter(|(index, _)| *index < 2);
        for (index, time) in of_project.filter(|_| step > 200) {
            all[index].push(time);
        }
    }
    all.map(|mut times| {
        times.sort_unstable();
        [50, 95].map(|percent| times[times.len() * percent / 100])
    })
}

fn of_two_places() -> Engine<Blank> {
    let config = EngineConfig {
        sequences_max: 2,
        ..PLACES
    };
    Engine::new(Blank, config)
}

fn add(engine: &mut Engine<Blank>, id: u64, (flow, priority): (u64, i32), tokens: usize) {
    let request = Request {
        flow: Flow { id: flow, weight: 1 },
        priority,
        ..request(&[id as Token; 3], tokens)
    };
    engine.add(RequestId(id), request, 0).unwrap();
}

/// Takes a step; who has started in it.
fn starts(engine: &mut Engine<Blank>) -> Vec<u64> {
    let outputs = engine.step(0).unwrap().outputs.into_iter();
    let started = outputs.filter(|output| matches!(output.event, Event::Started { .. }));
    started.map(|output| output.request.0).collect()
}

/// Beside as many as there are places, and beside four times as many: whoever asks again finds the place that it left, and its
/// prompt in the next step.
#[test]
fn a_flood_takes_no_turn_from_those_who_come_back() {
    for prefill_max in [24, 48] {
        let (beside, flooded) = (times(6, prefill_max), times(32, prefill_max));
        println!("{prefill_max} tokens of prompts: {beside:?}, flooded {flooded:?}");
        for (beside, flooded) in beside.into_iter().flatten().zip(flooded.into_iter().flatten()) {
            assert!(flooded * 10 <= beside * 11, "{flooded}, {beside} without flood");
        }
    }
}

/// But it is kept from nobody who has less than is due, and not for long.
#[test]
fn a_place_that_was_left_is_kept_for_a_moment() {
    let mut engine = of_two_places();
    for (id, flow, tokens) in [(20, 2, 12), (10, 1, 80), (11, 1, 80), (12, 1, 80)] {
        add(&mut engine, id, (flow, 0), tokens);
    }
    assert_eq!(starts(&mut engine), [20, 10]);
    for _ in 1..12 {
        assert_eq!(starts(&mut engine), []);
    }
    // The place is free, and the flood waits for it: three steps.
    for _ in 0..3 {
        assert_eq!((engine.stats().running, starts(&mut engine)), (1, vec![]));
    }
    assert_eq!(starts(&mut engine), [11]);
    // Whoever comes back within them has it, without anybody's giving way.
    add(&mut engine, 21, (2, 0), 12);
    assert_eq!(engine.step(0).unwrap().preemptions, 1);
    for _ in 1..12 {
        assert_eq!(starts(&mut engine), []);
    }
    add(&mut engine, 22, (2, 0), 12);
    let report = engine.step(0).unwrap();
    assert_eq!((report.preemptions, engine.stats().running), (0, 2));
    for _ in 1..12 {
        assert_eq!(starts(&mut engine), []);
    }
    // Another project has less than is due: it is kept from the flood alone.
    add(&mut engine, 30, (3, 0), 40);
    assert_eq!(starts(&mut engine), [30]);
}

/// A step for each four tokens, three at most.
#[test]
fn a_place_is_kept_by_what_was_made_of_it() {
    for (tokens, kept) in [(1, 0), (3, 0), (4, 1), (11, 2), (40, 3)] {
        let mut engine = of_two_places();
        for (id, flow, tokens) in [(20, 2, tokens), (10, 1, 80), (11, 1, 80)] {
            add(&mut engine, id, (flow, 0), tokens);
        }
        for _ in 0..tokens {
            starts(&mut engine);
        }
        let steps = (0..9).find(|_| !starts(&mut engine).is_empty());
        assert_eq!(steps, Some(kept), "{tokens} tokens");
    }
}

/// Nor does one that is less urgent start while a place is kept from one that is more so.
#[test]
fn a_place_that_is_kept_is_kept_from_the_less_urgent_too() {
    let mut engine = of_two_places();
    for (id, flow, priority, tokens) in [(20, 2, 0, 12), (10, 1, 0, 80), (11, 1, 0, 80), (30, 3, 1, 12)] {
        add(&mut engine, id, (flow, priority), tokens);
    }
    assert_eq!(starts(&mut engine), [20, 10]);
    for _ in 1..15 {
        assert_eq!(starts(&mut engine), []);
    }
    assert_eq!(starts(&mut engine), [11]);
}
