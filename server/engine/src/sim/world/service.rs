//! Who must advance in a step, and who must not.

use super::World;
use crate::report::StepReport;
use crate::request::{Event, Finish, Output};
use crate::sequence::Rank;

impl World {
    /// The order of service, from a step that computed something.
    pub(super) fn check_service(&self, report: &StepReport, alive: &[Rank]) -> Result<(), String> {
        let runner = self.engine.runner();
        if report.prefill_tokens + report.decode_tokens + report.drafted_tokens != runner.batch_tokens {
            return Err("the report's tokens are not the batch's".to_owned());
        }
        let in_step = |rank: &Rank| runner.rows.iter().any(|row| row.seq == rank.seq);
        let starts = |rank: &Rank| {
            let started = |output: &Output| matches!(output.event, Event::Started { .. });
            report
                .outputs
                .iter()
                .any(|output| output.seq == rank.seq && started(output))
        };
        let ended_idle = |rank: &Rank| {
            let client = &self.clients[rank];
            client.aborted
                || client
                    .spec
                    .deadline_ms
                    .is_some_and(|deadline_ms| deadline_ms <= self.now_ms)
        };
        let advances = |rank: &&Rank| (self.clients[rank].started || starts(rank)) && !ended_idle(rank);
        let first = alive.iter().find(advances).filter(|_| !self.traffic.competes());
        if let Some(first) = first.filter(|first| !in_step(first)) {
            return Err(format!("{first:?}, the first in order, did not advance"));
        }
        for flow in alive.iter().map(|rank| self.clients[rank].spec.flow.id) {
            let of_flow = |rank: &&Rank| self.clients[rank].spec.flow.id == flow;
            let Some(last_start) = alive.iter().filter(of_flow).rfind(|rank| starts(rank)) else {
                continue;
            };
            let overtaken = alive
                .iter()
                .take_while(|rank| *rank < last_start)
                .filter(of_flow)
                .find(|rank| !in_step(rank) && !ended_idle(rank) && !self.is_held_back(rank, alive));
            if let Some(rank) = overtaken {
                return Err(format!("{last_start:?} started in front of {rank:?}"));
            }
        }
        Ok(())
    }

    /// The limit on prefill holds if anything decoded, so many being about to and some of these perhaps expired.
    pub(super) fn check_prefill(&self, report: &StepReport, decoding: usize) -> Result<(), String> {
        let expired = |output: &&Output| output.event == Event::Finished(Finish::Deadline);
        let expired = report.outputs.iter().filter(expired).count();
        // Every row has at least one token, and those of decodes have their guesses beside it.
        let rows = &self.engine.runner().rows;
        let more: usize = rows.iter().map(|row| row.tokens.len() - 1).sum();
        let more = more - report.drafted_tokens;
        // Who holds more than the cap when another flow comes is preempted before the step is planned.
        let shed = if self.traffic.competes() {
            report.preemptions
        } else {
            0
        };
        if decoding > expired + shed && more >= self.prefill_limit.max(1) {
            return Err(format!(
                "{more} tokens more than rows beside {decoding} decodes, limited to {}",
                self.prefill_limit
            ));
        }
        Ok(())
    }

    /// Siblings wait while the first living one computes the prompt.
    fn is_held_back(&self, rank: &Rank, alive: &[Rank]) -> bool {
        let client = &self.clients[rank];
        let first = alive.iter().find(|other| {
            let other = &self.clients[other];
            other.request == client.request && !other.aborted
        });
        !self.prompts_done.contains(&client.request) && first != Some(rank)
    }
}
