//! Keys and tokens that did not open what they were shown for, counted until they are recorded: one row of the audit chain for each key and
//! reason in a while, however often a stranger tries.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rempart_governance::{Error, Record, Store};
use serde_json::json;

use crate::access::Refusal;
use crate::oidc::BadToken;

/// How long they are counted before they are recorded.
const RECORD_EVERY: Duration = Duration::from_mins(1);
/// What is no key of ours may be anything that a stranger wrote: it is not told apart.
const UNKNOWN: &str = "unknown";

/// What was denied, by key and reason.
type Counts = BTreeMap<(String, &'static str), u64>;

/// Those that are not recorded yet. Keys and people that there are have entries of their own, and what belongs to nobody one for each
/// reason, so that their number is bounded.
#[derive(Default)]
pub struct Denials {
    counts: Mutex<Counts>,
}

impl Denials {
    /// Counts one.
    pub fn count(&self, refusal: &Refusal) {
        let (key, reason) = match refusal {
            Refusal::Key(_, Some(id)) => (id.0.as_str(), "ended"),
            Refusal::Key(_, None) => (UNKNOWN, "unknown"),
            Refusal::Role(_, id) => (id.0.as_str(), "role"),
            Refusal::Token(bad) => (UNKNOWN, bad.name()),
            Refusal::Stranger => (UNKNOWN, "token_person"),
            Refusal::OtherSubject(whose) => (whose.as_str(), BadToken::Subject.name()),
            Refusal::Project(whose) | Refusal::Outside(whose) | Refusal::Projects { person: whose, .. } => {
                (whose.as_str(), "project")
            }
            // Nothing was tried.
            Refusal::NoKey | Refusal::Unknowable => return,
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((key.to_owned(), reason)).or_default() += 1;
    }

    /// Records them from time to time, for as long as it runs.
    pub async fn keep(&self, store: &Store) {
        loop {
            tokio::time::sleep(RECORD_EVERY).await;
            if let Err(error) = self.record(store).await {
                tracing::error!(%error, "what keys were refused can't be recorded");
            }
        }
    }

    /// Records them.
    ///
    /// # Errors
    /// What the database says; they are counted on.
    pub async fn record(&self, store: &Store) -> Result<(), Error> {
        // They stay until they are recorded, whatever becomes of this.
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
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
        store.record_all(&records).await?;
        let mut left = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (of, recorded) in &counts {
            if let Some(count) = left.get_mut(of) {
                *count = count.saturating_sub(*recorded);
            }
        }
        left.retain(|_, count| *count > 0);
        Ok(())
    }
}
