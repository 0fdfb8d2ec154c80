//! Whether rows can be written, as those see it who do not write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::metrics::UsageMetrics;

/// What is not written by then may not be for long.
const SLOW: Duration = Duration::from_secs(1);
pub(super) const HALT: &str = "usage can't be recorded: no request is taken until it can";

/// What is known of the writing. The thread that writes may be held up by its disk, and can't tell then: others see since when.
pub(super) struct Health {
    started: Instant,
    failed: AtomicBool,
    /// When the write that goes on began, milliseconds after `started`, from 1 on; 0 where none does.
    began_ms: AtomicU64,
}

/// A write that goes on, for as long as this lives.
pub(super) struct Going<'a>(&'a Health);

impl Health {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            failed: AtomicBool::new(false),
            began_ms: AtomicU64::new(0),
        }
    }

    /// Whether rows can't be written at present.
    pub(super) fn is_failing(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.slow().is_some()
    }

    pub(super) fn begin(&self) -> Going<'_> {
        self.began_ms.store(self.now_ms(), Ordering::Relaxed);
        Going(self)
    }

    /// A try has failed; whether it is the first.
    pub(super) fn failed(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }

    /// Rows were written; whether the tries before had failed.
    pub(super) fn written(&self) -> bool {
        self.failed.swap(false, Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        1 + u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// When the write began that takes too long.
    fn slow(&self) -> Option<u64> {
        let began_ms = self.began_ms.load(Ordering::Relaxed);
        let took_ms = self.now_ms().saturating_sub(began_ms);
        (began_ms != 0 && u128::from(took_ms) > SLOW.as_millis()).then_some(began_ms)
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.0.began_ms.store(0, Ordering::Relaxed);
    }
}

/// Tells of each write that takes long, as a disk hangs or another process holds the database; and when it is over.
pub(super) async fn tell_of_slow(health: Arc<Health>, metrics: UsageMetrics) {
    let mut told = None;
    loop {
        tokio::time::sleep(SLOW).await;
        let slow = health.slow();
        if slow.is_some() && told != slow {
            metrics.failed();
        }
        match (told, slow) {
            (None, Some(_)) => tracing::error!(
                error = "the database or its disk is slow, or locked by another process",
                "{HALT}"
            ),
            // One that failed is told of by who tries it again.
            (Some(_), None) if !health.is_failing() => tracing::info!("usage is recorded again"),
            _ => {}
        }
        told = slow;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_its_disk_holds_up_is_seen_by_others() {
        let health = Arc::new(Health::new());
        let held = Arc::clone(&health);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (begun, began) = std::sync::mpsc::channel::<()>();
        let held_up = move || {
            let _going = held.begin();
            begun.send(()).unwrap();
            wait.recv().unwrap();
        };
        let writing = std::thread::Builder::new().spawn(held_up).unwrap();
        began.recv().unwrap();
        tokio::time::sleep(SLOW + Duration::from_millis(50)).await;
        assert!(health.is_failing());
        go.send(()).unwrap();
        writing.join().unwrap();
        assert!(!health.is_failing());
    }

    #[test]
    fn what_failed_is_failing_until_rows_are_written() {
        let health = Health::new();
        drop(health.begin());
        assert!(!health.is_failing() && health.failed() && !health.failed());
        assert!(health.is_failing());
        assert!(health.written() && !health.written());
        assert!(!health.is_failing());
    }
}
