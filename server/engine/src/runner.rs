//! What the engine needs of a model.

use crate::batch::{Batch, SampleRow};
use crate::constraint::{Constraint, TokenMask};
use crate::request::Sampled;

/// Executes a batch on a device. Logits stay where they were computed until `sample`.
pub trait ModelRunner {
    type Logits;
    type Error: std::fmt::Display;

    /// Writes the keys and values of every token of the batch to its slot and computes the wanted logits.
    fn forward(&mut self, batch: &Batch) -> Result<Self::Logits, Self::Error>;

    /// Whether `forward` returns while a device is still at work, for which `sample` waits.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Whether an error says that the device had no memory for a step: smaller ones may find some.
    fn is_out_of_memory(&self, _error: &Self::Error) -> bool {
        false
    }

    /// Whether no batch can be computed any more: the engine has then come to its end.
    fn is_lost(&self) -> bool {
        false
    }

    /// What each constraint allows next, in order. One after the other, unless the runner has cores to share them out to.
    fn allow(&mut self, constraints: &mut [Box<dyn Constraint>]) -> Vec<TokenMask> {
        constraints
            .iter_mut()
            .map(|constraint| constraint.allowed())
            .collect()
    }

    /// One result per row, in order. A row whose logits allow no choice is [`Sampled::invalid`], not an error:
    /// an error fails every sequence of the step.
    fn sample(&mut self, logits: Self::Logits, rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, Self::Error>;
}
