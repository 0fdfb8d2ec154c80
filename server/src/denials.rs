//! Keys that did not open what they were shown for, counted until they are recorded: one row of the audit chain for each key and
//! reason in a while, however often a stranger tries.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rempart_governance::{Error, Record, Store};
use serde_json::json;

use crate::access::Refusal;

/// How long they are counted before they are recorded.
const RECORD_EVERY: Duration = Duration::from_mins(1);
/// What is no key of ours may be anything that a stranger wrote: it is not told apart.
const UNKNOWN: &str = "unknown";

/// What was denied, by key and reason.
type Counts = BTreeMap<(String, &'static str), u64>;

/// Those that are not recorded yet. Only keys that there are have entries of their own, so that there are no more than those.
pub struct Denials {
    counts: Mutex<Counts>,
    recorded: Mutex<Instant>,
}

impl Default for Denials {
    fn default() -> Self {
        Self {
            counts: Mutex::default(),
            recorded: Mutex::new(Instant::now()),
        }
    }
}

impl Denials {
    pub fn count(&self, refusal: &Refusal) {
        let (key, reason) = match refusal {
            Refusal::Key(_, Some(id)) => (id.0.as_str(), "ended"),
            Refusal::Key(_, None) => (UNKNOWN, "unknown"),
            Refusal::Role(_, id) => (id.0.as_str(), "role"),
            // Nothing was tried.
            Refusal::NoKey | Refusal::Unknowable => return,
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((key.to_owned(), reason)).or_default() += 1;
    }

    /// Records them, if it is time.
    ///
    /// # Errors
    /// As [`Denials::record`].
    pub async fn record_in_time(&self, store: &Store) -> Result<(), Error> {
        {
            let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
            if recorded.elapsed() < RECORD_EVERY {
                return Ok(());
            }
            *recorded = Instant::now();
        }
        self.record(store).await
    }

    /// Records them.
    ///
    /// # Errors
    /// What the database says; they are counted on.
    pub async fn record(&self, store: &Store) -> Result<(), Error> {
        let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.is_empty() {
            return Ok(());
        }
        let record = |((key, reason), count): (&'_ (String, &'static str), &u64)| {
            (key.clone(), json!({"reason": reason, "count": count}).to_string())
        };
        let told: Vec<(String, String)> = counts.iter().map(record).collect();
        let records: Vec<Record<'_>> = told
            .iter()
            .map(|(key, detail)| Record {
                actor: "server",
                action: "login.failed",
                object: key,
                detail: detail.clone(),
            })
            .collect();
        let recorded = store.record_all(&records).await;
        if recorded.is_err() {
            let mut later = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            for (of, count) in counts {
                *later.entry(of).or_default() += count;
            }
        }
        recorded
    }
}
