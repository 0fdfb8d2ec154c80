//! What a step's results change: which token each row samples, and what becomes of its sequence.

use std::ops::Range;

use crate::batch::{Batch, Row, SampleKind, SampleRow};
use crate::constraint::{Advance, Constraint, Then, TokenMask};
use crate::request::{Event, Finish, Output, Predicted, Sampled, SeqId, Token};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// The constraints of those that a step samples for, until [`Scheduler::constrain`].
    pub(crate) fn lend_constraints(&mut self, batch: &Batch) -> (Vec<SeqId>, Vec<Box<dyn Constraint>>) {
        let mut lent = Vec::new();
        for row in &batch.rows {
            let sequence = self.sequence_mut(row.seq);
            if row.context_len == sequence.tokens.len() {
                lent.extend(sequence.constraint.take().map(|constraint| (row.seq, constraint)));
            }
        }
        lent.into_iter().unzip()
    }

    /// Takes the constraints back, each with what it allows.
    pub(crate) fn constrain(
        &mut self,
        seqs: Vec<SeqId>,
        constraints: Vec<Box<dyn Constraint>>,
        masks: Vec<TokenMask>,
    ) {
        assert_eq!(
            masks.len(),
            seqs.len(),
            "a mask for each constraint. This is a bug of the runner."
        );
        for ((seq, constraint), mask) in seqs.into_iter().zip(constraints).zip(masks) {
            let sequence = self.sequence_mut(seq);
            sequence.constraint = Some(constraint);
            sequence.allowed = Some(mask);
        }
    }

    /// What to do with each wanted row of logits.
    pub(crate) fn sample_rows(&self, batch: &Batch) -> Vec<SampleRow<'_>> {
        let mut rows = Vec::with_capacity(batch.logits.len());
        for (row, range) in wanted(batch) {
            let sequence = self.sequence(row.seq);
            for index in range {
                let position = batch.positions[batch.logits[index] as usize] as usize + 1;
                let scored = sequence.spec.prompt.get(position);
                rows.push(SampleRow {
                    params: &sequence.spec.sampling,
                    prompt: sequence.prompt(),
                    output: sequence.output_before(position),
                    position,
                    seed: sequence.seed,
                    banned: sequence.banned(position),
                    allowed: sequence.allowed.as_ref(),
                    kind: scored.map_or(SampleKind::Sample, |token| SampleKind::Score(*token)),
                    logprobs: if scored.is_some() {
                        sequence.spec.prompt_logprobs
                    } else {
                        sequence.spec.sampling.logprobs
                    },
                });
            }
        }
        rows
    }

    /// Takes a step's results: tokens are appended, full blocks published, finished sequences end.
    pub(crate) fn apply(&mut self, batch: &Batch, sampled: Vec<Sampled>) {
        assert_eq!(
            sampled.len(),
            batch.logits.len(),
            "the runner must answer every wanted row. This is a bug."
        );
        let mut sampled = sampled.into_iter();
        for (row, range) in wanted(batch) {
            let answers: Vec<Sampled> = sampled.by_ref().take(range.len()).collect();
            self.count(row);
            self.apply_row(row, answers);
            self.recount(row.seq);
        }
    }

    fn count(&mut self, row: &Row) {
        let sequence = self.sequence(row.seq);
        let drafted = sequence.drafted;
        let decode = row.context_len > sequence.spec.prompt.len() && sequence.pending() == 1;
        if decode {
            self.report.decode_tokens += 1;
            self.report.drafts += usize::from(drafted > 0);
            self.report.drafted_tokens += drafted;
        } else {
            self.report.prefill_tokens += row.tokens.len();
        }
    }

    fn apply_row(&mut self, row: &Row, mut answers: Vec<Sampled>) {
        let sequence = self.sequence_mut(row.seq);
        // Guesses become tokens one by one, below, if they turn out to be what is sampled.
        let drafts = sequence
            .tokens
            .split_off(sequence.tokens.len() - sequence.drafted);
        sequence.drafted = 0;
        sequence.computed = row.context_len - drafts.len();
        let samples = sequence.pending() == 0 && sequence.spec.stop.max_tokens > 0;
        let scores = answers.len() - if samples { drafts.len() + 1 } else { 0 };
        // Mostly there are none, and nothing has to be moved.
        let sampled = if scores == 0 {
            std::mem::take(&mut answers)
        } else {
            answers.split_off(scores)
        };
        // What led to unusable logits must not be found by others.
        if answers
            .iter()
            .chain(sampled.first())
            .any(|answer| !answer.is_valid())
        {
            let allowed = self.sequence(row.seq).allowed.as_ref();
            let stuck = allowed.is_some_and(TokenMask::is_empty) && answers.iter().all(Sampled::is_valid);
            return self.end(row.seq, if stuck { Finish::Stuck } else { Finish::Failed });
        }
        self.publish(row.seq);
        self.score(row.seq, answers);
        if samples {
            self.append_confirmed(row.seq, sampled, &drafts);
        } else if self.sequence(row.seq).pending() == 0 {
            self.end(row.seq, Finish::Length);
        }
    }

    /// Keeps the scores of prompt tokens, and notes when the prompt is done.
    fn score(&mut self, seq: SeqId, answers: Vec<Sampled>) {
        let sequence = self.sequence(seq);
        let ends_prompt = sequence.computed >= sequence.spec.prompt.len() && !sequence.prompt_done;
        if answers.is_empty() && !ends_prompt {
            return;
        }
        let request = sequence.request;
        let group = self
            .groups
            .get_mut(&request)
            .expect("a sequence has a group. This is a bug.");
        let logprobs = answers.into_iter().map(|answer| answer.logprob);
        group.scores.extend(logprobs);
        if ends_prompt {
            self.end_prompt(seq);
        }
    }

    /// Appends the sampled tokens, as so many steps would have: each answer after the first is of a text that goes on
    /// with a guess, and counts only if that guess is the token sampled before it.
    fn append_confirmed(&mut self, seq: SeqId, sampled: Vec<Sampled>, drafts: &[Token]) {
        let right = drafts
            .iter()
            .zip(&sampled)
            .take_while(|(draft, sampled)| **draft == sampled.token)
            .count();
        // What was guessed behind a stop token is of no use.
        let stops = &self.sequence(seq).spec.stop.tokens;
        let stop = drafts.iter().position(|draft| stops.contains(draft));
        let accepted = stop.map_or(right, |stop| right.min(stop + 1));
        self.report.accepted_tokens += accepted;
        let length_max = self.config.speculative_tokens;
        if !drafts.is_empty() {
            let sequence = self.sequence_mut(seq);
            sequence.drafter.learn(drafts.len(), accepted, length_max);
            if sequence.drafter.is_predicting() {
                let rejected = drafts.len() - accepted;
                let predicted = sequence.event(Event::Predicted(Predicted { accepted, rejected }));
                self.report.outputs.push(predicted);
            }
        }
        for (index, answer) in sampled.into_iter().take(accepted + 1).enumerate() {
            if !answer.is_valid() {
                return self.end(seq, Finish::Failed);
            }
            if index > 0 {
                self.sequence_mut(seq).computed += 1;
                self.publish(seq);
            }
            self.append(seq, answer);
            if !self.sequences.contains_key(&seq) {
                return;
            }
        }
    }

    fn publish(&mut self, seq: SeqId) {
        let size = self.config.block_size;
        let sequence = self
            .sequences
            .get_mut(&seq)
            .expect("a batched sequence lives. This is a bug.");
        let full = sequence.computed / size;
        sequence.extend_keys(&self.hasher, size);
        while sequence.publishing && sequence.published < full {
            let at = sequence.published;
            let key = sequence.keys[at];
            let (before, id) = (&sequence.table[..at], sequence.table[at]);
            let tokens = &sequence.tokens[at * size..(at + 1) * size];
            match self.pool.publish(sequence.salt, before, id, key, tokens) {
                Some(id) => {
                    sequence.table[at] = id;
                    sequence.published += 1;
                }
                None => sequence.publishing = false,
            }
        }
    }

    fn end_prompt(&mut self, seq: SeqId) {
        let sequence = self
            .sequences
            .get_mut(&seq)
            .expect("a batched sequence lives. This is a bug.");
        sequence.prompt_done = true;
        let group = self
            .groups
            .get_mut(&sequence.request)
            .expect("a sequence has a group. This is a bug.");
        group.prompt_done = true;
        if group.spec.prompt_logprobs.is_some() {
            self.report
                .outputs
                .push(sequence.event(Event::PromptLogprobs(group.told())));
        }
    }

    /// Appends a sampled token and those that the grammar then forces.
    fn append(&mut self, seq: SeqId, sampled: Sampled) {
        let token = sampled.token;
        if let Some(finish) = self.push(seq, sampled) {
            return self.end(seq, finish);
        }
        let sequence = self.sequence_mut(seq);
        sequence.allowed = None;
        let force = sequence.spec.sampling.logprobs.is_none();
        let Some(Advance { forced, then }) = sequence
            .constraint
            .as_mut()
            .map(|constraint| constraint.advance(token, force))
        else {
            return;
        };
        for token in forced {
            let logprob = None;
            if let Some(finish) = self.push(seq, Sampled { token, logprob }) {
                return self.end(seq, finish);
            }
        }
        match then {
            Then::More => {}
            Then::Nothing => self.end(seq, Finish::Complete),
            Then::Failure => self.end(seq, Finish::Stuck),
        }
    }

    /// Appends a token, unless it ends the sequence; returns how that ended.
    fn push(&mut self, seq: SeqId, sampled: Sampled) -> Option<Finish> {
        let context_max = self.config.context_max;
        let sequence = self
            .sequences
            .get_mut(&seq)
            .expect("a batched sequence lives. This is a bug.");
        let stop = &sequence.spec.stop;
        let token = sampled.token;
        if sequence.output().len() >= stop.min_tokens && stop.tokens.contains(&token) {
            return Some(Finish::Stop(token));
        }
        let full = sequence.output().len() + 1 == stop.max_tokens || sequence.tokens.len() + 1 == context_max;
        sequence.tokens.push(token);
        let output: Output = sequence.event(Event::Token(sampled));
        self.report.outputs.push(output);
        full.then_some(Finish::Length)
    }
}

/// Every row with its range of `batch.logits`.
fn wanted(batch: &Batch) -> impl Iterator<Item = (&Row, Range<usize>)> {
    let mut next = 0;
    batch.rows.iter().map(move |row| {
        let start = next;
        let logits = batch.logits[start..].iter();
        next += logits
            .take_while(|index| (**index as usize) < row.tokens.end)
            .count();
        (row, start..next)
    })
}
