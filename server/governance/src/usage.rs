//! What requests used: one row for each, chained in batches. A batch has a digest of its rows, and its hash covers that and the
//! hash of the batch before: no row that is chained can be changed, added or taken out without showing so, and rows that are deleted
//! when their time is over leave a chain that still holds.

use std::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::audit::GENESIS;
use crate::key::hex;

pub(crate) const HOUR_S: i64 = 3_600;
/// The most rows of one batch.
pub const BATCH_ROWS_MAX: usize = 512;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The whole answer was made.
    Completed,
    /// The client left, or was cut off.
    Cancelled,
    /// The request was not taken: it was wrong, or over a limit.
    Refused,
    /// The server is at fault, or ended it.
    Failed,
}

impl Outcome {
    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// One request that asked a model. Nothing of what was asked or answered is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageEvent {
    /// The server's own, so that no client can choose one that is taken.
    pub id: String,
    /// Unix milliseconds.
    pub began_ms: i64,
    /// The project's identifier, and that of the key.
    pub project: String,
    pub key: String,
    /// As answers name it; empty where the request was refused before there was one.
    pub model: String,
    /// The route.
    pub endpoint: String,
    /// Tokens of prompts that were computed or found cached, and of these the cached ones.
    pub input: i64,
    pub cached: i64,
    /// Tokens that were made, the last one even if the client never got it.
    pub output: i64,
    /// Milliseconds to the first token, where there was one, and to the end.
    pub first_ms: Option<i64>,
    pub duration_ms: i64,
    /// What HTTP says.
    pub status: i64,
    pub outcome: String,
    /// Billionths of the company's currency.
    pub cost_nano: i64,
    /// Of what is recorded of it, when that is due and its hash ([`Content::mark`](crate::Content::mark)); empty where nothing is.
    pub content: String,
}

/// What requests used together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageTotal {
    /// Those that were taken.
    pub requests: i64,
    pub refused: i64,
    pub input: i64,
    pub cached: i64,
    pub output: i64,
    pub cost_nano: i64,
}

impl UsageTotal {
    /// Adds what others used.
    pub fn add(&mut self, other: Self) {
        let parts = [
            (&mut self.requests, other.requests),
            (&mut self.refused, other.refused),
            (&mut self.input, other.input),
            (&mut self.cached, other.cached),
            (&mut self.output, other.output),
            (&mut self.cost_nano, other.cost_nano),
        ];
        for (sum, part) in parts {
            *sum = sum.saturating_add(part);
        }
    }

    /// Whether nothing of it is less than of another.
    pub(crate) fn covers(&self, other: Self) -> bool {
        self.requests >= other.requests
            && self.refused >= other.refused
            && self.input >= other.input
            && self.cached >= other.cached
            && self.output >= other.output
            && self.cost_nano >= other.cost_nano
    }
}

/// Rows that were chained at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageBatch {
    /// From 1, without gaps.
    pub seq: i64,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Numbers of its rows, which go on where the batch before ended.
    pub first: i64,
    pub last: i64,
    pub digest: String,
    pub previous: String,
    pub hash: String,
}

/// Where what was used does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BrokenUsage {
    #[error("batch {0} of usage is not the one that was written")]
    Batch(i64),
    #[error("a batch of usage is missing before batch {0}, or it was moved")]
    Missing(i64),
    #[error("the rows of batch {0} of usage are not those that were written")]
    Rows(i64),
    #[error("there are rows of usage that are in no batch")]
    Stray,
    #[error(
        "row {0} of the table usage_unchained is none that this program has written: its request has a row already, it can't be \
         read, or it is on a server, where none waits (docs/troubleshoot.md says what to do)"
    )]
    Waiting(i64),
    #[error(
        "the database has the trigger {0:?}, which this program has not made and which can change rows before they are chained (docs/troubleshoot.md says \
         what to do)"
    )]
    Trigger(String),
    #[error("a sum of the hour {0} is not that of the rows")]
    Sum(i64),
    #[error("the sums that were kept of rows that were deleted are not those that were written")]
    Kept,
}

impl UsageBatch {
    /// The batch of these rows behind another one.
    pub(crate) fn behind(before: Option<&Self>, at_ms: i64, rows: &[UsageEvent]) -> Self {
        let first = before.map_or(1, |before| next(before.last));
        let mut batch = Self {
            seq: before.map_or(1, |before| next(before.seq)),
            at_ms,
            first,
            last: first.saturating_sub(1).saturating_add(count(rows)),
            digest: digest(rows),
            previous: before.map_or_else(|| GENESIS.to_owned(), |before| before.hash.clone()),
            hash: String::new(),
        };
        batch.hash = batch.right_hash();
        batch
    }

    fn right_hash(&self) -> String {
        let numbers = [self.seq, self.at_ms, self.first, self.last].map(|number| number.to_string());
        let texts = numbers.iter().map(String::as_str);
        hash(texts.chain([self.digest.as_str(), self.previous.as_str()]))
    }

    /// Whether it follows another one, as it was written.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn check(&self, before: Option<&Self>) -> Result<(), BrokenUsage> {
        let (seq, row, previous) = before.map_or((0, 0, GENESIS), |before| {
            (before.seq, before.last, before.hash.as_str())
        });
        if self.seq != next(seq) || self.previous != previous {
            return Err(BrokenUsage::Missing(self.seq));
        }
        if self.hash != self.right_hash() || self.first != next(row) || self.last < self.first {
            return Err(BrokenUsage::Batch(self.seq));
        }
        Ok(())
    }

    /// Whether it is what was written, wherever it stands.
    ///
    /// # Errors
    /// Says that it is not.
    pub(crate) fn check_itself(&self) -> Result<(), BrokenUsage> {
        if self.hash == self.right_hash() {
            return Ok(());
        }
        Err(BrokenUsage::Batch(self.seq))
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        usize::try_from(next(self.last.saturating_sub(self.first))).unwrap_or(0)
    }

    /// Whether these are its rows.
    ///
    /// # Errors
    /// Says that they are not.
    pub fn check_rows(&self, rows: &[UsageEvent]) -> Result<(), BrokenUsage> {
        if rows.len() == self.rows() && digest(rows) == self.digest {
            return Ok(());
        }
        Err(BrokenUsage::Rows(self.seq))
    }
}

/// Where a file says that it is the last number there is, what follows is wrong, and no reason to panic.
fn next(number: i64) -> i64 {
    number.saturating_add(1)
}

fn count(rows: &[UsageEvent]) -> i64 {
    i64::try_from(rows.len()).expect("rows fit in memory")
}

fn digest(rows: &[UsageEvent]) -> String {
    let mut hasher = Sha256::new();
    for row in rows {
        hasher.update(row.digest());
    }
    hex(&hasher.finalize())
}

impl UsageEvent {
    /// When the hour in which it began began, Unix seconds.
    pub(crate) fn hour(&self) -> i64 {
        self.began_ms.div_euclid(1_000 * HOUR_S) * HOUR_S
    }

    pub(crate) fn total(&self) -> UsageTotal {
        let refused = i64::from(self.outcome == Outcome::Refused.name());
        UsageTotal {
            requests: 1 - refused,
            refused,
            input: self.input,
            cached: self.cached,
            output: self.output,
            cost_nano: self.cost_nano,
        }
    }

    fn digest(&self) -> String {
        let numbers = [
            self.began_ms,
            self.input,
            self.cached,
            self.output,
            self.first_ms.unwrap_or(-1),
            self.duration_ms,
            self.status,
            self.cost_nano,
        ];
        let numbers = numbers.map(|number| number.to_string());
        let texts = [
            &self.id,
            &self.project,
            &self.key,
            &self.model,
            &self.endpoint,
            &self.outcome,
        ];
        // Rows from before there were records have the digest that they had.
        let content = Some(&self.content).filter(|content| !content.is_empty());
        hash(
            texts
                .into_iter()
                .chain(&numbers)
                .chain(content)
                .map(String::as_str),
        )
    }
}

/// Of texts, each with its length, so that no two lists have the same bytes.
pub(crate) fn hash<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(at: i64) -> UsageEvent {
        UsageEvent {
            id: format!("id{at}"),
            began_ms: 1_000 * at,
            project: "proj_a".to_owned(),
            key: "abcdefgh".to_owned(),
            model: "m".to_owned(),
            endpoint: "/v1/chat/completions".to_owned(),
            input: 10 + at,
            cached: 3,
            output: 7,
            first_ms: (at % 2 == 0).then_some(5),
            duration_ms: 20,
            status: 200,
            outcome: "completed".to_owned(),
            cost_nano: 100,
            content: if at % 3 == 0 { "9:a" } else { "" }.to_owned(),
        }
    }

    /// Batches of different sizes with their rows.
    fn chain() -> Vec<(UsageBatch, Vec<UsageEvent>)> {
        let mut written: Vec<(UsageBatch, Vec<UsageEvent>)> = Vec::new();
        let mut at = 0;
        for size in [1, 3, 2, 5] {
            let rows: Vec<UsageEvent> = (at..at + size).map(event).collect();
            at += size;
            let before = written.last().map(|(batch, _)| batch);
            written.push((UsageBatch::behind(before, 9 * at, &rows), rows));
        }
        written
    }

    fn check(written: &[(UsageBatch, Vec<UsageEvent>)]) -> Result<(), BrokenUsage> {
        let mut before = None;
        for (batch, rows) in written {
            batch.check(before)?;
            batch.check_rows(rows)?;
            before = Some(batch);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_change_of_usage_goes_unseen(place in 0_usize..4, row in 0_usize..5, what in 0_usize..21) {
            let mut written = chain();
            prop_assert_eq!(check(&written), Ok(()));
            let (batch, rows) = &mut written[place];
            let at = row % rows.len();
            match what {
                0 => rows[at].id.push('x'),
                1 => rows[at].began_ms += 1,
                2 => rows[at].project.push('x'),
                3 => rows[at].key.push('x'),
                4 => rows[at].model.push('x'),
                5 => rows[at].endpoint.push('x'),
                6 => rows[at].input -= 1,
                7 => rows[at].cached += 1,
                8 => rows[at].output -= 1,
                9 => rows[at].first_ms = Some(6),
                10 => rows[at].duration_ms += 1,
                11 => rows[at].status = 500,
                12 => rows[at].outcome = "failed".to_owned(),
                13 => rows[at].cost_nano = 0,
                14 => drop(rows.remove(at)),
                20 => rows[at].content.push('1'),
                15 => rows.push(event(99)),
                16 => batch.at_ms += 1,
                17 => batch.last += 1,
                // With a digest that fits: the batch's own hash does not.
                18 => {
                    rows[at].output += 1;
                    batch.digest = digest(rows);
                }
                // And with a hash that fits: the next batch's does not. Of the last one only what was noted elsewhere tells.
                _ => {
                    rows[at].output += 1;
                    batch.digest = digest(rows);
                    batch.hash = batch.right_hash();
                }
            }
            prop_assert!(check(&written).is_err() || (what == 19 && place == 3));
        }
    }
}
