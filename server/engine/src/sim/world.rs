//! One simulated engine, what its clients believe, and the checks between the two.

mod flows;
mod service;

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::runner::{Alone, FakeError, FakeModel, FakeRunner, Fault, hash_of};
use super::traffic::{self, Traffic};
use super::{Dice, Summary};
use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::report::StepReport;
use crate::request::{AddError, Event, Finish, Output, Request, RequestId, SeqId, Token};
use crate::sequence::Rank;
use flows::Before;

/// Steps in which everything must have ended once nothing new arrives.
const DRAIN_STEPS_MAX: usize = 20_000;

#[derive(Debug)]
pub(super) struct World {
    dice: Dice,
    config: EngineConfig,
    traffic: Traffic,
    engine: Engine<FakeRunner>,
    now_ms: u64,
    /// The sequences that have not ended, in order of service.
    clients: BTreeMap<Rank, Client>,
    next_request: u64,
    next_seq: u64,
    prefill_limit: usize,
    /// Whether steps find no memory at times: then they become smaller, and nothing is promised of who is served when.
    short_of_memory: bool,
    /// Hashes of the beginnings that each salt (or request, without prefix cache) may find in the cache.
    findable: HashSet<(u64, u64)>,
    /// Requests whose prompt was computed: a token or a regular end of one of its sequences was seen.
    prompts_done: HashSet<RequestId>,
    summary: Summary,
}

/// What the client of one sequence knows.
#[derive(Debug)]
struct Client {
    request: RequestId,
    index: usize,
    spec: Request,
    expected: Alone,
    received: usize,
    /// Guesses from its prediction that came true.
    predicted: usize,
    started: bool,
    scores_received: bool,
    aborted: bool,
    /// The last step in which it must start, where that can be told.
    start_by: Option<u64>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let config = traffic::config(&mut dice);
        let traffic = Traffic::new(&mut dice);
        let model = FakeModel {
            vocab: 2,
            nan_one_in: dice.pick(&[0, 0, 300]),
        };
        let short_of_memory = dice.one_in(4);
        let engine = Engine::new(FakeRunner::new(model, &config), config);
        Self {
            dice,
            config,
            traffic,
            engine,
            now_ms: 0,
            clients: BTreeMap::new(),
            next_request: 0,
            next_seq: 0,
            prefill_limit: usize::MAX,
            short_of_memory,
            findable: HashSet::new(),
            prompts_done: HashSet::new(),
            summary: Summary {
                runs: 1,
                ..Summary::default()
            },
        }
    }

    pub(super) fn summary(&self) -> Summary {
        self.summary
    }

    pub(super) fn steps_taken(&self) -> usize {
        self.summary.steps as usize
    }

    /// Lets clients act, takes a step and checks everything.
    pub(super) fn step(&mut self, busy: bool) -> Result<(), String> {
        self.now_ms += self.dice.range(0, 3) as u64;
        if busy && self.dice.one_in(self.traffic.arrival_one_in) {
            self.add()?;
        }
        if self.dice.one_in(30) {
            self.abort();
        }
        if busy && self.dice.one_in(self.traffic.fault_one_in) {
            let fault = self
                .dice
                .pick(&[Fault::ForwardError, Fault::SampleError, Fault::Panic]);
            self.engine.runner().fail_next(fault);
        }
        if self.short_of_memory && self.dice.one_in(20) {
            let [forward, sample] =
                [(); 2].map(|()| self.dice.pick(&[1, 2, 3, 5, 9, usize::MAX, usize::MAX]));
            self.engine.runner().limit_memory(forward, sample);
        }
        self.prefill_limit = self.dice.pick(self.traffic.prefill_limits);
        self.engine.limit_prefill(self.prefill_limit);
        self.summary.steps += 1;
        let report = self.take_step()?;
        self.check_report(&report)?;
        self.check_state(&report)
    }

    /// Steps until nothing is left; then the pool must be whole.
    pub(super) fn drain(&mut self) -> Result<(), String> {
        for _ in 0..DRAIN_STEPS_MAX {
            if !self.engine.has_work() {
                break;
            }
            self.step(false)?;
        }
        let stats = self.engine.stats();
        if self.engine.has_work() || !self.clients.is_empty() {
            return Err(format!("{} sequences never ended: {stats:?}", self.clients.len()));
        }
        let idle = stats.running + stats.waiting + stats.waiting_requests + stats.waiting_tokens;
        if idle != 0 || stats.blocks_used != 0 || stats.blocks_cached > stats.blocks_total {
            return Err(format!("something is left when all is done: {stats:?}"));
        }
        Ok(())
    }

    fn add(&mut self) -> Result<(), String> {
        let request = self.traffic.request(&mut self.dice, self.now_ms);
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let before = self.engine.stats();
        let own = self.queued(request.flow.id);
        let answer = self.engine.add(id, request.clone(), self.now_ms);
        let expected = self.expected_answer(&request, &before, own);
        if answer != expected {
            return Err(format!("add answered {answer:?}, not {expected:?}"));
        }
        match answer {
            Ok(()) => self.admit_clients(id, &request),
            Err(AddError::QueueFull { .. }) => self.summary.refused_queue += 1,
            Err(AddError::FlowQueueFull { .. }) => self.summary.refused_flow += 1,
            Err(_) => self.summary.refused_size += 1,
        }
        Ok(())
    }

    fn admit_clients(&mut self, id: RequestId, request: &Request) {
        self.summary.requests += 1;
        self.summary.sequences += request.n as u64;
        let model = self.engine.runner().model;
        for index in 0..request.n {
            let start_by = self.start_by(request, index);
            let client = Client {
                request: id,
                index,
                spec: request.clone(),
                expected: model.alone(request, index, self.config.context_max),
                received: 0,
                predicted: 0,
                started: false,
                scores_received: false,
                aborted: false,
                start_by,
            };
            self.clients.insert(
                Rank {
                    priority: request.priority,
                    seq: SeqId(self.next_seq),
                },
                client,
            );
            self.next_seq += 1;
        }
    }

    fn abort(&mut self) {
        if self.clients.is_empty() {
            // Nothing must come of aborting what has ended.
            self.engine.abort(RequestId(self.next_request.saturating_sub(1)));
            return;
        }
        let chosen = self.dice.range(0, self.clients.len() - 1);
        let Some(client) = self.clients.values().nth(chosen) else {
            return;
        };
        let (request, index) = (client.request, client.index);
        let only = self.dice.one_in(2);
        if only {
            self.engine.abort_sequence(request, index);
        } else {
            self.engine.abort(request);
        }
        for client in self.clients.values_mut() {
            client.aborted |= client.request == request && (!only || client.index == index);
        }
    }

    fn take_step(&mut self) -> Result<StepReport, String> {
        let (engine, now_ms) = (&mut self.engine, self.now_ms);
        let alive: Vec<Rank> = self.clients.keys().copied().collect();
        let decoding = engine.stats().decoding;
        let before = Before::new(engine, &self.clients);
        match catch_unwind(AssertUnwindSafe(|| engine.step(now_ms))) {
            Ok(Ok(report)) => {
                if report.out_of_memory && !self.short_of_memory {
                    return Err("no memory was found where there is enough".to_owned());
                }
                self.summary.short_steps += u64::from(report.out_of_memory);
                self.check_accounts(&report, &before)?;
                if self.short_of_memory {
                    return Ok(report);
                }
                self.check_first(&report, &before)?;
                if report.prefill_tokens + report.decode_tokens == 0 {
                    self.summary.idle_steps += 1;
                } else {
                    self.check_service(&report, &alive)?;
                    self.check_prefill(&report, decoding)?;
                }
                return Ok(report);
            }
            Ok(Err(FakeError::Broken(message))) => return Err(message),
            // There is always memory for a token.
            Ok(Err(error @ FakeError::OutOfMemory)) => return Err(error.to_string()),
            Ok(Err(FakeError::Asked)) => self.summary.runner_errors += 1,
            Err(panic) if panic.is::<FakeError>() => self.summary.runner_panics += 1,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let report = self.engine.fail_step();
        let rows: Vec<SeqId> = self.engine.runner().rows.iter().map(|row| row.seq).collect();
        let failed: Vec<SeqId> = report
            .outputs
            .iter()
            .filter(|output| output.event == Event::Finished(Finish::Failed))
            .map(|output| output.seq)
            .collect();
        if rows != failed {
            return Err(format!("a step of {rows:?} failed and {failed:?} were told so"));
        }
        Ok(report)
    }

    fn check_report(&mut self, report: &StepReport) -> Result<(), String> {
        self.summary.prefill_tokens += report.prefill_tokens as u64;
        self.summary.decode_tokens += report.decode_tokens as u64;
        self.summary.drafted_tokens += report.drafted_tokens as u64;
        self.summary.accepted_tokens += report.accepted_tokens as u64;
        self.summary.limited_steps += u64::from(report.prefill_limited);
        self.summary.preemptions += report.preemptions as u64;
        self.summary.cache_query_tokens += report.cache_query_tokens as u64;
        self.summary.cache_hit_tokens += report.cache_hit_tokens as u64;
        for output in &report.outputs {
            self.check_output(output)
                .map_err(|wrong| format!("{wrong}: {output:?}"))?;
        }
        Ok(())
    }

    fn check_output(&mut self, output: &Output) -> Result<(), String> {
        let rank = self.clients.keys().find(|rank| rank.seq == output.seq).copied();
        let rank = rank.ok_or("an event of a sequence that is unknown or has ended")?;
        let client = self.clients.get_mut(&rank).ok_or("unknown")?;
        if client.request != output.request || client.index != output.index {
            return Err("an event of another sequence".to_owned());
        }
        match &output.event {
            Event::Started { cached_tokens } => self.check_start(rank, *cached_tokens),
            Event::PromptLogprobs(scores) => {
                if client.received > 0
                    || client.scores_received
                    || client.expected.scores.as_deref() != Some(scores.as_ref())
                {
                    return Err("the prompt was scored otherwise alone".to_owned());
                }
                client.scores_received = true;
                self.summary.scored += 1;
                Ok(())
            }
            Event::Token(sampled) => {
                let expected = client.expected.tokens.get(client.received);
                let scored = client.scores_received == client.expected.scores.is_some();
                if expected != Some(&sampled.token) || !client.started || !scored {
                    return Err(format!("alone this would have been {expected:?}"));
                }
                client.received += 1;
                self.summary.tokens += 1;
                let key = salt_key(&self.config, client);
                let end = client.received;
                let text = hash_of(&[&client.spec.prompt, &client.expected.tokens[..end]].concat());
                self.findable.insert((key, text));
                self.prompts_done.insert(output.request);
                Ok(())
            }
            Event::Predicted(predicted) => {
                // The stop token that ends a sequence can be guessed, too.
                client.predicted += predicted.accepted;
                // Those of the step are still to come.
                if client.spec.prediction.is_empty()
                    || client.predicted > client.expected.tokens.len() + 1
                    || predicted.accepted + predicted.rejected > self.config.speculative_tokens
                {
                    return Err("more guesses came true than tokens".to_owned());
                }
                self.summary.predicted_tokens += predicted.accepted as u64;
                Ok(())
            }
            Event::Finished(finish) => self.check_finish(rank, *finish),
        }
    }

    fn check_start(&mut self, rank: Rank, cached_tokens: usize) -> Result<(), String> {
        let steps = self.summary.steps;
        let client = self.clients.get_mut(&rank).ok_or("unknown")?;
        let prompt = &client.spec.prompt;
        if client.started || client.start_by.is_some_and(|start_by| steps > start_by) {
            return Err("started twice, or too late".to_owned());
        }
        client.started = true;
        if cached_tokens >= prompt.len() || !cached_tokens.is_multiple_of(self.config.block_size) {
            return Err(format!(
                "{cached_tokens} of {} tokens can't be cached",
                prompt.len()
            ));
        }
        let key = salt_key(&self.config, client);
        if cached_tokens > 0 && !self.findable.contains(&(key, hash_of(&prompt[..cached_tokens]))) {
            return Err("found what nobody of its salt computed".to_owned());
        }
        for end in 1..=prompt.len() {
            self.findable.insert((key, hash_of(&prompt[..end])));
        }
        self.summary.sibling_hits += u64::from(client.index > 0 && cached_tokens > 0);
        Ok(())
    }

    fn check_finish(&mut self, rank: Rank, finish: Finish) -> Result<(), String> {
        let client = self.clients.remove(&rank).ok_or("unknown")?;
        let complete = client.received == client.expected.tokens.len()
            && client.predicted <= client.received + 1
            && client.started
            && client.scores_received == client.expected.scores.is_some();
        let regular = complete && finish == client.expected.finish;
        let expired = client
            .spec
            .deadline_ms
            .is_some_and(|deadline_ms| deadline_ms <= self.now_ms);
        let in_failed_step = self.engine.runner().rows.iter().any(|row| row.seq == rank.seq);
        let (count, allowed) = match finish {
            Finish::Stop(_) => (&mut self.summary.stopped, regular),
            Finish::Stuck => (&mut self.summary.stuck, regular),
            Finish::Complete => (&mut self.summary.completed, regular),
            Finish::Length => (&mut self.summary.full_length, regular),
            Finish::Aborted => (&mut self.summary.aborted, client.aborted),
            Finish::Deadline => (&mut self.summary.expired, expired && !client.aborted),
            Finish::Failed if regular => (&mut self.summary.failed_rows, true),
            // `take_step` has compared these with the rows of the failed step.
            Finish::Failed => (&mut self.summary.failed_steps, in_failed_step),
        };
        *count += 1;
        if !allowed {
            return Err(format!("nothing asked for this end, {client:?}"));
        }
        if matches!(finish, Finish::Stop(_) | Finish::Complete | Finish::Length) {
            self.prompts_done.insert(client.request);
            let text: Vec<Token> = [client.spec.prompt, client.expected.tokens].concat();
            self.traffic.remember(&mut self.dice, text);
        }
        Ok(())
    }

    fn check_state(&mut self, report: &StepReport) -> Result<(), String> {
        self.engine.check_integrity();
        let stats = self.engine.stats();
        if stats != report.stats {
            return Err(format!(
                "the report says {:?}, the engine {stats:?}",
                report.stats
            ));
        }
        if stats.running + stats.waiting != self.clients.len() {
            return Err(format!("{} sequences should live: {stats:?}", self.clients.len()));
        }
        if self.engine.has_work() == self.clients.is_empty() {
            return Err("has_work is wrong".to_owned());
        }
        let overdue = |client: &Client| {
            client.aborted
                || client
                    .spec
                    .deadline_ms
                    .is_some_and(|deadline_ms| deadline_ms <= self.now_ms)
        };
        if let Some(client) = self.clients.values().find(|client| overdue(client)) {
            return Err(format!("should have ended: {client:?}"));
        }
        let late =
            |client: &Client| !client.started && client.start_by.is_some_and(|by| self.summary.steps > by);
        if let Some(client) = self.clients.values().find(|client| late(client)) {
            return Err(format!("should have started: {client:?}"));
        }
        Ok(())
    }
}

impl Client {
    /// Steps it can take from now to its end while it is the first in order: it may have to compute everything
    /// again, one token at a time.
    fn steps_max(&self) -> usize {
        self.spec.prompt.len() + self.spec.stop.max_tokens
    }
}

/// Who shares cached blocks with this client.
fn salt_key(config: &EngineConfig, client: &Client) -> u64 {
    if config.prefix_cache {
        client.spec.cache_salt
    } else {
        client.request.0
    }
}
