//! What flows get under load: tokens by weight, and a start in time beside a flood.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::report::FlowStats;
use crate::rng;

/// Answers at once.
pub(super) struct Blank;

impl ModelRunner for Blank {
    type Logits = ();
    type Error = String;
    fn forward(&mut self, _: &Batch) -> Result<(), String> {
        Ok(())
    }
    fn sample(&mut self, (): (), rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, String> {
        let sampled = |row: &SampleRow<'_>| Sampled {
            token: row.position as Token,
            logprob: None,
        };
        Ok(rows.iter().map(sampled).collect())
    }
}

pub(super) const LOAD: EngineConfig = EngineConfig {
    blocks: 2048,
    block_size: 16,
    step_tokens_max: 128,
    sequences_max: 16,
    queue_requests_max: 64,
    queue_tokens_max: 100_000,
    context_max: 8192,
    ..CONFIG
};

/// From the first to the second, both possible.
type Range = (usize, usize);

struct Client {
    flow: Flow,
    prompt: Range,
    answer: Range,
}

/// An engine and those who use it.
struct Load {
    engine: Engine<Blank>,
    seed: u64,
    added: u64,
    /// When each request was added, until its first token.
    unanswered: BTreeMap<RequestId, u64>,
    /// The time that steps took: a part that each takes, and one for each token.
    now: u64,
    latest: RequestId,
}

/// What a step takes beside its tokens, in times of a token: reading the weights.
const STEP: u64 = 64;

impl Load {
    fn new(seed: u64, config: EngineConfig) -> Self {
        Self {
            engine: Engine::new(Blank, config),
            seed,
            added: 0,
            unanswered: BTreeMap::new(),
            now: 0,
            latest: RequestId(0),
        }
    }

    fn draw(&mut self, (low, high): Range) -> usize {
        self.added += 1;
        low + (rng::draw(self.seed, self.added) % (high - low + 1) as u64) as usize
    }

    fn add(&mut self, client: &Client) -> Result<(), AddError> {
        let (prompt, answer) = (self.draw(client.prompt), self.draw(client.answer));
        let id = RequestId(self.added);
        let prompt: Vec<Token> = (0..prompt as u64)
            .map(|at| rng::draw(id.0, at) as Token)
            .collect();
        let request = Request {
            flow: client.flow,
            ..request(&prompt, answer)
        };
        self.engine.add(id, request, 0)?;
        self.unanswered.insert(id, self.now);
        self.latest = id;
        Ok(())
    }

    fn stats(&self, flow: u64) -> Option<FlowStats> {
        self.engine.flow_stats().find(|stats| stats.flow == flow)
    }

    /// Takes a step; the requests that got their first token in it, and the time that took.
    fn step(&mut self) -> Vec<(RequestId, u64)> {
        let report = self.engine.step(0).unwrap();
        let tokens = (report.prefill_tokens + report.decode_tokens) as u64;
        self.now += STEP + tokens;
        let mut answered = Vec::new();
        for output in report.outputs {
            if let Event::Token(_) = output.event
                && let Some(added) = self.unanswered.remove(&output.request)
            {
                answered.push((output.request, self.now - added));
            }
        }
        answered
    }
}

const WEIGHTS: [u32; 3] = [1, 2, 4];

/// The tokens each of three flows got in a thousand steps, while all of them always had more to ask for.
fn tokens(seed: u64, config: EngineConfig, mix: &[(Range, Range); 3]) -> [u64; 3] {
    tokens_of(seed, config, mix, 1)
}

/// The same with all weights multiplied.
fn tokens_of(seed: u64, config: EngineConfig, mix: &[(Range, Range); 3], times: u32) -> [u64; 3] {
    let mut load = Load::new(seed, config);
    // As a server does that keeps steps short: a step has room for far more.
    load.engine.limit_prefill(128);
    let client = |index: usize| Client {
        flow: Flow {
            id: index as u64 + 1,
            weight: WEIGHTS[index] * times,
        },
        prompt: mix[index].0,
        answer: mix[index].1,
    };
    for _ in 0..1000 {
        for index in 0..3 {
            let client = client(index);
            while load
                .stats(client.flow.id)
                .is_none_or(|stats| stats.queued.requests < 8)
            {
                load.add(&client).unwrap();
            }
        }
        load.step();
    }
    [1, 2, 3].map(|flow| load.stats(flow).unwrap().tokens)
}

const SMALL: (Range, Range) = ((4, 20), (4, 12));
const CHAT: (Range, Range) = ((50, 150), (20, 60));
const HUGE: (Range, Range) = ((400, 700), (50, 150));
const WRITES: (Range, Range) = ((4, 20), (100, 200));

/// At most a tenth more or less than is due by weight.
fn assert_shared(tokens: [u64; 3], what: &str) {
    let total: u64 = tokens.iter().sum();
    for (got, weight) in tokens.iter().zip(WEIGHTS) {
        let (got, due) = (got * 7 * 10, total * u64::from(weight));
        assert!((9 * due..=11 * due).contains(&got), "{what}: {tokens:?}");
    }
}

#[test]
fn backlogged_flows_get_tokens_by_weight() {
    let mixes = [
        [CHAT, CHAT, CHAT],
        [SMALL, SMALL, SMALL],
        [HUGE, SMALL, CHAT],
        [SMALL, HUGE, SMALL],
        [SMALL, SMALL, HUGE],
        [WRITES, HUGE, CHAT],
        [WRITES, WRITES, HUGE],
    ];
    for (index, mix) in mixes.iter().enumerate() {
        for seed in 0..5 {
            let tokens = tokens(seed, LOAD, mix);
            assert_shared(tokens, &format!("mix {index}, seed {seed}"));
        }
    }
}

/// Of eight places none is whole for each weight, and the steps are far smaller than they may be.
#[test]
fn few_places_are_shared_by_weight() {
    let config = EngineConfig {
        step_tokens_max: 2048,
        sequences_max: 8,
        ..LOAD
    };
    for (name, mix) in [("short", ((39, 39), (48, 48))), ("chat", CHAT), ("small", SMALL)] {
        for seed in 0..5 {
            let tokens = tokens(seed, config, &[mix; 3]);
            assert_shared(tokens, &format!("{name}, seed {seed}"));
        }
    }
}

/// What counts is how often one weight is another. (By a power of two, so that nothing is rounded.)
#[test]
fn weights_are_ratios() {
    let config = EngineConfig {
        sequences_max: 8,
        ..LOAD
    };
    for mix in [[SMALL; 3], [CHAT; 3], [SMALL, HUGE, CHAT]] {
        let [once, often] = [1, 128].map(|times| tokens_of(3, config, &mix, times));
        assert_eq!(once, often, "{mix:?}");
    }
}

#[test]
fn a_flow_of_few_requests_is_ahead_by_no_more_than_one() {
    let (prompt, answer) = HUGE;
    for seed in 0..5 {
        // The first is due about four requests in all these steps.
        let tokens = tokens(seed, LOAD, &[HUGE, WRITES, WRITES]);
        let due = tokens.iter().sum::<u64>() / 7;
        assert!(
            tokens[0].abs_diff(due) <= (prompt.1 + answer.1) as u64,
            "{tokens:?}"
        );
        // What the others get is shared by weight all the same.
        assert!(
            (tokens[1] * 2).abs_diff(tokens[2]) * 20 <= tokens[2],
            "{tokens:?}"
        );
    }
}

/// The 95th percentile of the times to first token of a client that sends a request in one of 25 steps, beside others
/// who have so many requests at once.
fn ttft([victim, other]: [u64; 2], beside: usize, mix: (Range, Range)) -> u64 {
    let client = |id, (prompt, answer)| Client {
        flow: Flow { id, weight: 1 },
        prompt,
        answer,
    };
    let (victim, other) = (client(victim, CHAT), client(other, mix));
    let mut times = Vec::new();
    for seed in 0..3 {
        let mut load = Load::new(seed, LOAD);
        let mut sent = BTreeSet::new();
        for step in 0..20_000 {
            let stats = load.stats(other.flow.id);
            let alive = stats.map_or(0, |stats| stats.running + stats.waiting);
            for _ in alive..beside {
                if load.add(&other).is_err() {
                    break;
                }
            }
            if rng::draw(seed, step).is_multiple_of(25) && load.add(&victim).is_ok() {
                sent.insert(load.latest);
            }
            for (request, time) in load.step() {
                if sent.remove(&request) && step > 200 {
                    times.push(time);
                }
            }
        }
    }
    times.sort_unstable();
    times[times.len() * 95 / 100]
}

#[test]
fn a_flood_delays_others_little() {
    for (name, mix) in [
        ("chat", CHAT),
        ("huge", HUGE),
        ("writes", WRITES),
        ("small", SMALL),
    ] {
        // Alone, beside as many as nearly fill the places but don't flood, and beside a flood.
        let [alone, beside, flooded] = [0, 14, 1000].map(|beside| ttft([2, 1], beside, mix));
        // What a flood does to those who are of the same flow.
        let without = ttft([0, 0], 60, mix);
        println!("{name}: alone {alone}, beside {beside}, flooded {flooded}, without flows {without}");
        assert!(
            flooded * 5 <= beside * 6,
            "{name}: {flooded}, {beside} without flood"
        );
        assert!(without > flooded * 3, "{name}: no flood, {without}");
    }
}
