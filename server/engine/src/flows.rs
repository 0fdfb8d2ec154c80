//! Who has been served how much: one account for each flow, in tokens per weight.
//!
//! The flow with the least service is next (Sheng et al. 2024, "Fairness in Serving Large Language Models"). Only who
//! is kept waiting is owed anything: a flow whose queue was empty is lifted to the least served of those that wait, and
//! if nobody waits, to the most served of those that run. That level never sinks while anything is alive, so a flow
//! without sequences can be forgotten as soon as the level has reached it.

use std::collections::{BTreeMap, BTreeSet};

use crate::report::Queued;
use crate::request::{AddError, FLOW_WEIGHT_MAX, Flow};
use crate::sequence::Rank;

/// Service of one token at weight 1: what division by a weight loses is less than a millionth of a token.
const TOKEN: u128 = 1 << 20;
/// Flows that have nothing alive and are remembered because they had more than their share.
const IDLE_MAX: usize = 1024;

/// Every flow that is alive, and those that are remembered.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    pub(crate) accounts: BTreeMap<u64, Account>,
    /// What a flow has at least when it begins to wait.
    level: u128,
    /// Flows with a living sequence, and the sum of their weights.
    alive: usize,
    weight_alive: u64,
}

/// One flow's sequences, and what was computed for them.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) weight: u32,
    /// Tokens computed per weight, times [`TOKEN`]; and what the flow was lifted by.
    pub(crate) service: u128,
    /// Tokens computed since the flow is known.
    pub(crate) tokens: u64,
    pub(crate) waiting: BTreeSet<Rank>,
    pub(crate) running: BTreeSet<Rank>,
    pub(crate) queued: Queued,
}

impl Account {
    fn new(weight: u32) -> Self {
        Self {
            weight,
            service: 0,
            tokens: 0,
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            queued: Queued::default(),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }
}

/// Refuses weights that no flow can have.
pub(crate) fn check_weight(flow: Flow) -> Result<(), AddError> {
    if (1..=FLOW_WEIGHT_MAX).contains(&flow.weight) {
        return Ok(());
    }
    Err(AddError::FlowWeight {
        weight: flow.weight,
        limit: FLOW_WEIGHT_MAX,
    })
}

impl Flows {
    pub(crate) fn account(&self, flow: u64) -> &Account {
        self.accounts
            .get(&flow)
            .expect("a living sequence's flow is known. This is a bug.")
    }

    fn account_mut(&mut self, flow: u64) -> &mut Account {
        self.accounts
            .get_mut(&flow)
            .expect("a living sequence's flow is known. This is a bug.")
    }

    /// What of a flow waits to start.
    pub(crate) fn queued(&self, flow: u64) -> Queued {
        self.accounts
            .get(&flow)
            .map_or(Queued::default(), |account| account.queued)
    }

    /// Several flows have sequences: they compete.
    pub(crate) fn compete(&self) -> bool {
        self.alive > 1
    }

    pub(crate) fn alive(&self) -> usize {
        self.alive
    }

    /// The service that so many tokens are to a flow.
    pub(crate) fn cost(&self, flow: u64, tokens: usize) -> u128 {
        cost(tokens, self.account(flow).weight)
    }

    pub(crate) fn is_alive(&self, flow: u64) -> bool {
        self.accounts.get(&flow).is_some_and(Account::is_alive)
    }

    pub(crate) fn waits(&self, flow: u64) -> bool {
        let account = self.accounts.get(&flow);
        account.is_some_and(|account| !account.waiting.is_empty())
    }

    /// The least weight of those that are alive.
    pub(crate) fn least_weight(&self) -> u32 {
        let alive = self.accounts.values().filter(|account| account.is_alive());
        alive
            .map(|account| account.weight)
            .min()
            .expect("who has a turn is alive. This is a bug.")
    }

    /// A flow's part of so many places or blocks, among those that are alive; at least one.
    pub(crate) fn share(&self, total: usize, weight: u32) -> usize {
        self.share_beside(0, total, weight)
    }

    /// The same beside others of so much weight.
    pub(crate) fn share_beside(&self, others: u64, total: usize, weight: u32) -> usize {
        let weight_alive = (self.weight_alive + others).max(1);
        let share = total as u128 * u128::from(weight) / u128::from(weight_alive);
        (share as usize).max(1)
    }

    /// A request of a flow was added. The latest weight holds for all of the flow.
    pub(crate) fn open(&mut self, flow: Flow, queue_tokens: usize) {
        let account = self
            .accounts
            .entry(flow.id)
            .or_insert_with(|| Account::new(flow.weight));
        if account.is_alive() {
            self.weight_alive += u64::from(flow.weight);
            self.weight_alive -= u64::from(account.weight);
        }
        account.weight = flow.weight;
        account.queued.requests += 1;
        account.queued.tokens += queue_tokens;
    }

    /// A sequence is new, or was preempted.
    pub(crate) fn wait(&mut self, flow: u64, rank: Rank) {
        if self.account(flow).waiting.is_empty() {
            self.raise_level();
            let level = self.level;
            let account = self.account_mut(flow);
            account.service = account.service.max(level);
        }
        self.change(flow, |account| {
            account.running.remove(&rank);
            account.waiting.insert(rank);
        });
    }

    pub(crate) fn run(&mut self, flow: u64, rank: Rank) {
        self.change(flow, |account| {
            account.waiting.remove(&rank);
            account.running.insert(rank);
        });
    }

    pub(crate) fn end(&mut self, flow: u64, rank: Rank) {
        self.change(flow, |account| {
            account.waiting.remove(&rank);
            account.running.remove(&rank);
        });
    }

    fn change(&mut self, flow: u64, change: impl FnOnce(&mut Account)) {
        let account = self.account_mut(flow);
        let was_alive = account.is_alive();
        change(account);
        let (weight, is_alive) = (u64::from(account.weight), account.is_alive());
        if is_alive && !was_alive {
            self.alive += 1;
            self.weight_alive += weight;
        } else if was_alive && !is_alive {
            self.alive -= 1;
            self.weight_alive -= weight;
        }
    }

    /// A request has started, or ended before it did.
    pub(crate) fn dequeue_request(&mut self, flow: u64) {
        self.account_mut(flow).queued.requests -= 1;
    }

    /// A sequence has started, or ended before it did.
    pub(crate) fn dequeue_tokens(&mut self, flow: u64, tokens: usize) {
        self.account_mut(flow).queued.tokens -= tokens;
    }

    pub(crate) fn charge(&mut self, flow: u64, tokens: usize) {
        let account = self.account_mut(flow);
        account.tokens += tokens as u64;
        account.service += cost(tokens, account.weight);
    }

    /// Takes back what [`Flows::charge`] added in the same step, but no flow sinks below the level, which may have
    /// risen since.
    pub(crate) fn refund(&mut self, flow: u64, tokens: usize) {
        let level = self.level;
        let account = self.account_mut(flow);
        account.tokens -= tokens as u64;
        let service = account.service - cost(tokens, account.weight);
        account.service = service.max(level.min(account.service));
    }

    /// Tokens that other flows may get before this one has had the least service, as far as is known.
    pub(crate) fn lead(&self, flow: u64) -> usize {
        let service = self.account(flow).service;
        let known = self.accounts.values().map(|account| {
            let behind = service.saturating_sub(account.service.max(self.level));
            behind * u128::from(account.weight)
        });
        let unknown = service.saturating_sub(self.level) * u128::from(FLOW_WEIGHT_MAX);
        let lead = (known.sum::<u128>() + unknown) / TOKEN;
        usize::try_from(lead).unwrap_or(usize::MAX)
    }

    fn raise_level(&mut self) {
        let accounts = self.accounts.values();
        let waiting = accounts.clone().filter(|account| !account.waiting.is_empty());
        let running = accounts.filter(|account| !account.running.is_empty());
        let served = |account: &Account| account.service;
        let level = waiting.map(served).min().or_else(|| running.map(served).max());
        self.level = self.level.max(level.unwrap_or(0));
    }

    /// Forgets flows that have nothing alive, once they would be lifted anyway. Those that had more than their share
    /// are remembered until the others have caught up, or else many short flows would be served before a long one.
    pub(crate) fn forget_idle(&mut self) {
        if self.alive == self.accounts.len() {
            return;
        }
        if self.alive == 0 {
            self.accounts.clear();
            self.level = 0;
            return;
        }
        self.raise_level();
        let level = self.level;
        self.accounts
            .retain(|_, account| account.is_alive() || account.service > level);
        while self.accounts.len() - self.alive > IDLE_MAX {
            let idle = self.accounts.iter().filter(|(_, account)| !account.is_alive());
            let least = idle.min_by_key(|(_, account)| account.service);
            let id = least.map(|(id, _)| *id);
            self.accounts.remove(&id.expect("some are idle. This is a bug."));
        }
    }

    /// Says what is wrong with the sums, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let alive = self.accounts.values().filter(|account| account.is_alive());
        let weight: u64 = alive.clone().map(|account| u64::from(account.weight)).sum();
        let (count, level) = (alive.count(), self.level);
        if (count, weight) != (self.alive, self.weight_alive) {
            return Err(format!(
                "{count} flows of weight {weight} are alive, {} of {} were counted",
                self.alive, self.weight_alive
            ));
        }
        let owed = |account: &&Account| !account.waiting.is_empty() && account.service < level;
        if self.accounts.values().any(|account| owed(&account)) {
            return Err("a flow waits below the level".to_owned());
        }
        Ok(())
    }
}

pub(crate) fn cost(tokens: usize, weight: u32) -> u128 {
    tokens as u128 * TOKEN / u128::from(weight)
}
