//! What the engine thread tells about itself without being asked: whether it moves, how much waits, how fast it drains.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rempart_engine::Stats;
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

/// What waits to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) requests: usize,
    pub(super) tokens: usize,
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

    pub(super) fn sent(&self, requests: usize, tokens: usize) {
        // The first request after a rest starts the stall clock.
        if self.pending.fetch_add(requests, Ordering::Relaxed) == 0 {
            self.moved();
        }
        self.inbox_requests.fetch_add(requests, Ordering::Relaxed);
        self.inbox_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    pub(super) fn taken(&self, requests: usize, tokens: usize) {
        self.inbox_requests.fetch_sub(requests, Ordering::Relaxed);
        self.inbox_tokens.fetch_sub(tokens, Ordering::Relaxed);
    }

    pub(super) fn ended(&self, requests: usize) {
        self.pending.fetch_sub(requests, Ordering::Relaxed);
    }

    pub(super) fn moved(&self) {
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn publish(&self, stats: &Stats) {
        self.waiting_requests
            .store(stats.waiting_requests, Ordering::Relaxed);
        self.waiting_tokens.store(stats.waiting_tokens, Ordering::Relaxed);
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

    #[test]
    fn retry_after_is_the_queue_over_the_drain_rate() {
        let progress = Progress::new(Duration::from_secs(1));
        assert_eq!(progress.retry_after_s(), RETRY_AFTER_UNKNOWN_S);
        progress.set_drain_rate(5, Duration::from_secs(2));
        assert_eq!(progress.retry_after_s(), 1);
        progress.sent(10, 100);
        assert_eq!(progress.retry_after_s(), 4);
        progress.sent(1_000, 100);
        assert_eq!(progress.retry_after_s(), RETRY_AFTER_MAX_S);
    }

    #[test]
    fn only_waiting_work_can_stall() {
        let progress = Progress::new(Duration::ZERO);
        progress.mark_warm();
        assert_eq!(progress.health(), Health::Ready);
        progress.sent(1, 1);
        std::thread::sleep(Duration::from_millis(5));
        assert!(matches!(progress.health(), Health::Stalled { .. }));
        progress.ended(1);
        assert_eq!(progress.health(), Health::Ready);
        progress.fail();
        assert_eq!(progress.health(), Health::Failed);
    }
}
