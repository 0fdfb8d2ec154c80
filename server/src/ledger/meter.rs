//! What one request uses, and may use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rempart_governance::{Limited, Outcome, Recording, Reserved, Store, UsageEvent, pack};
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::oneshot;

use super::counting::{Charge, Counting};
use super::recorder::Recorder;
use super::{Entry, Refused};
use crate::chat::assemble::Said;
use crate::http::bodies::Held;
use crate::http::error::ApiError;
use crate::metrics::{Metrics, Rejection};
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
    counting: Counting,
    limited: Arc<Limited>,
    reserved: Reserved,
    /// Tokens, of which only those are known that are settled.
    used: i64,
}

impl Allowance {
    pub(super) async fn begin(counting: Counting, limited: Arc<Limited>) -> Result<Self, Refused> {
        let at_ms = counting.begin(&limited).await?;
        let reserved = Reserved {
            at_ms,
            ..Reserved::default()
        };
        Ok(Self {
            counting,
            limited,
            reserved,
            used: 0,
        })
    }

    /// Ends it with what was used, which its row counts for.
    fn end(mut self, used: i64) -> Option<Charge> {
        self.used = used;
        self.counting.charge(&self.limited, self.reserved, used)
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.counting.settle(&self.limited, self.reserved, self.used);
        self.counting.end(&self.limited);
    }
}

/// Tokens that a request is expected to use, and the most that it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub expected: usize,
    pub most: usize,
}

impl Expected {
    /// As they are reserved at a time, Unix milliseconds.
    pub(super) fn at(self, at_ms: i64) -> Reserved {
        let number = |tokens| i64::try_from(tokens).unwrap_or(i64::MAX);
        Reserved {
            at_ms,
            expected: number(self.expected),
            most: number(self.most),
        }
    }
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
        })
        .await?;
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
    /// The limit that they are over, and where the database can't tell.
    pub async fn reserve(&self, tokens: Expected) -> Result<(), ApiError> {
        let mut begun = None;
        self.note(|_, open| {
            let allowance = &open.allowance;
            begun = Some((allowance.counting.clone(), Arc::clone(&allowance.limited)));
        });
        let (Some(metered), Some((counting, limited))) = (&self.0, begun) else {
            return Ok(());
        };
        let reserved = match counting.reserve(&limited, tokens).await {
            Ok(reserved) => reserved,
            Err(refused) => return Err(metered.refusal(&refused)),
        };
        let mut kept = false;
        self.note(|_, open| (open.allowance.reserved, kept) = (reserved, true));
        if !kept {
            // It has ended meanwhile.
            counting.settle(&limited, reserved, 0);
        }
        Ok(())
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

    fn refusal(&self, refused: &Refused) -> ApiError {
        match refused {
            Refused::Over(exceeded) => {
                self.metrics.limited(exceeded.metric.name());
                ApiError::over_limit(exceeded)
            }
            Refused::Full | Refused::Unrecorded => {
                self.metrics.reject(Rejection::Usage);
                ApiError::not_ready("limits can't be counted")
            }
        }
    }

    /// Whether there was anything to send.
    fn send(&self, status: Option<u16>, written: Option<oneshot::Sender<()>>) -> bool {
        let Some(Open {
            mut row,
            recorder,
            place,
            allowance,
        }) = self.open().take()
        else {
            return false;
        };
        row.duration_ms = self.elapsed_ms();
        row.status = i64::from(status.unwrap_or(CLIENT_CLOSED));
        outcome(status, row.input > 0).name().clone_into(&mut row.outcome);
        row.cost_nano = self.prices.cost_nano(&row);
        let charge = allowance.end(row.input.saturating_add(row.output));
        place.send(Entry {
            row,
            charge,
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
