//! Steps as large as a plan allows, computed once before keys and values get their memory: so what a card takes for them is
//! measured, and what is left is known (as vLLM's `determine_available_memory` does).

use candle_core::Device;
use rempart_kernels::{RECORDED_SEQUENCES_MAX, forget_scratch, op, take_memory_use};

use crate::{AttentionRow, Error, ForwardInput, KvCache, KvDtype, Model, ModelConfig, Result};

/// How large steps may be.
#[derive(Clone, Copy, Debug)]
pub struct LargestSteps {
    /// Tokens of a step.
    pub tokens: usize,
    /// Sequences of a step, no more than its tokens.
    pub sequences: usize,
    /// Rows of logits of a step, no more than its tokens.
    pub logit_rows: usize,
    /// Tokens of a sequence.
    pub context_length: usize,
    /// Tokens whose keys and values are planned for, of all sequences.
    pub cached_tokens: usize,
    /// Token slots of a block of keys and values.
    pub block_size: usize,
    /// How keys and values are held.
    pub kv_dtype: KvDtype,
}

/// A step's arrays, as [`ForwardInput`] has them; all tokens are the first one of the vocabulary.
#[derive(Debug, Default)]
struct Step {
    positions: Vec<u32>,
    slots: Vec<u32>,
    rows: Vec<AttentionRow>,
    logits: Vec<u32>,
}

impl LargestSteps {
    /// Bytes of its own memory that a card takes at most, beside weights, keys and values, for a step of `model` of as many tokens
    /// of prompts as there may be, and for one of as many answers, at the end of contexts as long as are planned for; `None` for the
    /// CPU. Several tokens of each of many long contexts at one time take more, and so do many answers to one long prompt.
    ///
    /// What else the process computes on the card meanwhile is counted with it.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] where a step finds no memory even without keys and values; otherwise the driver's.
    pub fn measure(&self, model: &dyn Model, config: &ModelConfig, device: &Device) -> Result<Option<u64>> {
        if device.is_cpu() {
            return Ok(None);
        }
        self.memory(model, config, device).map_err(|error| {
            if !error.is_out_of_memory() {
                return error;
            }
            Error::DoesNotFit(format!(
                "a step of {} tokens, or one of {} sequences of {} tokens, finds no memory on the card beside the weights: choose a \
                 smaller model, or lower --step-tokens-max, --sequences-max or --context-length",
                self.tokens, self.sequences, self.context_length
            ))
        })
    }

    fn memory(&self, model: &dyn Model, config: &ModelConfig, device: &Device) -> Result<Option<u64>> {
        let kv = KvCache::new(config, self.blocks(), self.block_size, self.kv_dtype, device)?;
        loop {
            // Of steps that were measured before.
            forget_scratch(device)?;
            let before = take_memory_use(device)?;
            self.compute(model, &kv)?;
            let Some((before, after)) = before.zip(take_memory_use(device)?) else {
                return Ok(None);
            };
            // Otherwise a model was unloaded meanwhile.
            if after.now >= before.now {
                return Ok(Some(after.peak - before.now));
            }
        }
    }

    fn compute(&self, model: &dyn Model, kv: &KvCache) -> Result<()> {
        // Prompts twice: beside what answers, and their own sampling, leave to be used again.
        for step in [self.answers(), self.prompts(), self.prompts()] {
            let input = ForwardInput {
                tokens: &vec![0; step.positions.len()],
                positions: &step.positions,
                slots: &step.slots,
                rows: &step.rows,
                logits: &step.logits,
            };
            let logits = model.forward(&input, kv)?;
            // Where the kernel has no room for so many tokens, the host samples.
            op::sample(&logits, &vec![with_likelihoods(); step.logits.len()])?;
        }
        Ok(())
    }

    /// Blocks that hold what a step computes.
    fn blocks(&self) -> usize {
        let whole = self.tokens / self.context_length * self.context_length.div_ceil(self.block_size);
        whole + (self.tokens % self.context_length).div_ceil(self.block_size)
    }

    /// As many tokens of prompts as a step takes, each in a place of its own.
    fn prompts(&self) -> Step {
        assert!(
            self.logit_rows <= self.tokens,
            "more logits than tokens. This is a bug."
        );
        let (mut step, mut block) = (Step::default(), 0);
        while step.positions.len() < self.tokens {
            let first = step.positions.len();
            let len = self.context_length.min(self.tokens - first);
            let blocks = len.div_ceil(self.block_size);
            let slot = block * self.block_size;
            step.positions.extend(0..len as u32);
            step.slots.extend(slot as u32..(slot + len) as u32);
            step.rows.push(AttentionRow {
                tokens: first..first + len,
                context_len: len,
                block_table: (block as u32..(block + blocks) as u32).collect(),
            });
            block += blocks;
        }
        step.logits = ((self.tokens - self.logit_rows) as u32..self.tokens as u32).collect();
        step
    }

    /// As many sequences as a step takes, each at the end of the longest context while the planned tokens last; those that a recorded
    /// step could have at the power of two behind it, for which that has room. All read the first block over and over and write
    /// where prompts do: what numbers these are makes no difference to the memory.
    fn answers(&self) -> Step {
        assert!(
            self.sequences <= self.tokens,
            "more sequences than tokens. This is a bug."
        );
        let (mut step, mut left) = (Step::default(), self.cached_tokens);
        for token in 0..self.sequences {
            let mut context = self.context_length.min(left).max(1);
            left = left.saturating_sub(context);
            if token < RECORDED_SEQUENCES_MAX {
                context = context.next_power_of_two();
            }
            step.positions.push(context as u32 - 1);
            step.slots.push(token as u32);
            step.rows.push(AttentionRow {
                tokens: token..token + 1,
                context_len: context,
                block_table: vec![0; context.div_ceil(self.block_size)],
            });
        }
        step.logits = (0..self.logit_rows.min(self.sequences) as u32).collect();
        step
    }
}

/// A row whose likelihoods are told, which takes a copy of its logits; what grammars and penalties take is small beside that.
fn with_likelihoods() -> op::SamplingRow<'static> {
    op::SamplingRow {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: &[],
        prompt: &[],
        output: &[],
        banned: &[],
        allowed: None,
        uniform: 0.5,
        score: None,
        logprobs: Some(0),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use candle_core::{DType, Tensor};

    use super::*;
    use crate::config::tests::tiny;

    /// Notes tokens, rows, tokens of all contexts and logits of what it is asked, and checks it as attention would.
    struct Counting {
        blocks: usize,
        block_size: usize,
        steps: Mutex<Vec<[usize; 4]>>,
    }

    impl Model for Counting {
        fn forward(&self, input: &ForwardInput<'_>, _kv: &KvCache) -> Result<Tensor> {
            let n = input.tokens.len();
            assert_eq!([input.positions.len(), input.slots.len()], [n, n]);
            let mut slots = input.slots.to_vec();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), n, "no slot is written twice");
            assert!(
                slots
                    .iter()
                    .all(|slot| (*slot as usize) < self.blocks * self.block_size)
            );
            let mut next = 0;
            for row in input.rows {
                assert_eq!(row.tokens.start, next);
                next = row.tokens.end;
                assert!(row.block_table.len() * self.block_size >= row.context_len);
                assert!(
                    row.block_table
                        .iter()
                        .all(|block| (*block as usize) < self.blocks)
                );
                assert_eq!(input.positions[next - 1] as usize, row.context_len - 1);
            }
            assert_eq!(next, n);
            assert!(input.logits.iter().all(|logit| (*logit as usize) < n));
            let contexts = input.rows.iter().map(|row| row.context_len).sum();
            let step = [n, input.rows.len(), contexts, input.logits.len()];
            self.steps.lock().unwrap().push(step);
            Ok(Tensor::zeros((input.logits.len(), 7), DType::F32, &Device::Cpu)?)
        }
    }

    fn computed(steps: LargestSteps) -> Vec<[usize; 4]> {
        let (blocks, block_size) = (steps.blocks(), steps.block_size);
        let kv = KvCache::new(&tiny(), blocks, block_size, steps.kv_dtype, &Device::Cpu).unwrap();
        let model = Counting {
            blocks,
            block_size,
            steps: Mutex::default(),
        };
        steps.compute(&model, &kv).unwrap();
        model.steps.into_inner().unwrap()
    }

    #[test]
    fn steps_are_as_large_as_they_may_be() {
        let steps = LargestSteps {
            tokens: 512,
            sequences: 64,
            logit_rows: 96,
            context_length: 4095,
            cached_tokens: 10_000,
            block_size: 16,
            kv_dtype: KvDtype::Bf16,
        };
        let prompts = [512, 1, 512, 96];
        // Two contexts, what is left at its own power of two, and one token for each of the others.
        let answers = [64, 64, 2 * 4096 + 2048 + 61, 64];
        assert_eq!(computed(steps), [answers, prompts, prompts]);
        let short = LargestSteps {
            context_length: 200,
            ..steps
        };
        let prompts = [512, 3, 512, 96];
        let answers = [64, 64, 32 * 256 + 18 * 200 + 14, 64];
        assert_eq!(computed(short), [answers, prompts, prompts]);
        let one = LargestSteps {
            tokens: 1,
            sequences: 1,
            logit_rows: 1,
            ..short
        };
        assert_eq!(computed(one), [[1, 1, 256, 1], [1, 1, 1, 1], [1, 1, 1, 1]]);
    }

    #[test]
    fn the_processor_is_not_measured() {
        let steps = LargestSteps {
            tokens: 4,
            sequences: 2,
            logit_rows: 2,
            context_length: 16,
            cached_tokens: 16,
            block_size: 16,
            kv_dtype: KvDtype::Bf16,
        };
        let none = Counting {
            blocks: 0,
            block_size: 16,
            steps: Mutex::default(),
        };
        assert_eq!(steps.measure(&none, &tiny(), &Device::Cpu).unwrap(), None);
    }
}
