//! Rows of what was used, read one by one and in sums.

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Error, Store};
use crate::usage::{HOUR_S, UsageBatch, UsageEvent, UsageTotal};

/// Columns of a batch and of a row, in the order in which they are read. Rows are in one of two tables.
pub(super) const BATCH: &str =
    "SELECT seq, at_ms, first_row, last_row, digest, previous, hash FROM usage_batch";
pub(super) const EVENT: &str = "SELECT id, began_ms, project, api_key, model, endpoint, input, cached, output, first_ms, \
     duration_ms, status, outcome, cost_nano, content";
const MINUTE_S: i64 = 60;
/// Sums of spans, of what has a time `at`. Times are after 1970, so that the division rounds down.
const SUMS: &str = "SELECT at / $1 * $1, project, api_key, model, endpoint, CAST(SUM(requests) AS BIGINT), \
     CAST(SUM(refused) AS BIGINT), CAST(SUM(input) AS BIGINT), CAST(SUM(cached) AS BIGINT), CAST(SUM(output) AS BIGINT), \
     CAST(SUM(cost_nano) AS BIGINT)";
const BUCKETS: &str = "SELECT hour AS at, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano \
     FROM usage_bucket";

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

impl Store {
    /// What was used in spans of so many seconds that begin from one time on and before another, Unix seconds. Spans are whole
    /// minutes; such of whole hours are read from sums.
    ///
    /// # Errors
    /// [`Error::TooMany`] where that is more than so many sums, and what the database says.
    pub async fn usage(
        &self,
        from: i64,
        to: i64,
        span_s: i64,
        sums_max: usize,
    ) -> Result<Vec<UsageSum>, Error> {
        assert!(
            span_s > 0 && span_s % MINUTE_S == 0,
            "spans are whole minutes. This is a bug."
        );
        // Rows that are not chained are in no sum yet.
        let (used, waiting, scale) = if span_s % HOUR_S == 0 {
            let hour = format!("began_ms / {} * {HOUR_S}", HOUR_S * 1_000);
            (BUCKETS.to_owned(), rows_as_sums(&hour, "usage_unchained"), 1)
        } else {
            (
                rows_as_sums("began_ms", "usage_event"),
                rows_as_sums("began_ms", "usage_unchained"),
                1_000,
            )
        };
        let query = format!(
            "{SUMS} FROM ({used} UNION ALL {waiting}) AS used WHERE at >= $2 AND at < $3 GROUP BY 1, 2, 3, 4, 5 \
             ORDER BY 1, 2, 3, 4, 5 LIMIT $4"
        );
        let limit = i64::try_from(sums_max).unwrap_or(i64::MAX);
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(span_s * scale)
            .bind(from.saturating_mul(scale))
            .bind(to.saturating_mul(scale))
            .bind(limit.saturating_add(1))
            .fetch_all(&self.reports)
            .await?;
        if rows.len() > sums_max {
            return Err(Error::TooMany(sums_max));
        }
        let mut sums = rows.iter().map(sum).collect::<Result<Vec<_>, _>>()?;
        for sum in &mut sums {
            sum.start /= scale;
        }
        Ok(sums)
    }

    /// Rows of a key with numbers from one to another, both included.
    ///
    /// # Errors
    /// What the database says.
    pub async fn usage_events_of(&self, key: &str, first: i64, last: i64) -> Result<Vec<UsageEvent>, Error> {
        let query =
            format!("{EVENT} FROM usage_event WHERE api_key = $1 AND seq >= $2 AND seq <= $3 ORDER BY seq");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(key)
            .bind(first)
            .bind(last)
            .fetch_all(&self.reports)
            .await?;
        rows.iter().map(event).collect()
    }

    /// Rows of a key that wait to be chained and have no number yet.
    ///
    /// # Errors
    /// What the database says.
    pub async fn unchained_usage_of(&self, key: &str) -> Result<Vec<UsageEvent>, Error> {
        let query = format!("{EVENT} FROM usage_unchained WHERE api_key = $1 ORDER BY seq");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(key)
            .fetch_all(&self.reports)
            .await?;
        rows.iter().map(event).collect()
    }

    /// The number of the last row; 0 where there is none, or all wait for theirs.
    ///
    /// # Errors
    /// What the database says.
    pub async fn usage_end(&self) -> Result<i64, Error> {
        let row = sqlx::query("SELECT COALESCE(MAX(seq), 0) FROM usage_event")
            .fetch_one(&self.pool)
            .await?;
        Ok(row.try_get(0)?)
    }

    /// Rows with numbers from one to another, both included.
    ///
    /// # Errors
    /// What the database says.
    pub async fn usage_events(&self, first: i64, last: i64) -> Result<Vec<UsageEvent>, Error> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{EVENT} FROM usage_event WHERE seq >= $1 AND seq <= $2 ORDER BY seq"
        )))
        .bind(first)
        .bind(last)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(event).collect()
    }
}

/// Rows of a table, each as a sum of its own.
fn rows_as_sums(at: &str, table: &str) -> String {
    format!(
        "SELECT {at} AS at, project, api_key, model, endpoint, CASE WHEN outcome = 'refused' THEN 0 ELSE 1 END AS requests, \
         CASE WHEN outcome = 'refused' THEN 1 ELSE 0 END AS refused, input, cached, output, cost_nano FROM {table}"
    )
}

pub(super) fn batch(row: &AnyRow) -> Result<UsageBatch, Error> {
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

pub(super) fn event(row: &AnyRow) -> Result<UsageEvent, Error> {
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
        content: row.try_get(14)?,
    })
}

fn sum(row: &AnyRow) -> Result<UsageSum, Error> {
    Ok(UsageSum {
        start: row.try_get(0)?,
        project: row.try_get(1)?,
        key: row.try_get(2)?,
        model: row.try_get(3)?,
        endpoint: row.try_get(4)?,
        total: total(row)?,
    })
}

/// The numbers of a sum, behind the five columns that tell what it is of.
pub(super) fn total(row: &AnyRow) -> Result<UsageTotal, Error> {
    Ok(UsageTotal {
        requests: row.try_get(5)?,
        refused: row.try_get(6)?,
        input: row.try_get(7)?,
        cached: row.try_get(8)?,
        output: row.try_get(9)?,
        cost_nano: row.try_get(10)?,
    })
}
