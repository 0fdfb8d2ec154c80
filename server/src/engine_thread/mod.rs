//! The engine's own thread, and the handle through which everything else reaches it.
//!
//! The thread owns the engine and takes one step after another. Handlers send it requests over a bounded channel and
//! get a [`TokenStream`] that can hold the whole answer, so that a slow client never holds up a step.

mod budget;
mod delivery;
mod progress;
mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rempart_engine::{AddError, Engine, EngineConfig, Event, ModelRunner, Queued, Request};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::metrics::{ModelMetrics, Rejection};
use crate::turns::Turns;
use budget::Budget;
use delivery::{Events, Route};
use progress::Progress;
use steps::Steps;

pub use progress::Health;

/// What several requests of one client have in common.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// When the HTTP request arrived: latencies are measured from here.
    pub arrived: Instant,
    /// When the engine gives the requests up.
    pub deadline: Instant,
}

/// Why requests were not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SubmitError {
    #[error("the queue is full")]
    Overloaded { retry_after_s: u64 },
    #[error(transparent)]
    Refused(AddError),
    #[error("the requests can never be queued together")]
    NeverQueued(NeverQueued),
    #[error("the engine has stopped")]
    Stopped,
}

/// Which limit of the queue requests exceed by themselves, so that waiting cannot help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeverQueued {
    Requests { count: usize, limit: usize },
    Tokens { count: usize, limit: usize },
}

/// A cheap handle on the engine thread. The thread ends when the last handle is gone and its work is done, or at once when
/// one of them closes it.
#[derive(Clone)]
pub struct EngineHandle {
    inbox: SyncSender<Message>,
    progress: Arc<Progress>,
    config: EngineConfig,
    metrics: Arc<ModelMetrics>,
}

/// What the engine thread is told.
enum Message {
    Submit(Submission),
    /// Wakes a thread that waits for work, so that it sees that it was closed.
    Close,
}

/// Requests on their way to the engine thread. It takes all of them or none.
struct Submission {
    requests: Vec<Request>,
    timing: Timing,
    events: Events,
    route: Route,
    stopped: Arc<[AtomicBool]>,
    accepted: oneshot::Sender<Result<(), AddError>>,
}

/// Something that happened to one choice: sequence `index` of request `r` is choice `r * n + index`.
#[derive(Debug)]
pub struct StreamEvent {
    pub choice: usize,
    pub event: Event,
    /// When: a choice starts as its step does, and the rest happens at a step's end.
    pub at: Instant,
}

/// The events of the submitted requests. Dropping it aborts all their sequences before the next step.
pub struct TokenStream {
    events: mpsc::UnboundedReceiver<StreamEvent>,
    route: Route,
    stopped: Arc<[AtomicBool]>,
}

impl TokenStream {
    /// The next event. `None` means that the engine is gone.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        self.events.recv().await
    }

    /// The next event that has left the engine's thread, also if it is still on its way here.
    pub fn try_next(&mut self) -> Option<StreamEvent> {
        let here = self.events.try_recv();
        let next = here.or_else(|_| {
            self.route.deliver();
            self.events.try_recv()
        });
        next.ok()
    }

    /// Ends one choice because its text is complete; its last event still comes.
    pub fn stop(&self, choice: usize) {
        self.stopped[choice].store(true, Ordering::Relaxed);
    }
}

/// How the thread works.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Without progress for so long, with work waiting, it is not healthy.
    pub stall_timeout: Duration,
    /// With a target for the inter-token latency prompts are computed in chunks that leave decoding streams on time.
    pub itl_target: Option<Duration>,
    pub turns: Turns,
}

/// Starts the thread. It is joined through the returned [`JoinHandle`].
pub fn spawn<R>(
    engine: Engine<R>,
    config: EngineConfig,
    metrics: ModelMetrics,
    pace: Pace,
) -> std::io::Result<(EngineHandle, JoinHandle<()>)>
where
    R: ModelRunner + Send + 'static,
{
    let (sender, inbox) = sync_channel(config.queue_requests_max);
    let progress = Arc::new(Progress::new(pace.stall_timeout));
    let metrics = Arc::new(metrics);
    let budget = Budget::new(pace.itl_target, config.step_tokens_max);
    let (shared, turns) = (Arc::clone(&progress), pace.turns);
    let mut steps = Steps::new(engine, inbox, shared, Arc::clone(&metrics), budget, turns);
    let (watched, retired) = (Arc::clone(&progress), Arc::clone(&metrics));
    let run = move || {
        if catch_unwind(AssertUnwindSafe(|| steps.run())).is_err() {
            tracing::error!("the engine thread panicked outside a step. This is a bug.");
            watched.fail();
        }
        retired.retire();
        watched.end();
    };
    let join = std::thread::Builder::new().name("engine".to_owned()).spawn(run)?;
    Ok((
        EngineHandle {
            inbox: sender,
            progress,
            config,
            metrics,
        },
        join,
    ))
}

impl EngineHandle {
    /// Hands requests to the engine and waits until it has queued or refused them, at most one step later.
    pub async fn submit(
        &self,
        mut requests: Vec<Request>,
        timing: Timing,
    ) -> Result<TokenStream, SubmitError> {
        self.check_queueable(&requests)?;
        self.check_room(flow_of(&requests), queued_of(&requests))?;
        let deadline_ms = self.progress.clock_ms(timing.deadline);
        for request in &mut requests {
            request.deadline_ms = Some(deadline_ms);
        }
        let (events, receiver) = mpsc::unbounded_channel();
        let choices: usize = requests.iter().map(|request| request.n).sum();
        let stopped: Arc<[AtomicBool]> = (0..choices).map(|_| AtomicBool::new(false)).collect();
        let route = Route::here();
        let stream = TokenStream {
            events: receiver,
            route: route.clone(),
            stopped: Arc::clone(&stopped),
        };
        let (accepted, answer) = oneshot::channel();
        self.send(Submission {
            requests,
            timing,
            events,
            route,
            stopped,
            accepted,
        })?;
        match answer.await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(AddError::QueueFull {
                requests,
                requests_max,
                ..
            })) => {
                let tokens = requests < requests_max;
                Err(self.overloaded(if tokens {
                    Rejection::QueueTokens
                } else {
                    Rejection::QueueRequests
                }))
            }
            Ok(Err(AddError::FlowQueueFull { .. })) => Err(self.overloaded(Rejection::FlowQueue)),
            Ok(Err(error)) => Err(SubmitError::Refused(error)),
            Err(_) => Err(SubmitError::Stopped),
        }
    }

    /// All of them are queued or none, so together they must fit an empty queue. It takes any one request.
    fn check_queueable(&self, requests: &[Request]) -> Result<(), SubmitError> {
        // A flow with a number may hold as much as is left free: of an empty queue half.
        let parts = if flow_of(requests) == 0 { 1 } else { 2 };
        let (count, limit) = (requests.len(), (self.config.queue_requests_max / parts).max(1));
        if count > limit {
            return Err(SubmitError::NeverQueued(NeverQueued::Requests { count, limit }));
        }
        let count = queued_of(requests).tokens;
        let limit = self.config.queue_tokens_max / parts;
        if requests.len() > 1 && count > limit {
            return Err(SubmitError::NeverQueued(NeverQueued::Tokens { count, limit }));
        }
        Ok(())
    }

    /// Whether a request of this flow may be queued now, however small it is: what would be refused need not be prepared.
    ///
    /// # Errors
    /// [`SubmitError::Overloaded`].
    pub fn check_not_full(&self, flow: u64) -> Result<(), SubmitError> {
        let least = Queued {
            requests: 1,
            tokens: 1,
        };
        self.check_room(flow, least)
    }

    /// Whether the queue, and a flow's part of it, have room for so much more.
    fn check_room(&self, flow: u64, needed: Queued) -> Result<(), SubmitError> {
        let queued = self.progress.queued();
        if queued.requests >= self.config.queue_requests_max {
            return Err(self.overloaded(Rejection::QueueRequests));
        }
        if queued.requests > 0 && queued.tokens >= self.config.queue_tokens_max {
            return Err(self.overloaded(Rejection::QueueTokens));
        }
        if flow == 0 {
            return Ok(());
        }
        let (mut all, mut own) = self.progress.flow_queued(flow);
        // The last of them is the one that is asked for.
        let others = needed.requests.saturating_sub(1);
        all.requests += others;
        own.requests += others;
        if self.config.flow_queue_takes(all, own, needed.tokens) {
            return Ok(());
        }
        Err(self.overloaded(Rejection::FlowQueue))
    }

    /// Seconds until the queue has drained, at the rate of the last minute.
    pub fn retry_after_s(&self) -> u64 {
        self.progress.retry_after_s()
    }

    /// Whether the engine can be trusted with requests.
    pub fn health(&self) -> Health {
        self.progress.health()
    }

    /// A token has been made: the model works from end to end.
    pub fn mark_warm(&self) {
        self.progress.mark_warm();
    }

    /// Waits for the end of the engine thread, and tells whether it has given up. The future is no handle: the thread may
    /// end while somebody waits.
    pub fn ended(&self) -> impl Future<Output = bool> + Send + use<> {
        let progress = Arc::clone(&self.progress);
        async move { progress.thread_ended().await }
    }

    /// Ends the thread before its next step, whatever still runs: streams end without a word.
    pub fn close(&self) {
        self.progress.close();
        // A full inbox keeps no thread waiting.
        let _ = self.inbox.try_send(Message::Close);
    }

    /// Whether the thread was told to end.
    pub fn is_closed(&self) -> bool {
        self.progress.is_closed()
    }

    fn send(&self, submission: Submission) -> Result<(), SubmitError> {
        let (flow, queued) = (flow_of(&submission.requests), queued_of(&submission.requests));
        // Counted first: the thread may take the submission, and count it off, before `try_send` returns.
        self.progress.sent(flow, queued);
        self.inbox.try_send(Message::Submit(submission)).map_err(|error| {
            self.progress.taken(flow, queued);
            self.progress.ended(queued.requests);
            match error {
                TrySendError::Full(_) => self.overloaded(Rejection::QueueRequests),
                TrySendError::Disconnected(_) => SubmitError::Stopped,
            }
        })
    }

    fn overloaded(&self, reason: Rejection) -> SubmitError {
        self.metrics.rejected(reason);
        SubmitError::Overloaded {
            retry_after_s: self.retry_after_s(),
        }
    }
}

/// The flow of requests that are sent together.
fn flow_of(requests: &[Request]) -> u64 {
    requests.first().map_or(0, |request| request.flow.id)
}

fn queued_of(requests: &[Request]) -> Queued {
    Queued {
        requests: requests.len(),
        tokens: requests
            .iter()
            .map(|request| request.prompt.len() + request.prediction.len() + request.n - 1)
            .sum(),
    }
}
