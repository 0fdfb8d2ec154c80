//! What one request uses, and may use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rempart_governance::{
    Exceeded, Limited, Limiter, Outcome, Recording, Reserved, Store, UsageEvent, now_ms, pack,
};
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::oneshot;

use super::recorder::Recorder;
use super::{Entry, Refused};
use crate::chat::assemble::Said;
use crate::http::bodies::Held;
use crate::http::error::ApiError;
use crate::metrics::Metrics;
use crate::openai::prompted::Prompted;
use crate::prices::Prices;

/// How long the end of an answer waits for its row, where the database is slow. The row is written all the same.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// What nginx writes for a client that left.
const CLIENT_CLOSED: u16 = 499;

/// What one request uses. Clones count for the same request; without keys nothing is counted.
#[derive(Clone, Default)]
pub struct Meter(Option<Arc<Metered>>);

struct Metered {
    arrived: Instant,
    metrics: Metrics,
    prices: Prices,
    store: Store,
    /// `None` once the row is on its way.
    open: Mutex<Option<Open>>,
}

/// A row that is not complete, and what its request holds until it is.
pub(super) struct Open {
    pub row: UsageEvent,
    pub recorder: Option<Recorder>,
    pub place: OwnedPermit<Entry>,
    pub allowance: Allowance,
}

/// A request's part of what its key and its project may use, until it is dropped.
pub(super) struct Allowance {
    limiter: Arc<Mutex<Limiter>>,
    limited: Arc<Limited>,
    reserved: Reserved,
    /// Tokens, of which only those are known that are settled.
    used: i64,
}

impl Allowance {
    pub(super) fn begin(limiter: Arc<Mutex<Limiter>>, limited: Arc<Limited>) -> Result<Self, Refused> {
        let now = now_ms();
        lock(&limiter).begin(&limited, now).map_err(Refused::Over)?;
        let reserved = Reserved {
            at_ms: now,
            ..Reserved::default()
        };
        Ok(Self {
            limiter,
            limited,
            reserved,
            used: 0,
        })
    }

    fn reserve(&mut self, tokens: Expected) -> Result<(), Exceeded> {
        let number = |tokens| i64::try_from(tokens).unwrap_or(i64::MAX);
        let wanted = Reserved {
            at_ms: now_ms(),
            expected: number(tokens.expected),
            most: number(tokens.most),
        };
        lock(&self.limiter).reserve(&self.limited, wanted)?;
        self.reserved = wanted;
        Ok(())
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let mut limiter = lock(&self.limiter);
        limiter.settle(&self.limited, self.reserved, now_ms(), self.used);
        limiter.end(&self.limited);
    }
}

fn lock(limiter: &Mutex<Limiter>) -> MutexGuard<'_, Limiter> {
    limiter.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tokens that a request is expected to use, and the most that it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub expected: usize,
    pub most: usize,
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
    pub(super) fn new(arrived: Instant, metrics: Metrics, prices: Prices, store: Store, open: Open) -> Self {
        Self(Some(Arc::new(Metered {
            arrived,
            metrics,
            prices,
            store,
            open: Mutex::new(Some(open)),
        })))
    }

    /// What is recorded of the request, if anything is.
    pub fn recording(&self) -> Option<Recording> {
        let mut recording = None;
        self.record(|recorder| recording = Some(recorder.announced.recording.clone()));
        recording
    }

    /// Has what a body holds of memory held until its record is written, where it is recorded.
    pub fn hold(&self, held: &Arc<Held>) {
        self.record(|recorder| recorder.held = Some(Arc::clone(held)));
    }

    /// Records the body of the request, where it is recorded. That takes time: it is for where bodies are read.
    pub fn asked(&self, body: &[u8]) {
        if self
            .recording()
            .is_some_and(|recording| recording.reader.is_some())
        {
            let asked = pack(body);
            self.record(|recorder| recorder.asked = Some(asked));
        }
    }

    /// Records what its prompt is found by, where that is recorded.
    ///
    /// # Errors
    /// Where that can't be done: then nothing must be answered.
    pub fn prompted(&self, request: &impl Prompted) -> Result<(), ApiError> {
        let wanted = self.recording().is_some_and(|recording| recording.fingerprints);
        let (Some(metered), Some(prompt)) = (&self.0, wanted.then(|| request.prompt()).flatten()) else {
            return Ok(());
        };
        let mut project = String::new();
        self.note(|_, open| project.clone_from(&open.row.project));
        let fingerprint = metered.store.fingerprint(&project, &prompt);
        let fingerprint = fingerprint.map_err(|_| ApiError::not_ready("the request can't be recorded"))?;
        self.record(|recorder| recorder.fingerprint = fingerprint);
        Ok(())
    }

    /// Records what a choice says, where that is recorded.
    pub fn said(&self, choice: usize, said: &[Said], finish_reason: Option<&'static str>) {
        self.record(|recorder| recorder.said(choice, said, finish_reason));
    }

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

    /// Waits for what an encoder makes of tokens. They are used unless it fails, also where nobody waits to the end.
    ///
    /// # Errors
    /// Where a limit is reached, and what the encoder says.
    pub async fn encoding<T>(
        &self,
        tokens: usize,
        computing: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let used = |input| Used {
            input,
            ..Used::default()
        };
        self.reserve(Expected {
            expected: tokens,
            most: tokens,
        })?;
        self.used(used(tokens));
        let made = computing.await;
        if made.is_err() {
            self.used(used(0));
        }
        made
    }

    /// Notes that the first token came now.
    pub fn first_token(&self) {
        self.note(|metered, open| {
            let _ = open.row.first_ms.get_or_insert_with(|| metered.elapsed_ms());
        });
    }

    /// Reserves tokens, as many as the request may use.
    ///
    /// # Errors
    /// The limit that they are over.
    pub fn reserve(&self, tokens: Expected) -> Result<(), ApiError> {
        let mut reserved = Ok(());
        self.note(|metered, open| {
            reserved = open.allowance.reserve(tokens).map_err(|exceeded| {
                metered.metrics.limited(exceeded.metric.name());
                ApiError::over_limit(&exceeded)
            });
        });
        reserved
    }

    /// Sends the row of an answer of this status on its way, and waits until it is written.
    pub async fn settle(&self, status: u16) {
        let Some(metered) = &self.0 else { return };
        let (written, done) = oneshot::channel();
        if !metered.send(Some(status), Some(written)) {
            return;
        }
        if !matches!(tokio::time::timeout(SETTLE_MAX, done).await, Ok(Ok(()))) {
            tracing::warn!("an answer ends before its row of usage is written");
        }
    }

    /// Sends the row on its way, unless it is: the answer of this status, or none, ends here.
    pub fn end(&self, status: Option<u16>) {
        if let Some(metered) = &self.0 {
            metered.send(status, None);
        }
    }

    fn record(&self, record: impl FnOnce(&mut Recorder)) {
        self.note(|_, open| {
            if let Some(recorder) = &mut open.recorder {
                record(recorder);
            }
        });
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
            recorder,
            place,
            mut allowance,
        }) = self.open().take()
        else {
            return false;
        };
        row.duration_ms = self.elapsed_ms();
        row.status = i64::from(status.unwrap_or(CLIENT_CLOSED));
        outcome(status, row.input > 0).name().clone_into(&mut row.outcome);
        row.cost_nano = self.prices.cost_nano(&row);
        allowance.used = row.input.saturating_add(row.output);
        drop(allowance);
        place.send(Entry {
            row,
            recorder,
            written,
        });
        true
    }
}

/// How an answer of this status, or none, ended that has, or has not, used anything.
fn outcome(status: Option<u16>, used: bool) -> Outcome {
    match status {
        None => Outcome::Cancelled,
        Some(..400) => Outcome::Completed,
        // 503 tells that there is no room.
        Some(400..500 | 503) if !used => Outcome::Refused,
        Some(_) => Outcome::Failed,
    }
}
