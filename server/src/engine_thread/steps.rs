//! The loop of the engine thread: take what was sent, drop what was cancelled, step, deliver.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rempart_engine::{Engine, Event, Finish, ModelRunner, Output, RequestId, StepReport};
use rustc_hash::FxHashMap;

use super::budget::{Budget, Work};
use super::delivery::{Delivery, Events, Route};
use super::progress::Progress;
use super::{Message, StreamEvent, Submission, flow_of, queued_of};
use crate::metrics::{Ended, Finished, ModelMetrics};
use crate::turns::Turns;

/// Failed steps within [`FAILURES_WINDOW`] after which the thread gives up.
const FAILURES_MAX: usize = 3;
const FAILURES_WINDOW: Duration = Duration::from_mins(1);

/// The drain rate is measured over the last requests, as many and as old as this.
const DRAIN_REQUESTS: usize = 256;
const DRAIN_WINDOW: Duration = Duration::from_mins(1);

/// How often an engine without work looks whether its model is still there.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);

/// A rest when a step could do nothing although work waits, so that waiting for memory does not burn a core.
const IDLE_STEP: Duration = Duration::from_millis(1);

/// All that the engine thread owns.
pub(super) struct Steps<R> {
    /// What the last step made. It comes first because it is dropped first: who waits is told before a model's memory is freed.
    delivery: Delivery,
    engine: Engine<R>,
    inbox: Receiver<Message>,
    progress: Arc<Progress>,
    metrics: Arc<ModelMetrics>,
    budget: Budget,
    live: FxHashMap<RequestId, Live>,
    next_id: u64,
    failures: VecDeque<Instant>,
    finished: VecDeque<Instant>,
    /// Other models compute between two steps.
    turns: Turns,
}

/// A request that has not ended.
struct Live {
    events: Events,
    route: Route,
    stopped: Arc<[AtomicBool]>,
    first_choice: usize,
    sequences: Vec<SequenceTimes>,
    open: usize,
    aborted: bool,
    arrived: Instant,
    prompt_tokens: usize,
    max_tokens: usize,
    prompt_counted: bool,
}

/// One sequence's moments.
#[derive(Clone, Copy, Default)]
struct SequenceTimes {
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    tokens: usize,
    stop_sent: bool,
}

impl<R: ModelRunner> Steps<R> {
    pub(super) fn new(
        engine: Engine<R>,
        inbox: Receiver<Message>,
        progress: Arc<Progress>,
        metrics: Arc<ModelMetrics>,
        budget: Budget,
        turns: Turns,
    ) -> Self {
        Self {
            turns,
            delivery: Delivery::default(),
            engine,
            inbox,
            progress,
            metrics,
            budget,
            live: FxHashMap::default(),
            next_id: 0,
            failures: VecDeque::new(),
            finished: VecDeque::new(),
        }
    }

    /// Runs until every handle is gone or one of them closes it, or until too many steps have failed.
    pub(super) fn run(&mut self) {
        loop {
            if !self.engine.has_work() {
                self.delivery.bring();
                match self.inbox.recv_timeout(LOSS_INTERVAL) {
                    Ok(message) => self.take(message),
                    Err(RecvTimeoutError::Timeout) if self.engine.is_lost() => return self.give_up(),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
            if self.progress.is_closed() {
                self.delivery.bring();
                self.live.clear();
                return;
            }
            self.progress
                .publish(&self.engine.stats(), self.engine.flow_stats());
            self.cancel();
            if !self.step() {
                return self.give_up();
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(submission) => self.admit(submission),
            // What it stands for is looked at before every step.
            Message::Close => {}
        }
    }

    /// Queues the requests of a submission, all or none.
    fn admit(&mut self, submission: Submission) {
        let Submission {
            requests,
            timing,
            events,
            route,
            stopped,
            accepted,
        } = submission;
        let count = requests.len();
        self.progress.taken(flow_of(&requests), queued_of(&requests));
        let now_ms = self.progress.clock_ms(Instant::now());
        let first_id = self.next_id;
        self.next_id += count as u64;
        let mut first_choice = 0;
        let mut added = Vec::with_capacity(count);
        for (request, id) in requests.into_iter().zip(first_id..) {
            let id = RequestId(id);
            let live = Live {
                events: events.clone(),
                route: route.clone(),
                stopped: Arc::clone(&stopped),
                first_choice,
                sequences: vec![SequenceTimes::default(); request.n],
                open: request.n,
                aborted: false,
                arrived: timing.arrived,
                prompt_tokens: request.prompt.len(),
                max_tokens: request.stop.max_tokens,
                prompt_counted: false,
            };
            first_choice += request.n;
            if let Err(error) = self.engine.add(id, request, now_ms) {
                // Those of the group that were added end in the next report, where nobody waits for them.
                for id in added {
                    self.engine.abort(id);
                    self.live.remove(&id);
                }
                self.progress.ended(count);
                let _ = accepted.send(Err(error));
                return;
            }
            added.push(id);
            self.live.insert(id, live);
        }
        let _ = accepted.send(Ok(()));
    }

    /// Ends what nobody waits for any more.
    fn cancel(&mut self) {
        #[expect(
            clippy::iter_over_hash_type,
            reason = "in which order they end is seen by nobody"
        )]
        for (id, live) in &mut self.live {
            if live.aborted {
                continue;
            }
            for (index, sequence) in live.sequences.iter_mut().enumerate() {
                let stopped = live.stopped[live.first_choice + index].load(Ordering::Relaxed);
                if stopped && !sequence.stop_sent {
                    sequence.stop_sent = true;
                    self.engine.abort_sequence(*id, index);
                }
            }
            if live.events.is_closed() {
                live.aborted = true;
                self.engine.abort(*id);
            }
        }
    }

    /// Takes a step and delivers what it made. False after too many failures.
    fn step(&mut self) -> bool {
        let prefill = self.budget.prefill(self.engine.stats().decoding);
        self.engine.limit_prefill(prefill);
        self.metrics.prefill_budget(prefill);
        let delivery = &mut self.delivery;
        let turn = self.turns.wait_after(|| delivery.bring());
        let began = Instant::now();
        let now_ms = self.progress.clock_ms(began);
        let engine = &mut self.engine;
        let step = || engine.step_beside(now_ms, || delivery.bring());
        let result = catch_unwind(AssertUnwindSafe(step));
        drop(turn);
        match result {
            Ok(Ok(report)) => {
                if report.out_of_memory {
                    tracing::warn!(
                        "the device had no memory for a step: its tokens are computed again, in smaller steps. Others may use the \
                         device; a lower --step-tokens-max or --memory-max-mib leaves more"
                    );
                }
                // Guesses cost more than a prompt's tokens, as each passes through the output head.
                if report.drafted_tokens == 0 && !report.out_of_memory {
                    let work = Work {
                        decodes: report.decode_tokens,
                        prefill: report.prefill_tokens,
                    };
                    self.budget.observe(work, began.elapsed());
                }
                self.deliver(report, began);
                true
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "a step failed");
                self.fail_step(began)
            }
            Err(_) => {
                tracing::error!("a step panicked. This is a bug.");
                self.fail_step(began)
            }
        }
    }

    fn fail_step(&mut self, began: Instant) -> bool {
        self.metrics.step_failed();
        let Ok(report) = catch_unwind(AssertUnwindSafe(|| self.engine.fail_step())) else {
            return false;
        };
        self.deliver(report, began);
        self.failures.push_back(began);
        while self
            .failures
            .front()
            .is_some_and(|at| began - *at > FAILURES_WINDOW)
        {
            self.failures.pop_front();
        }
        self.failures.len() < FAILURES_MAX && !self.engine.is_lost()
    }

    fn deliver(&mut self, report: StepReport, began: Instant) {
        let now = Instant::now();
        self.metrics.step(&report, now - began);
        self.progress.publish(&report.stats, self.engine.flow_stats());
        if report.prefill_tokens + report.decode_tokens > 0 || !report.outputs.is_empty() {
            self.progress.moved();
        } else if self.engine.has_work() {
            std::thread::sleep(IDLE_STEP);
        }
        for output in report.outputs {
            self.deliver_output(output, began, now);
        }
    }

    fn deliver_output(&mut self, output: Output, began: Instant, now: Instant) {
        let Output {
            request,
            index,
            event,
            ..
        } = output;
        let Some(live) = self.live.get_mut(&request) else {
            return;
        };
        live.measure(index, &event, (began, now), &self.metrics);
        let finished = matches!(event, Event::Finished(_));
        let choice = live.first_choice + index;
        let at = if matches!(event, Event::Started { .. }) {
            began
        } else {
            now
        };
        self.delivery
            .add(&live.route, &live.events, StreamEvent { choice, event, at });
        if finished {
            live.open -= 1;
            if live.open == 0 {
                self.live.remove(&request);
                self.progress.ended(1);
                self.count_finished(now);
            }
        }
    }

    fn count_finished(&mut self, now: Instant) {
        self.finished.push_back(now);
        let old = |at: &Instant| now - *at > DRAIN_WINDOW;
        while self.finished.len() > DRAIN_REQUESTS || self.finished.front().is_some_and(old) {
            self.finished.pop_front();
        }
        let span = self.finished.front().map_or(Duration::ZERO, |first| now - *first);
        if !span.is_zero() {
            // The first of them opened the span; the others finished within it.
            let requests = self.finished.len() - 1;
            self.progress.set_drain_rate(requests, span);
            self.metrics.drain_rate(requests as f64 / span.as_secs_f64());
        }
    }

    /// Tells everyone that waits, and that the process should end.
    fn give_up(&mut self) {
        if self.engine.is_lost() {
            tracing::error!("a process that has a part of the model has ended or failed: the engine stops");
        } else {
            tracing::error!("too many failed steps: the engine stops");
        }
        self.delivery.bring();
        self.progress.fail();
        self.live.clear();
    }
}

impl Live {
    /// Notes an event of a step that began and is over.
    fn measure(
        &mut self,
        index: usize,
        event: &Event,
        (began, now): (Instant, Instant),
        metrics: &ModelMetrics,
    ) {
        let sequence = &mut self.sequences[index];
        match event {
            Event::Started { cached_tokens } => {
                sequence.started.get_or_insert(began);
                if !self.prompt_counted {
                    self.prompt_counted = true;
                    metrics.prompt(self.prompt_tokens, *cached_tokens);
                }
            }
            Event::PromptLogprobs(_) | Event::Predicted(_) => {}
            Event::Token(_) => sequence.token(self.arrived, now, metrics),
            Event::Finished(finish) => {
                if matches!(finish, Finish::Stop(_)) {
                    sequence.token(self.arrived, now, metrics);
                }
                if matches!(finish, Finish::Deadline) {
                    metrics.timed_out();
                }
                let ended = match finish {
                    Finish::Stop(_) | Finish::Complete => Ended::Stop,
                    Finish::Length => Ended::Length,
                    Finish::Aborted if sequence.stop_sent => Ended::Stop,
                    Finish::Aborted | Finish::Deadline => Ended::Abort,
                    Finish::Stuck | Finish::Failed => Ended::Error,
                };
                let since = |at: Instant| (at - self.arrived).as_secs_f64();
                metrics.finished(&Finished {
                    ended,
                    prompt_tokens: self.prompt_tokens,
                    generated_tokens: sequence.tokens,
                    max_tokens: self.max_tokens,
                    n: self.sequences.len(),
                    started_s: self.sequences[index].started.map(since),
                    first_token_s: self.sequences[index].first_token.map(since),
                    last_token_s: self.sequences[index].last_token.map(since),
                    ended_s: since(now),
                });
            }
        }
    }
}

impl SequenceTimes {
    fn token(&mut self, arrived: Instant, now: Instant, metrics: &ModelMetrics) {
        self.tokens += 1;
        match self.last_token {
            None => metrics.first_token((now - arrived).as_secs_f64()),
            Some(last) => metrics.next_token((now - last).as_secs_f64()),
        }
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }
}
