//! Whose prompts a step computes: flows take turns, the one with the least service first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use crate::blocks::BlockId;
use crate::flows::cost;
use crate::plan::{Part, Plan, Planned};
use crate::request::{Event, RequestId, SeqId};
use crate::scheduler::Scheduler;
use crate::sequence::Rank;
use crate::shares::Resource;

/// What a flow has to compute in its turns: prompts that are under way, then those that wait.
#[derive(Default)]
struct Lane {
    prefills: VecDeque<Rank>,
    /// The waiting sequence that was looked at last.
    seen: Option<Rank>,
}

/// A flow's next turn, in the order in which they are taken: its priority, the flow's service, whether its prompt is under way
/// (the first chunk of another comes before its next), its arrival; and whose it is.
type Turn = (i32, u128, bool, SeqId, u64);

/// Whether a waiting sequence got what it needs.
enum Claim {
    Taken,
    /// Its flow holds as many blocks as it may.
    AtCap,
    /// It needs more than its flow's share.
    Beyond,
    /// It needs no more than its flow's share, and nobody can give it.
    Within,
    /// Its flow holds its share, and the places that are free are kept for others a moment.
    Kept,
}

/// What the cache has of a waiting sequence, and what it does not.
struct Found {
    /// The blocks of its beginning and, behind them, the one that it parked.
    blocks: Vec<BlockId>,
    /// Tokens computed where the parked block is among them.
    parked: Option<usize>,
    /// Blocks that are needed beside them.
    fresh: usize,
}

impl Scheduler {
    /// Fills the step with prompts, and starts waiting sequences.
    pub(crate) fn share_prefill(&mut self, plan: &mut Plan) {
        if plan.prefills.is_empty() && (!plan.admits || self.waiting.is_empty()) {
            return;
        }
        let mut lanes: BTreeMap<u64, Lane> = BTreeMap::new();
        for rank in &plan.prefills {
            let lane = lanes.entry(self.sequence(rank.seq).flow()).or_default();
            lane.prefills.push_back(*rank);
        }
        if plan.admits {
            for (flow, account) in &self.flows.accounts {
                if !account.waiting.is_empty() {
                    lanes.entry(*flow).or_default();
                }
            }
        }
        // Whoever is first in order gains a token in every step, even where others were served less.
        plan.first = plan
            .prefills
            .first()
            .copied()
            .filter(|rank| self.running.first() == Some(rank));
        let burst = cost(self.step_tokens(), self.flows.least_weight());
        let turns = lanes
            .iter()
            .filter_map(|(flow, lane)| self.turn(*flow, lane, burst));
        let mut turns: BTreeSet<Turn> = turns.collect();
        while let Some((.., flow)) = turns.pop_first() {
            let lane = lanes
                .get_mut(&flow)
                .expect("a flow with a turn has a lane. This is a bug.");
            if self.take_turn(flow, lane, plan) {
                turns.extend(self.turn(flow, lane, burst));
            }
        }
    }

    /// A flow's next turn, where those with more places than due go behind others that were served up to a `burst` more.
    fn turn(&self, flow: u64, lane: &Lane, burst: u128) -> Option<Turn> {
        let rank = lane
            .prefills
            .front()
            .copied()
            .or_else(|| self.next_waiting(flow, lane))?;
        let under_way = !lane.prefills.is_empty();
        let mut service = self.flows.account(flow).service;
        // What a step computes keeps nobody from a place that is due, nor the prompts of those who have no more. The same for all
        // others, by the least weight, or else small ones would be behind.
        let places = self.flows.account(flow).running.len() + usize::from(!under_way);
        if places > self.places_due(flow) {
            service += burst;
        }
        Some((rank.priority, service, under_way, rank.seq, flow))
    }

    fn next_waiting(&self, flow: u64, lane: &Lane) -> Option<Rank> {
        let waiting = &self.flows.account(flow).waiting;
        match lane.seen {
            Some(seen) => waiting.range((Excluded(seen), Unbounded)).next().copied(),
            None => waiting.first().copied(),
        }
    }

    /// One prompt's part of the step. False if the flow gets no further turn.
    fn take_turn(&mut self, flow: u64, lane: &mut Lane, plan: &mut Plan) -> bool {
        if let Some(rank) = lane.prefills.pop_front() {
            // Another flow's start may have preempted it.
            if self.running.contains(&rank) {
                self.prefill(rank, Part::Prefill, plan);
            }
            return true;
        }
        let Some(rank) = self.next_waiting(flow, lane) else {
            return false;
        };
        let is_behind = plan.kept_from.is_some_and(|urgent| rank.priority > urgent);
        if !plan.admits || is_behind || plan.tokens_left(rank) == 0 {
            return false;
        }
        lane.seen = Some(rank);
        let request = self.sequence(rank.seq).request;
        if self.group(request).holds_back(rank.seq) {
            return true;
        }
        match self.claim(rank, plan) {
            Claim::Taken => {
                self.start(rank);
                self.prefill(rank, Part::Start, plan);
                return true;
            }
            Claim::AtCap => {}
            // Others that are as urgent are asked about kept places themselves.
            Claim::Kept => plan.kept_from = Some(rank.priority),
            // Others may have their shares meanwhile, but not for ever.
            Claim::Beyond if !self.is_oldest(rank) => plan.passing = true,
            Claim::Beyond | Claim::Within => plan.admits = false,
        }
        false
    }

    fn prefill(&mut self, rank: Rank, part: Part, plan: &mut Plan) {
        let tokens = self.chunk(rank, plan);
        if tokens == 0 {
            return;
        }
        let logits = self.logits(rank, tokens);
        self.flows.charge(self.sequence(rank.seq).flow(), tokens);
        plan.push_prefill(Planned {
            rank,
            tokens,
            logits,
            part,
        });
    }

    /// Gets a waiting sequence a place and the blocks of all its tokens, found or new, or preempts those who give them.
    /// Holds back one block for every running sequence, so that the newcomer isn't preempted as soon as they grow.
    fn claim(&mut self, rank: Rank, plan: &mut Plan) -> Claim {
        let flow = self.sequence(rank.seq).flow();
        let (mut victims, mut is_kept) = (Vec::new(), false);
        if self.running.len() == self.config.sequences_max {
            if !self.has_place_due(flow) {
                return Claim::Beyond;
            }
            match self.giver(rank, Resource::Places, &victims, plan) {
                Some(giver) => victims.push(giver),
                None => return Claim::Within,
            }
        } else {
            is_kept = self.keeps_places_from(rank);
        }
        let found = self.find(rank.seq);
        let needed = found.fresh + self.pool.unheld(&found.blocks);
        // Blocks of those who give way may be among the found ones.
        let counted = found.fresh + self.pool.foreign(&found.blocks, flow);
        if self.exceeds_cap(flow, counted) {
            return Claim::AtCap;
        }
        if is_kept {
            return Claim::Kept;
        }
        let within = self.has_blocks_due(flow, counted);
        // Those who are above their shares make room for a flow's only sequence, whatever its size.
        let only = self.flows.account(flow).running.is_empty();
        let due = self.flows.compete() && self.has_place_due(flow) && (within || only);
        if !due && (plan.passing || !victims.is_empty()) {
            return Claim::Beyond;
        }
        loop {
            let freed: usize = victims.iter().map(|victim| self.sole_blocks(*victim)).sum();
            let reserve = self.running.len() - victims.len();
            if needed + reserve <= self.pool.available() + freed {
                break;
            }
            if !due {
                return Claim::Beyond;
            }
            match self.giver(rank, Resource::Blocks, &victims, plan) {
                Some(giver) => victims.push(giver),
                None if within => return Claim::Within,
                None => return Claim::Beyond,
            }
        }
        for victim in victims {
            self.give_way(victim, plan);
        }
        // A victim may have shared what was found, which then counts as needed.
        if !self.pool.fits(&found.blocks, found.fresh, self.running.len()) {
            return Claim::Within;
        }
        self.take_blocks(rank.seq, found);
        Claim::Taken
    }

    /// What the cache has of a waiting sequence.
    fn find(&mut self, seq: SeqId) -> Found {
        let block_size = self.config.block_size;
        let sequence = self
            .sequences
            .get_mut(&seq)
            .expect("a waiting sequence lives. This is a bug.");
        let needed = sequence.tokens.len().div_ceil(block_size);
        if self.groups[&sequence.request].is_scoring() {
            return Found {
                blocks: Vec::new(),
                parked: None,
                fresh: needed,
            };
        }
        sequence.extend_keys(&self.hasher, block_size);
        let salt = sequence.salt;
        let mut blocks = self.pool.find_prefix(salt, &sequence.keys, &sequence.tokens);
        let mut parked = None;
        if sequence.parked > 0 && blocks.len() == sequence.parked / block_size {
            let (key, tokens) = sequence.begun(&self.hasher, block_size);
            if let Some(id) = self.pool.find_begun(salt, &blocks, key, tokens) {
                blocks.push(id);
                parked = Some(sequence.parked);
            }
        }
        let fresh = needed - blocks.len();
        Found {
            blocks,
            parked,
            fresh,
        }
    }

    fn take_blocks(&mut self, seq: SeqId, found: Found) {
        let sequence = self
            .sequences
            .get_mut(&seq)
            .expect("a waiting sequence lives. This is a bug.");
        let flow = sequence.flow();
        self.pool.hold(&found.blocks, flow);
        sequence.published = found.blocks.len();
        sequence.computed = found.blocks.len() * self.config.block_size;
        if let Some(computed) = found.parked {
            sequence.published -= 1;
            sequence.computed = computed;
            self.pool.unpark(found.blocks[sequence.published]);
        }
        sequence.parked = 0;
        sequence.table = found.blocks;
        for _ in 0..found.fresh {
            let id = self
                .pool
                .alloc(flow)
                .expect("blocks were counted before. This is a bug.");
            sequence.table.push(id);
        }
    }

    fn start(&mut self, rank: Rank) {
        self.leave_queue(rank);
        self.running.insert(rank);
        let sequence = self.sequence_mut(rank.seq);
        let flow = sequence.flow();
        if !sequence.started {
            sequence.started = true;
            let (tokens, cached_tokens) = (sequence.tokens.len(), sequence.computed);
            let started = sequence.event(Event::Started { cached_tokens });
            let request = sequence.request;
            self.report.cache_query_tokens += tokens;
            self.report.cache_hit_tokens += cached_tokens;
            self.report.outputs.push(started);
            self.start_request(request, flow);
        }
        self.recount(rank.seq);
        self.flows.run(flow, rank);
        self.take_left_place(flow);
    }

    fn start_request(&mut self, request: RequestId, flow: u64) {
        let group = self
            .groups
            .get_mut(&request)
            .expect("a sequence has a group. This is a bug.");
        group.started = true;
        if self.unstarted.remove(&(group.added_ms, request)) {
            self.flows.dequeue_request(flow);
        }
    }
}
