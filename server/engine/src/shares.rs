//! Who gives way: flows' shares of places and blocks, for whom a place is kept that was left, and whom preemption takes.
//!
//! A flow that waits and holds less than its share takes from the flow that is most above its own, unless that was
//! served less. A step's worth of tokens makes no difference there: whoever sends two requests at once would else wait
//! for the second as long as the first is ahead of the others. It takes no more than its share, and only from above the
//! giver's, who so can't take it back: until flows come or go, each such preemption brings the shares nearer to what is
//! due. The youngest of a flow gives way, and the first in order never does.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::Plan;
use crate::request::{Flow, SeqId};
use crate::scheduler::Scheduler;
use crate::sequence::{Rank, Sequence};

/// What flows have shares of.
#[derive(Clone, Copy)]
pub(crate) enum Resource {
    Places,
    Blocks,
}

/// For how many steps, at most, a place is kept for the flow whose sequence has left it. Clients that ask again as soon as they have
/// their answer come a moment later; whoever has started in between gave way to them, and they waited for its prompt. (As disks wait
/// for the next read: Iyer and Druschel 2001, "Anticipatory scheduling".)
const KEPT_STEPS: usize = 3;

/// It is kept for one step for each so many tokens of the answer: who comes and goes has a place idle for a fifth of the time at most,
/// or somewhat more where the engine guesses several tokens a step.
const KEPT_TOKENS: usize = 4;

/// A place that a sequence has just left.
#[derive(Debug)]
pub(crate) struct LeftPlace {
    flow: Flow,
    priority: i32,
    steps: usize,
}

impl Scheduler {
    /// A running sequence has ended.
    pub(crate) fn leave_place(&mut self, sequence: &Sequence) {
        let steps = KEPT_STEPS.min(sequence.output().len() / KEPT_TOKENS);
        if steps > 0 {
            self.left_places.push(LeftPlace {
                flow: sequence.spec.flow,
                priority: sequence.rank().priority,
                steps,
            });
        }
    }

    /// A sequence of a flow starts, maybe where another has left.
    pub(crate) fn take_left_place(&mut self, flow: u64) {
        if let Some(index) = self.left_places.iter().position(|left| left.flow.id == flow) {
            self.left_places.remove(index);
        }
    }

    /// A step was planned.
    pub(crate) fn age_left_places(&mut self) {
        self.left_places.retain_mut(|left| {
            left.steps -= 1;
            left.steps > 0
        });
    }

    /// Whether all free places are kept from a waiting sequence: its flow holds its share beside those that have left them, which
    /// may have nothing else alive, and are no less urgent.
    pub(crate) fn keeps_places_from(&self, rank: Rank) -> bool {
        let flow = self.sequence(rank.seq).flow();
        let others = |left: &&LeftPlace| {
            left.flow.id != flow && left.priority <= rank.priority && !self.flows.waits(left.flow.id)
        };
        let kept = self.left_places.iter().filter(others);
        if self.running.len() + kept.clone().count() < self.config.sequences_max {
            return false;
        }
        let gone: BTreeMap<u64, u32> = kept
            .filter(|left| !self.flows.is_alive(left.flow.id))
            .map(|left| (left.flow.id, left.flow.weight))
            .collect();
        let gone = gone.values().map(|weight| u64::from(*weight)).sum();
        let account = self.flows.account(flow);
        let share = self
            .flows
            .share_beside(gone, self.config.sequences_max, account.weight);
        account.running.len() >= share
    }

    /// The flow's share of places.
    pub(crate) fn places_due(&self, flow: u64) -> usize {
        let weight = self.flows.account(flow).weight;
        self.flows.share(self.config.sequences_max, weight)
    }

    /// Whether one more place is within the flow's share.
    pub(crate) fn has_place_due(&self, flow: u64) -> bool {
        self.flows.account(flow).running.len() < self.places_due(flow)
    }

    /// Whether so many more blocks are within the flow's share.
    pub(crate) fn has_blocks_due(&self, flow: u64, blocks: usize) -> bool {
        let weight = self.flows.account(flow).weight;
        self.pool.held(flow) + blocks <= self.flows.share(self.pool.total(), weight)
    }

    /// Blocks that preemption of a running sequence makes available.
    pub(crate) fn sole_blocks(&self, rank: Rank) -> usize {
        self.pool.sole(&self.sequence(rank.seq).table)
    }

    /// Who is to give way to a waiting sequence, beside those that are chosen already: the youngest of the flow that
    /// holds most for its weight, among those that keep their share, that were served no less (but for a step), and whose
    /// youngest is not more urgent.
    pub(crate) fn giver(
        &self,
        taker: Rank,
        resource: Resource,
        chosen: &[Rank],
        plan: &Plan,
    ) -> Option<Rank> {
        let flow = self.sequence(taker.seq).flow();
        let served = self.flows.account(flow).service;
        let burst = self.flows.cost(flow, self.config.step_tokens_max);
        let served = served.saturating_sub(burst);
        let mut best: Option<(usize, u32, Rank)> = None;
        for (id, account) in &self.flows.accounts {
            let youngest = account.running.iter().rfind(|rank| !chosen.contains(rank));
            let Some(youngest) = youngest.copied() else {
                continue;
            };
            // What is planned of its prompt may have used up what was left of the step's logits.
            let gives = *id != flow
                && account.service >= served
                && youngest.priority >= taker.priority
                && Some(&youngest) != self.running.first()
                && !plan.prefills(youngest);
            if !gives {
                continue;
            }
            let gone = chosen.iter().filter(|rank| account.running.contains(rank));
            let (held, given, total) = match resource {
                Resource::Places => (account.running.len() - gone.count(), 1, self.config.sequences_max),
                Resource::Blocks => {
                    let gone: usize = gone.map(|rank| self.sole_blocks(*rank)).sum();
                    let held = self.pool.held(*id).saturating_sub(gone);
                    (held, self.sole_blocks(youngest), self.pool.total())
                }
            };
            let keeps = held >= given + self.flows.share(total, account.weight);
            if keeps && best.is_none_or(|(most, weight, _)| is_more(held, account.weight, most, weight)) {
                best = Some((held, account.weight, youngest));
            }
        }
        best.map(|(.., rank)| rank)
    }

    /// Preempts a sequence that may decode in this step.
    pub(crate) fn give_way(&mut self, rank: Rank, plan: &mut Plan) {
        if plan.drop(rank) {
            let flow = self.sequence(rank.seq).flow();
            self.flows.refund(flow, 1);
        }
        self.preempt(rank);
    }

    /// Who is to give up its blocks so that others can grow: of the least urgent that run, the youngest of the flow that
    /// holds the most blocks for its weight. A flow's only sequence comes last: small weights have shares of less than
    /// that.
    pub(crate) fn victim(&self) -> Rank {
        let last = *self
            .running
            .last()
            .expect("a growing sequence runs. This is a bug.");
        if !self.flows.compete() {
            return last;
        }
        let mut best: Option<(bool, usize, u32, Rank)> = None;
        for (id, account) in &self.flows.accounts {
            let Some(youngest) = account.running.last().copied() else {
                continue;
            };
            if youngest.priority != last.priority || Some(&youngest) == self.running.first() {
                continue;
            }
            let (several, held) = (account.running.len() > 1, self.pool.held(*id));
            let is_better = best.is_none_or(|(best_several, most, weight, _)| {
                let more = is_more(held, account.weight, most, weight);
                (several && !best_several) || (several == best_several && more)
            });
            if is_better {
                best = Some((several, held, account.weight, youngest));
            }
        }
        best.map_or(last, |(.., rank)| rank)
    }

    /// The most blocks that one flow may hold, while several are alive and if that is limited.
    fn cap(&self) -> Option<usize> {
        let percent = self.config.flow_blocks_share_max;
        let limited = percent < 100 && self.flows.compete();
        limited.then(|| (self.pool.total() as u128 * percent as u128 / 100).max(1) as usize)
    }

    /// How many blocks a flow may still take.
    pub(crate) fn below_cap(&self, flow: u64) -> usize {
        let cap = self.cap().unwrap_or(usize::MAX);
        cap.saturating_sub(self.pool.held(flow))
    }

    /// Whether a start would take a flow above the cap, or so near that it is preempted as soon as the others grow. One
    /// sequence may always run.
    pub(crate) fn exceeds_cap(&self, flow: u64, blocks: usize) -> bool {
        let running = self.flows.account(flow).running.len();
        running > 0 && self.below_cap(flow) < blocks.saturating_add(running)
    }

    /// Who gives way when a flow at the cap grows: none while it has one sequence.
    pub(crate) fn youngest_at_cap(&self, flow: u64) -> Option<Rank> {
        if self.below_cap(flow) > 0 {
            return None;
        }
        let running = &self.flows.account(flow).running;
        running.last().copied().filter(|_| running.len() > 1)
    }

    /// Preempts the youngest of flows that came to hold more than the cap before others came.
    pub(crate) fn keep_caps(&mut self) {
        let Some(cap) = self.cap() else {
            return;
        };
        let flows: Vec<u64> = self.flows.accounts.keys().copied().collect();
        for flow in flows {
            while self.pool.held(flow) > cap
                && let Some(youngest) = self.youngest_at_cap(flow)
            {
                self.preempt(youngest);
            }
        }
    }

    /// Whether a waiting sequence is older than all others of its priority.
    pub(crate) fn is_oldest(&self, rank: Rank) -> bool {
        let oldest = Rank {
            seq: SeqId(0),
            ..rank
        };
        let older = |ranks: &BTreeSet<Rank>| ranks.range(oldest..rank).next().is_some();
        !older(&self.running) && !older(&self.waiting)
    }
}

/// Whether so much is more for a weight than so much for another.
fn is_more(held: usize, weight: u32, other: usize, other_weight: u32) -> bool {
    held as u128 * u128::from(other_weight) > other as u128 * u128::from(weight)
}
