//! Sampling: `sample.cu`.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use super::args::{Address, Args, Launch, count};
use crate::{
    op::{SampledToken, SamplingRow, TokenLogprobs},
    pool,
};

/// Tokens whose weights can be summed, and entries of a list of the best.
const VOCAB_MAX: usize = 1 << 20;
const TOP_MAX: u32 = 128;
/// Below this the temperature is zero.
const TEMPERATURE_MIN: f32 = 1e-5;
/// Words of a row, of an edit, of a result and of an entry of a list.
const ROW: usize = 20;
const EDIT: usize = 3;
const SAMPLED: usize = 8;
const LISTED: usize = 2;
const NONE: u32 = u32::MAX;

const SCORE: u32 = 1;
const GREEDY: u32 = 2;
const LOGPROBS: u32 = 4;
const NUCLEUS: u32 = 8;
const MASKED: u32 = 16;
const BIASED: u32 = 1 << 31;
const SEEN: u32 = 1 << 30;
const BANNED: u32 = 1 << 29;

/// Bytes of shared memory: a histogram, sums of warps, a list of the best and its length.
const SHARED: usize = (2048 + 32 + TOP_MAX as usize + 1) * 8;

/// The structure of `sample.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct SampleArgs {
    logits: Address,
    rows: Address,
    edits: Address,
    masks: Address,
    weights: Address,
    sampled: Address,
    listed: Address,
    vocab: u32,
    pad: u32,
}

// SAFETY: numbers alone, in the order of the kernel's.
unsafe impl Args for SampleArgs {}

/// What a card is told of rows: words of rows, then of edits, then of masks.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) words: Vec<u32>,
    rows: usize,
    vocab: usize,
    /// Words in front of the masks.
    masks: usize,
    /// Rows whose weights may not take the place of their logits.
    slots: usize,
    /// Entries of all lists.
    listed: usize,
}

impl Inputs {
    /// `None` where the kernel has no room for what is asked.
    pub(crate) fn new(rows: &[SamplingRow<'_>], vocab: usize) -> Option<Self> {
        if vocab > VOCAB_MAX || rows.iter().any(|row| row.logprobs > Some(TOP_MAX)) {
            return None;
        }
        let edits = each_row(rows, |row| edits(row, vocab));
        let masks_at = rows.len() * ROW + edits.iter().map(Vec::len).sum::<usize>();
        let mut inputs = Self {
            words: Vec::new(),
            rows: rows.len(),
            vocab,
            masks: masks_at,
            slots: 0,
            listed: 0,
        };
        let (mut first_edit, mut first_word) = (0, 0);
        for (row, edits) in rows.iter().zip(&edits) {
            let edits = first_edit..first_edit + edits.len() / EDIT;
            let mask = first_word..first_word + mask(row, vocab).len();
            (first_edit, first_word) = (edits.end, mask.end);
            inputs.push(row, edits, mask);
        }
        inputs.words.extend(edits.iter().flatten());
        inputs.words.extend(rows.iter().flat_map(|row| mask(row, vocab)));
        Some(inputs)
    }

    /// A row, as the structure of `sample.cu` has it.
    fn push(&mut self, row: &SamplingRow<'_>, edits: Range<usize>, mask: Range<usize>) {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let greedy = row.temperature.is_nan() || row.temperature < TEMPERATURE_MIN;
        let logprobs = row.logprobs.is_some();
        let [share, nucleus] = [row.uniform, f64::from(row.top_p)].map(fraction);
        let mut slot = NONE;
        if row.score.is_none() && !greedy && logprobs {
            slot = count(self.slots);
            self.slots += 1;
        }
        let flags = flag(row.score.is_some(), SCORE)
            | flag(greedy, GREEDY)
            | flag(logprobs, LOGPROBS)
            | flag(row.top_p < 1.0, NUCLEUS)
            | flag(row.allowed.is_some(), MASKED);
        let min_p = if row.min_p > 0.0 { row.min_p.min(1.0) } else { 0.0 };
        let top = row.logprobs.unwrap_or(0);
        let words: [u32; ROW] = [
            share as u32,
            (share >> 32) as u32,
            nucleus as u32,
            (nucleus >> 32) as u32,
            row.temperature.min(f32::MAX).to_bits(),
            min_p.to_bits(),
            row.repetition_penalty.to_bits(),
            row.frequency_penalty.to_bits(),
            row.presence_penalty.to_bits(),
            row.top_k,
            flags,
            row.score.unwrap_or(NONE),
            count(edits.start),
            count(edits.len()),
            count(mask.start),
            count(mask.len()),
            slot,
            top,
            count(self.listed),
            0,
        ];
        self.words.extend(words);
        self.listed += top as usize;
    }

    /// Bytes of weights beside the logits.
    pub(crate) fn weights_bytes(&self) -> usize {
        self.slots * self.vocab * 4
    }

    /// Words of results.
    pub(crate) fn results(&self) -> usize {
        self.rows * SAMPLED + self.listed * LISTED
    }

    /// What the card has made of the rows: its [`Inputs::results`].
    pub(crate) fn read(&self, results: &[u32], rows: &[SamplingRow<'_>]) -> Vec<SampledToken> {
        let (sampled, mut listed) = results.split_at(self.rows * SAMPLED);
        let mut all = Vec::with_capacity(rows.len());
        for (sampled, row) in sampled.chunks_exact(SAMPLED).zip(rows) {
            let (own, others) = listed.split_at(row.logprobs.unwrap_or(0) as usize * LISTED);
            listed = others;
            let token = (sampled[0] != NONE).then_some(sampled[0]);
            let logprobs = token.and(row.logprobs).map(|_| logprobs(sampled, own));
            all.push(SampledToken { token, logprobs });
        }
        all
    }
}

fn logprobs(sampled: &[u32], listed: &[u32]) -> TokenLogprobs {
    /// What sums count in.
    const UNIT: f64 = 1.0 / (1_u64 << 43) as f64;
    let [max, chosen] = [sampled[2], sampled[3]].map(f32::from_bits);
    let sum = u64::from(sampled[4]) | u64::from(sampled[5]) << 32;
    let log_sum = (sum as f64 * UNIT).ln();
    let logprob = |logit: f32| (f64::from(logit) - f64::from(max) - log_sum) as f32;
    let top = listed.chunks_exact(LISTED).take(sampled[6] as usize);
    TokenLogprobs {
        chosen: logprob(chosen),
        rank: sampled[1],
        top: top
            .map(|entry| (entry[0], logprob(f32::from_bits(entry[1]))))
            .collect(),
    }
}

/// A share of 1 in 2^-64, rounded up; none of what is no share.
#[expect(
    clippy::cast_sign_loss,
    reason = "a negative number becomes 0, and so does what is none"
)]
fn fraction(share: f64) -> u64 {
    (share * (1_u128 << 64) as f64).ceil() as u64
}

fn mask<'a>(row: &SamplingRow<'a>, vocab: usize) -> &'a [u32] {
    let words = row.allowed.unwrap_or_default();
    &words[..words.len().min(vocab.div_ceil(32))]
}

/// What `work` makes of each row, computed by all threads of the pool.
fn each_row<R: Send>(rows: &[SamplingRow<'_>], work: impl Fn(&SamplingRow<'_>) -> R + Sync) -> Vec<R> {
    let slots: Vec<_> = rows.iter().map(|_| Mutex::new(None)).collect();
    pool::run(slots.len(), |number| {
        // Never contended: each slot is filled once.
        *slots[number].lock().unwrap_or_else(PoisonError::into_inner) = Some(work(&rows[number]));
    });
    let results = slots
        .into_iter()
        .map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
    results
        .map(|result| result.expect("the pool ran every row. This is a bug."))
        .collect()
}

/// The words of a row's edits, in order of tokens; what is behind the vocabulary is left out.
#[expect(clippy::float_cmp, reason = "a penalty is off at exactly its neutral value")]
fn edits(row: &SamplingRow<'_>, vocab: usize) -> Vec<u32> {
    if row.score.is_some() {
        return Vec::new();
    }
    let known = |token: u32| (token as usize) < vocab;
    let mut all: Vec<[u32; EDIT]> = row
        .logit_bias
        .iter()
        .filter(|(token, _)| known(*token))
        .map(|(token, bias)| [*token, bias.to_bits(), BIASED])
        .collect();
    let repeats = row.repetition_penalty != 1.0;
    let counts = row.frequency_penalty != 0.0 || row.presence_penalty != 0.0;
    if repeats || counts {
        let mut marks = vec![0_u32; vocab];
        let prompt = if repeats { row.prompt } else { &[] };
        for token in prompt.iter().filter(|token| known(**token)) {
            marks[*token as usize] |= SEEN;
        }
        for token in row.output.iter().filter(|token| known(**token)) {
            let mark = &mut marks[*token as usize];
            *mark = (*mark | if repeats { SEEN } else { 0 }) + u32::from(counts);
        }
        let marked = (0..).zip(marks).filter(|(_, marks)| *marks != 0);
        all.extend(marked.map(|(token, marks)| [token, 0, marks]));
    }
    let banned = row.banned.iter().filter(|token| known(**token));
    all.extend(banned.map(|token| [*token, 0, BANNED]));
    // Stable: those of one token stay in the order of the steps.
    all.sort_by_key(|edit| edit[0]);
    all.concat()
}

/// Where a card has what the kernel reads and writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    /// `[rows, vocab]`.
    pub(crate) logits: Address,
    /// [`Inputs::words`].
    pub(crate) inputs: Address,
    /// [`Inputs::weights_bytes`].
    pub(crate) weights: Address,
    /// [`Inputs::results`] words.
    pub(crate) results: Address,
}

/// A token for each row.
pub(crate) fn sample(inputs: &Inputs, at: &Places) -> Launch<SampleArgs> {
    let behind = |Address(start): Address, words: usize| Address(start + words as u64 * 4);
    let args = SampleArgs {
        logits: at.logits,
        rows: at.inputs,
        edits: behind(at.inputs, inputs.rows * ROW),
        masks: behind(at.inputs, inputs.masks),
        weights: at.weights,
        sampled: at.results,
        listed: behind(at.results, inputs.rows * SAMPLED),
        vocab: count(inputs.vocab),
        pad: 0,
    };
    // Sixteen tokens a thread, where there are so many.
    let threads = (inputs.vocab / 16).next_multiple_of(32).clamp(64, 1024);
    Launch {
        kernel: "sample".to_owned(),
        grid: [count(inputs.rows), 1, 1],
        block: count(threads),
        shared: count(SHARED),
        args,
    }
}
