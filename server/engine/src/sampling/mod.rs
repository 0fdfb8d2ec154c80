//! From a row of logits to a token.
//!
//! In this order, as vLLM's sampler: log-probabilities of the raw logits; `logit_bias`; penalties (repetition over
//! prompt and output, then frequency and presence over the output); banned tokens, and those that a grammar does not
//! allow; temperature; `min_p`; `top_k`; `top_p`; the draw. Every filter keeps the best tokens by (logit, then lowest token), so ties never depend on how
//! they were found, and `top_p` works on what the filters before it left, renormalised. The draw walks the tokens in
//! order of their ids to a point given by [`crate::rng::uniform`] of seed and position.
//!
//! A NaN logit counts as minus infinity (never chosen), plus infinity as the largest finite number. A row with
//! nothing left to choose is [`Sampled::invalid`], which ends its sequence only. No parameter value panics: NaN
//! switches a filter off, a nonsensical number acts as the nearest sensible one.

mod softmax;

use crate::batch::{SampleKind, SampleRow};
use crate::request::{Logprob, Logprobs, Sampled, SamplingParams, Token};
use crate::rng;

/// Below this the temperature is zero: the best token, the lowest on ties.
const TEMPERATURE_MIN: f32 = 1e-5;

/// Chooses (or scores) a token from one row of logits `[vocab]`, which it overwrites.
pub fn sample(logits: &mut [f32], row: &SampleRow<'_>) -> Sampled {
    for logit in logits.iter_mut() {
        *logit = sound(*logit);
    }
    if best(logits).is_none() {
        return Sampled::invalid();
    }
    let raw = row.logprobs.map(|_| logits.to_vec());
    let token = match row.kind {
        SampleKind::Score(token) => Some(token),
        SampleKind::Sample => choose(logits, row),
    };
    let Some(token) = token else {
        return Sampled::invalid();
    };
    let logprob = raw
        .zip(row.logprobs)
        .map(|(raw, top)| logprobs(raw, token, top as usize));
    Sampled { token, logprob }
}

/// Neither NaN nor plus infinity.
fn sound(logit: f32) -> f32 {
    if logit.is_nan() {
        f32::NEG_INFINITY
    } else {
        logit.min(f32::MAX)
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Logit or weight; not NaN.
    value: f32,
    token: Token,
}

impl Candidate {
    /// Lower is better: the greater value, then the lower token.
    fn key(self) -> u64 {
        // Adding zero makes the two zeros one. Flipping the bits of a negative number, or the sign of a positive
        // one, orders floats as integers.
        let bits = (self.value + 0.0).to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        u64::from(!ascending) << 32 | u64::from(self.token)
    }
}

fn candidates(values: &[f32]) -> impl Iterator<Item = Candidate> {
    values
        .iter()
        .zip(0..)
        .map(|(value, token)| Candidate { value: *value, token })
}

/// The best token that is not excluded.
fn best(logits: &[f32]) -> Option<Candidate> {
    let best = softmax::max(logits);
    let token = logits.iter().position(|logit| *logit >= best)?;
    (best > f32::NEG_INFINITY).then_some(Candidate {
        value: best,
        token: token as Token,
    })
}

/// The `count` best tokens that are not excluded, in no order; fewer if there are fewer. One pass with a rising bar.
fn best_of(values: &[f32], count: usize) -> Vec<Candidate> {
    let room = count
        .saturating_mul(2)
        .saturating_add(64)
        .min(values.len().saturating_add(1));
    let mut kept: Vec<Candidate> = Vec::with_capacity(room);
    let mut bar = f32::NEG_INFINITY;
    for candidate in candidates(values) {
        // An equal value further on is worse than the `count` tokens that set the bar.
        if candidate.value > bar {
            kept.push(candidate);
            if kept.len() == room && truncate_to_best(&mut kept, count) {
                bar = kept.iter().map(|kept| kept.value).fold(f32::INFINITY, f32::min);
            }
        }
    }
    truncate_to_best(&mut kept, count);
    kept
}

/// True if there were more than `count`.
fn truncate_to_best(kept: &mut Vec<Candidate>, count: usize) -> bool {
    let more = kept.len() > count;
    if more {
        kept.select_nth_unstable_by_key(count, |kept| kept.key());
        kept.truncate(count);
    }
    more
}

/// Log-probabilities of the raw logits, which become scratch space.
fn logprobs(mut raw: Vec<f32>, token: Token, top: usize) -> Logprobs {
    let chosen = raw.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let mut kept = if top > 0 { best_of(&raw, top) } else { Vec::new() };
    kept.sort_unstable_by_key(|kept| kept.key());
    let own = Candidate { value: chosen, token };
    let rank = 1 + candidates(&raw).filter(|other| other.key() < own.key()).count() as u32;
    let max = softmax::max(&raw);
    softmax::weigh(&mut raw, max, 1.0);
    let log_sum = softmax::sum(&raw).ln();
    let logprob = |logit: f32| (f64::from(logit) - f64::from(max) - log_sum) as f32;
    let top = kept.iter().map(|kept| Logprob {
        token: kept.token,
        logprob: logprob(kept.value),
    });
    Logprobs {
        chosen: logprob(chosen),
        rank,
        top: top.collect(),
    }
}

/// The next token, unless every token is excluded.
fn choose(logits: &mut [f32], row: &SampleRow<'_>) -> Option<Token> {
    let params = row.params;
    for (token, bias) in &params.logit_bias {
        edit(logits, *token, |logit| logit + bias);
    }
    penalise(logits, row);
    for token in row.banned {
        edit(logits, *token, |_| f32::NEG_INFINITY);
    }
    if let Some(allowed) = row.allowed {
        allowed.apply(logits);
    }
    let best = best(logits)?;
    if params.temperature.is_nan() || params.temperature < TEMPERATURE_MIN {
        return Some(best.token);
    }
    filter(logits, best.value, params);
    softmax::pick(logits, rng::uniform(row.seed, row.position as u64))
}

fn edit(logits: &mut [f32], token: Token, change: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = sound(change(*logit));
    }
}

#[expect(clippy::float_cmp, reason = "a penalty is off at exactly its neutral value")]
fn penalise(logits: &mut [f32], row: &SampleRow<'_>) {
    let params = row.params;
    let repetition = params.repetition_penalty;
    if repetition != 1.0 {
        let counts = count(&[row.prompt, row.output], logits.len());
        for (logit, _) in logits.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
            *logit = sound(if *logit > 0.0 {
                *logit / repetition
            } else {
                *logit * repetition
            });
        }
    }
    if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
        let counts = count(&[row.output], logits.len());
        for (logit, count) in logits.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
            *logit = sound(*logit - params.frequency_penalty * count as f32 - params.presence_penalty);
        }
    }
}

/// How often each token of the vocabulary occurs.
fn count(texts: &[&[Token]], vocab: usize) -> Vec<u32> {
    let mut counts = vec![0_u32; vocab];
    for token in texts.iter().copied().flatten() {
        if let Some(count) = counts.get_mut(*token as usize) {
            *count += 1;
        }
    }
    counts
}

/// Turns logits into weights relative to the best token's, which is 1; what the filters drop weighs 0.
fn filter(logits: &mut [f32], max: f32, params: &SamplingParams) {
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < logits.len() {
        let kept = best_of(logits, top_k);
        if let Some(worst) = kept.into_iter().max_by_key(|kept| kept.key()) {
            keep(logits, worst, f32::NEG_INFINITY);
        }
    }
    softmax::weigh(logits, max, params.temperature);
    if params.min_p > 0.0 {
        let bar = params.min_p.min(1.0);
        for weight in logits.iter_mut() {
            *weight = if *weight >= bar { *weight } else { 0.0 };
        }
    }
    if params.top_p < 1.0 {
        let worst = nucleus(logits, f64::from(params.top_p.max(0.0)));
        keep(logits, worst, 0.0);
    }
}

/// Drops what is worse than `worst`.
fn keep(values: &mut [f32], worst: Candidate, dropped: f32) {
    let (ahead, behind) = values.split_at_mut(worst.token as usize + 1);
    for value in ahead {
        *value = if *value >= worst.value { *value } else { dropped };
    }
    for value in behind {
        *value = if *value > worst.value { *value } else { dropped };
    }
}

/// The worst of the fewest best tokens that hold the share `top_p` of all weight. Halves the candidates around the
/// border by selection, so that nothing is ever sorted.
fn nucleus(weights: &[f32], top_p: f64) -> Candidate {
    let total = softmax::sum(weights);
    let target = top_p * total;
    // All tokens below this together hold less than the share that may be dropped; the best token, of weight 1, is
    // never below an average of weights.
    let negligible = (1.0 - top_p) * total / weights.len() as f64;
    let mut kept: Vec<Candidate> = candidates(weights)
        .filter(|kept| f64::from(kept.value) >= negligible)
        .collect();
    let (mut start, mut end) = (0, kept.len());
    let mut before = 0.0;
    while end - start > 1 {
        let middle = start.midpoint(end);
        kept[start..end].select_nth_unstable_by_key(middle - start, |kept| kept.key());
        let better: f64 = kept[start..middle].iter().map(|kept| f64::from(kept.value)).sum();
        if before + better >= target {
            end = middle;
        } else {
            before += better;
            start = middle;
        }
    }
    kept[start]
}

#[cfg(test)]
mod tests;
