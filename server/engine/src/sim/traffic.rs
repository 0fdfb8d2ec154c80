//! What the simulated clients ask for: small configurations, prompts that share beginnings in a vocabulary of two.

use std::sync::Arc;

use super::Dice;
use super::language::Language;
use crate::config::EngineConfig;
use crate::constraint::SharedGrammar;
use crate::request::{Flow, Request, SamplingParams, StopRules, Token};
use crate::rng;

/// Texts that later prompts may continue, as the next turn of a conversation does.
const HISTORIES_MAX: usize = 8;

/// Makes requests.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Requests of one run all have priority 0, or any of three.
    pub(super) priorities: bool,
    /// One step in this many brings a request.
    pub(super) arrival_one_in: u64,
    /// One step in this many fails.
    pub(super) fault_one_in: u64,
    /// Each step's prefill is limited to one of these while anything decodes.
    pub(super) prefill_limits: &'static [usize],
    histories: Vec<Vec<Token>>,
    prompt_max: usize,
    output_max: usize,
    salts: u64,
    /// Who the requests are from; the first is the one that floods.
    flows: &'static [Flow],
}

const fn flow(id: u64, weight: u32) -> Flow {
    Flow { id, weight }
}

/// Half of the runs have one flow.
const FLOWS: [&[Flow]; 6] = [
    &[flow(0, 1)],
    &[flow(0, 1)],
    &[flow(7, 3)],
    &[flow(1, 1), flow(2, 1)],
    &[flow(1, 1), flow(2, 2), flow(3, 4)],
    &[flow(4, 1000), flow(1, 1), flow(0, 5), flow(1, 2), flow(2, 30)],
];

pub(super) fn config(dice: &mut Dice) -> EngineConfig {
    let sequences_max = dice.range(1, 6);
    let config = EngineConfig {
        blocks: dice.range(4, 24),
        block_size: dice.range(1, 5),
        step_tokens_max: sequences_max + dice.range(0, 20),
        sequences_max,
        queue_requests_max: dice.range(1, 8),
        queue_tokens_max: dice.range(20, 200),
        flow_blocks_share_max: dice.pick(&[100, 100, 50, 20]),
        speculative_tokens: dice.pick(&[0, 1, 4, 9]),
        context_max: dice.range(16, 64),
        prefix_cache: !dice.one_in(4),
        cache_secret: dice.bits(),
    };
    assert_eq!(
        config.check(),
        Ok(()),
        "the simulator makes valid configurations. This is a bug."
    );
    config
}

impl Traffic {
    pub(super) fn new(dice: &mut Dice) -> Self {
        Self {
            priorities: dice.one_in(2),
            arrival_one_in: dice.pick(&[1, 1, 2, 5]),
            fault_one_in: dice.pick(&[20, 100, u64::MAX]),
            prefill_limits: dice.pick::<&[usize]>(&[&[usize::MAX], &[0], &[1, 2, 3, 5, 9, usize::MAX]]),
            histories: Vec::new(),
            prompt_max: dice.range(4, 40),
            output_max: dice.range(2, 32),
            salts: dice.pick(&[1, 2, 3]),
            flows: dice.pick(&FLOWS),
        }
    }

    /// Whether requests are of several flows.
    pub(super) fn competes(&self) -> bool {
        self.flows.len() > 1
    }

    /// Keeps a text for a later turn.
    pub(super) fn remember(&mut self, dice: &mut Dice, text: Vec<Token>) {
        if self.histories.len() < HISTORIES_MAX {
            self.histories.push(text);
        } else {
            let place = dice.range(0, HISTORIES_MAX - 1);
            self.histories[place] = text;
        }
    }

    pub(super) fn request(&mut self, dice: &mut Dice, now_ms: u64) -> Request {
        Request {
            prompt: self.prompt(dice),
            n: if dice.one_in(4) { dice.range(2, 4) } else { 1 },
            sampling: sampling(dice),
            stop: StopRules {
                tokens: dice
                    .pick::<&[Token]>(&[&[], &[], &[], &[1], &[0], &[0, 1]])
                    .to_vec(),
                max_tokens: dice.range(0, self.output_max),
                min_tokens: if dice.one_in(3) { dice.range(1, 4) } else { 0 },
            },
            prompt_logprobs: dice.one_in(10).then(|| dice.range(0, 2) as u32),
            prediction: self.prediction(dice),
            grammar: (dice.one_in(4)).then(|| SharedGrammar(Arc::new(Language(dice.bits())))),
            cache_salt: dice.bits() % self.salts,
            priority: if self.priorities {
                dice.pick(&[-1, 0, 1])
            } else {
                0
            },
            flow: if dice.one_in(2) {
                self.flows[0]
            } else {
                dice.pick(self.flows)
            },
            deadline_ms: dice.one_in(8).then(|| now_ms + dice.range(0, 60) as u64),
        }
    }

    /// Nothing, or any text: with so few words some of it comes true.
    fn prediction(&self, dice: &mut Dice) -> Vec<Token> {
        if !dice.one_in(4) {
            return Vec::new();
        }
        let len = dice.range(1, self.output_max);
        (0..len).map(|_| (dice.bits() & 1) as Token).collect()
    }

    fn prompt(&self, dice: &mut Dice) -> Vec<Token> {
        let len = dice.range(1, self.prompt_max);
        let mut prompt = if !self.histories.is_empty() && dice.one_in(3) {
            let mut text = self.histories[dice.range(0, self.histories.len() - 1)].clone();
            text.truncate(if dice.one_in(2) { usize::MAX } else { len });
            text
        } else {
            let base = dice.bits() % 3;
            (0..len as u64)
                .map(|position| (rng::draw(base, position) & 1) as Token)
                .collect()
        };
        for _ in 0..dice.range(0, 3) {
            prompt.push((dice.bits() & 1) as Token);
        }
        prompt
    }
}

fn sampling(dice: &mut Dice) -> SamplingParams {
    let plain = SamplingParams {
        seed: dice.bits() % 4,
        ..SamplingParams::default()
    };
    match dice.range(0, 5) {
        0 | 1 => SamplingParams {
            temperature: 0.0,
            ..plain
        },
        2 | 3 => plain,
        4 => SamplingParams {
            temperature: 2.0,
            top_p: 0.9,
            logprobs: Some(1),
            ..plain
        },
        _ => SamplingParams {
            repetition_penalty: 1.3,
            frequency_penalty: 0.4,
            min_p: 0.1,
            ..plain
        },
    }
}
