//! Rows of what was used, written in batches and read in sums.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::time::Duration;

use sqlx::any::AnyRow;
use sqlx::pool::PoolConnection;
use sqlx::{Any, Connection as _, Row as _, Transaction};

use super::content::deletions;
use super::direct::Direct;
use super::leases::{self, Counts};
use super::parts::{Part, put};
use super::{Database, Error, Store, now_ms};
use crate::content::Content;
use crate::usage::{HOUR_S, UsageBatch, UsageEvent, UsageTotal};

/// Columns of a batch and of a row, in the order in which they are read.
pub(super) const BATCH: &str =
    "SELECT seq, at_ms, first_row, last_row, digest, previous, hash FROM usage_batch";
pub(super) const EVENT: &str = "SELECT id, began_ms, project, api_key, model, endpoint, input, cached, output, first_ms, \
     duration_ms, status, outcome, cost_nano, content FROM usage_event";
const MINUTE_S: i64 = 60;
/// How long a batch may take before it is tried anew with another connection: a server may be gone without a word.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Sums of spans, of what has a time `at`. Times are after 1970, so that the division rounds down.
const OF_HOURS: &str = "SELECT at / $1 * $1, project, api_key, model, endpoint, CAST(SUM(requests) AS BIGINT), \
     CAST(SUM(refused) AS BIGINT), CAST(SUM(input) AS BIGINT), CAST(SUM(cached) AS BIGINT), CAST(SUM(output) AS BIGINT), \
     CAST(SUM(cost_nano) AS BIGINT) FROM (SELECT hour AS at, usage_bucket.* FROM usage_bucket) AS used";
const OF_ROWS: &str = "SELECT at / $1 * $1, project, api_key, model, endpoint, \
     CAST(SUM(CASE WHEN outcome = 'refused' THEN 0 ELSE 1 END) AS BIGINT), \
     CAST(SUM(CASE WHEN outcome = 'refused' THEN 1 ELSE 0 END) AS BIGINT), CAST(SUM(input) AS BIGINT), \
     CAST(SUM(cached) AS BIGINT), CAST(SUM(output) AS BIGINT), CAST(SUM(cost_nano) AS BIGINT) \
     FROM (SELECT began_ms AS at, usage_event.* FROM usage_event) AS used";

/// Writes what was used. A row that was written outlives the process at once, and a loss of power after [`Store::sync_log`].
pub struct UsageWriter {
    store: Store,
    direct: Direct,
    /// Kept from batch to batch, unless one failed.
    connection: Option<PoolConnection<Any>>,
    /// Whether the last batch may have been written, although that could not be told.
    in_doubt: bool,
    /// The last batch, if this has written it.
    last: Option<UsageBatch>,
    /// Whether the last row that was to go directly could not.
    detoured: bool,
    /// Why, until that is asked for.
    detour: Option<Error>,
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

/// What is written at one time.
#[derive(Clone, Copy, Debug)]
pub struct Usage<'a> {
    pub rows: &'a [UsageEvent],
    /// What was asked and answered in some of them; each row has the mark of its record.
    pub records: &'a [Content],
    /// What the rows count for, where several servers count together.
    pub counts: &'a Counts,
}

/// What requests of one sum have in common.
pub(super) type Of<'a> = (i64, &'a str, &'a str, &'a str, &'a str);

impl UsageWriter {
    pub fn new(store: Store) -> Self {
        Self {
            direct: Direct::of(&store),
            store,
            connection: None,
            in_doubt: false,
            last: None,
            detoured: false,
            detour: None,
        }
    }

    /// Writes rows as one batch, all of them or none; nothing where the last try had written them after all.
    ///
    /// # Errors
    /// What the database says. The same rows can be tried again.
    pub async fn write(&mut self, rows: &[UsageEvent]) -> Result<(), Error> {
        let (records, counts) = (&[], &Counts::new());
        let usage = Usage {
            rows,
            records,
            counts,
        };
        self.write_all(usage).await
    }

    /// The same with records of some of them; and counts their tokens in the same change where several servers count together.
    ///
    /// # Errors
    /// As [`UsageWriter::write`].
    pub async fn write_all(&mut self, usage: Usage<'_>) -> Result<(), Error> {
        if let Some(last) = self.last.take() {
            match self.write_here(usage, &last) {
                Ok(new @ Some(_)) => {
                    (self.last, self.detoured) = (new, false);
                    return Ok(());
                }
                Ok(None) if self.try_write(usage, Some(last)).await.is_ok() => return Ok(()),
                Ok(None) => {}
                Err(error) if !self.detoured => (self.detour, self.detoured) = (Some(error), true),
                Err(_) => {}
            }
        }
        // Another process may have written since.
        let written = self.try_write(usage, None).await;
        if written.is_err() {
            // No way leads there.
            (self.detour, self.detoured) = (None, false);
        }
        written
    }

    /// Why rows could not go directly and went the longer way; of several that follow one another, of the first, once.
    pub fn take_detour(&mut self) -> Option<Error> {
        self.detour.take()
    }

    /// Writes few rows behind a batch that is known to be the last, on this thread; the batch, unless it is not the time for that.
    fn write_here(&mut self, usage: Usage<'_>, last: &UsageBatch) -> Result<Option<UsageBatch>, Error> {
        // Of records it is looked whether they were deleted meanwhile.
        if self.in_doubt || !usage.records.is_empty() {
            return Ok(None);
        }
        self.store.check_file()?;
        let new = behind(Some(last), usage.rows);
        let written = self.direct.put(&parts(&new, usage.rows, &[]));
        self.in_doubt = written.is_err();
        Ok(written?.then_some(new))
    }

    /// Writes rows behind a batch that is known to be the last, or behind the last there is.
    async fn try_write(&mut self, usage: Usage<'_>, last: Option<UsageBatch>) -> Result<(), Error> {
        let kept = self.connection.take();
        // Changes would go to the file of that name, and these rows to one that has none.
        self.store.check_file()?;
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.store.usage.acquire().await?,
        };
        let writing = write(&mut connection, &self.store.database, usage, last, self.in_doubt);
        let written = tokio::time::timeout(ANSWER_MAX, writing)
            .await
            .unwrap_or(Err(Error::Silent));
        self.in_doubt = written.is_err();
        match written {
            Ok(last) => {
                self.connection = Some(connection);
                // Of a server others write behind it as a rule.
                self.last = last.filter(|_| self.store.file.is_some());
                Ok(())
            }
            Err(error) => {
                // One whose disk was full, or whose server is gone, may be of no use any more.
                connection.close_on_drop();
                Err(error)
            }
        }
    }
}

/// The batch that was written, if it was written now.
async fn write(
    connection: &mut PoolConnection<Any>,
    database: &Database,
    usage: Usage<'_>,
    last: Option<UsageBatch>,
    in_doubt: bool,
) -> Result<Option<UsageBatch>, Error> {
    let mut change = connection.begin_with(database.begin()).await?;
    if let Some(lock) = database.lock_usage() {
        sqlx::query(lock).fetch_one(&mut *change).await?;
    }
    if in_doubt && is_known(&mut change, usage.rows).await? {
        // At once: the connection is kept, and would keep the lock.
        change.rollback().await?;
        return Ok(None);
    }
    let last = match last {
        Some(last) => Some(last),
        None => last_batch(&mut change).await?,
    };
    let (rows, records) = kept(&mut change, usage).await?;
    let new = behind(last.as_ref(), &rows);
    put(&mut change, database, &parts(&new, &rows, &records)).await?;
    leases::count(&mut change, usage.counts).await?;
    change.commit().await?;
    Ok(Some(new))
}

fn behind(last: Option<&UsageBatch>, rows: &[UsageEvent]) -> UsageBatch {
    let at_ms = last.map_or(0, |last| last.at_ms).max(now_ms());
    UsageBatch::behind(last, at_ms, rows)
}

fn parts<'a>(new: &'a UsageBatch, rows: &'a [UsageEvent], records: &'a [Content]) -> Vec<Part<'a>> {
    let mut parts = vec![Part::Batch(new)];
    // Whatever somebody has written there as the last number.
    let numbers = std::iter::successors(Some(new.first), |seq| Some(seq.saturating_add(1)));
    parts.extend(numbers.zip(rows).map(|(seq, row)| Part::Row(seq, row)));
    parts.extend(sums(rows).into_iter().map(|(of, sum)| Part::Sum(of, sum)));
    parts.extend(records.iter().map(Part::Content));
    parts
}

/// Rows, and the records that are kept of them: none of what was deleted while its request ran.
async fn kept<'a>(
    change: &mut Transaction<'_, Any>,
    Usage { rows, records, .. }: Usage<'a>,
) -> Result<(Cow<'a, [UsageEvent]>, Cow<'a, [Content]>), Error> {
    let Some(since_ms) = records.iter().map(|record| record.began_ms).min() else {
        return Ok((rows.into(), records.into()));
    };
    let deletions = deletions(change, since_ms).await?;
    let gone = |project: &str, key: &str, began_ms| deletions.cover(project, key, began_ms);
    if !records
        .iter()
        .any(|record| gone(&record.project, &record.key, record.began_ms))
    {
        return Ok((rows.into(), records.into()));
    }
    let (mut rows, mut records) = (rows.to_vec(), records.to_vec());
    for row in &mut rows {
        if gone(&row.project, &row.key, row.began_ms) {
            row.content.clear();
        }
    }
    records.retain(|record| !gone(&record.project, &record.key, record.began_ms));
    Ok((rows.into(), records.into()))
}

async fn last_batch(change: &mut Transaction<'_, Any>) -> Result<Option<UsageBatch>, Error> {
    let last = sqlx::query(sqlx::AssertSqlSafe(format!("{BATCH} ORDER BY seq DESC LIMIT 1")))
        .fetch_optional(&mut **change)
        .await?;
    last.as_ref().map(batch).transpose()
}

/// Whether rows are there already: they come all or none.
async fn is_known(change: &mut Transaction<'_, Any>, rows: &[UsageEvent]) -> Result<bool, Error> {
    let id = rows.first().map_or("", |row| row.id.as_str());
    let known = sqlx::query("SELECT seq FROM usage_event WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut **change)
        .await?;
    Ok(known.is_some())
}

fn sums(rows: &[UsageEvent]) -> BTreeMap<Of<'_>, UsageTotal> {
    let mut sums: BTreeMap<Of<'_>, UsageTotal> = BTreeMap::new();
    for row in rows {
        let of: Of<'_> = (row.hour(), &row.project, &row.key, &row.model, &row.endpoint);
        sums.entry(of).or_default().add(row.total());
    }
    sums
}

impl Store {
    /// Has all that was written outlive a loss of power: what waits to go from the database's log to its file. (To have it go there
    /// would not do: while anything is read it may not.)
    ///
    /// # Errors
    /// What the system says.
    pub async fn sync_log(&self) -> Result<(), Error> {
        let Some(opened) = &self.file else {
            // A server has done so before it acknowledged.
            return Ok(());
        };
        let log = opened.log().to_owned();
        let sync = move || match File::open(log) {
            Ok(log) => log.sync_all(),
            // All of it is in the file.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        let synced = tokio::task::spawn_blocking(sync).await;
        Ok(synced.map_err(std::io::Error::other)??)
    }

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
        let (table, scale) = if span_s % HOUR_S == 0 {
            (OF_HOURS, 1)
        } else {
            (OF_ROWS, 1_000)
        };
        let query = format!(
            "{table} WHERE at >= $2 AND at < $3 GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5 LIMIT $4"
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
        let query = format!("{EVENT} WHERE api_key = $1 AND seq >= $2 AND seq <= $3 ORDER BY seq");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(key)
            .bind(first)
            .bind(last)
            .fetch_all(&self.reports)
            .await?;
        rows.iter().map(event).collect()
    }

    /// The number of the last row; 0 where there is none.
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
            "{EVENT} WHERE seq >= $1 AND seq <= $2 ORDER BY seq"
        )))
        .bind(first)
        .bind(last)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(event).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_row_that_can_not_go_directly_goes_the_longer_way_and_that_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = async |name| Store::open(&Database::File(folder.path().join(name))).await;
        let gone = open("gone.db").await.unwrap();
        let mut writer = UsageWriter::new(open("kept.db").await.unwrap());
        writer.direct = Direct::of(&gone);
        gone.close().await;
        std::fs::remove_file(folder.path().join("gone.db")).unwrap();
        let mut told = 0;
        for at in 0..8 {
            let row = UsageEvent {
                id: at.to_string(),
                ..UsageEvent::default()
            };
            writer.write(&[row]).await.unwrap();
            told += usize::from(writer.take_detour().is_some());
        }
        assert_eq!(told, 1);
    }
}
