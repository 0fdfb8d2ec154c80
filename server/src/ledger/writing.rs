//! The task that writes rows, and what keeps them from a loss of power.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rempart_governance::{BATCH_ROWS_MAX, Store, UsageWriter};
use tokio::sync::{Notify, mpsc};

use super::Entry;
use super::counting::{Counting, counts};
use crate::metrics::UsageMetrics;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What is not written by then may not be for long.
const SLOW: Duration = Duration::from_secs(1);
const HALT: &str = "usage can't be recorded: no request is taken until it can";
/// What a loss of power can take of the rows that were written: those of so long.
const SYNC_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Writing {
    pub writer: UsageWriter,
    pub waiting: mpsc::Receiver<Entry>,
    /// Whether rows can't be written at present.
    pub failing: Arc<AtomicBool>,
    /// Whether rows were written that a loss of power could take.
    pub unsynced: Arc<AtomicBool>,
    pub closing: Arc<Notify>,
    pub counting: Counting,
    pub metrics: UsageMetrics,
}

impl Writing {
    /// Writes rows until it is told to close, and then those of all requests that have a place.
    pub(super) async fn run(mut self) {
        let mut entries = Vec::new();
        loop {
            let received = tokio::select! {
                received = self.waiting.recv_many(&mut entries, BATCH_ROWS_MAX) => received,
                () = self.closing.notified() => {
                    self.waiting.close();
                    continue;
                }
            };
            if received == 0 {
                return;
            }
            self.write(entries.drain(..)).await;
        }
    }

    /// Tries until it succeeds.
    async fn write(&mut self, entries: impl Iterator<Item = Entry>) {
        let (mut rows, mut charges, mut waiters) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            rows.push(entry.row);
            charges.extend(entry.charge);
            waiters.extend(entry.written);
        }
        let counts = counts(charges.iter());
        while let Err(error) = noted_if_slow(&self.failing, self.writer.write_counted(&rows, &counts)).await {
            let error = anyhow::Error::new(error);
            if !self.failing.swap(true, Ordering::Relaxed) {
                tracing::error!(error = format!("{error:#}"), "{HALT}");
            }
            self.metrics.failed();
            tokio::time::sleep(RETRY).await;
        }
        self.unsynced.store(true, Ordering::Relaxed);
        if self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("usage is recorded again");
        }
        self.metrics.written(rows.len());
        for charge in &charges {
            self.counting.written(charge);
        }
        for waiter in waiters {
            // Whoever waited may have left.
            let _ = waiter.send(());
        }
    }
}

/// Waits for a write. One that takes long, as another process holds the database, lets no further request begin.
async fn noted_if_slow<T>(failing: &AtomicBool, write: impl Future<Output = T>) -> T {
    let mut write = pin!(write);
    if let Ok(written) = tokio::time::timeout(SLOW, &mut write).await {
        return written;
    }
    if !failing.swap(true, Ordering::Relaxed) {
        tracing::error!(
            error = "the database is slow, or locked by another process",
            "{HALT}"
        );
    }
    write.await
}

/// Has rows that were written outlive a loss of power, beside the writing of others.
pub(super) async fn sync_often(store: Store, unsynced: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(SYNC_EVERY).await;
        if !unsynced.swap(false, Ordering::Relaxed) {
            continue;
        }
        if let Err(error) = store.sync_log().await {
            tracing::warn!(%error, "rows of usage could not be synced");
            unsynced.store(true, Ordering::Relaxed);
        }
    }
}
