//! What must be true of the scheduler between steps, and the way back when it isn't.

use std::collections::{BTreeMap, BTreeSet};

use crate::blocks::BlockPool;
use crate::flows::Flows;
use crate::report::Queued;
use crate::request::{Event, Finish};
use crate::scheduler::Scheduler;
use crate::sequence::{Rank, Sequence};

impl Scheduler {
    /// Says what is wrong with the state, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.pool
            .check(self.sequences.values().map(|sequence| sequence.table.as_slice()))?;
        let decoding = self
            .sequences
            .values()
            .filter(|sequence| sequence.decodes)
            .count();
        if decoding != self.decoding {
            return Err(format!(
                "{decoding} sequences decode, {} were counted",
                self.decoding
            ));
        }
        let mut waiting_tokens = 0;
        #[expect(clippy::iter_over_hash_type, reason = "sums and checks don't show the order")]
        for sequence in self.sequences.values() {
            self.check_sequence(sequence)
                .map_err(|wrong| format!("sequence {}: {wrong}", sequence.id.0))?;
            if self.waiting.contains(&sequence.rank()) {
                waiting_tokens += sequence.queue_tokens;
            }
        }
        if waiting_tokens != self.waiting_tokens {
            return Err(format!(
                "{waiting_tokens} tokens wait, {} were counted",
                self.waiting_tokens
            ));
        }
        if self.waiting.len() + self.running.len() != self.sequences.len() {
            return Err("a rank in the queue has no sequence".to_owned());
        }
        if self.running.len() > self.config.sequences_max {
            return Err(format!("{} sequences run", self.running.len()));
        }
        let members: usize = self.groups.values().map(|group| group.seqs.len()).sum();
        if members != self.sequences.len() {
            return Err(format!(
                "{members} sequences are in groups, {} live",
                self.sequences.len()
            ));
        }
        let unstarted = self.groups.values().filter(|group| !group.started).count();
        if unstarted != self.unstarted.len() {
            return Err(format!(
                "{unstarted} requests have not started, {} were counted",
                self.unstarted.len()
            ));
        }
        let deadlines = self
            .groups
            .values()
            .filter(|group| group.spec.deadline_ms.is_some())
            .count();
        if deadlines != self.deadlines.len() {
            return Err(format!(
                "{deadlines} requests have deadlines, {} are kept",
                self.deadlines.len()
            ));
        }
        self.check_flows()
    }

    fn check_sequence(&self, sequence: &Sequence) -> Result<(), String> {
        let runs = self.running.contains(&sequence.rank());
        if runs == self.waiting.contains(&sequence.rank()) {
            return Err("it must either wait or run".to_owned());
        }
        if !runs && (sequence.computed > 0 || !sequence.table.is_empty()) {
            return Err("it waits and holds blocks".to_owned());
        }
        if runs && !sequence.started {
            return Err("it runs and was never started".to_owned());
        }
        if sequence.parked > 0 && (runs || sequence.parked >= sequence.tokens.len()) {
            return Err("it has parked what it can't need".to_owned());
        }
        if sequence.drafted > 0 {
            return Err("it holds guesses between steps".to_owned());
        }
        if sequence.computed >= sequence.tokens.len() {
            return Err("it has nothing to compute".to_owned());
        }
        if sequence.computed > sequence.table.len() * self.config.block_size {
            return Err("its blocks don't hold what it computed".to_owned());
        }
        if sequence.tokens.len() > self.config.context_max {
            return Err("it is longer than the context".to_owned());
        }
        let group = self.groups.get(&sequence.request).ok_or("it has no group")?;
        if !group.seqs.contains(&sequence.id) {
            return Err("its group doesn't know it".to_owned());
        }
        if sequence.decodes != (runs && sequence.pending() == 1) {
            return Err("it is wrongly counted among those that decode".to_owned());
        }
        Ok(())
    }

    /// Each flow's part of the queue and of those that run.
    fn check_flows(&self) -> Result<(), String> {
        let mut parts: BTreeMap<u64, (BTreeSet<Rank>, BTreeSet<Rank>, Queued)> = BTreeMap::new();
        for (flow, account) in &self.flows.accounts {
            // An account without sequences is remembered for its service alone.
            if account.is_alive() || account.queued != Queued::default() {
                parts.insert(*flow, Default::default());
            }
        }
        let mut unstarted_tokens = 0;
        #[expect(clippy::iter_over_hash_type, reason = "sums and checks don't show the order")]
        for sequence in self.sequences.values() {
            let (waiting, running, queued) = parts.entry(sequence.flow()).or_default();
            let rank = sequence.rank();
            if self.running.contains(&rank) {
                running.insert(rank);
                continue;
            }
            waiting.insert(rank);
            if !sequence.started {
                queued.tokens += sequence.queue_tokens;
                unstarted_tokens += sequence.queue_tokens;
            }
        }
        for group in self.groups.values().filter(|group| !group.started) {
            parts.entry(group.spec.flow.id).or_default().2.requests += 1;
        }
        for (flow, part) in &parts {
            let account = self.flows.accounts.get(flow).ok_or("a flow has no account")?;
            if (&account.waiting, &account.running, &account.queued) != (&part.0, &part.1, &part.2) {
                return Err(format!("flow {flow} has {part:?}, not {account:?}"));
            }
        }
        if unstarted_tokens != self.unstarted_tokens {
            return Err(format!(
                "{unstarted_tokens} tokens have not started, {} were counted",
                self.unstarted_tokens
            ));
        }
        self.flows.check()
    }

    /// Ends every sequence with `Failed` and starts with an empty pool: nothing of the old state is trusted but the
    /// list of the living.
    pub(crate) fn reset(&mut self) {
        let living = std::mem::take(&mut self.sequences);
        let mut failed: Vec<_> = living
            .values()
            .map(|sequence| sequence.event(Event::Finished(Finish::Failed)))
            .collect();
        failed.sort_unstable_by_key(|output| output.seq);
        self.report.outputs.extend(failed);
        self.pool = BlockPool::new(self.config.blocks, self.config.block_size);
        self.groups.clear();
        self.running.clear();
        self.decoding = 0;
        self.waiting.clear();
        self.waiting_tokens = 0;
        self.unstarted_tokens = 0;
        self.flows = Flows::default();
        self.unstarted.clear();
        self.deadlines.clear();
        self.left_places.clear();
    }
}
