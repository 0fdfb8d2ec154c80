//! A step while it is being filled, and the batch that it becomes.

use crate::batch::{Batch, Row};
use crate::blocks::BlockId;
use crate::request::SeqId;
use crate::scheduler::Scheduler;
use crate::sequence::{Group, Rank, Sequence};

/// What is planned, and what is left.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<Planned>,
    /// Running sequences with a prompt to compute, in order.
    pub(crate) prefills: Vec<Rank>,
    /// Tokens beside those of decodes, which are set aside.
    pub(crate) room: usize,
    pub(crate) prefill_left: usize,
    pub(crate) logits_left: usize,
    /// The first in order, while a token of the prefill is set aside for it.
    pub(crate) first: Option<Rank>,
    /// Whether sequences may guess ahead.
    pub(crate) speculates: bool,
    /// Whether waiting sequences may start.
    pub(crate) admits: bool,
    /// One of them can't yet: those after it may only take what is their flow's share.
    pub(crate) passing: bool,
    /// The priority of one that waits while free places are kept: those that are less urgent don't start before it.
    pub(crate) kept_from: Option<i32>,
}

/// One sequence's part of a step.
#[derive(Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) rank: Rank,
    pub(crate) tokens: usize,
    /// Set aside for it; it may want fewer.
    pub(crate) logits: usize,
    pub(crate) part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Decode,
    Prefill,
    /// Prefill of one that starts in this step.
    Start,
}

impl Plan {
    /// What a prefill may take.
    pub(crate) fn tokens_left(&self, rank: Rank) -> usize {
        let set_aside = usize::from(self.first.is_some_and(|first| first != rank));
        self.room.min(self.prefill_left) - set_aside
    }

    pub(crate) fn push(&mut self, planned: Planned) {
        self.logits_left -= planned.logits;
        self.rows.push(planned);
    }

    pub(crate) fn push_prefill(&mut self, planned: Planned) {
        self.room -= planned.tokens;
        self.prefill_left -= planned.tokens;
        self.first = self.first.filter(|first| *first != planned.rank);
        self.push(planned);
    }

    pub(crate) fn prefills(&self, rank: Rank) -> bool {
        let planned = self.rows.iter().find(|planned| planned.rank == rank);
        planned.is_some_and(|planned| planned.part != Part::Decode)
    }

    /// Takes a decode out of the step, if it is there. The token that was set aside for it stays unused.
    pub(crate) fn drop(&mut self, rank: Rank) -> bool {
        let Some(index) = self.rows.iter().position(|planned| planned.rank == rank) else {
            return false;
        };
        let planned = self.rows.remove(index);
        assert!(
            planned.part == Part::Decode && planned.tokens == 1,
            "only decodes without guesses are taken out of a step. This is a bug."
        );
        self.logits_left += planned.logits;
        true
    }

    /// Rows of logits beyond those for each row's own token, the next row's and all that may come.
    pub(crate) fn logits_spare(&self, sequences_max: usize) -> usize {
        self.logits_left - (sequences_max - self.rows.len())
    }
}

impl Scheduler {
    /// How many pending tokens of a prefill this step takes.
    pub(crate) fn chunk(&self, rank: Rank, plan: &Plan) -> usize {
        let sequence = self.sequence(rank.seq);
        let chunk = sequence.pending().min(plan.tokens_left(rank));
        let group = self.group(sequence.request);
        if !group.is_scoring() {
            return chunk;
        }
        let unscored = first_unscored(sequence, group);
        let logits = 1 + plan.logits_spare(self.config.sequences_max);
        chunk.min(unscored - sequence.computed + logits)
    }

    /// How many rows of logits a chunk of a prefill wants.
    pub(crate) fn logits(&self, rank: Rank, chunk: usize) -> usize {
        let sequence = self.sequence(rank.seq);
        let end = sequence.computed + chunk;
        let samples = end == sequence.tokens.len() && sequence.spec.stop.max_tokens > 0;
        let group = self.group(sequence.request);
        let scores = if group.is_scoring() {
            end.min(sequence.spec.prompt.len() - 1)
                .saturating_sub(first_unscored(sequence, group))
        } else {
            0
        };
        scores + usize::from(samples)
    }

    pub(crate) fn batch(&self, plan: Plan) -> Batch {
        let mut batch = Batch::default();
        // Those that ran before, in order; then those that start. Decodes alone are in order already.
        let mut rows = plan.rows;
        if rows.iter().any(|planned| planned.part != Part::Decode) {
            rows.sort_by_key(|planned| {
                let starts = planned.part == Part::Start;
                (starts, (!starts).then_some(planned.rank))
            });
        }
        for planned in rows {
            self.push_row(&mut batch, planned.rank.seq, planned.tokens);
        }
        batch
    }

    fn push_row(&self, batch: &mut Batch, seq: SeqId, chunk: usize) {
        let sequence = self.sequence(seq);
        let range = sequence.computed..sequence.computed + chunk;
        let wants_token = range.end == sequence.tokens.len() && sequence.spec.stop.max_tokens > 0;
        let start = batch.tokens.len();
        let group = sequence
            .spec
            .prompt_logprobs
            .map(|_| self.group(sequence.request));
        let unscored = match group {
            Some(group) if group.is_scoring() => first_unscored(sequence, group),
            _ => usize::MAX,
        };
        for position in range.clone() {
            let scores = position >= unscored && position + 1 < sequence.spec.prompt.len();
            let samples = wants_token && position + 1 + sequence.drafted >= range.end;
            if scores || samples {
                batch.logits.push(batch.tokens.len() as u32);
            }
            batch.tokens.push(sequence.tokens[position]);
            batch.positions.push(position as u32);
            batch.slots.push(self.slot(&sequence.table, position));
        }
        batch.rows.push(Row {
            seq,
            tokens: start..batch.tokens.len(),
            context_len: range.end,
            block_table: sequence.table.clone(),
        });
    }

    fn slot(&self, table: &[BlockId], position: usize) -> u32 {
        let size = self.config.block_size;
        table[position / size] * size as u32 + (position % size) as u32
    }
}

/// The first position whose logits score a prompt token that has no score yet.
fn first_unscored(sequence: &Sequence, group: &Group) -> usize {
    sequence.computed.max(group.scores.len() - 1)
}
