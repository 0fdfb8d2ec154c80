//! Where the engine and the models meet: executes an engine's batches with a Candle model.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use rempart_engine::{Batch, ModelRunner, SampleRow, Sampled, sampling};
use rempart_kernels::{op, pool};
use rempart_models::{AttentionRow, Error, ForwardInput, Steps};

/// A model with its keys and values.
pub struct CandleRunner(Steps);

impl CandleRunner {
    pub fn new(steps: Steps) -> Self {
        Self(steps)
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
        self.0.forward(&input)
    }

    fn sample(&mut self, logits: Tensor, rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let logits = logits.to_device(&Device::Cpu)?;
        let vocab = logits.dim(1)?;
        let sampled = op::edit(&logits, |values| {
            // One lock per row, each taken once: it only carries the row's slice into the pool's shared closure.
            let slots: Vec<_> = values
                .chunks_exact_mut(vocab)
                .map(|row| Mutex::new((row, None)))
                .collect();
            pool::run(rows.len(), |index| {
                let mut slot = slots[index].lock().unwrap_or_else(PoisonError::into_inner);
                let sampled = sampling::sample(slot.0, &rows[index]);
                slot.1 = Some(sampled);
            });
            let sampled = slots
                .into_iter()
                .map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1);
            sampled
                .map(|sampled| sampled.expect("the pool ran every row. This is a bug."))
                .collect()
        })?;
        Ok(sampled)
    }
}
