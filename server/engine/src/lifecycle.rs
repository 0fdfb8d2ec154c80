//! How sequences enter and leave: add, abort, deadline, end.

use std::sync::Arc;

use crate::flows::check_weight;
use crate::hash::Salt;
use crate::report::Queued;
use crate::request::{AddError, Event, Finish, Request, RequestId, SEQUENCES_PER_REQUEST_MAX, SeqId};
use crate::scheduler::Scheduler;
use crate::sequence::{Group, Rank, Sequence};

impl Scheduler {
    pub(crate) fn add(&mut self, id: RequestId, request: Request, now_ms: u64) -> Result<(), AddError> {
        self.check_request(id, &request)?;
        let spec = Arc::new(request);
        let salt = if self.config.prefix_cache {
            Salt::Shared(spec.cache_salt)
        } else {
            Salt::Private(self.next_seq)
        };
        let mut seqs = Vec::with_capacity(spec.n);
        self.flows.open(spec.flow, needed(&spec));
        for index in 0..spec.n {
            let sequence = Sequence::new(SeqId(self.next_seq), id, index, Arc::clone(&spec), salt);
            self.next_seq += 1;
            seqs.push(sequence.id);
            self.waiting.insert(sequence.rank());
            self.flows.wait(spec.flow.id, sequence.rank());
            self.waiting_tokens += sequence.queue_tokens;
            self.unstarted_tokens += sequence.queue_tokens;
            self.sequences.insert(sequence.id, sequence);
        }
        self.unstarted.insert((now_ms, id));
        if let Some(deadline_ms) = spec.deadline_ms {
            self.deadlines.insert((deadline_ms, id));
        }
        // Nothing precedes the first prompt token, so it has no score.
        let scores = if spec.prompt_logprobs.is_some() {
            vec![None]
        } else {
            Vec::new()
        };
        let group = Group {
            spec,
            seqs,
            prompt_done: false,
            scores,
            all_scores: None,
            started: false,
            added_ms: now_ms,
        };
        self.groups.insert(id, group);
        Ok(())
    }

    fn check_request(&self, id: RequestId, request: &Request) -> Result<(), AddError> {
        let config = &self.config;
        let tokens = request.prompt.len();
        if tokens == 0 {
            return Err(AddError::Empty);
        }
        if request.n == 0 || request.n > SEQUENCES_PER_REQUEST_MAX {
            return Err(AddError::SequenceCount {
                n: request.n,
                limit: SEQUENCES_PER_REQUEST_MAX,
            });
        }
        if self.groups.contains_key(&id) {
            return Err(AddError::Duplicate);
        }
        let limit = config.context_max - usize::from(request.stop.max_tokens > 0);
        if tokens > limit {
            return Err(AddError::PromptTooLong { tokens, limit });
        }
        // The last token of a completion is never computed.
        let completion = request
            .stop
            .max_tokens
            .min(config.context_max - tokens)
            .saturating_sub(1);
        let blocks = (tokens + completion).div_ceil(config.block_size);
        if blocks > config.blocks {
            return Err(AddError::TooLarge {
                blocks,
                blocks_total: config.blocks,
            });
        }
        check_weight(request.flow)?;
        self.check_queue(request)
    }

    fn check_queue(&self, request: &Request) -> Result<(), AddError> {
        let config = &self.config;
        let (flow, needed) = (request.flow.id, needed(request));
        // Preempted sequences were let in once. They keep out only flow 0, which has no other limit.
        let tokens = if flow == 0 {
            self.waiting_tokens
        } else {
            self.unstarted_tokens
        };
        let full = self.unstarted.len() >= config.queue_requests_max
            || (tokens > 0 && tokens + needed > config.queue_tokens_max);
        if full {
            return Err(AddError::QueueFull {
                requests: self.unstarted.len(),
                requests_max: config.queue_requests_max,
                tokens,
                tokens_max: config.queue_tokens_max,
                needed,
            });
        }
        let all = Queued {
            requests: self.unstarted.len(),
            tokens: self.unstarted_tokens,
        };
        let own = self.flows.queued(flow);
        if flow != 0 && !config.flow_queue_takes(all, own, needed) {
            return Err(AddError::FlowQueueFull {
                flow,
                requests: own.requests,
                requests_free: config.queue_requests_max - all.requests,
                tokens: own.tokens,
                tokens_free: config.queue_tokens_max.saturating_sub(all.tokens),
                needed,
            });
        }
        Ok(())
    }

    /// Ends every living sequence of the request.
    pub(crate) fn end_request(&mut self, request: RequestId, finish: Finish) {
        let seqs = self
            .groups
            .get(&request)
            .map(|group| group.seqs.clone())
            .unwrap_or_default();
        for seq in seqs {
            self.end(seq, finish);
        }
    }

    /// Ends one sequence of a request, if it lives.
    pub(crate) fn end_index(&mut self, request: RequestId, index: usize, finish: Finish) {
        let Some(group) = self.groups.get(&request) else {
            return;
        };
        let found = group
            .seqs
            .iter()
            .copied()
            .find(|seq| self.sequence(*seq).index == index);
        if let Some(seq) = found {
            self.end(seq, finish);
        }
    }

    /// Ends every request whose deadline is at or before `now_ms`.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some((deadline_ms, request)) = self.deadlines.first().copied() {
            if deadline_ms > now_ms {
                break;
            }
            self.end_request(request, Finish::Deadline);
        }
    }

    /// Ends a sequence: its blocks are released, its last event is reported.
    pub(crate) fn end(&mut self, seq: SeqId, finish: Finish) {
        let Some(sequence) = self.sequences.get(&seq) else {
            return;
        };
        let rank = sequence.rank();
        let waits = self.waiting.contains(&rank);
        if waits {
            self.leave_queue(rank);
        } else {
            let ran = self.running.remove(&rank);
            assert!(ran, "a living sequence waits or runs. This is a bug.");
        }
        let mut sequence = self
            .sequences
            .remove(&seq)
            .expect("it was found above. This is a bug.");
        self.decoding -= usize::from(sequence.decodes);
        self.flows.end(sequence.flow(), rank);
        if !waits {
            self.leave_place(&sequence);
        }
        self.pool.release(&mut sequence.table);
        self.report.outputs.push(sequence.event(Event::Finished(finish)));
        self.leave_group(&sequence);
        if self.sequences.is_empty() {
            // No step follows, for however long.
            self.left_places.clear();
        }
    }

    /// A sequence no longer waits.
    pub(crate) fn leave_queue(&mut self, rank: Rank) {
        let sequence = self.sequence(rank.seq);
        let (flow, tokens, started) = (sequence.flow(), sequence.queue_tokens, sequence.started);
        self.waiting.remove(&rank);
        self.waiting_tokens -= tokens;
        if !started {
            self.unstarted_tokens -= tokens;
            self.flows.dequeue_tokens(flow, tokens);
        }
    }

    fn leave_group(&mut self, sequence: &Sequence) {
        let request = sequence.request;
        let group = self
            .groups
            .get_mut(&request)
            .expect("a sequence has a group. This is a bug.");
        group.seqs.retain(|seq| *seq != sequence.id);
        if !group.seqs.is_empty() {
            return;
        }
        if self.unstarted.remove(&(group.added_ms, request)) {
            self.flows.dequeue_request(sequence.flow());
        }
        if let Some(deadline_ms) = group.spec.deadline_ms {
            self.deadlines.remove(&(deadline_ms, request));
        }
        self.groups.remove(&request);
    }
}

/// Tokens that a request adds to the queue: siblings find the prompt in the cache.
fn needed(request: &Request) -> usize {
    request.prompt.len() + request.prediction.len() + request.n - 1
}
