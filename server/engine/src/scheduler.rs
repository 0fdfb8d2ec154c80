//! Which tokens the next step computes.
//!
//! There are no phases: under one token budget every running sequence lets `computed` catch up with its tokens, then
//! the queue is served in order (priority, then arrival). Every decode fits, a prefill takes what is left, or less of
//! it if the caller wants steps to be short for those that decode. When blocks run out the youngest sequence gives up
//! its blocks and goes back to its place in the queue, which is in front of everything of its priority that has not
//! started.
//!
//! Bounds. Nobody is admitted past a sequence that waits for blocks or for a place, so start order is order of
//! service, with one exception: siblings wait for their request's first sequence to compute the prompt, and
//! meanwhile up to `sequences_max - 1` younger sequences may use what the budget leaves (K). In every step the first
//! in order among the running gains at least a token and is never preempted: a limit on prefill leaves it one, and
//! guesses (see [`crate::draft`]) take no token and no block that another needs. So within one priority a sequence
//! starts at most W steps after it was added, W being the sum of prompt and `max_tokens` over all that were alive
//! before it, for a sibling plus that of the younger ones that overtook it; a huge prompt can't be overtaken for
//! ever. Lower priorities do wait for as long as higher ones keep coming; a higher one takes the next free place, it
//! doesn't push out what runs until it needs a block itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use crate::batch::{Batch, Row};
use crate::blocks::{BlockId, BlockPool};
use crate::config::EngineConfig;
use crate::hash::Hasher;
use crate::report::{Stats, StepReport};
use crate::request::{Event, RequestId, SeqId};
use crate::sequence::{Group, Rank, Sequence};

/// Every sequence that is alive, in the queue or running, and the blocks they hold.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) config: EngineConfig,
    pub(crate) hasher: Hasher,
    pub(crate) pool: BlockPool,
    pub(crate) sequences: BTreeMap<SeqId, Sequence>,
    pub(crate) groups: BTreeMap<RequestId, Group>,
    pub(crate) running: BTreeSet<Rank>,
    pub(crate) waiting: BTreeSet<Rank>,
    /// Sum of `queue_tokens` over the waiting sequences.
    pub(crate) waiting_tokens: usize,
    /// Requests none of whose sequences has started, oldest first.
    pub(crate) unstarted: BTreeSet<(u64, RequestId)>,
    pub(crate) deadlines: BTreeSet<(u64, RequestId)>,
    pub(crate) next_seq: u64,
    /// The most tokens of prefill in a step in which anything decodes, at least one.
    pub(crate) prefill_max: usize,
    /// What the next report will hold.
    pub(crate) report: StepReport,
}

/// Guessing pays while a step reads weights for few tokens: beyond this many decoding sequences a step that computes
/// guesses takes noticeably longer for all of them.
const SPECULATING_MAX: usize = 2;

/// What is left of a step while it is being filled.
struct Plan {
    batch: Batch,
    /// Tokens beside those of decodes, which are set aside.
    room: usize,
    prefill_left: usize,
    logits_left: usize,
    /// Whether sequences may guess ahead.
    speculates: bool,
}

impl Plan {
    /// What prefill may take.
    fn tokens_left(&self) -> usize {
        self.room.min(self.prefill_left)
    }

    fn take_prefill(&mut self, chunk: usize) {
        self.room -= chunk;
        self.prefill_left -= chunk;
    }

    /// Rows of logits beyond those for each row's own token, this row's and all that may come.
    fn logits_spare(&self, sequences_max: usize) -> usize {
        self.logits_left - (sequences_max - self.batch.rows.len())
    }
}

impl Scheduler {
    pub(crate) fn new(config: EngineConfig) -> Self {
        Self {
            hasher: Hasher::new(config.cache_secret),
            pool: BlockPool::new(config.blocks, config.block_size),
            config,
            sequences: BTreeMap::new(),
            groups: BTreeMap::new(),
            running: BTreeSet::new(),
            waiting: BTreeSet::new(),
            waiting_tokens: 0,
            unstarted: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            next_seq: 0,
            prefill_max: usize::MAX,
            report: StepReport::default(),
        }
    }

    /// Chooses the next step's work. Its rows are in order of service; it is empty when nothing is alive.
    pub(crate) fn schedule(&mut self) -> Batch {
        let decodes = self.decoding();
        let mut plan = Plan {
            batch: Batch::default(),
            room: self.config.step_tokens_max - decodes,
            prefill_left: if decodes > 0 { self.prefill_max } else { usize::MAX },
            logits_left: self.config.logits_max(),
            // A prompt that is being computed, or may soon be, has the better use for time and blocks.
            speculates: decodes <= SPECULATING_MAX
                && decodes == self.running.len()
                && self.waiting.is_empty(),
        };
        let preemptions = self.report.preemptions;
        self.continue_running(&mut plan);
        if self.report.preemptions == preemptions {
            self.admit(&mut plan);
        }
        self.report.prefill_limited = plan.prefill_left == 0 && plan.room > 0;
        plan.batch
    }

    /// Running sequences with one token to compute.
    fn decoding(&self) -> usize {
        let decodes = |rank: &&Rank| self.sequence(rank.seq).pending() == 1;
        self.running.iter().filter(decodes).count()
    }

    fn continue_running(&mut self, plan: &mut Plan) {
        let ranks: Vec<Rank> = self.running.iter().copied().collect();
        for rank in ranks {
            // Preempted by an older one in this loop: so are all after it.
            if !self.running.contains(&rank) {
                break;
            }
            let sequence = self.sequence(rank.seq);
            let decode = sequence.pending() == 1;
            let mut chunk = if decode { 1 } else { self.chunk(sequence, plan) };
            let blocks = (sequence.computed + chunk).div_ceil(self.config.block_size);
            if chunk == 0 {
                continue;
            }
            if !self.grow(rank, blocks) {
                break;
            }
            if decode {
                chunk += self.draft(rank.seq, plan);
            } else {
                plan.take_prefill(chunk);
            }
            self.push_row(plan, rank.seq, chunk);
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
                .alloc()
                .expect("blocks were counted before. This is a bug.");
            sequence.table.push(id);
        }
        plan.room -= drafted;
        drafted
    }

    /// Extends the sequence's table to `blocks`, preempting the youngest while the pool is empty. False if it was
    /// the youngest itself.
    fn grow(&mut self, rank: Rank, blocks: usize) -> bool {
        while self.sequence(rank.seq).table.len() < blocks {
            if let Some(id) = self.pool.alloc() {
                self.sequence_mut(rank.seq).table.push(id);
                continue;
            }
            let youngest = *self
                .running
                .last()
                .expect("a growing sequence runs. This is a bug.");
            self.preempt(youngest);
            if youngest == rank {
                return false;
            }
        }
        true
    }

    fn preempt(&mut self, rank: Rank) {
        let sequence = self
            .sequences
            .get_mut(&rank.seq)
            .expect("a running sequence lives. This is a bug.");
        self.pool.release(&mut sequence.table);
        sequence.computed = 0;
        sequence.published = 0;
        sequence.publishing = true;
        sequence.queue_tokens = sequence.tokens.len();
        self.waiting_tokens += sequence.queue_tokens;
        self.running.remove(&rank);
        self.waiting.insert(rank);
        self.report.preemptions += 1;
    }

    /// Starts or resumes waiting sequences, in order, while budget and blocks allow.
    fn admit(&mut self, plan: &mut Plan) {
        let mut next = self.waiting.first().copied();
        while let Some(rank) = next {
            next = self.waiting.range((Excluded(rank), Unbounded)).next().copied();
            if self.running.len() == self.config.sequences_max || plan.tokens_left() == 0 {
                break;
            }
            let request = self.sequence(rank.seq).request;
            if self.group(request).holds_back(rank.seq) {
                continue;
            }
            if !self.take_blocks(rank.seq) {
                break;
            }
            self.start(rank);
            let chunk = self.chunk(self.sequence(rank.seq), plan);
            plan.take_prefill(chunk);
            self.push_row(plan, rank.seq, chunk);
        }
    }

    /// Gives a waiting sequence the blocks of all its tokens, found or new. Holds back one block for every running
    /// sequence, so that the newcomer isn't preempted as soon as they grow.
    fn take_blocks(&mut self, seq: SeqId) -> bool {
        let block_size = self.config.block_size;
        let sequence = self
            .sequences
            .get_mut(&seq)
            .expect("a waiting sequence lives. This is a bug.");
        let found = if self.groups[&sequence.request].is_scoring() {
            Vec::new()
        } else {
            sequence.extend_keys(&self.hasher, block_size);
            self.pool
                .find_prefix(sequence.salt, &sequence.keys, &sequence.tokens)
        };
        let fresh = sequence.tokens.len().div_ceil(block_size) - found.len();
        if !self.pool.fits(&found, fresh, self.running.len()) {
            return false;
        }
        self.pool.hold(&found);
        sequence.computed = found.len() * block_size;
        sequence.published = found.len();
        sequence.table = found;
        for _ in 0..fresh {
            let id = self
                .pool
                .alloc()
                .expect("blocks were counted before. This is a bug.");
            sequence.table.push(id);
        }
        true
    }

    fn start(&mut self, rank: Rank) {
        self.waiting.remove(&rank);
        self.running.insert(rank);
        let sequence = self
            .sequences
            .get_mut(&rank.seq)
            .expect("a waiting sequence lives. This is a bug.");
        self.waiting_tokens -= sequence.queue_tokens;
        if sequence.started {
            return;
        }
        sequence.started = true;
        self.report.cache_query_tokens += sequence.tokens.len();
        self.report.cache_hit_tokens += sequence.computed;
        let started = sequence.event(Event::Started {
            cached_tokens: sequence.computed,
        });
        self.report.outputs.push(started);
        let request = sequence.request;
        let group = self
            .groups
            .get_mut(&request)
            .expect("a sequence has a group. This is a bug.");
        group.started = true;
        self.unstarted.remove(&(group.added_ms, request));
    }

    /// How many pending tokens of a prefill this step takes.
    fn chunk(&self, sequence: &Sequence, plan: &Plan) -> usize {
        let chunk = sequence.pending().min(plan.tokens_left());
        let group = self.group(sequence.request);
        if !group.is_scoring() {
            return chunk;
        }
        let unscored = first_unscored(sequence, group);
        let logits = 1 + plan.logits_spare(self.config.sequences_max);
        chunk.min(unscored - sequence.computed + logits)
    }

    fn push_row(&self, plan: &mut Plan, seq: SeqId, chunk: usize) {
        let sequence = self.sequence(seq);
        let group = self.group(sequence.request);
        let range = sequence.computed..sequence.computed + chunk;
        let wants_token = range.end == sequence.tokens.len() && sequence.spec.stop.max_tokens > 0;
        let batch = &mut plan.batch;
        let start = batch.tokens.len();
        let unscored = if group.is_scoring() {
            first_unscored(sequence, group)
        } else {
            usize::MAX
        };
        for position in range.clone() {
            let scores = position >= unscored && position + 1 < sequence.spec.prompt.len();
            let samples = wants_token && position + 1 + sequence.drafted >= range.end;
            if scores || samples {
                batch.logits.push(batch.tokens.len() as u32);
                plan.logits_left -= 1;
            }
            batch.tokens.push(sequence.tokens[position]);
            batch.positions.push(position as u32);
            batch.slots.push(self.slot(&sequence.table, position));
        }
        plan.batch.rows.push(Row {
            seq,
            tokens: start..plan.batch.tokens.len(),
            context_len: range.end,
            block_table: sequence.table.clone(),
        });
    }

    fn slot(&self, table: &[BlockId], position: usize) -> u32 {
        let size = self.config.block_size;
        table[position / size] * size as u32 + (position % size) as u32
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
            decoding: self.decoding(),
            waiting: self.waiting.len(),
            waiting_requests: self.unstarted.len(),
            waiting_tokens: self.waiting_tokens,
            waiting_since_ms: self.unstarted.first().map(|(added_ms, _)| *added_ms),
            blocks_total: self.pool.total(),
            blocks_used: self.pool.total() - self.pool.available(),
            blocks_cached: self.pool.cached(),
        }
    }
}

/// The first position whose logits score a prompt token that has no score yet.
fn first_unscored(sequence: &Sequence, group: &Group) -> usize {
    sequence.computed.max(group.scores.len() - 1)
}
