//! The proof that what was used is what was written.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Any, Row as _, Transaction};

use super::usage::{BATCH, EVENT, batch, event, total};
use super::{Error, Store, now_ms};
use crate::checkpoint::{Checkpoint, End};
use crate::usage::{BATCH_ROWS_MAX, BrokenUsage, UsageBatch, UsageTotal};

/// Batches that are read at one time.
const PAGE: i64 = 200;

/// A chain of usage that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageProof {
    pub rows: i64,
    /// Number and hash of the last batch, where there is one.
    pub last: Option<(i64, String)>,
    /// Whether all batches that were asked for are in it.
    pub contains: bool,
}

/// What a sum by the hour is of: hour, project, key, model and endpoint.
type Of = (i64, String, String, String, String);

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

    /// Proves that every row is in a batch, that every batch is the one that was written, behind the one before, and that the sums
    /// by the hour are those of the rows. `noted` are numbers and hashes of batches, noted earlier.
    ///
    /// # Errors
    /// What does not hold, and what the database says.
    pub async fn prove_usage(&self, noted: &[End]) -> Result<UsageProof, Error> {
        let mut moment = self.reports.begin_with(self.database.begin_moment()).await?;
        let (mut before, mut sums): (Option<UsageBatch>, BTreeMap<Of, UsageTotal>) = (None, BTreeMap::new());
        let mut missing: BTreeSet<&End> = noted.iter().collect();
        loop {
            let behind = before.as_ref().map_or(i64::MIN, |batch| batch.seq);
            let page = sqlx::query(sqlx::AssertSqlSafe(format!(
                "{BATCH} WHERE seq > $1 ORDER BY seq LIMIT $2"
            )))
            .bind(behind)
            .bind(PAGE)
            .fetch_all(&mut *moment)
            .await?;
            if page.is_empty() {
                break;
            }
            for row in &page {
                let batch = batch(row)?;
                batch.check(before.as_ref())?;
                check_rows(&mut moment, &batch, &mut sums).await?;
                missing.remove(&(batch.seq, batch.hash.clone()));
                before = Some(batch);
            }
        }
        let rows = before.as_ref().map_or(0, |last| last.last);
        let count = sqlx::query("SELECT COUNT(*) FROM usage_event")
            .fetch_one(&mut *moment)
            .await?;
        if count.try_get::<i64, _>(0)? != rows {
            return Err(BrokenUsage::Stray.into());
        }
        check_sums(&mut moment, sums).await?;
        Ok(UsageProof {
            rows,
            last: before.map(|last| (last.seq, last.hash)),
            contains: missing.is_empty(),
        })
    }
}

/// Checks the rows of a batch, and adds them to the sums.
async fn check_rows(
    moment: &mut Transaction<'static, Any>,
    batch: &UsageBatch,
    sums: &mut BTreeMap<Of, UsageTotal>,
) -> Result<(), Error> {
    // Whoever wrote another number of rows into it shall not fill the memory.
    if batch.rows() > BATCH_ROWS_MAX {
        return Err(BrokenUsage::Batch(batch.seq).into());
    }
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{EVENT} WHERE seq >= $1 AND seq <= $2 ORDER BY seq LIMIT $3"
    )))
    .bind(batch.first)
    .bind(batch.last)
    .bind(i64::try_from(batch.rows()).unwrap_or(i64::MAX).saturating_add(1))
    .fetch_all(&mut **moment)
    .await?;
    let rows = rows.iter().map(event).collect::<Result<Vec<_>, _>>()?;
    batch.check_rows(&rows)?;
    for row in rows {
        let (hour, total) = (row.hour(), row.total());
        sums.entry((hour, row.project, row.key, row.model, row.endpoint))
            .or_default()
            .add(total);
    }
    Ok(())
}

/// Checks that the sums by the hour are these.
async fn check_sums(
    moment: &mut Transaction<'static, Any>,
    mut sums: BTreeMap<Of, UsageTotal>,
) -> Result<(), Error> {
    let mut from: Of = (
        i64::MIN,
        String::new(),
        String::new(),
        String::new(),
        String::new(),
    );
    loop {
        let page = sqlx::query(
            "SELECT hour, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano \
             FROM usage_bucket WHERE (hour, project, api_key, model, endpoint) > ($1, $2, $3, $4, $5) \
             ORDER BY hour, project, api_key, model, endpoint LIMIT $6",
        )
        .bind(from.0)
        .bind(from.1.clone())
        .bind(from.2.clone())
        .bind(from.3.clone())
        .bind(from.4.clone())
        .bind(PAGE)
        .fetch_all(&mut **moment)
        .await?;
        let Some(last) = page.last() else { break };
        from = of(last)?;
        for row in &page {
            let told = total(row)?;
            let of = of(row)?;
            if sums.remove(&of) != Some(told) {
                return Err(BrokenUsage::Sum(of.0).into());
            }
        }
    }
    sums.first_key_value()
        .map_or(Ok(()), |((hour, ..), _)| Err(BrokenUsage::Sum(*hour).into()))
}

fn of(row: &sqlx::any::AnyRow) -> Result<Of, Error> {
    Ok((
        row.try_get(0)?,
        row.try_get(1)?,
        row.try_get(2)?,
        row.try_get(3)?,
        row.try_get(4)?,
    ))
}
