//! The task that writes rows, and what keeps them from a loss of power.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rempart_governance::{BATCH_ROWS_MAX, Content, Error, Store, Usage, UsageEvent, UsageWriter};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Entry;
use super::counting::{Charge, Counting, counts};
use super::health::{HALT, Health, Work};
use super::recorder::Recorder;
use crate::metrics::UsageMetrics;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What a loss of power can take of the rows that were written: those of so long.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long a row waits to be chained at most, for others to be chained with it.
const CHAIN_AFTER: Duration = Duration::from_secs(1);
/// How long the end waits for the last rows to be chained: the next process does it, too.
const LAST_CHAIN_MAX: Duration = Duration::from_secs(2);

/// Bytes of records that are written at one time, or one record: rows of others wait for no more.
const RECORDS_BYTES_AT_ONCE: usize = 4 << 20;

pub(super) struct Writing {
    pub writer: UsageWriter,
    pub waiting: mpsc::Receiver<Entry>,
    pub health: Arc<Health>,
    /// Whether rows were written that a loss of power could take.
    pub unsynced: Arc<AtomicBool>,
    /// Rows that were received and are not written.
    pub in_hand: Arc<AtomicUsize>,
    /// Whether the last try to chain rows failed.
    pub chain_failed: bool,
    pub closing: Arc<Notify>,
    pub counting: Counting,
    pub metrics: UsageMetrics,
}

/// Rows that are written at one time, in one order.
#[derive(Default)]
struct Batch {
    rows: Vec<UsageEvent>,
    /// What their records are made of, where they have one. They hold memory of bodies until all is written.
    recorders: Vec<Option<Recorder>>,
    records: Vec<Content>,
    charges: Vec<Charge>,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Writing {
    /// Writes rows until it is told to close, and then those of all requests that have a place. Rows with records take longer, and
    /// let the others go first.
    pub(super) async fn run(mut self) {
        let (mut received, mut recorded) = (Vec::new(), VecDeque::new());
        // The process before may have left some.
        let mut chain_at = Some(Instant::now());
        loop {
            if recorded.is_empty() {
                let count = tokio::select! {
                    count = self.waiting.recv_many(&mut received, BATCH_ROWS_MAX) => count,
                    () = sleep_until(chain_at.unwrap_or_else(Instant::now)), if chain_at.is_some() => {
                        chain_at = self.chain().await;
                        continue;
                    }
                    () = self.closing.notified() => {
                        self.waiting.close();
                        continue;
                    }
                };
                if count == 0 {
                    let chained = tokio::time::timeout(LAST_CHAIN_MAX, self.chain()).await;
                    if !matches!(chained, Ok(None)) {
                        tracing::warn!(
                            "rows of usage may be left that were not chained: the next start tries it again"
                        );
                    }
                    return;
                }
            } else {
                while recorded.len() + received.len() < BATCH_ROWS_MAX
                    && let Ok(entry) = self.waiting.try_recv()
                {
                    received.push(entry);
                }
            }
            self.in_hand
                .store(received.len() + recorded.len(), Ordering::Relaxed);
            let mut plain = Batch::default();
            for entry in received.drain(..) {
                if entry.recorder.is_some() {
                    recorded.push_back(entry);
                } else {
                    plain.push(entry);
                }
            }
            self.write(plain).await;
            self.write(next_recorded(&mut recorded)).await;
            chain_at = match self.writer.unchained_rows() {
                0 => None,
                _ => chain_at.or_else(|| Some(Instant::now() + CHAIN_AFTER)),
            };
        }
    }

    /// Chains the rows that wait; when to try again, where that failed. The next row that can't be chained with them halts the
    /// server.
    async fn chain(&mut self) -> Option<Instant> {
        let going = self.health.begin(Work::Write);
        let chained = self.writer.chain().await;
        drop(going);
        let Err(error) = chained else {
            self.unsynced.store(true, Ordering::Relaxed);
            self.chain_failed = false;
            return None;
        };
        self.metrics.not_chained();
        let error = format!("{:#}", anyhow::Error::new(error));
        if !std::mem::replace(&mut self.chain_failed, true) {
            tracing::warn!(error, "rows of usage are written and could not be chained yet");
        }
        Some(Instant::now() + RETRY)
    }

    /// Tries until it succeeds.
    async fn write(&mut self, mut batch: Batch) {
        if batch.rows.is_empty() {
            return;
        }
        let counts = counts(batch.charges.iter());
        loop {
            let going = self.health.begin(Work::Write);
            let (whole, sealed) = sealed(batch).await;
            batch = whole;
            let usage = Usage {
                rows: &batch.rows,
                records: &batch.records,
                counts: &counts,
            };
            let written = match sealed {
                Ok(()) => self.writer.write_all(usage).await,
                Err(error) => Err(error),
            };
            let Err(error) = written else { break };
            let error = anyhow::Error::new(error);
            let first = self.health.failed();
            // Not before: in between, requests would begin.
            drop(going);
            if first {
                tracing::error!(error = format!("{error:#}"), "{HALT}");
            }
            self.metrics.failed();
            tokio::time::sleep(RETRY).await;
        }
        self.unsynced.store(true, Ordering::Relaxed);
        self.warn_of_detour();
        if self.health.written() {
            tracing::info!("usage is recorded again");
        }
        self.in_hand.fetch_sub(batch.rows.len(), Ordering::Relaxed);
        for charge in &batch.charges {
            self.counting.written(charge);
        }
        for waiter in batch.waiters {
            // Whoever waited may have left.
            let _ = waiter.send(());
        }
        // Behind those who wait: labels take time.
        self.metrics.written(&batch.rows);
    }

    /// Rows that could not be written directly are written all the same, but not as fast.
    fn warn_of_detour(&mut self) {
        if let Some(error) = self.writer.take_detour() {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(error, "rows of usage take the longer way to their file");
        }
    }
}

impl Batch {
    fn push(&mut self, entry: Entry) {
        self.rows.push(entry.row);
        self.recorders.push(entry.recorder);
        self.charges.extend(entry.charge);
        self.waiters.extend(entry.written);
    }

    /// Makes the records.
    fn seal(&mut self) -> Result<(), Error> {
        self.records.clear();
        for (row, recorder) in self.rows.iter_mut().zip(&self.recorders) {
            if let Some(recorder) = recorder {
                let record = recorder.seal(row)?;
                row.content = record.mark();
                self.records.push(record);
            }
        }
        Ok(())
    }
}

/// The next rows with records that are written at one time.
fn next_recorded(recorded: &mut VecDeque<Entry>) -> Batch {
    let (mut batch, mut bytes) = (Batch::default(), 0);
    while let Some(entry) = recorded.pop_front() {
        bytes += entry.recorder.as_ref().map_or(0, Recorder::bytes);
        if bytes > RECORDS_BYTES_AT_ONCE && !batch.rows.is_empty() {
            recorded.push_front(entry);
            break;
        }
        batch.push(entry);
    }
    batch
}

/// A batch with its records. To compress and to seal takes time, which the reactor has none of.
async fn sealed(mut batch: Batch) -> (Batch, Result<(), Error>) {
    if batch.recorders.iter().flatten().count() == batch.records.len() {
        return (batch, Ok(()));
    }
    let seal = move || {
        let sealed = batch.seal();
        (batch, sealed)
    };
    tokio::task::spawn_blocking(seal)
        .await
        .expect("sealing does not panic")
}

/// Has rows that were written outlive a loss of power, beside the writing of others.
pub(super) async fn sync_often(store: Store, unsynced: Arc<AtomicBool>, health: Arc<Health>) {
    loop {
        tokio::time::sleep(SYNC_EVERY).await;
        if !unsynced.swap(false, Ordering::Relaxed) {
            continue;
        }
        let going = health.begin(Work::Sync);
        let synced = store.sync_log().await;
        drop(going);
        if let Err(error) = synced {
            tracing::warn!(%error, "rows of usage could not be synced");
            unsynced.store(true, Ordering::Relaxed);
        }
    }
}
