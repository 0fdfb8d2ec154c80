//! Deletion of what was kept for long enough, in steps that hold nobody up; each step tells what it has left in a row of the chain.

use std::time::Duration;

use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::audit::{self, Record, append_at};
use super::parts::ADDED;
use super::setting::insert_setting;
use super::usage::{BATCH, batch, total};
use super::{Error, Store};
use crate::actor::Actor;
use crate::key::hex;
use crate::retention::{Cut, DAY_MS, DAY_S, KeptSums, Policy, RUN, Trimmed};
use crate::usage::{UsageBatch, hash};

/// Rows that are deleted at one time: others wait for as long as that takes.
const ROWS_AT_ONCE: i64 = 5_000;
/// After each time, so that others come before the next.
const PAUSE: Duration = Duration::from_millis(20);
const RETENTION: &str = "retention";

/// How much was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub usage: u64,
    pub audit: u64,
    pub sums: u64,
    pub people: u64,
}

/// When the oldest of each kind was written, Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oldest {
    pub usage: Option<i64>,
    pub audit: Option<i64>,
    pub sums: Option<i64>,
    /// When the first of those who left and are not erased left.
    pub people: Option<i64>,
}

impl Store {
    /// How long what is kept is kept.
    ///
    /// # Errors
    /// What the database says, or that it does not hold what this program writes.
    pub async fn retention(&self) -> Result<Policy, Error> {
        let set = self.setting(RETENTION).await?;
        set.map_or(Ok(Policy::default()), |text| policy(&text))
    }

    /// Sets how long.
    ///
    /// # Errors
    /// Where that can't be followed, and what the database says.
    pub async fn set_retention(&self, actor: impl Into<Actor<'_>>, policy: &Policy) -> Result<(), Error> {
        policy.check().map_err(Error::Refused)?;
        let (mut change, actor) = self.begin_as(actor).await?;
        let text = serde_json::to_string(policy).map_err(|error| Error::Unsound(error.to_string()))?;
        insert_setting(&mut change, RETENTION, &text).await?;
        audit::append(&mut change, &actor.name, "retention.updated", RETENTION, text).await?;
        Ok(change.commit().await?)
    }

    /// When the oldest of each kind was written.
    ///
    /// # Errors
    /// What the database says.
    pub async fn oldest(&self) -> Result<Oldest, Error> {
        let row = sqlx::query(
            "SELECT (SELECT MIN(began_ms) / 1000 FROM usage_event), (SELECT MIN(at_ms) / 1000 FROM audit_event), \
             (SELECT MIN(hour) FROM usage_bucket), (SELECT MIN(ended) FROM person)",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Oldest {
            usage: row.try_get(0)?,
            audit: row.try_get(1)?,
            sums: row.try_get(2)?,
            people: row.try_get(3)?,
        })
    }

    /// The number of the row that tells of the last deletion, and when that was, Unix milliseconds.
    ///
    /// # Errors
    /// What the database says.
    pub async fn last_deletion(&self) -> Result<Option<(i64, i64)>, Error> {
        let row =
            sqlx::query("SELECT seq, at_ms FROM audit_event WHERE action = $1 ORDER BY seq DESC LIMIT 1")
                .bind(RUN)
                .fetch_optional(&self.pool)
                .await?;
        let read = |row: AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
        row.map(read).transpose()
    }

    /// Deletes what is older than it may be at a time, Unix milliseconds. What was done before an error stays done, and both chains
    /// hold; `told` hears of each step.
    ///
    /// # Errors
    /// What the database says.
    pub async fn trim(
        &self,
        actor: impl Into<Actor<'_>>,
        now_ms: i64,
        mut told: impl FnMut(Deleted),
    ) -> Result<Deleted, Error> {
        let (actor, policy) = (actor.into(), self.retention().await?);
        let mut deleted = Deleted {
            sums: self.keep_sums(actor, &policy, now_ms).await?,
            ..Deleted::default()
        };
        while let Some(rows) = self.trim_usage(actor, &policy, now_ms).await? {
            deleted.usage += rows;
            told(deleted);
            tokio::time::sleep(PAUSE).await;
        }
        while let Some(rows) = self.trim_audit(actor, &policy, now_ms).await? {
            deleted.audit += rows;
            told(deleted);
            tokio::time::sleep(PAUSE).await;
        }
        for id in self.left_before(&policy, now_ms).await? {
            self.erase_person(actor, &id).await?;
            deleted.people += 1;
            told(deleted);
        }
        if deleted != Deleted::default() {
            match self.clean().await {
                // A log that is in use is overwritten as it goes on.
                Err(Error::Refused(_)) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }

    /// Makes the sums of days whose rows go ones by day and without keys, and deletes those that are too old; how many these were.
    async fn keep_sums(&self, actor: Actor<'_>, policy: &Policy, now_ms: i64) -> Result<u64, Error> {
        let Some(to) = policy.usage.map(|days| day_before(now_ms, days)) else {
            return Ok(0);
        };
        let from = policy.sums.map_or(0, |days| day_before(now_ms, days));
        let (mut change, actor) = self.begin_as(actor).await?;
        let mut state = trimmed(&mut change).await?;
        // Where rows are kept for longer than before, some sums are of later days than that.
        let to = state.sums.as_ref().map_or(to, |kept| kept.to.max(to));
        if let Some(lock) = self.database.lock_usage() {
            // No batch comes between its number and its sums.
            sqlx::query(lock).fetch_one(&mut *change).await?;
        }
        let due =
            sqlx::query("SELECT COUNT(*) FROM usage_bucket WHERE (hour < $1 AND api_key <> '') OR hour < $2")
                .bind(to)
                .bind(from)
                .fetch_one(&mut *change)
                .await?;
        if due.try_get::<i64, _>(0)? == 0 {
            change.rollback().await?;
            return Ok(0);
        }
        merge_days(&mut change, to).await?;
        let gone = sqlx::query("DELETE FROM usage_bucket WHERE hour < $1")
            .bind(from)
            .execute(&mut *change)
            .await?;
        let last = sqlx::query("SELECT COALESCE(MAX(seq), 0) FROM usage_batch")
            .fetch_one(&mut *change)
            .await?;
        state.sums = Some(KeptSums {
            from,
            to,
            batch: last.try_get(0)?,
            digest: self.digest_of_sums(&mut change).await?,
        });
        record(&mut change, &actor.name, "sums", &state, now_ms).await?;
        change.commit().await?;
        Ok(gone.rows_affected())
    }

    /// Of all sums without keys.
    pub(super) async fn digest_of_sums(
        &self,
        change: &mut Transaction<'static, Any>,
    ) -> Result<String, Error> {
        // The same on both kinds of database, whatever language theirs is.
        let order = self.database.by_bytes();
        let query = format!(
            "SELECT hour, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano FROM usage_bucket \
             WHERE api_key = '' ORDER BY hour, project {order}, model {order}, endpoint {order}"
        );
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch(&mut **change);
        let mut hasher = Sha256::new();
        while let Some(row) = rows.try_next().await? {
            let sum = total(&row)?;
            let hour: i64 = row.try_get(0)?;
            let of: [String; 3] = [row.try_get(1)?, row.try_get(3)?, row.try_get(4)?];
            let numbers = [
                hour,
                sum.requests,
                sum.refused,
                sum.input,
                sum.cached,
                sum.output,
                sum.cost_nano,
            ]
            .map(|number| number.to_string());
            hasher.update(hash(of.iter().chain(&numbers).map(String::as_str)));
        }
        Ok(hex(&hasher.finalize()))
    }

    /// Deletes some batches with their rows, all of which are in the sums that stay; `None` where there are none to delete.
    async fn trim_usage(&self, actor: Actor<'_>, policy: &Policy, now_ms: i64) -> Result<Option<u64>, Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let mut state = trimmed(&mut change).await?;
        let (Some(days), Some(sums)) = (policy.usage, &state.sums) else {
            change.rollback().await?;
            return Ok(None);
        };
        let to_ms = day_before(now_ms, days).min(sums.to).saturating_mul(1_000);
        let Some(last) = last_due(&mut change, &state, (sums.batch, to_ms)).await? else {
            change.rollback().await?;
            return Ok(None);
        };
        let rows = sqlx::query("DELETE FROM usage_event WHERE seq <= $1")
            .bind(last.last)
            .execute(&mut *change)
            .await?
            .rows_affected();
        // The last of them stays without its rows: the next is written behind it, and its hash tells its number.
        sqlx::query("DELETE FROM usage_batch WHERE seq < $1")
            .bind(last.seq)
            .execute(&mut *change)
            .await?;
        state.usage = Some(Cut {
            seq: last.seq,
            hash: last.hash,
            at_ms: last.at_ms,
            days,
        });
        record(&mut change, &actor.name, "usage", &state, now_ms).await?;
        change.commit().await?;
        Ok(Some(rows))
    }

    /// Deletes some rows of the audit chain; `None` where there are none to delete.
    async fn trim_audit(&self, actor: Actor<'_>, policy: &Policy, now_ms: i64) -> Result<Option<u64>, Error> {
        let Some(days) = policy.audit else {
            return Ok(None);
        };
        let (mut change, actor) = self.begin_as(actor).await?;
        let mut state = trimmed(&mut change).await?;
        let begin = state.audit.as_ref().map_or(0, |cut| cut.seq);
        let last = sqlx::query(
            "SELECT seq, hash, at_ms FROM audit_event WHERE seq <= $1 AND at_ms < $2 ORDER BY seq DESC LIMIT 1",
        )
        .bind(begin.saturating_add(ROWS_AT_ONCE))
        .bind(day_before(now_ms, days).saturating_mul(1_000))
        .fetch_optional(&mut *change)
        .await?;
        let Some(last) = last else {
            change.rollback().await?;
            return Ok(None);
        };
        let cut = Cut {
            seq: last.try_get(0)?,
            hash: last.try_get(1)?,
            at_ms: last.try_get(2)?,
            days,
        };
        let seq = cut.seq;
        state.audit = Some(cut);
        // First: it stands behind the last row, which may be among those that go.
        record(&mut change, &actor.name, "audit", &state, now_ms).await?;
        let gone = sqlx::query("DELETE FROM audit_event WHERE seq <= $1")
            .bind(seq)
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(Some(gone.rows_affected()))
    }

    /// Those who left so long ago that who they were is to be forgotten.
    async fn left_before(&self, policy: &Policy, now_ms: i64) -> Result<Vec<String>, Error> {
        let Some(days) = policy.people else {
            return Ok(Vec::new());
        };
        let rows = sqlx::query("SELECT id FROM person WHERE ended < $1 ORDER BY ended")
            .bind(day_before(now_ms, days))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

fn policy(text: &str) -> Result<Policy, Error> {
    serde_json::from_str(text).map_err(|_| Error::Unsound("the setting of retention".to_owned()))
}

/// When the day began that was so many days before, Unix seconds.
fn day_before(now_ms: i64, days: i64) -> i64 {
    now_ms
        .div_euclid(DAY_MS)
        .saturating_sub(days)
        .saturating_mul(DAY_S)
}

/// What all deletions so far have left.
async fn trimmed(change: &mut Transaction<'static, Any>) -> Result<Trimmed, Error> {
    Ok(last_run(change)
        .await?
        .map_or_else(Trimmed::default, |(_, state)| state))
}

/// The number of the last row that tells of a deletion, and what it tells.
pub(super) async fn last_run(
    change: &mut Transaction<'static, Any>,
) -> Result<Option<(i64, Trimmed)>, Error> {
    let row = sqlx::query("SELECT seq, detail FROM audit_event WHERE action = $1 ORDER BY seq DESC LIMIT 1")
        .bind(RUN)
        .fetch_optional(&mut **change)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (seq, detail): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
    Ok(Some((seq, Trimmed::read(seq, &detail)?)))
}

async fn record(
    change: &mut Transaction<'static, Any>,
    actor: &str,
    object: &str,
    state: &Trimmed,
    now_ms: i64,
) -> Result<(), Error> {
    let record = Record {
        actor,
        action: RUN,
        object,
        detail: state.detail(),
    };
    append_at(change, &[record], now_ms).await
}

/// Adds the sums of hours before a time to those of their days, without their keys.
async fn merge_days(change: &mut Transaction<'static, Any>, to: i64) -> Result<(), Error> {
    let merge = format!(
        "INSERT INTO usage_bucket (hour, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano) \
         SELECT hour / {DAY_S} * {DAY_S}, project, '', model, endpoint, CAST(SUM(requests) AS BIGINT), \
         CAST(SUM(refused) AS BIGINT), CAST(SUM(input) AS BIGINT), CAST(SUM(cached) AS BIGINT), CAST(SUM(output) AS BIGINT), \
         CAST(SUM(cost_nano) AS BIGINT) FROM usage_bucket WHERE hour < $1 AND api_key <> '' GROUP BY 1, 2, 4, 5{ADDED}"
    );
    sqlx::query(sqlx::AssertSqlSafe(merge))
        .bind(to)
        .execute(&mut **change)
        .await?;
    sqlx::query("DELETE FROM usage_bucket WHERE hour < $1 AND api_key <> ''")
        .bind(to)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// The last batch of the next that may go: up to a number and before a time, Unix milliseconds, in which no row is of later.
async fn last_due(
    change: &mut Transaction<'static, Any>,
    state: &Trimmed,
    (batch_max, to_ms): (i64, i64),
) -> Result<Option<UsageBatch>, Error> {
    let begin = state.usage.as_ref().map_or(0, |cut| cut.seq);
    let find = format!(
        "{BATCH} WHERE seq > $1 AND seq <= $2 AND at_ms < $3 AND last_row < $4 ORDER BY seq DESC LIMIT 1"
    );
    // Each has a row at least.
    let batch_max = batch_max.min(begin.saturating_add(ROWS_AT_ONCE));
    let mut row_end = first_row(change, begin).await?.saturating_add(ROWS_AT_ONCE);
    loop {
        let found = sqlx::query(sqlx::AssertSqlSafe(find.clone()))
            .bind(begin)
            .bind(batch_max)
            .bind(to_ms)
            .bind(row_end)
            .fetch_optional(&mut **change)
            .await?;
        let Some(found) = found else { return Ok(None) };
        let found = batch(&found)?;
        // A clock that was ahead for a while has written times to come, whose sums do not stay yet.
        let late = sqlx::query("SELECT MIN(seq) FROM usage_event WHERE seq <= $1 AND began_ms >= $2")
            .bind(found.last)
            .bind(to_ms)
            .fetch_one(&mut **change)
            .await?;
        match late.try_get::<Option<i64>, _>(0)? {
            None => return Ok(Some(found)),
            Some(late) => row_end = late,
        }
    }
}

/// The first row behind a batch.
async fn first_row(change: &mut Transaction<'static, Any>, behind: i64) -> Result<i64, Error> {
    let row = sqlx::query("SELECT COALESCE(MIN(first_row), 0) FROM usage_batch WHERE seq > $1")
        .bind(behind)
        .fetch_one(&mut **change)
        .await?;
    Ok(row.try_get(0)?)
}
