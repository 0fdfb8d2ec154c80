//! What each request uses, from its begin to its row in the database.
//!
//! A request that asks a model gets a place for its row before anything is done for it, so that no row can be lost for want of
//! room; the row is written when the answer is complete, and the last of the answer waits for that. One task writes all rows
//! that wait as one batch. Where they can't be written no request begins.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rempart_governance::{Outcome, Principal, Store, UsageEvent, UsageWriter, now_ms};
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use crate::metrics::UsageMetrics;
use crate::prices::Prices;

/// Rows of one batch.
const BATCH_ROWS_MAX: usize = 512;
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What a loss of power can take of the rows that were written: those of so long.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long the end of an answer waits for its row, where the database is slow. The row is written all the same.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// How long the end of the process waits for the last rows.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// A row on its way, and who waits for it.
struct Entry {
    row: UsageEvent,
    written: Option<oneshot::Sender<()>>,
}

/// The way of rows to the database.
pub struct Ledger {
    entries: mpsc::Sender<Entry>,
    failing: Arc<AtomicBool>,
    prices: Prices,
    closing: Arc<Notify>,
    writing: tokio::sync::Mutex<JoinSet<()>>,
}

impl Ledger {
    /// Starts the task that writes, for so many requests that run or wait to be written.
    pub fn start(store: Store, requests_max: usize, prices: Prices, metrics: UsageMetrics) -> Self {
        let (entries, waiting) = mpsc::channel(requests_max);
        let failing = Arc::new(AtomicBool::new(false));
        let closing = Arc::new(Notify::new());
        let writing = Writing {
            writer: UsageWriter::new(store),
            waiting,
            failing: Arc::clone(&failing),
            closing: Arc::clone(&closing),
            metrics,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(writing.run());
        Self {
            entries,
            failing,
            prices,
            closing,
            writing: tokio::sync::Mutex::new(tasks),
        }
    }

    /// Whether rows can't be written at present.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// The meter of a request that begins; `None` where its use could not be recorded.
    pub fn begin(&self, principal: &Principal, endpoint: &str, arrived: Instant) -> Option<Meter> {
        if self.is_failing() {
            return None;
        }
        let place = self.entries.clone().try_reserve_owned().ok()?;
        let waited = i64::try_from(arrived.elapsed().as_millis()).unwrap_or(0);
        let row = UsageEvent {
            id: uuid::Uuid::new_v4().simple().to_string(),
            began_ms: now_ms() - waited,
            project: principal.project.clone(),
            key: principal.key.0.clone(),
            model: String::new(),
            endpoint: endpoint.to_owned(),
            input: 0,
            cached: 0,
            output: 0,
            first_ms: None,
            duration_ms: 0,
            status: 0,
            outcome: String::new(),
            cost_nano: 0,
        };
        Some(Meter(Some(Arc::new(Metered {
            arrived,
            prices: self.prices.clone(),
            open: Mutex::new(Some(Open {
                row,
                place,
                failed: false,
            })),
        }))))
    }

    /// Ends when all rows are written, or can't be.
    pub async fn close(&self) {
        self.closing.notify_one();
        let mut writing = self.writing.lock().await;
        if tokio::time::timeout(CLOSE_MAX, writing.join_next())
            .await
            .is_err()
        {
            tracing::error!("the last rows of usage could not be written");
        }
    }
}

/// The task that writes.
struct Writing {
    writer: UsageWriter,
    waiting: mpsc::Receiver<Entry>,
    failing: Arc<AtomicBool>,
    closing: Arc<Notify>,
    metrics: UsageMetrics,
}

impl Writing {
    /// Writes rows until it is told to close, and then those of all requests that have a place.
    async fn run(mut self) {
        let mut entries = Vec::new();
        let mut synced = Instant::now();
        loop {
            let received = tokio::select! {
                received = self.waiting.recv_many(&mut entries, BATCH_ROWS_MAX) => received,
                () = self.closing.notified() => {
                    self.waiting.close();
                    continue;
                }
                () = tokio::time::sleep_until((synced + SYNC_EVERY).into()), if self.writer.is_unsynced() => {
                    if let Err(error) = self.writer.sync().await {
                        tracing::warn!(%error, "rows of usage could not be synced");
                    }
                    synced = Instant::now();
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
        let (rows, waiters): (Vec<_>, Vec<_>) = entries.map(|entry| (entry.row, entry.written)).unzip();
        while let Err(error) = self.writer.write(&rows).await {
            if !self.failing.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "usage can't be recorded: no request is taken until it can");
            }
            self.metrics.failed();
            tokio::time::sleep(RETRY).await;
        }
        if self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("usage is recorded again");
        }
        self.metrics.written(rows.len());
        for waiter in waiters.into_iter().flatten() {
            // Whoever waited may have left.
            let _ = waiter.send(());
        }
    }
}

/// What one request uses. Clones count for the same request; without keys nothing is counted.
#[derive(Clone, Default)]
pub struct Meter(Option<Arc<Metered>>);

struct Metered {
    arrived: Instant,
    prices: Prices,
    /// `None` once the row is on its way.
    open: Mutex<Option<Open>>,
}

struct Open {
    row: UsageEvent,
    place: OwnedPermit<Entry>,
    /// Whether the answer ended with an error after it had begun.
    failed: bool,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub input: usize,
    /// Of these.
    pub cached: usize,
    pub output: usize,
}

impl Meter {
    /// Notes the model, by the name that answers carry.
    pub fn model(&self, name: &str) {
        self.note(|_, open| name.clone_into(&mut open.row.model));
    }

    /// Notes what was used so far.
    pub fn used(&self, used: Used) {
        let number = |tokens| i64::try_from(tokens).unwrap_or(i64::MAX);
        self.note(|_, open| {
            open.row.input = number(used.input);
            open.row.cached = number(used.cached);
            open.row.output = number(used.output);
        });
    }

    /// Notes what an encoder has read.
    pub fn encoded(&self, tokens: usize) {
        self.used(Used {
            input: tokens,
            ..Used::default()
        });
    }

    /// Notes that the first token came now.
    pub fn first_token(&self) {
        self.note(|metered, open| {
            let _ = open.row.first_ms.get_or_insert_with(|| metered.elapsed_ms());
        });
    }

    /// Notes that an answer that has begun ends with an error.
    pub fn fail(&self) {
        self.note(|_, open| open.failed = true);
    }

    /// Sends the row of an answer of this status on its way, and waits until it is written.
    pub async fn settle(&self, status: u16) {
        let Some(metered) = &self.0 else { return };
        let (written, done) = oneshot::channel();
        if metered.send(Some(status), Some(written)) && tokio::time::timeout(SETTLE_MAX, done).await.is_err()
        {
            tracing::warn!("the row of an answer's usage waits longer than the answer");
        }
    }

    /// Sends the row on its way, unless it is: the answer of this status, or none, ends here.
    pub fn end(&self, status: Option<u16>) {
        if let Some(metered) = &self.0 {
            metered.send(status, None);
        }
    }

    fn note(&self, note: impl FnOnce(&Metered, &mut Open)) {
        if let Some(metered) = &self.0
            && let Some(open) = &mut *metered.open()
        {
            note(metered, open);
        }
    }
}

impl Metered {
    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.arrived.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Whether there was anything to send.
    fn send(&self, status: Option<u16>, written: Option<oneshot::Sender<()>>) -> bool {
        let Some(Open {
            mut row,
            place,
            failed,
        }) = self.open().take()
        else {
            return false;
        };
        row.duration_ms = self.elapsed_ms();
        // What nginx writes for a client that left.
        row.status = i64::from(status.unwrap_or(CLIENT_CLOSED));
        let outcome = match status {
            _ if failed => Outcome::Failed,
            None => Outcome::Cancelled,
            Some(500..) => Outcome::Failed,
            Some(400..) => Outcome::Refused,
            Some(_) => Outcome::Completed,
        };
        outcome.name().clone_into(&mut row.outcome);
        row.cost_nano = self.prices.cost_nano(&row);
        place.send(Entry { row, written });
        true
    }
}

const CLIENT_CLOSED: u16 = 499;
