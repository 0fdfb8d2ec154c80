//! Where the engine and the models meet: executes an engine's batches with a Candle model.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use rempart_engine::{
    Batch, Constraint, Logprob, Logprobs, ModelRunner, SampleKind, SampleRow, Sampled, TokenMask, rng,
    sampling,
};
use rempart_kernels::{
    op::{self, SampledToken, SamplingRow},
    pool,
};
use rempart_models::{AttentionRow, Error, ForwardInput, Steps};

use crate::served_model::Ranks;

/// Whether this program can compute on a card.
pub(crate) const CUDA: bool = cfg!(feature = "cuda");

/// A model with its keys and values.
pub struct CandleRunner {
    steps: Steps,
    /// The other processes that have a part of it, if there are any.
    ranks: Option<Ranks>,
}

impl CandleRunner {
    pub fn new(steps: Steps, ranks: Option<Ranks>) -> Self {
        Self { steps, ranks }
    }
}

impl ModelRunner for CandleRunner {
    type Logits = Tensor;
    type Error = Error;

    fn forward(&mut self, batch: &Batch) -> Result<Tensor, Error> {
        let rows: Vec<AttentionRow> = batch
            .rows
            .iter()
            .map(|row| AttentionRow {
                tokens: row.tokens.clone(),
                context_len: row.context_len,
                block_table: row.block_table.clone(),
            })
            .collect();
        let input = ForwardInput {
            tokens: &batch.tokens,
            positions: &batch.positions,
            slots: &batch.slots,
            rows: &rows,
            logits: &batch.logits,
        };
        self.steps.forward(&input)
    }

    fn is_asynchronous(&self) -> bool {
        self.steps.is_asynchronous()
    }

    fn is_out_of_memory(&self, error: &Error) -> bool {
        // Ranks must compute the same steps: one that finds no memory is for all of them to fail.
        self.ranks.is_none() && error.is_out_of_memory()
    }

    fn is_lost(&self) -> bool {
        self.ranks.as_ref().is_some_and(Ranks::is_lost)
    }

    fn allow(&mut self, constraints: &mut [Box<dyn Constraint>]) -> Vec<TokenMask> {
        each(constraints, |constraint| constraint.allowed())
    }

    fn sample(&mut self, logits: Tensor, rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<_> = rows.iter().map(sampling_row).collect();
        if let Some(tokens) = op::sample(&logits, &wanted)? {
            return Ok(tokens.into_iter().map(sampled).collect());
        }
        let logits = logits.to_device(&Device::Cpu)?;
        let vocab = logits.dim(1)?;
        let sampled = op::edit(&logits, |values| {
            let mut rows: Vec<_> = values.chunks_exact_mut(vocab).zip(rows).collect();
            each(&mut rows, |(logits, row)| sampling::sample(logits, row))
        })?;
        Ok(sampled)
    }
}

/// What a card's kernel is told of a row.
fn sampling_row<'a>(row: &SampleRow<'a>) -> SamplingRow<'a> {
    let params = row.params;
    SamplingRow {
        temperature: params.temperature,
        top_p: params.top_p,
        top_k: params.top_k,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        logit_bias: &params.logit_bias,
        prompt: row.prompt,
        output: row.output,
        banned: row.banned,
        allowed: row.allowed.map(TokenMask::words),
        uniform: rng::uniform(row.seed, row.position as u64),
        score: match row.kind {
            SampleKind::Sample => None,
            SampleKind::Score(token) => Some(token),
        },
        logprobs: row.logprobs,
    }
}

/// What became of a row, as the engine knows it.
fn sampled(row: SampledToken) -> Sampled {
    let Some(token) = row.token else {
        return Sampled::invalid();
    };
    let logprob = row.logprobs.map(|found| {
        let top = found.top.into_iter();
        Logprobs {
            chosen: found.chosen,
            rank: found.rank,
            top: top.map(|(token, logprob)| Logprob { token, logprob }).collect(),
        }
    });
    Sampled { token, logprob }
}

/// What `work` makes of each item, in order, computed by all threads of the pool.
fn each<T: Send, R: Send>(items: &mut [T], work: impl Fn(&mut T) -> R + Sync) -> Vec<R> {
    // One lock per item, each taken once: it only carries the item into the pool's shared closure.
    let slots: Vec<_> = items.iter_mut().map(|item| Mutex::new((item, None))).collect();
    pool::run(slots.len(), |index| {
        let mut slot = slots[index].lock().unwrap_or_else(PoisonError::into_inner);
        slot.1 = Some(work(slot.0));
    });
    let results = slots
        .into_iter()
        .map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1);
    results
        .map(|result| result.expect("the pool ran every item. This is a bug."))
        .collect()
}
