//! The proof that what was done and used is what was written: both chains at one moment, from where deletion ended.

mod audit;
mod content;
mod pages;
mod usage;

use std::collections::BTreeSet;

use sqlx::Row as _;

use super::retention::last_run;
use super::{Error, Store, now_ms};
use crate::audit::Broken;
use crate::checkpoint::{Checkpoint, End};
use crate::retention::{AHEAD_MAX_MS, BrokenRetention, Cut, Trimmed};

/// Something that was noted of a chain earlier: the number and the hash of a row or of a batch, which was the last then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    pub end: End,
    /// When that was, Unix milliseconds, if it is proven: by a signature.
    pub at_ms: Option<i64>,
}

impl From<End> for Note {
    fn from(end: End) -> Self {
        Self { end, at_ms: None }
    }
}

/// What was noted of both chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    pub audit: Vec<Note>,
    pub usage: Vec<Note>,
}

/// Chains that hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Rows of the audit chain, and the last of them; 0 and the number 0 where there are none.
    pub audit: (i64, End),
    /// Rows of usage, and the last batch, where there is one.
    pub usage: (i64, Option<End>),
    /// Rows of usage that wait to be chained, and that nothing proves yet.
    pub unchained: i64,
    /// Records of what was asked and answered.
    pub content: i64,
    /// Whether all that was noted is in them, but what was deleted when its time was over.
    pub contains: bool,
    /// How many notes with a time are of what was deleted so. They are older than what was.
    pub deleted: usize,
    /// How many without. Whether they were of this chain, nothing tells.
    pub untold: usize,
    /// Where the chains begin.
    pub trimmed: Trimmed,
}

impl Store {
    /// What both chains are now, signed.
    ///
    /// # Errors
    /// Where the secret is not known, and what the database says.
    pub async fn checkpoint(&self) -> Result<Checkpoint, Error> {
        let secret = self.secret()?;
        let batch = sqlx::query("SELECT seq, hash FROM usage_batch ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&self.pool)
            .await?;
        let usage = match batch {
            Some(row) => Some((row.try_get(0)?, row.try_get(1)?)),
            None => None,
        };
        let audit = self.audit_end().await?;
        // What is signed outlives a loss of power, or else the chains would lack it ever after.
        self.sync_log().await?;
        Ok(Checkpoint::sign(secret, now_ms(), audit, usage))
    }

    /// Proves that every row of the audit chain is the one that was written, behind the one before; that every row of usage is in a
    /// batch, and every batch the one that was written; that the sums are those of the rows; and that what is missing at the
    /// beginning is what the last deletion says, whose row is in the chain. Rows of usage that wait to be chained are chained first,
    /// or counted where the disk is too full for that, the file can't be written or another process writes.
    ///
    /// # Errors
    /// What does not hold, a trigger in a file, what else keeps rows from being chained, and what the database says.
    pub async fn prove(&self, noted: &Noted) -> Result<Proof, Error> {
        self.prove_at(noted, now_ms()).await
    }

    /// The same at a time, Unix milliseconds.
    ///
    /// # Errors
    /// As [`Store::prove`].
    pub async fn prove_at(&self, noted: &Noted, now_ms: i64) -> Result<Proof, Error> {
        let chained = self.chain_usage().await;
        let mut moment = self.reports.begin_with(self.database.begin_moment()).await?;
        let last = last_run(&mut moment).await?;
        let (told_by, trimmed) = last.map_or((None, Trimmed::default()), |(seq, state)| (Some(seq), state));
        let mut sought = Sought::new(&noted.audit, trimmed.audit.as_ref())?;
        let chain = self
            .prove_audit(&mut moment, trimmed.audit.as_ref(), &mut sought, now_ms)
            .await?;
        if chain.told.last() != told_by {
            // It was found by another way than along the chain.
            return Err(Broken::Missing(told_by.unwrap_or(0)).into());
        }
        let mut batches = Sought::new(&noted.usage, trimmed.usage.as_ref())?;
        let usage = self
            .prove_usage(&mut moment, &trimmed, &chain.told.days, &mut batches)
            .await?;
        let content = self.prove_content(&mut moment, &chain.content, now_ms).await?;
        let unchained = sqlx::query("SELECT COUNT(*) FROM usage_unchained")
            .fetch_one(&mut *moment)
            .await?
            .try_get(0)?;
        moment.rollback().await?;
        match chained {
            Ok(()) => {}
            Err(Error::Database(error)) if self.database.is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        // Who is told an end notes it.
        self.sync_log().await?;
        Ok(Proof {
            content,
            audit: (chain.rows, chain.end),
            usage,
            unchained,
            contains: sought.missing.is_empty() && batches.missing.is_empty(),
            deleted: sought.deleted + batches.deleted,
            untold: sought.untold + batches.untold,
            trimmed,
        })
    }
}

/// Notes that are looked for along a chain.
struct Sought<'a> {
    missing: BTreeSet<&'a End>,
    deleted: usize,
    untold: usize,
}

impl<'a> Sought<'a> {
    /// Those that may still be there, where all before some row were deleted.
    fn new(noted: &'a [Note], cut: Option<&Cut>) -> Result<Self, Error> {
        let mut sought = Self {
            missing: BTreeSet::new(),
            deleted: 0,
            untold: 0,
        };
        for note in noted {
            match (cut.filter(|cut| note.end.0 < cut.seq), note.at_ms) {
                (None, _) => drop(sought.missing.insert(&note.end)),
                // What was the last row then was written before the one that is the last of those deleted.
                (Some(cut), Some(at_ms)) if at_ms > cut.at_ms.saturating_add(AHEAD_MAX_MS) => {
                    return Err(BrokenRetention::Younger(note.end.0).into());
                }
                (Some(_), Some(_)) => sought.deleted += 1,
                (Some(_), None) => sought.untold += 1,
            }
        }
        Ok(sought)
    }

    fn found(&mut self, end: &End) {
        self.missing.remove(end);
    }
}
