//! A runner that knows when the engine lies to it.
//!
//! A real cache slot holds keys and values that depend on the whole text before it. Here it holds the token and a
//! hash of that text. Every forward walks every position it may read through the block table and checks the chain;
//! every sampled row checks that the hash it arrived at is that of the request's own prompt and output. So a block
//! that is shared, evicted, overwritten or left uncomputed by mistake is found at the next token.

use std::cell::Cell;
use std::collections::VecDeque;

use thiserror::Error;

use crate::batch::{Batch, Row, SampleKind, SampleRow};
use crate::config::EngineConfig;
use crate::constraint::Then;
use crate::request::{Finish, Logprobs, Request, Sampled, Token};
use crate::rng::{mix, sequence_seed, uniform};
use crate::runner::ModelRunner;
use crate::sampling;

/// A model whose logits are a function of a hash of the text.
#[derive(Clone, Copy, Debug)]
pub struct FakeModel {
    pub vocab: usize,
    /// About one text in this many has nothing but NaN for logits; 0 is none.
    pub nan_one_in: u64,
}

/// What a request gives when nothing else is served.
#[derive(Clone, Debug, PartialEq)]
pub struct Alone {
    /// As [`crate::Event::PromptLogprobs`], when asked for.
    pub scores: Option<Vec<Option<Logprobs>>>,
    pub tokens: Vec<Token>,
    pub finish: Finish,
}

/// The hash of no text.
const EMPTY: u64 = 0;

fn extend(hash: u64, token: Token) -> u64 {
    mix(hash ^ (u64::from(token) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The hash of a text.
pub(super) fn hash_of(tokens: &[Token]) -> u64 {
    tokens.iter().fold(EMPTY, |hash, token| extend(hash, *token))
}

impl FakeModel {
    fn answer(&self, hash: u64, row: &SampleRow<'_>) -> Sampled {
        let bad = self.nan_one_in > 0 && hash.is_multiple_of(self.nan_one_in);
        let logit = |token| {
            if bad {
                f32::NAN
            } else {
                (uniform(hash, token) * 4.0) as f32
            }
        };
        let mut logits: Vec<f32> = (0..self.vocab as u64).map(logit).collect();
        sampling::sample(&mut logits, row)
    }

    /// Sequence `index` of `request`, token by token, without an engine.
    pub fn alone(&self, request: &Request, index: usize, context_max: usize) -> Alone {
        let failed = Alone {
            scores: None,
            tokens: Vec::new(),
            finish: Finish::Failed,
        };
        let mut scores = request.prompt_logprobs.map(|_| vec![None]);
        let row = SampleRow {
            params: &request.sampling,
            prompt: &request.prompt,
            output: &[],
            position: 0,
            seed: sequence_seed(request.sampling.seed, index),
            banned: &[],
            allowed: None,
            kind: SampleKind::Sample,
            logprobs: request.prompt_logprobs,
        };
        let mut hash = extend(EMPTY, request.prompt[0]);
        for token in &request.prompt[1..] {
            if let Some(scores) = &mut scores {
                let scored = self.answer(
                    hash,
                    &SampleRow {
                        kind: SampleKind::Score(*token),
                        ..row
                    },
                );
                if !scored.is_valid() {
                    return failed;
                }
                scores.push(scored.logprob);
            }
            hash = extend(hash, *token);
        }
        let row = SampleRow {
            logprobs: request.sampling.logprobs,
            ..row
        };
        let (tokens, finish) = self.complete(request, hash, &row, context_max);
        if matches!(finish, Finish::Failed | Finish::Stuck) && tokens.is_empty() {
            return Alone { finish, ..failed };
        }
        Alone {
            scores,
            tokens,
            finish,
        }
    }

    fn complete(
        &self,
        request: &Request,
        mut hash: u64,
        row: &SampleRow<'_>,
        context_max: usize,
    ) -> (Vec<Token>, Finish) {
        let stop = &request.stop;
        let room = stop.max_tokens.min(context_max - request.prompt.len());
        let mut place = request.grammar.as_ref().map(|grammar| grammar.0.start());
        let force = request.sampling.logprobs.is_none();
        let (mut output, mut forced, mut then) = (Vec::new(), VecDeque::new(), Then::More);
        while output.len() < room {
            let early = output.len() < stop.min_tokens;
            let allowed = place.as_mut().map(|place| place.allowed());
            let row = SampleRow {
                output: &output,
                position: request.prompt.len() + output.len(),
                banned: if early { &stop.tokens } else { &[] },
                allowed: allowed.as_ref(),
                ..*row
            };
            let chosen = forced.pop_front();
            let token = chosen.unwrap_or_else(|| self.answer(hash, &row).token);
            if token == Sampled::invalid().token {
                let stuck = allowed.is_some_and(|allowed| allowed.is_empty());
                return (output, if stuck { Finish::Stuck } else { Finish::Failed });
            }
            if !early && stop.tokens.contains(&token) {
                return (output, Finish::Stop(token));
            }
            hash = extend(hash, token);
            output.push(token);
            if let Some(place) = place.as_mut().filter(|_| chosen.is_none()) {
                let advance = place.advance(token, force);
                (forced, then) = (advance.forced.into(), advance.then);
            }
            if forced.is_empty() && then == Then::Nothing && output.len() < room {
                return (output, Finish::Complete);
            }
        }
        (output, Finish::Length)
    }
}

/// Something to go wrong in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    ForwardError,
    SampleError,
    Panic,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FakeError {
    #[error("a fault was asked for")]
    Asked,
    #[error("no memory for so many tokens")]
    OutOfMemory,
    /// The engine broke its promise.
    #[error("{0}")]
    Broken(String),
}

/// A [`FakeModel`] behind a paged cache.
#[derive(Debug)]
pub struct FakeRunner {
    pub model: FakeModel,
    config: EngineConfig,
    slots: Vec<Slot>,
    /// The step that last wrote each slot.
    written: Vec<u64>,
    steps: u64,
    fault: Cell<Option<Fault>>,
    /// The most tokens of a step that there is memory for: to compute them, and to sample behind them.
    memory: Cell<[usize; 2]>,
    /// The rows of the last batch, without their tokens.
    pub(crate) rows: Vec<Row>,
    pub(crate) batch_tokens: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    token: Token,
    /// Of the text up to and including the token; 0 is never written.
    hash: u64,
}

impl FakeRunner {
    pub fn new(model: FakeModel, config: &EngineConfig) -> Self {
        let slots = config.blocks * config.block_size;
        Self {
            model,
            config: *config,
            slots: vec![Slot::default(); slots],
            written: vec![0; slots],
            steps: 0,
            fault: Cell::new(None),
            memory: Cell::new([usize::MAX; 2]),
            rows: Vec::new(),
            batch_tokens: 0,
        }
    }

    /// The next step that computes anything fails like this.
    pub fn fail_next(&self, fault: Fault) {
        self.fault.set(Some(fault));
    }

    /// Steps of more tokens find no memory from now on: to compute them, or to sample behind them.
    pub fn limit_memory(&self, forward: usize, sample: usize) {
        self.memory.set([forward, sample]);
    }

    /// A fault that was asked for and has not happened yet; it no longer will.
    pub fn forget_fault(&self) -> Option<Fault> {
        self.fault.take()
    }

    fn check_limits(&self, batch: &Batch) -> Result<(), String> {
        let config = &self.config;
        if batch.rows.is_empty() || batch.rows.len() > config.sequences_max {
            return Err(format!("a batch of {} rows", batch.rows.len()));
        }
        if batch.tokens.len() > config.step_tokens_max || batch.logits.len() > config.logits_max() {
            return Err(format!(
                "a batch of {} tokens, {} logits",
                batch.tokens.len(),
                batch.logits.len()
            ));
        }
        if batch.positions.len() != batch.tokens.len() || batch.slots.len() != batch.tokens.len() {
            return Err("tokens, positions and slots differ in number".to_owned());
        }
        if batch
            .positions
            .iter()
            .any(|position| *position as usize >= config.context_max)
        {
            return Err("a position outside the context".to_owned());
        }
        let ascending = batch.logits.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending
            || batch
                .logits
                .last()
                .is_some_and(|last| *last as usize >= batch.tokens.len())
        {
            return Err("logits are not ascending indices of tokens".to_owned());
        }
        Ok(())
    }

    fn slot(&self, row: &Row, position: usize) -> usize {
        let size = self.config.block_size;
        row.block_table[position / size] as usize * size + position % size
    }

    fn write(&mut self, batch: &Batch, row: &Row) -> Result<(), String> {
        if row.tokens.is_empty() || row.block_table.len() * self.config.block_size < row.context_len {
            return Err(format!("row {row:?} is empty or too long for its blocks"));
        }
        let first = row
            .context_len
            .checked_sub(row.tokens.len())
            .ok_or("a row longer than its context")?;
        let mut hash = if first == 0 {
            EMPTY
        } else {
            self.slots[self.slot(row, first - 1)].hash
        };
        for (index, position) in row.tokens.clone().zip(first..) {
            let slot = batch.slots[index] as usize;
            if batch.positions[index] as usize != position || slot != self.slot(row, position) {
                return Err(format!("token {index} of {row:?} is misplaced"));
            }
            if self.written[slot] == self.steps {
                return Err(format!("slot {slot} is written twice in a step"));
            }
            self.written[slot] = self.steps;
            hash = extend(hash, batch.tokens[index]);
            self.slots[slot] = Slot {
                token: batch.tokens[index],
                hash,
            };
        }
        Ok(())
    }

    /// Attention reads every position of the context through the block table.
    fn read(&self, row: &Row) -> Result<(), String> {
        let mut hash = EMPTY;
        for position in 0..row.context_len {
            let slot = self.slots[self.slot(row, position)];
            hash = extend(hash, slot.token);
            if slot.hash != hash {
                return Err(format!("position {position} of {row:?} holds another text"));
            }
        }
        Ok(())
    }

    fn run(&mut self, batch: &Batch) -> Result<Vec<u64>, String> {
        self.check_limits(batch)?;
        self.steps += 1;
        let mut next = 0;
        for row in &batch.rows {
            if row.tokens.start != next {
                return Err("rows are not contiguous".to_owned());
            }
            next = row.tokens.end;
            self.write(batch, row)?;
        }
        if next != batch.tokens.len() {
            return Err("tokens belong to no row".to_owned());
        }
        // After all writes: a row that wrote into another's context is found here.
        for row in &batch.rows {
            self.read(row)?;
        }
        Ok(batch
            .logits
            .iter()
            .map(|index| self.slots[batch.slots[*index as usize] as usize].hash)
            .collect())
    }
}

impl ModelRunner for FakeRunner {
    type Logits = Vec<u64>;
    type Error = FakeError;

    fn is_out_of_memory(&self, error: &FakeError) -> bool {
        *error == FakeError::OutOfMemory
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<u64>, FakeError> {
        self.rows.clone_from(&batch.rows);
        self.batch_tokens = batch.tokens.len();
        if self.batch_tokens > self.memory.get()[0] {
            return Err(FakeError::OutOfMemory);
        }
        match self.fault.get() {
            Some(Fault::ForwardError) => {
                self.fault.set(None);
                return Err(FakeError::Asked);
            }
            Some(Fault::Panic) => {
                self.fault.set(None);
                // Unlike `panic!` this prints nothing.
                std::panic::resume_unwind(Box::new(FakeError::Asked));
            }
            Some(Fault::SampleError) | None => {}
        }
        self.run(batch).map_err(FakeError::Broken)
    }

    fn sample(&mut self, logits: Vec<u64>, rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, FakeError> {
        if self.fault.get() == Some(Fault::SampleError) {
            self.fault.set(None);
            return Err(FakeError::Asked);
        }
        if self.batch_tokens > self.memory.get()[1] {
            return Err(FakeError::OutOfMemory);
        }
        if logits.len() != rows.len() {
            return Err(FakeError::Broken(format!(
                "{} logits, {} rows",
                logits.len(),
                rows.len()
            )));
        }
        let mut sampled = Vec::with_capacity(rows.len());
        for (hash, row) in logits.into_iter().zip(rows) {
            let text: u64 = row
                .prompt
                .iter()
                .chain(row.output)
                .take(row.position)
                .fold(EMPTY, |h, t| extend(h, *t));
            if text != hash {
                let wrong = format!("the logits for position {} are of another text", row.position);
                return Err(FakeError::Broken(wrong));
            }
            sampled.push(self.model.answer(hash, row));
        }
        Ok(sampled)
    }
}
