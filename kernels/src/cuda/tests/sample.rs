//! Sampling, against the steps of `server/engine/src/sampling` written down one by one, with whole sorts and sums of whole numbers.

#![expect(
    clippy::cast_sign_loss,
    clippy::float_cmp,
    reason = "weights are not negative; a penalty is off at exactly its neutral value, and ties are of equal numbers"
)]

use super::common::Rng;
use super::machine::Machine;
use super::{kernels, on_every_machine};
use crate::cuda::sample::{self, Inputs, Places};
use crate::op::{SampledToken, SamplingRow};

kernels! {
    sample: sampled;
}

on_every_machine!(alone);

/// What a row asks for, and its logits.
#[derive(Debug, Clone)]
struct Case {
    logits: Vec<f32>,
    floats: [f32; 6],
    top_k: u32,
    bias: Vec<(u32, f32)>,
    prompt: Vec<u32>,
    output: Vec<u32>,
    banned: Vec<u32>,
    allowed: Option<Vec<u32>>,
    uniform: f64,
    score: Option<u32>,
    logprobs: Option<u32>,
}

impl Case {
    fn row(&self) -> SamplingRow<'_> {
        let [
            temperature,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
        ] = self.floats;
        SamplingRow {
            temperature,
            top_p,
            top_k: self.top_k,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias: &self.bias,
            prompt: &self.prompt,
            output: &self.output,
            banned: &self.banned,
            allowed: self.allowed.as_deref(),
            uniform: self.uniform,
            score: self.score,
            logprobs: self.logprobs,
        }
    }
}

const SPECIAL: [f32; 10] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MAX,
    f32::MIN,
    0.0,
    -0.0,
    1e-45,
    -1.0,
    1.0,
];

fn logits(rng: &mut Rng, vocab: usize) -> Vec<f32> {
    let spread = [0.0, 1.0, 4.0, 20.0][rng.below(4)];
    let mut logits: Vec<f32> = rng.floats(vocab).into_iter().map(|x| x * spread).collect();
    match rng.below(6) {
        // Many ties.
        0 => logits.iter_mut().for_each(|x| *x = x.round()),
        // Few tokens that are not excluded, or none.
        1 => {
            let kept = rng.below(3);
            for x in &mut logits {
                *x = if rng.below(vocab) < kept {
                    *x
                } else {
                    f32::NEG_INFINITY
                };
            }
        }
        2 => {
            for x in &mut logits {
                *x = if rng.below(6) == 0 {
                    SPECIAL[rng.below(10)]
                } else {
                    *x
                };
            }
        }
        _ => {}
    }
    logits
}

fn case(rng: &mut Rng, vocab: usize) -> Case {
    // Ordinary numbers, what switches a step off, and now and then anything at all.
    let mut float = |low: f32, high: f32, off: f32| match rng.below(16) {
        0..8 => low + (high - low) * rng.below(1 << 20) as f32 / (1 << 20) as f32,
        8 => SPECIAL[rng.below(10)],
        _ => off,
    };
    let floats = [
        float(0.2, 3.0, 1.0),
        float(0.0, 1.0, 1.0),
        float(0.0, 0.5, 0.0),
        float(0.5, 2.0, 1.0),
        float(-2.0, 2.0, 0.0),
        float(-2.0, 2.0, 0.0),
    ];
    let token = |rng: &mut Rng| rng.below(vocab + 3) as u32;
    let tokens = |rng: &mut Rng, most: usize| (0..rng.below(most)).map(|_| token(rng)).collect::<Vec<_>>();
    let words = vocab.div_ceil(32);
    let allowed = (rng.below(3) == 0).then(|| {
        let words = [words, rng.below(words + 3)][rng.below(2)];
        (0..words).map(|_| rng.next() as u32).collect()
    });
    Case {
        logits: logits(rng, vocab),
        floats,
        top_k: [
            0,
            0,
            1,
            rng.below(20) as u32,
            rng.below(2 * vocab) as u32,
            u32::MAX,
        ][rng.below(6)],
        bias: (0..[0, rng.below(6)][rng.below(2)])
            .map(|_| {
                (
                    token(rng),
                    [rng.floats(1)[0] * 9.0, SPECIAL[rng.below(10)]][rng.below(5) / 4],
                )
            })
            .collect(),
        prompt: tokens(rng, 9),
        output: tokens(rng, 30),
        banned: tokens(rng, 4),
        allowed,
        uniform: match rng.below(8) {
            0 => 0.0,
            1 => 1.0 - f64::EPSILON / 2.0,
            _ => (rng.next() >> 11) as f64 / (1_u64 << 53) as f64,
        },
        score: (rng.below(5) == 0).then(|| token(rng)),
        logprobs: [None, Some(0), Some(rng.below(20) as u32), Some(128)][rng.below(4)],
    }
}

fn cases(rng: &mut Rng) -> Vec<Case> {
    // With 64, up to 1,024 and 1,024 threads.
    let vocab = match rng.below(24) {
        0 => 16_000 + rng.below(5000),
        1..4 => 1 + rng.below(9000),
        4..12 => 1 + rng.below(1200),
        _ => 1 + rng.below(70),
    };
    let mut cases: Vec<Case> = (0..=rng.below(3)).map(|_| case(rng, vocab)).collect();
    // Half of tokens that are all equal, and the last of those.
    if let Some(last) = cases.last_mut().filter(|_| rng.below(6) == 0) {
        last.logits.fill(2.0);
        last.floats = [1.0, 0.5, 0.0, 1.0, 0.0, 0.0];
        let half = [0, last.logits.len() as u32 / 2][rng.below(2)];
        (last.uniform, last.top_k, last.score) = (1.0 - f64::EPSILON / 2.0, half, None);
        (last.logprobs, last.banned) = (None, Vec::new());
    }
    cases
}

/// Starts the kernel; its results.
fn start<M: Machine>(machine: &M, cases: &[Case], inputs: &Inputs) -> M::Buffer {
    let all: Vec<f32> = cases.iter().flat_map(|case| case.logits.clone()).collect();
    let (logits, words) = (machine.upload(&all), machine.upload(&inputs.words));
    let weights = machine.poisoned(inputs.weights_bytes());
    let results = machine.poisoned(inputs.results() * 4);
    let places = Places {
        logits: machine.address(&logits),
        inputs: machine.address(&words),
        weights: machine.address(&weights),
        results: machine.address(&results),
    };
    machine.launch(&sample::sample(inputs, &places));
    results
}

fn sampled<M: Machine>(machine: &M, seed: u64) {
    let cases = cases(&mut Rng(seed));
    let rows: Vec<_> = cases.iter().map(Case::row).collect();
    let inputs = Inputs::new(&rows, cases[0].logits.len()).unwrap();
    let [results] = machine.in_every_order(|| [start(machine, &cases, &inputs)]);
    let found = inputs.read(&machine.download(&results), &rows);
    assert_eq!(found.len(), cases.len());
    for (case, found) in cases.iter().zip(&found) {
        check(case, found);
    }
}

/// A row's result is the same bits whatever else is sampled beside it.
fn alone<M: Machine>(machine: &M, seed: u64) {
    let crowd = cases(&mut Rng(seed));
    let results = |cases: &[Case]| {
        let rows: Vec<_> = cases.iter().map(Case::row).collect();
        let inputs = Inputs::new(&rows, cases[0].logits.len()).unwrap();
        inputs.read(&machine.download(&start(machine, cases, &inputs)), &rows)
    };
    let together = results(&crowd);
    let others = crowd.iter().map(std::slice::from_ref);
    let alone: Vec<_> = others.flat_map(results).collect();
    assert_eq!(alone, together);
}

#[test]
fn what_the_kernel_has_no_room_for_is_the_hosts() {
    let fits = |vocab: usize, logprobs: Option<u32>| {
        let case = Case {
            logprobs,
            ..case(&mut Rng(0), 10)
        };
        Inputs::new(&[case.row()], vocab).is_some()
    };
    assert!(fits(1 << 20, Some(128)) && fits(10, None));
    assert!(!fits((1 << 20) + 1, None) && !fits(10, Some(129)));
}

fn sound(x: f32) -> f32 {
    if x.is_nan() {
        f32::NEG_INFINITY
    } else {
        x.min(f32::MAX)
    }
}

/// Tokens that are not excluded, the best first.
fn in_order(values: &[f32], excluded: f32) -> Vec<usize> {
    let mut tokens: Vec<usize> = (0..values.len())
        .filter(|token| values[*token] > excluded)
        .collect();
    // Stable: of equal ones the lowest comes first.
    tokens.sort_by(|a, b| values[*b].partial_cmp(&values[*a]).unwrap());
    tokens
}

/// Logits as they may be chosen from.
fn edited(case: &Case, raw: &[f32]) -> Vec<f32> {
    let mut logits = raw.to_vec();
    let [.., repetition, presence, frequency] = case.floats;
    for (token, bias) in case
        .bias
        .iter()
        .filter(|(token, _)| (*token as usize) < raw.len())
    {
        let logit = &mut logits[*token as usize];
        *logit = sound(*logit + bias);
    }
    for (token, logit) in (0..).zip(&mut logits) {
        let times = case.output.iter().filter(|other| **other == token).count();
        if repetition != 1.0 && (times > 0 || case.prompt.contains(&token)) {
            *logit = sound(if *logit > 0.0 {
                *logit / repetition
            } else {
                *logit * repetition
            });
        }
        if times > 0 && (presence != 0.0 || frequency != 0.0) {
            *logit = sound(*logit - frequency * times as f32 - presence);
        }
        let allowed = case.allowed.as_ref().is_none_or(|words| {
            words
                .get(token as usize / 32)
                .is_some_and(|word| word >> (token % 32) & 1 == 1)
        });
        if !allowed || case.banned.contains(&token) {
            *logit = f32::NEG_INFINITY;
        }
    }
    logits
}

/// e^x as the host computes it, to the bit.
fn weight(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let round = 12_582_912.0_f32;
    let shifted = x * std::f32::consts::LOG2_E + round;
    let whole = shifted - round;
    let rest = x - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + coefficient;
    }
    let power = f32::powi(2.0, whole as i32);
    let weight = sum * power;
    let real = f64::from(x).exp();
    assert!((f64::from(weight) - real).abs() <= 3e-7 * real, "e^{x}: {weight}");
    weight
}

/// A weight in 2^-43.
fn fixed(weight: f32) -> u128 {
    (f64::from(weight) * (1_u64 << 43) as f64) as u128
}

/// Weights of what the filters leave; others are 0. The best token is of 1.
fn filtered(case: &Case, logits: &[f32], order: &[usize]) -> Vec<f32> {
    let [temperature, top_p, min_p, ..] = case.floats;
    let kept = if case.top_k > 0 {
        case.top_k as usize
    } else {
        order.len()
    };
    let mut weights = vec![0.0; logits.len()];
    for &token in order.iter().take(kept) {
        let weight = weight((logits[token] - logits[order[0]]) / temperature.min(f32::MAX));
        weights[token] = if min_p > 0.0 && weight < min_p.min(1.0) {
            0.0
        } else {
            weight
        };
    }
    if top_p < 1.0 {
        let total: u128 = weights.iter().map(|weight| fixed(*weight)).sum();
        let share = (f64::from(top_p.max(0.0)) * (1_u128 << 64) as f64).ceil() as u128;
        let mut before = 0;
        for (place, token) in in_order(&weights, 0.0).into_iter().enumerate() {
            if place > 0 && before << 64 >= share * total {
                weights[token] = 0.0;
            } else {
                before += fixed(weights[token]);
            }
        }
    }
    weights
}

fn chosen(case: &Case, raw: &[f32]) -> Option<u32> {
    let logits = edited(case, raw);
    let order = in_order(&logits, f32::NEG_INFINITY);
    let temperature = case.floats[0];
    if order.is_empty() || temperature.is_nan() || temperature < 1e-5 {
        return order.first().map(|token| *token as u32);
    }
    let weights = filtered(case, &logits, &order);
    let total: u128 = weights.iter().map(|weight| fixed(*weight)).sum();
    let point = ((case.uniform * (1_u64 << 53) as f64) as u128 * total) >> 53;
    let mut before = 0;
    let token = weights.iter().position(|weight| {
        before += fixed(*weight);
        point < before
    })?;
    // The host's sums, and those of real numbers, put the point into this token too, or next to its border.
    let real: Vec<f64> = weights.iter().map(|weight| f64::from(*weight)).collect();
    let sum = |weights: &[f64]| weights.iter().sum::<f64>();
    let slack = 1e-8 * sum(&real);
    let point = case.uniform * sum(&real);
    assert!(sum(&real[..token]) - slack <= point && point <= sum(&real[..=token]) + slack);
    Some(token as u32)
}

fn check(case: &Case, found: &SampledToken) {
    let raw: Vec<f32> = case.logits.iter().map(|x| sound(*x)).collect();
    let order = in_order(&raw, f32::NEG_INFINITY);
    let token = if order.is_empty() {
        None
    } else {
        case.score.or_else(|| chosen(case, &raw))
    };
    assert_eq!(found.token, token, "{case:?}");
    let (Some(token), Some(top)) = (token, case.logprobs) else {
        assert_eq!(found.logprobs, None);
        return;
    };
    let best = f64::from(raw[order[0]]);
    let sum: f64 = raw.iter().map(|x| (f64::from(*x) - best).exp()).sum();
    let assert_logprob = |found: f32, logit: f32| {
        let expected = f64::from(logit) - best - sum.ln();
        let near = (f64::from(found) - expected).abs() <= 1e-6 * expected.abs().max(1.0);
        assert!(
            near || found == expected as f32,
            "{found} and not {expected}: {case:?}"
        );
    };
    let logprobs = found.logprobs.as_ref().unwrap();
    let own = raw.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    assert_logprob(logprobs.chosen, own);
    let better = (0..).zip(&raw);
    let better = better.filter(|(other, x)| **x > own || (**x == own && *other < token));
    assert_eq!(logprobs.rank as usize, 1 + better.count(), "{case:?}");
    let expected: Vec<u32> = order
        .iter()
        .take(top as usize)
        .map(|token| *token as u32)
        .collect();
    let tokens: Vec<u32> = logprobs.top.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, expected, "{case:?}");
    for (token, logprob) in &logprobs.top {
        assert_logprob(*logprob, raw[*token as usize]);
    }
}
