//! A decoder that embeds: hidden states by causal attention over keys and values that last for one batch.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{EncoderBatch, TOKENS_PER_THREAD};
use crate::{AttentionRow, ForwardInput, KvCache, KvDtype, ModelConfig, Result, decoder::Body};

/// Token slots of a block of keys and values: the fewest that a cache takes, as each sequence begins in a block of its own.
pub(super) const BLOCK: usize = 16;

/// A decoder's body and its scratch cache. Whatever is in the cache is from an earlier batch, and is written before it is read.
pub(super) struct Causal {
    body: Box<dyn Body>,
    kv: KvCache,
    step_tokens: usize,
}

/// Tokens computed at once on this many threads.
pub(super) fn step_tokens(threads: usize) -> usize {
    (TOKENS_PER_THREAD * threads.max(1)).next_multiple_of(BLOCK)
}

/// Token slots for a sequence of `tokens_max`, or for one step of short ones.
pub(super) fn slots(tokens_max: usize, step_tokens: usize) -> usize {
    tokens_max.next_multiple_of(BLOCK).max(step_tokens)
}

/// A sequence of a batch: its tokens, and the first block of its keys and values.
struct Sequence {
    tokens: Range<usize>,
    block: usize,
}

impl Sequence {
    fn blocks(&self) -> Range<u32> {
        let end = self.block + self.tokens.len().div_ceil(BLOCK);
        self.block as u32..end as u32
    }
}

impl Causal {
    /// Takes a cache for one sequence of `tokens_max`, or for as many shorter ones as are computed at once.
    ///
    /// # Errors
    /// When it is too large to be counted.
    pub(super) fn new(
        body: Box<dyn Body>,
        config: &ModelConfig,
        (tokens_max, step_tokens): (usize, usize),
        dtype: KvDtype,
    ) -> Result<Self> {
        let blocks = slots(tokens_max, step_tokens) / BLOCK;
        let kv = KvCache::new(config, blocks, BLOCK, dtype, &Device::Cpu)?;
        Ok(Self {
            body,
            kv,
            step_tokens,
        })
    }

    pub(super) fn step_tokens(&self) -> usize {
        self.step_tokens
    }

    /// Hidden states `[tokens, hidden]` of a batch that was checked and has room in the cache.
    pub(super) fn forward(&self, batch: &EncoderBatch<'_>) -> Result<Tensor> {
        self.run(batch, |_, step| (0..step.len() as u32).collect())
    }

    /// As [`Causal::forward`], of each sequence's last token: `[sequences, hidden]`.
    pub(super) fn last(&self, batch: &EncoderBatch<'_>) -> Result<Tensor> {
        self.run(batch, |sequences, step| {
            let last = sequences.iter().map(|sequence| sequence.tokens.end - 1);
            let within = last.filter(|last| step.contains(last));
            within.map(|last| (last - step.start) as u32).collect()
        })
    }

    /// Runs the batch in steps, and puts together the hidden states of those tokens of each step that `wanted` names. Only a
    /// sequence that is longer than a step needs several: what is in the cache is its past.
    fn run(
        &self,
        batch: &EncoderBatch<'_>,
        wanted: impl Fn(&[Sequence], &Range<usize>) -> Vec<u32>,
    ) -> Result<Tensor> {
        let sequences = side_by_side(batch.lengths);
        let (mut positions, mut slots) = (Vec::new(), Vec::new());
        for sequence in &sequences {
            let (len, first) = (sequence.tokens.len() as u32, (sequence.block * BLOCK) as u32);
            positions.extend(0..len);
            slots.extend(first..first + len);
        }
        let mut states = Vec::new();
        let all = batch.tokens.len();
        for start in (0..all).step_by(self.step_tokens) {
            let step = start..all.min(start + self.step_tokens);
            let input = ForwardInput {
                tokens: &batch.tokens[step.clone()],
                positions: &positions[step.clone()],
                slots: &slots[step.clone()],
                rows: &rows(&sequences, &step),
                logits: &wanted(&sequences, &step),
            };
            states.push(self.body.hidden(&input, &self.kv)?);
        }
        match states.as_slice() {
            [one] => Ok(one.clone()),
            several => Ok(Tensor::cat(several, 0)?),
        }
    }
}

/// Gives each sequence blocks behind those of the one before.
fn side_by_side(lengths: &[usize]) -> Vec<Sequence> {
    let (mut token, mut block) = (0, 0);
    let place = |&len: &usize| {
        let sequence = Sequence {
            tokens: token..token + len,
            block,
        };
        token += len;
        block += len.div_ceil(BLOCK);
        sequence
    };
    lengths.iter().map(place).collect()
}

/// What of each sequence a step computes.
fn rows(sequences: &[Sequence], step: &Range<usize>) -> Vec<AttentionRow> {
    let row = |sequence: &Sequence| {
        let (start, end) = (
            sequence.tokens.start.max(step.start),
            sequence.tokens.end.min(step.end),
        );
        (start < end).then(|| AttentionRow {
            tokens: start - step.start..end - step.start,
            context_len: end - sequence.tokens.start,
            block_table: sequence.blocks().collect(),
        })
    };
    sequences.iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{LoadOptions, ModelFiles};

    #[test]
    fn steps_of_any_length_give_the_same_bits() {
        // Some of its layers have a window.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders/gemma3-embedder");
        let files = ModelFiles::open(&folder).unwrap();
        let lengths = [100, 1, 37];
        let tokens: Vec<u32> = (0..138).map(|i| i * 29 % 258).collect();
        let batch = EncoderBatch {
            tokens: &tokens,
            token_types: &[],
            lengths: &lengths,
        };
        let run = |step_tokens: usize| {
            let body = files.load_body(&LoadOptions::default()).unwrap();
            let decoder = Causal::new(body, &files.config, (200, step_tokens), KvDtype::F32).unwrap();
            let numbers = |states: Tensor| states.to_vec2::<f32>().unwrap();
            let states = numbers(decoder.forward(&batch).unwrap());
            // What is in the cache by now means nothing.
            let last = numbers(decoder.last(&batch).unwrap());
            assert_eq!(last, [99, 100, 137].map(|token: usize| states[token].clone()));
            states
        };
        let whole = run(256);
        assert_eq!(whole.len(), tokens.len());
        for step_tokens in [16, 48, 112] {
            assert_eq!(run(step_tokens), whole, "steps of {step_tokens} tokens");
        }
    }
}
