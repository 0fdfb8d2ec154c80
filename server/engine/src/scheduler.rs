//! Which tokens the next step computes.
//!
//! There are no phases: under one token budget every running sequence lets `computed` catch up with its tokens, then
//! the queue is served in order. Every decode fits, prefill takes what is left, or less of it if the caller wants steps
//! to be short for those that decode. When blocks run out a sequence gives up its own and goes back to its place in the
//! queue: the youngest, of the flow that holds most.
//!
//! The order is priority, then the flow with the least service for its weight ([`crate::flows`]), of which those with fewer
//! places than due are ahead by what a step computes, then arrival.
//! Prompts under way take their turns in it with those that wait ([`crate::turns`]). A flow that waits takes places and
//! blocks up to its share from flows that are above theirs ([`crate::shares`]), and is kept the places that its own
//! sequences left, for a moment that grows with their answers. With one flow all this is arrival, and the youngest.
//!
//! Bounds. Nobody is admitted past a sequence that waits for blocks or for a place, so start order is order of service,
//! with three exceptions. Siblings wait for their request's first sequence to compute the prompt, and meanwhile up to
//! `sequences_max - 1` younger sequences may use what the budget leaves (K). A flow at the cap on blocks waits for its
//! own to end. And where what waits needs more than its flow's share, other flows pass it with what is within theirs,
//! until it is the oldest of its priority.
//!
//! In every step the first in order among the running (priority, then arrival, whatever its flow) gains at least a token
//! and is never preempted: a limit on prefill leaves it one, and guesses (see [`crate::draft`]) take no token and no
//! block that another needs. So within one priority and flow, if there is no other, a sequence starts at most W steps
//! after it was added, W being the sum of prompt and `max_tokens` over all that were alive before it, for a sibling plus
//! that of the younger ones that overtook it; a huge prompt can't be overtaken for ever. Beside other flows its own can
//! be behind: W is more by the tokens that their weights let them have until their service is the same, by what they
//! have running then, by what preemption makes the steps compute again, and by the steps for which places that others
//! have left are kept for them while its flow holds its share. Priorities are not bounded: lower ones wait
//! for as long as higher ones keep coming. A higher one takes the next free place; beyond its flow's share it doesn't
//! push out what runs until it needs a block itself.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use crate::batch::Batch;
use crate::blocks::BlockPool;
use crate::config::EngineConfig;
use crate::flows::Flows;
use crate::hash::Hasher;
use crate::memory::StepSize;
use crate::plan::{Part, Plan, Planned};
use crate::report::{FlowStats, Stats, StepReport};
use crate::request::{RequestId, SeqId};
use crate::sequence::{Group, Rank, Sequence};
use crate::shares::LeftPlace;

/// Every sequence that is alive, in the queue or running, and the blocks they hold.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) config: EngineConfig,
    pub(crate) hasher: Hasher,
    pub(crate) pool: BlockPool,
    pub(crate) sequences: FxHashMap<SeqId, Sequence>,
    pub(crate) groups: BTreeMap<RequestId, Group>,
    pub(crate) running: BTreeSet<Rank>,
    /// Running sequences with one token to compute.
    pub(crate) decoding: usize,
    pub(crate) waiting: BTreeSet<Rank>,
    /// Sum of `queue_tokens` over the waiting sequences.
    pub(crate) waiting_tokens: usize,
    /// Those of them that belong to sequences that have not started.
    pub(crate) unstarted_tokens: usize,
    /// Who has been served how much, and each flow's part of the two sets above.
    pub(crate) flows: Flows,
    /// Requests none of whose sequences has started, oldest first.
    pub(crate) unstarted: BTreeSet<(u64, RequestId)>,
    pub(crate) deadlines: BTreeSet<(u64, RequestId)>,
    /// Of the last steps.
    pub(crate) left_places: Vec<LeftPlace>,
    pub(crate) next_seq: u64,
    /// The most tokens of prefill in a step in which anything decodes, at least one.
    pub(crate) prefill_max: usize,
    pub(crate) step_size: StepSize,
    /// What the next report will hold.
    pub(crate) report: StepReport,
}

/// Guessing pays while a step reads weights for few tokens: beyond this many decoding sequences a step that computes
/// guesses takes noticeably longer for all of them.
const SPECULATING_MAX: usize = 2;

impl Scheduler {
    pub(crate) fn new(config: EngineConfig) -> Self {
        Self {
            hasher: Hasher::new(config.cache_secret),
            pool: BlockPool::new(config.blocks, config.block_size),
            config,
            sequences: FxHashMap::default(),
            groups: BTreeMap::new(),
            running: BTreeSet::new(),
            decoding: 0,
            waiting: BTreeSet::new(),
            waiting_tokens: 0,
            unstarted_tokens: 0,
            flows: Flows::default(),
            unstarted: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            left_places: Vec::new(),
            next_seq: 0,
            prefill_max: usize::MAX,
            step_size: StepSize::of(&config),
            report: StepReport::default(),
        }
    }

    /// Chooses the next step's work. Its rows are in order of service; it is empty when nothing is alive.
    pub(crate) fn schedule(&mut self) -> Batch {
        self.flows.forget_idle();
        self.keep_caps();
        let mut plan = self.plan();
        let preemptions = self.report.preemptions;
        self.continue_running(&mut plan);
        let places = self.running.len() < self.config.sequences_max || self.flows.compete();
        plan.admits = places && self.report.preemptions == preemptions;
        self.share_prefill(&mut plan);
        self.age_left_places();
        self.report.prefill_limited = plan.prefill_left == 0 && plan.room > 0;
        self.batch(plan)
    }

    fn plan(&self) -> Plan {
        let decodes = self.decoding;
        Plan {
            room: self.config.step_tokens_max - decodes,
            prefill_left: if decodes > 0 { self.prefill_max } else { usize::MAX },
            logits_left: self.config.logits_max(),
            // A prompt that is being computed, or may soon be, has the better use for time and blocks.
            speculates: decodes <= SPECULATING_MAX
                && decodes == self.running.len()
                && self.waiting.is_empty(),
            rows: Vec::with_capacity(self.config.sequences_max.min(self.sequences.len())),
            ..Plan::default()
        }
    }

    /// Tokens that a step has while all places decode, at most.
    pub(crate) fn step_tokens(&self) -> usize {
        let decodes = self.config.sequences_max;
        self.config
            .step_tokens_max
            .min(self.prefill_max.saturating_add(decodes))
    }

    /// Counts a running sequence as one that decodes, or not, by what it has to compute now; nothing if it has ended.
    pub(crate) fn recount(&mut self, seq: SeqId) {
        let Some(sequence) = self.sequences.get_mut(&seq) else {
            return;
        };
        let decodes = sequence.pending() == 1;
        let before = std::mem::replace(&mut sequence.decodes, decodes);
        self.decoding = self.decoding + usize::from(decodes) - usize::from(before);
    }

    /// Gives every running sequence the blocks of all its tokens, and those that decode their token.
    fn continue_running(&mut self, plan: &mut Plan) {
        let ranks: Vec<Rank> = self.running.iter().copied().collect();
        let preemptions = self.report.preemptions;
        for rank in ranks {
            // It may have been preempted by another one in this loop.
            let gone = self.report.preemptions > preemptions && !self.running.contains(&rank);
            if gone || !self.grow(rank, plan) {
                continue;
            }
            let sequence = self.sequence(rank.seq);
            if sequence.pending() > 1 {
                plan.prefills.push(rank);
                continue;
            }
            let (flow, samples) = (sequence.flow(), sequence.spec.stop.max_tokens > 0);
            let drafted = self.draft(rank.seq, plan);
            // Guesses take nothing that another could use, so they cost nothing.
            self.flows.charge(flow, 1);
            plan.push(Planned {
                rank,
                tokens: 1 + drafted,
                // One that only computes its last token wants none, and counts as any other: it may be taken out again.
                logits: if samples { 1 + drafted } else { 1 },
                part: Part::Decode,
            });
        }
    }

    /// Lets a decoding sequence guess ahead, as far as that takes nothing from others: neither the last block that
    /// each of those running may need, nor the last token of the step. Returns how many tokens it guessed.
    fn draft(&mut self, seq: SeqId, plan: &mut Plan) -> usize {
        if !plan.speculates {
            return 0;
        }
        let config = &self.config;
        let blocks_spare = self.pool.available().saturating_sub(self.running.len());
        let blocks_spare = blocks_spare.min(self.below_cap(self.sequence(seq).flow()));
        let limit = config
            .speculative_tokens
            .min(plan.room.saturating_sub(1))
            .min(plan.logits_spare(config.sequences_max));
        let sequence = self
            .sequences
            .get_mut(&seq)
            .expect("a running sequence lives. This is a bug.");
        let slots = (sequence.table.len() + blocks_spare) * config.block_size - sequence.tokens.len();
        let limit = limit.min(slots).min(sequence.drafts_max(config.context_max));
        let spec = &sequence.spec;
        let drafter = &mut sequence.drafter;
        let drafted = drafter.draft(&mut sequence.tokens, spec.prompt.len(), &spec.prediction, limit);
        sequence.drafted = drafted;
        while sequence.table.len() * config.block_size < sequence.tokens.len() {
            let id = self
                .pool
                .alloc(sequence.spec.flow.id)
                .expect("blocks were counted before. This is a bug.");
            sequence.table.push(id);
        }
        plan.room -= drafted;
        drafted
    }

    /// Extends the sequence's table to all its tokens, preempting others while there is no block. False if it was
    /// preempted itself.
    fn grow(&mut self, rank: Rank, plan: &mut Plan) -> bool {
        let sequence = self.sequence(rank.seq);
        let blocks = sequence.tokens.len().div_ceil(self.config.block_size);
        let flow = sequence.flow();
        let mut held = sequence.table.len();
        while held < blocks {
            let victim = if let Some(youngest) = self.youngest_at_cap(flow) {
                youngest
            } else if let Some(id) = self.pool.alloc(flow) {
                self.sequence_mut(rank.seq).table.push(id);
                held += 1;
                continue;
            } else {
                self.victim()
            };
            self.give_way(victim, plan);
            if victim == rank {
                return false;
            }
        }
        true
    }

    pub(crate) fn preempt(&mut self, rank: Rank) {
        self.park(rank.seq);
        let sequence = self
            .sequences
            .get_mut(&rank.seq)
            .expect("a running sequence lives. This is a bug.");
        self.pool.release(&mut sequence.table);
        sequence.computed = 0;
        sequence.published = 0;
        sequence.publishing = true;
        sequence.queue_tokens = sequence.tokens.len();
        self.decoding -= usize::from(std::mem::take(&mut sequence.decodes));
        self.waiting_tokens += sequence.queue_tokens;
        let flow = sequence.flow();
        self.running.remove(&rank);
        self.waiting.insert(rank);
        self.flows.wait(flow, rank);
        self.report.preemptions += 1;
    }

    /// Makes the block that a sequence has begun findable for it, if those before it are.
    fn park(&mut self, seq: SeqId) {
        let size = self.config.block_size;
        let sequence = self
            .sequences
            .get_mut(&seq)
            .expect("a running sequence lives. This is a bug.");
        let (full, begun) = (sequence.computed / size, sequence.computed % size);
        sequence.parked = 0;
        if begun == 0 || sequence.published < full {
            return;
        }
        sequence.parked = sequence.computed;
        let (key, tokens) = sequence.begun(&self.hasher, size);
        let before = &sequence.table[..full];
        self.pool
            .park(sequence.salt, before, sequence.table[full], key, tokens);
    }

    pub(crate) fn sequence(&self, seq: SeqId) -> &Sequence {
        self.sequences
            .get(&seq)
            .expect("a queued or running sequence lives. This is a bug.")
    }

    pub(crate) fn sequence_mut(&mut self, seq: SeqId) -> &mut Sequence {
        self.sequences
            .get_mut(&seq)
            .expect("a queued or running sequence lives. This is a bug.")
    }

    pub(crate) fn group(&self, request: RequestId) -> &Group {
        self.groups
            .get(&request)
            .expect("a sequence has a group. This is a bug.")
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            decoding: self.decoding,
            waiting: self.waiting.len(),
            waiting_requests: self.unstarted.len(),
            waiting_tokens: self.waiting_tokens,
            unstarted_tokens: self.unstarted_tokens,
            flows: self.flows.alive(),
            waiting_since_ms: self.unstarted.first().map(|(added_ms, _)| *added_ms),
            blocks_total: self.pool.total(),
            blocks_used: self.pool.total() - self.pool.available(),
            blocks_cached: self.pool.cached(),
        }
    }

    pub(crate) fn flow_stats(&self) -> impl Iterator<Item = FlowStats> {
        self.flows.accounts.iter().map(|(flow, account)| FlowStats {
            flow: *flow,
            weight: account.weight,
            queued: account.queued,
            running: account.running.len(),
            waiting: account.waiting.len(),
            blocks_used: self.pool.held(*flow),
            tokens: account.tokens,
        })
    }
}
