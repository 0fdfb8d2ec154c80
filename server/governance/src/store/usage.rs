//! Rows of what was used, written in batches and read in sums.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::pool::PoolConnection;
use sqlx::{Any, Connection as _, Row as _, Transaction};

use super::{Error, Store, now_ms};
use crate::usage::{UsageBatch, UsageEvent, UsageTotal};

/// Batches that are read at one time.
const PAGE: i64 = 200;
const HOUR_S: i64 = 3_600;
const MINUTE_S: i64 = 60;

/// Writes what was used. A row that was written outlives the process at once, and a loss of power when it is synced.
pub struct UsageWriter {
    store: Store,
    /// Kept from batch to batch, unless one failed.
    connection: Option<PoolConnection<Any>>,
    unsynced: bool,
}

/// What was used in a span of time by one key on one model and endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageSum {
    /// When the span begins, Unix seconds.
    pub start: i64,
    pub project: String,
    pub key: String,
    pub model: String,
    pub endpoint: String,
    pub total: UsageTotal,
}

/// What requests of one sum have in common.
type Of<'a> = (i64, &'a str, &'a str, &'a str, &'a str);

impl UsageWriter {
    pub fn new(store: Store) -> Self {
        Self {
            store,
            connection: None,
            unsynced: false,
        }
    }

    /// Writes rows as one batch, all of them or none; nothing if they were written before.
    ///
    /// # Errors
    /// What the database says. The same rows can be tried again.
    pub async fn write(&mut self, rows: &[UsageEvent]) -> Result<(), Error> {
        // Changes would go to the file of that name, and these rows to one that has none.
        self.store.check_file()?;
        let mut connection = self.connection().await?;
        let written = write(&mut connection, rows).await;
        if written.is_ok() {
            self.connection = Some(connection);
            self.unsynced = true;
        } else {
            // One whose disk was full may be of no use any more.
            connection.close_on_drop();
        }
        written
    }

    async fn connection(&mut self) -> Result<PoolConnection<Any>, Error> {
        Ok(match self.connection.take() {
            Some(connection) => connection,
            None => self.store.usage.acquire().await?,
        })
    }

    /// Whether rows were written that a loss of power could take.
    pub fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Has everything that was written outlive a loss of power.
    ///
    /// # Errors
    /// What the database says.
    pub async fn sync(&mut self) -> Result<(), Error> {
        // What is not asked to sync at every commit is synced before it goes from the log to the file.
        let mut connection = self.connection().await?;
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&mut *connection)
            .await?;
        self.connection = Some(connection);
        self.unsynced = false;
        Ok(())
    }
}

async fn write(connection: &mut PoolConnection<Any>, rows: &[UsageEvent]) -> Result<(), Error> {
    let mut change = connection.begin_with("BEGIN IMMEDIATE").await?;
    // A commit whose success could not be told was one.
    let id = rows.first().map_or("", |row| row.id.as_str());
    let known = sqlx::query("SELECT seq FROM usage_event WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut *change)
        .await?;
    if known.is_some() {
        return Ok(());
    }
    let last = sqlx::query(
        "SELECT seq, at_ms, first_row, last_row, digest, previous, hash FROM usage_batch ORDER BY seq DESC LIMIT 1",
    )
    .fetch_optional(&mut *change)
    .await?;
    let last = last.as_ref().map(batch).transpose()?;
    let at_ms = last.as_ref().map_or(0, |last| last.at_ms).max(now_ms());
    let new = UsageBatch::behind(last.as_ref(), at_ms, rows);
    for (seq, row) in (new.first..).zip(rows) {
        insert(&mut change, seq, row).await?;
    }
    sqlx::query(
        "INSERT INTO usage_batch (seq, at_ms, first_row, last_row, digest, previous, hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(new.seq)
    .bind(new.at_ms)
    .bind(new.first)
    .bind(new.last)
    .bind(new.digest)
    .bind(new.previous)
    .bind(new.hash)
    .execute(&mut *change)
    .await?;
    for (of, sum) in sums(rows) {
        add(&mut change, of, sum).await?;
    }
    Ok(change.commit().await?)
}

async fn insert(change: &mut Transaction<'_, Any>, seq: i64, row: &UsageEvent) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO usage_event (seq, id, began_ms, project, api_key, model, endpoint, input, cached, output, first_ms, \
         duration_ms, status, outcome, cost_nano) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
    )
    .bind(seq)
    .bind(row.id.as_str())
    .bind(row.began_ms)
    .bind(row.project.as_str())
    .bind(row.key.as_str())
    .bind(row.model.as_str())
    .bind(row.endpoint.as_str())
    .bind(row.input)
    .bind(row.cached)
    .bind(row.output)
    .bind(row.first_ms)
    .bind(row.duration_ms)
    .bind(row.status)
    .bind(row.outcome.as_str())
    .bind(row.cost_nano)
    .execute(&mut **change)
    .await?;
    Ok(())
}

fn sums(rows: &[UsageEvent]) -> BTreeMap<Of<'_>, UsageTotal> {
    let mut sums: BTreeMap<Of<'_>, UsageTotal> = BTreeMap::new();
    for row in rows {
        let hour = row.began_ms.div_euclid(1_000 * HOUR_S) * HOUR_S;
        let of: Of<'_> = (hour, &row.project, &row.key, &row.model, &row.endpoint);
        sums.entry(of).or_default().add(row.total());
    }
    sums
}

async fn add(change: &mut Transaction<'_, Any>, of: Of<'_>, sum: UsageTotal) -> Result<(), Error> {
    let (hour, project, key, model, endpoint) = of;
    sqlx::query(
        "INSERT INTO usage_bucket (hour, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (hour, project, api_key, model, endpoint) DO UPDATE \
         SET requests = usage_bucket.requests + excluded.requests, refused = usage_bucket.refused + excluded.refused, input = usage_bucket.input + excluded.input, \
         cached = usage_bucket.cached + excluded.cached, output = usage_bucket.output + excluded.output, \
         cost_nano = usage_bucket.cost_nano + excluded.cost_nano",
    )
    .bind(hour)
    .bind(project)
    .bind(key)
    .bind(model)
    .bind(endpoint)
    .bind(sum.requests)
    .bind(sum.refused)
    .bind(sum.input)
    .bind(sum.cached)
    .bind(sum.output)
    .bind(sum.cost_nano)
    .execute(&mut **change)
    .await?;
    Ok(())
}

impl Store {
    /// What was used in spans of so many seconds that begin from one time on and before another, Unix seconds. Spans are whole
    /// minutes; such of whole hours are read from sums.
    ///
    /// # Errors
    /// What the database says.
    pub async fn usage(&self, from: i64, to: i64, span_s: i64) -> Result<Vec<UsageSum>, Error> {
        assert!(
            span_s > 0 && span_s % MINUTE_S == 0,
            "spans are whole minutes. This is a bug."
        );
        // Times are after 1970, so that the division rounds down.
        let of_hours = "SELECT hour / $1 * $1, project, api_key, model, endpoint, CAST(SUM(requests) AS BIGINT), CAST(SUM(refused) AS BIGINT), \
             CAST(SUM(input) AS BIGINT), CAST(SUM(cached) AS BIGINT), CAST(SUM(output) AS BIGINT), \
             CAST(SUM(cost_nano) AS BIGINT) FROM usage_bucket WHERE hour >= $2 AND hour < $3 \
             GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5";
        let of_rows = "SELECT began_ms / (1000 * $1) * $1, project, api_key, model, endpoint, CAST(SUM(CASE WHEN outcome = 'refused' THEN 0 ELSE 1 END) AS BIGINT), \
             CAST(SUM(CASE WHEN outcome = 'refused' THEN 1 ELSE 0 END) AS BIGINT), \
             CAST(SUM(input) AS BIGINT), CAST(SUM(cached) AS BIGINT), CAST(SUM(output) AS BIGINT), \
             CAST(SUM(cost_nano) AS BIGINT) FROM usage_event WHERE began_ms >= $2 AND began_ms < $3 \
             GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5";
        let (query, scale) = if span_s % HOUR_S == 0 {
            (of_hours, 1)
        } else {
            (of_rows, 1_000)
        };
        let rows = sqlx::query(query)
            .bind(span_s)
            .bind(from.saturating_mul(scale))
            .bind(to.saturating_mul(scale))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(sum).collect()
    }

    /// Batches behind the one of this number, oldest first, a page of them.
    ///
    /// # Errors
    /// What the database says.
    pub async fn usage_batches(&self, behind: i64) -> Result<Vec<UsageBatch>, Error> {
        let rows = sqlx::query(
            "SELECT seq, at_ms, first_row, last_row, digest, previous, hash FROM usage_batch WHERE seq > $1 \
             ORDER BY seq LIMIT $2",
        )
        .bind(behind)
        .bind(PAGE)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(batch).collect()
    }

    /// Rows with numbers from one to another, both included.
    ///
    /// # Errors
    /// What the database says.
    pub async fn usage_events(&self, first: i64, last: i64) -> Result<Vec<UsageEvent>, Error> {
        let rows = sqlx::query(
            "SELECT id, began_ms, project, api_key, model, endpoint, input, cached, output, first_ms, duration_ms, status, \
             outcome, cost_nano FROM usage_event WHERE seq >= $1 AND seq <= $2 ORDER BY seq",
        )
        .bind(first)
        .bind(last)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(event).collect()
    }
}

fn batch(row: &AnyRow) -> Result<UsageBatch, Error> {
    Ok(UsageBatch {
        seq: row.try_get(0)?,
        at_ms: row.try_get(1)?,
        first: row.try_get(2)?,
        last: row.try_get(3)?,
        digest: row.try_get(4)?,
        previous: row.try_get(5)?,
        hash: row.try_get(6)?,
    })
}

fn event(row: &AnyRow) -> Result<UsageEvent, Error> {
    Ok(UsageEvent {
        id: row.try_get(0)?,
        began_ms: row.try_get(1)?,
        project: row.try_get(2)?,
        key: row.try_get(3)?,
        model: row.try_get(4)?,
        endpoint: row.try_get(5)?,
        input: row.try_get(6)?,
        cached: row.try_get(7)?,
        output: row.try_get(8)?,
        first_ms: row.try_get(9)?,
        duration_ms: row.try_get(10)?,
        status: row.try_get(11)?,
        outcome: row.try_get(12)?,
        cost_nano: row.try_get(13)?,
    })
}

fn sum(row: &AnyRow) -> Result<UsageSum, Error> {
    Ok(UsageSum {
        start: row.try_get(0)?,
        project: row.try_get(1)?,
        key: row.try_get(2)?,
        model: row.try_get(3)?,
        endpoint: row.try_get(4)?,
        total: UsageTotal {
            requests: row.try_get(5)?,
            refused: row.try_get(6)?,
            input: row.try_get(7)?,
            cached: row.try_get(8)?,
            output: row.try_get(9)?,
            cost_nano: row.try_get(10)?,
        },
    })
}
