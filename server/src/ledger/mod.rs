//! What each request uses, from its begin to its row in the database.
//!
//! A request that asks a model gets a place for its row before anything is done for it, so that no row can be lost for want of
//! room; the row is written when the answer is complete, and the last of the answer waits for that. One task writes all rows
//! that wait together, and chains those of a file a second later. Where they can't be written no request begins.

mod counting;
mod health;
mod leasing;
mod meter;
mod recorder;
mod writing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rempart_governance::{
    Announced, Exceeded, Principal, Standing, Store, UsageEvent, UsageWriter, now_ms, now_s,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::metrics::{Metrics, UsageMetrics};
use crate::prices::Prices;
pub use counting::Limiting;
use counting::{Charge, Counting};
use health::{Health, watch};
use meter::{Allowance, Open};
pub use meter::{Expected, Meter, Used};
use recorder::Recorder;
use writing::{Writing, sync_often};

/// How long the end of the process waits for the last rows.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// A row on its way, what is recorded with it, and who waits for it.
struct Entry {
    row: UsageEvent,
    charge: Option<Charge>,
    recorder: Option<Recorder>,
    written: Option<oneshot::Sender<()>>,
}

/// The way of rows to the database.
pub struct Ledger {
    store: Store,
    entries: mpsc::Sender<Entry>,
    health: Arc<Health>,
    in_hand: Arc<AtomicUsize>,
    prices: Prices,
    counting: Counting,
    metrics: Metrics,
    closing: Arc<Notify>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

/// Why a request must not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// What it uses could not be recorded.
    Unrecorded,
    /// As many as there may be run, or wait to be recorded.
    Full,
    Over(Exceeded),
}

impl Ledger {
    /// Starts the tasks that write, for so many requests that run or wait to be written.
    pub fn start(
        store: Store,
        requests_max: usize,
        prices: Prices,
        limiting: Limiting,
        metrics: &Metrics,
        usage: UsageMetrics,
    ) -> Self {
        let (entries, waiting) = mpsc::channel(requests_max);
        let (health, unsynced) = (Arc::new(Health::new()), Arc::new(AtomicBool::new(false)));
        let (closing, in_hand) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let writing = Writing {
            writer: UsageWriter::new(store.clone()),
            waiting,
            health: Arc::clone(&health),
            unsynced: Arc::clone(&unsynced),
            in_hand: Arc::clone(&in_hand),
            chain_failed: false,
            closing: Arc::clone(&closing),
            counting: limiting.counting(),
            metrics: usage,
        };
        let mut tasks = JoinSet::new();
        let syncing = sync_often(store.clone(), unsynced, Arc::clone(&health));
        let watching = watch(Arc::clone(&health));
        let counting = limiting.counting();
        tasks.spawn(limiting.keep_while(async move {
            // Each is a task of its own: a disk may hold up the one that writes. They end with it.
            let mut others = JoinSet::new();
            others.spawn(syncing);
            others.spawn(watching);
            writing.run().await;
        }));
        Self {
            store,
            entries,
            health,
            in_hand,
            prices,
            counting,
            metrics: metrics.clone(),
            closing,
            tasks: tokio::sync::Mutex::new(tasks),
        }
    }

    /// Whether rows can't be written at present.
    pub fn is_failing(&self) -> bool {
        // The task that writes ends last of all, unless it has failed for good.
        self.health.is_failing() || self.entries.is_closed()
    }

    /// What is left to a principal of requests and of tokens a minute, where there are such limits.
    pub fn standing(&self, principal: &Principal) -> [Option<Standing>; 2] {
        self.counting.standing(&principal.limited)
    }

    /// The meter of a request that begins.
    ///
    /// # Errors
    /// Why it must not begin.
    pub async fn begin(
        &self,
        principal: &Principal,
        endpoint: &str,
        arrived: Instant,
    ) -> Result<Meter, Refused> {
        if self.is_failing() {
            return Err(Refused::Unrecorded);
        }
        let place = self
            .entries
            .clone()
            .try_reserve_owned()
            .map_err(|_| Refused::Full)?;
        let limited = Arc::clone(&principal.limited);
        let allowance = Allowance::begin(self.counting.clone(), limited).await?;
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
            content: String::new(),
        };
        let open = Open {
            recorder: self.recorder(principal)?,
            row,
            place,
            allowance,
        };
        Ok(Meter::new(
            arrived,
            self.metrics.clone(),
            self.prices.clone(),
            self.store.clone(),
            open,
        ))
    }

    /// What records a request of a principal, where their project has that.
    fn recorder(&self, principal: &Principal) -> Result<Option<Recorder>, Refused> {
        let runs = |announced: &&Arc<Announced>| announced.recording.runs(now_s());
        let Some(announced) = principal.recording.as_ref().filter(runs) else {
            return Ok(None);
        };
        if announced.recording.fingerprints && self.store.secret().is_err() {
            tracing::error!(
                project = principal.project,
                "its requests can't be recorded: the database's secret is not known (`--secret`)"
            );
            return Err(Refused::Unrecorded);
        }
        Ok(Some(Recorder::new(Arc::clone(announced))))
    }

    /// Ends when all rows are written, or can't be; whether they are.
    pub async fn close(&self) -> bool {
        self.closing.notify_one();
        let mut tasks = self.tasks.lock().await;
        let written = tokio::time::timeout(CLOSE_MAX, tasks.join_next()).await;
        let mut whole = matches!(written, Ok(None | Some(Ok(()))));
        if !whole {
            let waiting = self.entries.max_capacity() - self.entries.capacity();
            let rows = waiting + self.in_hand.load(Ordering::Relaxed);
            tracing::error!(rows, "the last rows of usage could not be written");
            // What it holds of the database is given back, so that the process can end.
            tasks.shutdown().await;
        }
        if let Err(error) = self.store.sync_log().await {
            tracing::error!(%error, "the last rows of usage could not be synced");
            whole = false;
        }
        whole
    }
}
