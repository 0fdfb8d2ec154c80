//! What the engine thread tells about itself without being asked: whether it moves, how much waits, how fast it drains.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rempart_engine::{FlowStats, Queued, Stats};
use tokio::sync::watch;

/// `Retry-After` before anything has finished, in seconds.
const RETRY_AFTER_UNKNOWN_S: u64 = 5;
/// The longest wait that is ever proposed, in seconds.
const RETRY_AFTER_MAX_S: u64 = 120;

/// Whether the engine can be trusted with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// No token was made yet.
    Warming,
    /// Work waits, and no step has got anywhere for this long.
    Stalled {
        seconds: u64,
    },
    /// The thread has given up.
    Failed,
}

/// What a flow has on its way to the thread, and in the engine's queue.
#[derive(Debug, Default)]
struct FlowQueue {
    inbox: Queued,
    waiting: Queued,
}

/// Written by the engine thread and by submitting handlers, read by everyone.
pub(super) struct Progress {
    epoch: Instant,
    stall_timeout: Duration,
    /// Requests sent and not ended.
    pending: AtomicUsize,
    /// Sent, and not yet taken by the thread.
    inbox_requests: AtomicUsize,
    inbox_tokens: AtomicUsize,
    /// In the engine's own queue.
    waiting_requests: AtomicUsize,
    waiting_tokens: AtomicUsize,
    unstarted_tokens: AtomicUsize,
    /// Flows that have anything there, but for flow 0, whose share is all of it.
    flows: Mutex<BTreeMap<u64, FlowQueue>>,
    /// When something last moved, in milliseconds since `epoch`.
    moved_ms: AtomicU64,
    /// Requests finished a second, times 1000.
    drain_milli: AtomicU64,
    warm: AtomicBool,
    /// Whether the thread was told to end, whatever still runs.
    closed: AtomicBool,
    end: watch::Sender<End>,
}

/// Whether the thread has ended, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Runs,
    Ended,
    Failed,
}

impl Progress {
    pub(super) fn new(stall_timeout: Duration) -> Self {
        Self {
            epoch: Instant::now(),
            stall_timeout,
            pending: AtomicUsize::new(0),
            inbox_requests: AtomicUsize::new(0),
            inbox_tokens: AtomicUsize::new(0),
            waiting_requests: AtomicUsize::new(0),
            waiting_tokens: AtomicUsize::new(0),
            unstarted_tokens: AtomicUsize::new(0),
            flows: Mutex::new(BTreeMap::new()),
            moved_ms: AtomicU64::new(0),
            drain_milli: AtomicU64::new(0),
            warm: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            end: watch::Sender::new(End::Runs),
        }
    }

    /// An instant as the engine counts time: milliseconds since this thread was made.
    pub(super) fn clock_ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    fn now_ms(&self) -> u64 {
        self.clock_ms(Instant::now())
    }

    pub(super) fn sent(&self, flow: u64, Queued { requests, tokens }: Queued) {
        // The first request after a rest starts the stall clock.
        if self.pending.fetch_add(requests, Ordering::Relaxed) == 0 {
            self.moved();
        }
        self.inbox_requests.fetch_add(requests, Ordering::Relaxed);
        self.inbox_tokens.fetch_add(tokens, Ordering::Relaxed);
        if flow != 0 {
            let mut flows = self.flows();
            let inbox = &mut flows.entry(flow).or_default().inbox;
            inbox.requests += requests;
            inbox.tokens += tokens;
        }
    }

    pub(super) fn taken(&self, flow: u64, Queued { requests, tokens }: Queued) {
        self.inbox_requests.fetch_sub(requests, Ordering::Relaxed);
        self.inbox_tokens.fetch_sub(tokens, Ordering::Relaxed);
        if let Some(FlowQueue { inbox, .. }) = self.flows().get_mut(&flow) {
            inbox.requests -= requests;
            inbox.tokens -= tokens;
        }
    }

    fn flows(&self) -> MutexGuard<'_, BTreeMap<u64, FlowQueue>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ended(&self, requests: usize) {
        self.pending.fetch_sub(requests, Ordering::Relaxed);
    }

    pub(super) fn moved(&self) {
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn publish(&self, stats: &Stats, flows: impl Iterator<Item = FlowStats>) {
        self.waiting_requests
            .store(stats.waiting_requests, Ordering::Relaxed);
        self.waiting_tokens.store(stats.waiting_tokens, Ordering::Relaxed);
        self.unstarted_tokens
            .store(stats.unstarted_tokens, Ordering::Relaxed);
        let mut queues = self.flows();
        for queue in queues.values_mut() {
            queue.waiting = Queued::default();
        }
        for flow in flows.filter(|flow| flow.flow != 0 && flow.queued.requests > 0) {
            queues.entry(flow.flow).or_default().waiting = flow.queued;
        }
        queues.retain(|_, queue| queue.inbox.requests + queue.waiting.requests > 0);
    }

    /// `requests` finished in `span`.
    pub(super) fn set_drain_rate(&self, requests: usize, span: Duration) {
        let span_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
        self.drain_milli.store(
            (requests as u64).saturating_mul(1_000_000) / span_ms,
            Ordering::Relaxed,
        );
    }

    pub(super) fn queued(&self) -> Queued {
        Queued {
            requests: self.inbox_requests.load(Ordering::Relaxed)
                + self.waiting_requests.load(Ordering::Relaxed),
            tokens: self.inbox_tokens.load(Ordering::Relaxed) + self.waiting_tokens.load(Ordering::Relaxed),
        }
    }

    /// What all flows, and one of them, have queued to start.
    pub(super) fn flow_queued(&self, flow: u64) -> (Queued, Queued) {
        let all = Queued {
            requests: self.queued().requests,
            tokens: self.inbox_tokens.load(Ordering::Relaxed) + self.unstarted_tokens.load(Ordering::Relaxed),
        };
        let own = self
            .flows()
            .get(&flow)
            .map_or_else(Queued::default, |queue| Queued {
                requests: queue.inbox.requests + queue.waiting.requests,
                tokens: queue.inbox.tokens + queue.waiting.tokens,
            });
        (all, own)
    }

    pub(super) fn retry_after_s(&self) -> u64 {
        let drain_milli = self.drain_milli.load(Ordering::Relaxed);
        if drain_milli == 0 {
            return RETRY_AFTER_UNKNOWN_S;
        }
        let queued = self.queued().requests as u64;
        (queued * 1000).div_ceil(drain_milli).clamp(1, RETRY_AFTER_MAX_S)
    }

    pub(super) fn health(&self) -> Health {
        if *self.end.borrow() == End::Failed {
            return Health::Failed;
        }
        let silent_ms = self
            .now_ms()
            .saturating_sub(self.moved_ms.load(Ordering::Relaxed));
        let silent = Duration::from_millis(silent_ms);
        if self.pending.load(Ordering::Relaxed) > 0 && silent > self.stall_timeout {
            return Health::Stalled {
                seconds: silent.as_secs(),
            };
        }
        if self.warm.load(Ordering::Relaxed) {
            Health::Ready
        } else {
            Health::Warming
        }
    }

    pub(super) fn mark_warm(&self) {
        self.warm.store(true, Ordering::Relaxed);
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn fail(&self) {
        self.end.send_replace(End::Failed);
    }

    /// The thread is about to end; that it has given up stays known.
    pub(super) fn end(&self) {
        self.end.send_if_modified(|end| {
            let runs = *end == End::Runs;
            if runs {
                *end = End::Ended;
            }
            runs
        });
    }

    /// Waits for the end of the thread, and tells whether it has given up.
    pub(super) async fn thread_ended(&self) -> bool {
        let mut receiver = self.end.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let end = receiver.wait_for(|end| *end != End::Runs).await;
        end.is_ok_and(|end| *end == End::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(requests: usize, tokens: usize) -> Queued {
        Queued { requests, tokens }
    }

    #[test]
    fn what_flows_have_queued_is_told_apart() {
        let progress = Progress::new(Duration::from_secs(1));
        progress.sent(7, queued(2, 20));
        progress.sent(8, queued(1, 5));
        progress.sent(0, queued(1, 100));
        assert_eq!(progress.flow_queued(7), (queued(4, 125), queued(2, 20)));
        progress.taken(7, queued(2, 20));
        progress.taken(8, queued(1, 5));
        let flow = |flow| FlowStats {
            flow,
            weight: 1,
            queued: queued(2, 20),
            running: 0,
            waiting: 2,
            blocks_used: 0,
            tokens: 0,
        };
        let stats = Stats {
            waiting_requests: 4,
            unstarted_tokens: 40,
            ..Stats::default()
        };
        progress.publish(&stats, [flow(0), flow(7)].into_iter());
        assert_eq!(progress.flow_queued(7), (queued(5, 140), queued(2, 20)));
        assert_eq!(progress.flow_queued(8).1, queued(0, 0));
        progress.publish(&Stats::default(), std::iter::empty());
        assert!(progress.flows().is_empty(), "what has nothing is not remembered");
    }

    #[test]
    fn retry_after_is_the_queue_over_the_drain_rate() {
        let progress = Progress::new(Duration::from_secs(1));
        assert_eq!(progress.retry_after_s(), RETRY_AFTER_UNKNOWN_S);
        progress.set_drain_rate(5, Duration::from_secs(2));
        assert_eq!(progress.retry_after_s(), 1);
        progress.sent(0, queued(10, 100));
        assert_eq!(progress.retry_after_s(), 4);
        progress.sent(0, queued(1_000, 100));
        assert_eq!(progress.retry_after_s(), RETRY_AFTER_MAX_S);
    }

    #[test]
    fn only_waiting_work_can_stall() {
        let progress = Progress::new(Duration::ZERO);
        progress.mark_warm();
        assert_eq!(progress.health(), Health::Ready);
        progress.sent(0, queued(1, 1));
        std::thread::sleep(Duration::from_millis(5));
        assert!(matches!(progress.health(), Health::Stalled { .. }));
        progress.ended(1);
        assert_eq!(progress.health(), Health::Ready);
        progress.fail();
        assert_eq!(progress.health(), Health::Failed);
    }
}
