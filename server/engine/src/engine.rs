//! The engine: schedule, forward, sample, apply.

use crate::batch::Batch;
use crate::config::EngineConfig;
use crate::report::{FlowStats, Stats, StepReport};
use crate::request::{AddError, Finish, Request, RequestId, SeqId};
use crate::runner::ModelRunner;
use crate::scheduler::Scheduler;

/// Serves requests with one model. One thread owns it and calls [`Engine::step`] while [`Engine::has_work`].
#[derive(Debug)]
pub struct Engine<R> {
    pub(crate) scheduler: Scheduler,
    runner: R,
    in_step: InStep,
}

/// How far the current step came: after an error or a panic this tells what it can have touched.
#[derive(Debug)]
enum InStep {
    No,
    Scheduling,
    Running(Vec<SeqId>),
}

impl<R: ModelRunner> Engine<R> {
    /// # Panics
    /// If [`EngineConfig::check`] fails.
    pub fn new(runner: R, config: EngineConfig) -> Self {
        if let Err(error) = config.check() {
            panic!("an unchecked engine configuration: {error}. This is a bug.");
        }
        Self {
            scheduler: Scheduler::new(config),
            runner,
            in_step: InStep::No,
        }
    }

    /// Queues a request, or says with numbers why not. `now_ms` is of the clock that deadlines use.
    pub fn add(&mut self, id: RequestId, request: Request, now_ms: u64) -> Result<(), AddError> {
        self.scheduler.add(id, request, now_ms)
    }

    /// Ends every sequence of a request. Their blocks are free at once, `Finished(Aborted)` is in the next report.
    /// Does nothing if the request has ended.
    pub fn abort(&mut self, request: RequestId) {
        self.scheduler.end_request(request, Finish::Aborted);
    }

    /// Ends one sequence of a request (a stop string was found, say), as [`Engine::abort`] does.
    pub fn abort_sequence(&mut self, request: RequestId, index: usize) {
        self.scheduler.end_index(request, index, Finish::Aborted);
    }

    /// Further steps in which anything decodes compute at most this many tokens of prefill, or one if it is zero, so
    /// that they don't take long. No limit at first.
    pub fn limit_prefill(&mut self, tokens: usize) {
        self.scheduler.prefill_max = tokens.max(1);
    }

    /// Takes one step; without anything to compute the runner isn't called. After an error or a panic call
    /// [`Engine::fail_step`]; a step without that call does it first.
    pub fn step(&mut self, now_ms: u64) -> Result<StepReport, R::Error> {
        self.step_beside(now_ms, || ())
    }

    /// Takes a step likewise, and calls `meanwhile` once where that delays it least: while a device computes, or before a
    /// processor does. It is not called if the step fails or panics before.
    pub fn step_beside(&mut self, now_ms: u64, meanwhile: impl FnOnce()) -> Result<StepReport, R::Error> {
        self.fail_in_flight();
        self.in_step = InStep::Scheduling;
        self.scheduler.expire(now_ms);
        let batch = self.scheduler.schedule();
        if batch.rows.is_empty() {
            meanwhile();
        } else {
            self.in_step = InStep::Running(batch.rows.iter().map(|row| row.seq).collect());
            match self.compute(&batch, meanwhile) {
                Ok(()) => self.scheduler.regrow(batch.tokens.len()),
                Err(error) if self.runner.is_out_of_memory(&error) && self.scheduler.shrink(&batch) => {}
                Err(error) => return Err(error),
            }
        }
        self.in_step = InStep::No;
        Ok(self.take_report())
    }

    fn compute(&mut self, batch: &Batch, meanwhile: impl FnOnce()) -> Result<(), R::Error> {
        let logits = self.forward(batch, meanwhile)?;
        // While a device is still at work.
        let (seqs, mut constraints) = self.scheduler.lend_constraints(batch);
        let masks = self.runner.allow(&mut constraints);
        self.scheduler.constrain(seqs, constraints, masks);
        let rows = self.scheduler.sample_rows(batch);
        let sampled = self.runner.sample(logits, &rows)?;
        self.scheduler.apply(batch, sampled);
        Ok(())
    }

    fn forward(&mut self, batch: &Batch, meanwhile: impl FnOnce()) -> Result<R::Logits, R::Error> {
        if self.runner.is_asynchronous() {
            let logits = self.runner.forward(batch)?;
            meanwhile();
            return Ok(logits);
        }
        meanwhile();
        self.runner.forward(batch)
    }

    /// Ends every sequence of the step in flight with [`Finish::Failed`], after [`Engine::step`] returned an error
    /// or panicked. What the step wrote to the cache can't be found again. If the panic left the engine's own state
    /// unsound, every sequence fails and the engine starts empty.
    pub fn fail_step(&mut self) -> StepReport {
        self.fail_in_flight();
        self.take_report()
    }

    fn fail_in_flight(&mut self) {
        match std::mem::replace(&mut self.in_step, InStep::No) {
            InStep::No => return,
            InStep::Scheduling => return self.scheduler.reset(),
            InStep::Running(seqs) => {
                for seq in seqs {
                    self.scheduler.end(seq, Finish::Failed);
                }
            }
        }
        if self.scheduler.check().is_err() {
            self.scheduler.reset();
        }
    }

    fn take_report(&mut self) -> StepReport {
        let report = std::mem::take(&mut self.scheduler.report);
        StepReport {
            stats: self.scheduler.stats(),
            ..report
        }
    }

    /// A sequence is alive, or events wait for the next report.
    pub fn has_work(&self) -> bool {
        !self.scheduler.sequences.is_empty() || !self.scheduler.report.outputs.is_empty()
    }

    /// Whether no step can be computed any more.
    pub fn is_lost(&self) -> bool {
        self.runner.is_lost()
    }

    pub fn stats(&self) -> Stats {
        self.scheduler.stats()
    }

    /// The flows that are alive or remembered, in order of their ids.
    pub fn flow_stats(&self) -> impl Iterator<Item = FlowStats> {
        self.scheduler.flow_stats()
    }

    pub fn runner(&self) -> &R {
        &self.runner
    }

    /// Checks everything the engine believes about its own state.
    ///
    /// # Panics
    /// If any of it is wrong.
    pub fn check_integrity(&self) {
        if let Err(wrong) = self.scheduler.check() {
            panic!("{wrong}. This is a bug.");
        }
    }
}

#[cfg(test)]
mod tests;
