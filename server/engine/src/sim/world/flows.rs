//! What flows are owed: exact accounts, places in the queue, a start in bounded time.

use std::collections::BTreeMap;

use super::super::runner::FakeRunner;
use super::{Client, World};
use crate::batch::Row;
use crate::engine::Engine;
use crate::report::{FlowStats, Queued, Stats, StepReport};
use crate::request::{AddError, Event, Request, SeqId};
use crate::sequence::Rank;

/// A first estimate of how long a start can take is exceeded where work is done again after preemptions.
const RECOMPUTED: usize = 4;

/// What a step changes.
pub(super) struct Before {
    /// The order and the flow of every sequence that lives.
    sequences: BTreeMap<SeqId, (Rank, u64)>,
    /// Tokens computed for each flow.
    tokens: BTreeMap<u64, u64>,
    first: Option<Rank>,
}

impl Before {
    pub(super) fn new(engine: &Engine<FakeRunner>, clients: &BTreeMap<Rank, Client>) -> Self {
        let known = |(rank, client): (&Rank, &Client)| (rank.seq, (*rank, client.spec.flow.id));
        Self {
            sequences: clients.iter().map(known).collect(),
            tokens: engine.flow_stats().map(|flow| (flow.flow, flow.tokens)).collect(),
            first: engine.scheduler.running.first().copied(),
        }
    }
}

impl World {
    /// What of a flow waits to start.
    pub(super) fn queued(&self, flow: u64) -> Queued {
        let mut flows = self.engine.flow_stats();
        flows
            .find(|stats| stats.flow == flow)
            .map_or(Queued::default(), |stats| stats.queued)
    }

    /// What `add` must say.
    pub(super) fn expected_answer(
        &self,
        request: &Request,
        before: &Stats,
        own: Queued,
    ) -> Result<(), AddError> {
        let len = request.prompt.len();
        let limit = self.config.context_max - usize::from(request.stop.max_tokens > 0);
        let most = len
            + request
                .stop
                .max_tokens
                .min(self.config.context_max.saturating_sub(len))
                .saturating_sub(1);
        let blocks = most.div_ceil(self.config.block_size);
        let needed = len + request.prediction.len() + request.n - 1;
        let shares = request.flow.id != 0;
        let tokens = if shares {
            before.unstarted_tokens
        } else {
            before.waiting_tokens
        };
        let [requests_max, tokens_max] = [self.config.queue_requests_max, self.config.queue_tokens_max];
        let full = before.waiting_requests == requests_max || (tokens > 0 && tokens + needed > tokens_max);
        // With this request the flow would hold more than is left free.
        let above = |own, all, more, max| own > 0 && 2 * more + own + all > max;
        let flow_full = above(own.requests, before.waiting_requests, 1, requests_max)
            || above(own.tokens, tokens, needed, tokens_max);
        if len > limit {
            Err(AddError::PromptTooLong { tokens: len, limit })
        } else if blocks > self.config.blocks {
            Err(AddError::TooLarge {
                blocks,
                blocks_total: self.config.blocks,
            })
        } else if full {
            Err(AddError::QueueFull {
                requests: before.waiting_requests,
                requests_max: self.config.queue_requests_max,
                tokens,
                tokens_max: self.config.queue_tokens_max,
                needed,
            })
        } else if shares && flow_full {
            Err(AddError::FlowQueueFull {
                flow: request.flow.id,
                requests: own.requests,
                requests_free: requests_max - before.waiting_requests,
                tokens: own.tokens,
                tokens_free: tokens_max.saturating_sub(tokens),
                needed,
            })
        } else {
            Ok(())
        }
    }

    /// The last step in which a new sequence must start, where that can be told.
    pub(super) fn start_by(&self, request: &Request, index: usize) -> Option<u64> {
        if self.traffic.priorities || self.short_of_memory {
            return None;
        }
        // In every step the first in order gains a token or ends, and with one priority nobody comes in front. A
        // sibling whose elder ended early may also find younger sequences running.
        let ahead: usize = self.clients.values().map(Client::steps_max).sum();
        let most = self.config.sequences_max * self.config.context_max;
        let younger = if index == 0 { 0 } else { most };
        let mut steps = ahead + younger + 1;
        if self.traffic.competes() {
            // Younger ones of other flows come in front until their flow was served as much.
            let lead = self.engine.scheduler.flows.lead(request.flow.id);
            steps = (steps + most).saturating_add(lead).saturating_mul(RECOMPUTED);
        }
        Some(self.summary.steps.saturating_add(steps as u64))
    }

    /// The rows that were computed.
    fn computed_rows(&self, report: &StepReport) -> &[Row] {
        let computed = report.prefill_tokens + report.decode_tokens;
        let rows = self.engine.runner().rows.as_slice();
        if computed > 0 { rows } else { &[] }
    }

    /// Tokens and blocks are those that each flow should have.
    pub(super) fn check_accounts(&self, report: &StepReport, before: &Before) -> Result<(), String> {
        let rows = self.computed_rows(report);
        let in_rows = |flow: u64| {
            let of_flow = rows.iter().filter(|row| before.sequences[&row.seq].1 == flow);
            of_flow.map(|row| row.tokens.len() as u64).sum::<u64>()
        };
        let mut guesses = 0;
        for flow in self.engine.flow_stats() {
            let tokens = flow.tokens - before.tokens.get(&flow.flow).copied().unwrap_or(0);
            // Guesses cost nothing.
            let Some(guessed) = in_rows(flow.flow).checked_sub(tokens) else {
                return Err(format!("{tokens} tokens were charged to {flow:?}"));
            };
            guesses += guessed;
            self.check_cap(&flow, report)?;
        }
        if guesses != report.drafted_tokens as u64 {
            return Err(format!("{guesses} tokens were charged to no flow"));
        }
        Ok(())
    }

    /// The first that ran goes on, unless it has ended.
    pub(super) fn check_first(&mut self, report: &StepReport, before: &Before) -> Result<(), String> {
        let rows = self.computed_rows(report);
        let started = |rank: &Rank| {
            let starts = |event: &Event| matches!(event, Event::Started { .. });
            let mut outputs = report.outputs.iter();
            outputs.any(|output| output.seq == rank.seq && starts(&output.event))
        };
        // An older one that starts or resumes is then the first itself.
        let older = |first: &Rank| rows.iter().any(|row| before.sequences[&row.seq].0 < *first);
        let ended = |first: &Rank| {
            let client = &self.clients[first];
            let deadline_ms = client.spec.deadline_ms;
            client.aborted || deadline_ms.is_some_and(|deadline_ms| deadline_ms <= self.now_ms)
        };
        if let Some(first) = before.first
            && !rows.iter().any(|row| row.seq == first.seq)
            && !ended(&first)
            && !older(&first)
        {
            return Err(format!("{first:?}, the first that ran, did not advance"));
        }
        self.summary.giving_steps += u64::from(report.preemptions > 0 && self.clients.keys().any(started));
        Ok(())
    }

    /// While others are alive a flow holds no more than the cap, unless that is one sequence.
    fn check_cap(&self, flow: &FlowStats, report: &StepReport) -> Result<(), String> {
        let cap = (self.config.blocks * self.config.flow_blocks_share_max / 100).max(1);
        if report.stats.flows > 1
            && self.config.flow_blocks_share_max < 100
            && flow.running > 1
            && flow.blocks_used > cap
        {
            return Err(format!("{flow:?} holds more than {cap} blocks"));
        }
        Ok(())
    }
}
