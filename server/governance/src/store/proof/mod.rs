//! The proof that what was done and used is what was written: both chains at one moment, from where deletion ended.

mod audit;
mod pages;
mod usage;

use std::collections::BTreeSet;

use sqlx::Row as _;

use super::retention::last_run;
use super::{Error, Store, now_ms};
use crate::audit::Broken;
use crate::checkpoint::{Checkpoint, End};
use crate::retention::Trimmed;

/// What was noted of the chains earlier: numbers and hashes of rows and of batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    pub audit: Vec<End>,
    pub usage: Vec<End>,
}

/// Chains that hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Rows of the audit chain, and the last of them; 0 and the number 0 where there are none.
    pub audit: (i64, End),
    /// Rows of usage, and the last batch, where there is one.
    pub usage: (i64, Option<End>),
    /// Whether all that was noted is in them, but what was deleted when its time was over.
    pub contains: bool,
    /// How many notes are of what was deleted so.
    pub deleted: usize,
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
        Ok(Checkpoint::sign(secret, now_ms(), self.audit_end().await?, usage))
    }

    /// Proves that every row of the audit chain is the one that was written, behind the one before; that every row of usage is in a
    /// batch, and every batch the one that was written; that the sums are those of the rows; and that what is missing at the
    /// beginning is what the last deletion says, whose row is in the chain.
    ///
    /// # Errors
    /// What does not hold, and what the database says.
    pub async fn prove(&self, noted: &Noted) -> Result<Proof, Error> {
        let mut moment = self.reports.begin_with(self.database.begin_moment()).await?;
        let last = last_run(&mut moment).await?;
        let (told_by, trimmed) = last.map_or((None, Trimmed::default()), |(seq, state)| (Some(seq), state));
        let mut sought = Sought::new(&noted.audit, trimmed.audit.as_ref().map(|cut| cut.seq));
        let chain = self
            .prove_audit(&mut moment, trimmed.audit.as_ref(), &mut sought)
            .await?;
        if chain.told_by != told_by {
            // It was found by another way than along the chain.
            return Err(Broken::Missing(told_by.unwrap_or(0)).into());
        }
        let mut batches = Sought::new(&noted.usage, trimmed.usage.as_ref().map(|cut| cut.seq));
        let usage = self.prove_usage(&mut moment, &trimmed, &mut batches).await?;
        Ok(Proof {
            audit: (chain.rows, chain.end),
            usage,
            contains: sought.missing.is_empty() && batches.missing.is_empty(),
            deleted: sought.deleted + batches.deleted,
            trimmed,
        })
    }
}

/// Notes that are looked for along a chain.
struct Sought<'a> {
    missing: BTreeSet<&'a End>,
    deleted: usize,
}

impl<'a> Sought<'a> {
    /// Those that may still be there, where all before one number were deleted.
    fn new(noted: &'a [End], cut: Option<i64>) -> Self {
        let all: BTreeSet<&End> = noted.iter().collect();
        let count = all.len();
        let there = |end: &&End| cut.is_none_or(|cut| end.0 >= cut);
        let missing: BTreeSet<&End> = all.into_iter().filter(there).collect();
        Self {
            deleted: count - missing.len(),
            missing,
        }
    }

    fn found(&mut self, end: &End) {
        self.missing.remove(end);
    }
}
