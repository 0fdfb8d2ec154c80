//! One step's work, flat, as a runner uploads it.

use std::ops::Range;

use crate::constraint::TokenMask;
use crate::request::{SamplingParams, SeqId, Token};

/// One step's work. `tokens`, `positions` and `slots` run in parallel, row after row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// One per sequence in the step, none empty.
    pub rows: Vec<Row>,
    /// The tokens to compute.
    pub tokens: Vec<Token>,
    /// Each token's position in its sequence, from 0.
    pub positions: Vec<u32>,
    /// Where each token's keys and values go: `block * block_size + offset`.
    pub slots: Vec<u32>,
    /// Indices into `tokens` whose logits are wanted, ascending. May be empty.
    pub logits: Vec<u32>,
}

/// One sequence's part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub seq: SeqId,
    /// Its tokens in the batch.
    pub tokens: Range<usize>,
    /// Tokens attention reads for the last of them: everything computed, these included.
    pub context_len: usize,
    /// The sequence's blocks in order; at least `context_len / block_size`, rounded up.
    pub block_table: Vec<u32>,
}

/// What to do with one wanted row of logits; one per entry of [`Batch::logits`], in order.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    pub params: &'a SamplingParams,
    pub prompt: &'a [Token],
    /// Tokens generated so far.
    pub output: &'a [Token],
    /// Position of the token to sample (or scored): keys the random draw.
    pub position: usize,
    /// The sequence's own seed (not `params.seed`).
    pub seed: u64,
    /// Tokens that can't be chosen at this position.
    pub banned: &'a [Token],
    /// The only tokens that can be chosen at this position; `None` where all can.
    pub allowed: Option<&'a TokenMask>,
    pub kind: SampleKind,
    /// `Some(k)`: return log-probabilities, with the `k` best.
    pub logprobs: Option<u32>,
}

/// Whether a row of logits chooses a token or rates one that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    Sample,
    /// Return this token of the prompt and its log-probability.
    Score(Token),
}
