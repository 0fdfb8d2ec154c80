//! Whether rows can be written, as those see it who do not write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// By beats and not by a clock: where the machine itself stood still, no disk was slow.
const BEAT: Duration = Duration::from_millis(100);
/// What is not done by then may not be for long: a second.
const SLOW_BEATS: u64 = 10;
pub(super) const HALT: &str = "usage can't be recorded: no request is taken until it can";

/// What is known of the writing. Who writes may be held up by a disk, and can't tell then: others see since when.
pub(super) struct Health {
    failed: AtomicBool,
    /// So far, from 1 on.
    beats: AtomicU64,
    /// Beats when the write and the sync that go on began; 0 where none does.
    began: [AtomicU64; 2],
}

/// What can take long.
#[derive(Clone, Copy)]
pub(super) enum Work {
    Write,
    /// Of rows that are written, so that a loss of power leaves them.
    Sync,
}

/// Work that goes on, for as long as this lives.
pub(super) struct Going<'a>(&'a AtomicU64);

impl Health {
    pub(super) fn new() -> Self {
        Self {
            failed: AtomicBool::new(false),
            beats: AtomicU64::new(1),
            began: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// Whether rows can't be written at present.
    pub(super) fn is_failing(&self) -> bool {
        self.has_failed() || self.is_slow()
    }

    pub(super) fn begin(&self, work: Work) -> Going<'_> {
        let began = &self.began[work as usize];
        began.store(self.beats.load(Ordering::Relaxed), Ordering::Relaxed);
        Going(began)
    }

    /// A try to write has failed; whether it is the first.
    pub(super) fn failed(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }

    /// Rows were written; whether the tries before had failed.
    pub(super) fn written(&self) -> bool {
        self.failed.swap(false, Ordering::Relaxed)
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a write or a sync takes too long.
    fn is_slow(&self) -> bool {
        let beats = self.beats.load(Ordering::Relaxed);
        let took = |began: &AtomicU64| match began.load(Ordering::Relaxed) {
            0 => 0,
            began => beats.saturating_sub(began),
        };
        self.began.iter().map(took).max() > Some(SLOW_BEATS)
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Counts the beats by which work is slow, and tells once where it is, as a disk hangs or another process holds the database, and
/// when that is over. Of tries that failed those tell who make them.
pub(super) async fn watch(health: Arc<Health>) {
    let mut told = false;
    loop {
        tokio::time::sleep(BEAT).await;
        health.beat();
        match (told, health.is_slow()) {
            _ if health.has_failed() => told = false,
            (false, true) => {
                tracing::error!(
                    error = "the database or its disk is slow, or locked by another process",
                    "{HALT}"
                );
                told = true;
            }
            (true, false) => {
                tracing::info!("usage is recorded again");
                told = false;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_its_disk_holds_up_is_seen_by_others() {
        for work in [Work::Write, Work::Sync] {
            let health = Arc::new(Health::new());
            let held = Arc::clone(&health);
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let (begun, began) = std::sync::mpsc::channel::<()>();
            let held_up = move || {
                let _going = held.begin(work);
                begun.send(()).unwrap();
                wait.recv().unwrap();
            };
            let working = std::thread::Builder::new().spawn(held_up).unwrap();
            began.recv().unwrap();
            // The other kind of work goes on beside it, and ends.
            drop(health.begin(match work {
                Work::Write => Work::Sync,
                Work::Sync => Work::Write,
            }));
            for _ in 0..SLOW_BEATS {
                health.beat();
            }
            assert!(!health.is_failing());
            health.beat();
            assert!(health.is_failing());
            go.send(()).unwrap();
            working.join().unwrap();
            assert!(!health.is_failing());
        }
    }

    #[test]
    fn what_failed_is_failing_until_rows_are_written() {
        let health = Health::new();
        drop(health.begin(Work::Write));
        assert!(!health.is_failing() && health.failed() && !health.failed());
        assert!(health.is_failing());
        assert!(health.written() && !health.written());
        assert!(!health.is_failing());
    }
}
