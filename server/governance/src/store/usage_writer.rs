//! Rows of what was used, written as they come and chained in batches.
//!
//! An answer waits for its row, so the row goes to a file alone, into a table of those that wait. A batch of them, their hashes and
//! their sums come later, for many at one time. A server's rows are chained as they are written: others write there, too, and a
//! round trip more costs more than that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Any, Connection as _, Row as _, Transaction};

use super::content::deletions;
use super::direct::Direct;
use super::leases::{self, Counts};
use super::parts::{Part, put};
use super::usage::{BATCH, EVENT, batch, event};
use super::{Database, Error, Store, now_ms};
use crate::content::Content;
use crate::usage::{BATCH_ROWS_MAX, BrokenUsage, UsageBatch, UsageEvent, UsageTotal};

/// When so many rows wait to be chained, the next ones are written with them.
const UNCHAINED_MAX: usize = 256;
/// After so many rows the log of a file is brought to it, with syncs. Before a change and not after it, as the first writer after
/// that syncs, too, and no reactor is to wait.
const LOGGED_MAX: usize = 256;
/// What chaining adds to the log beside its rows, in rows: measured, 14 pages for one row, of which a row by itself takes two.
const CHAIN_ROWS: usize = 16;
/// How long a batch may take before it is tried anew with another connection: a server may be gone without a word.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Writes what was used. A row that was written outlives the process at once, and a loss of power after [`Store::sync_log`].
pub struct UsageWriter {
    store: Store,
    direct: Direct,
    /// Kept from batch to batch, unless one failed.
    connection: Option<PoolConnection<Any>>,
    /// Whether the last rows may have been written, although that could not be told.
    in_doubt: bool,
    /// Rows of this writer that wait to be chained.
    unchained_rows: usize,
    /// Rows since the log was brought to the file.
    logged: usize,
    /// Whether the last row that was to go directly could not.
    detoured: bool,
    /// Why, until that is asked for.
    detour: Option<Error>,
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
            unchained_rows: 0,
            logged: 0,
            detoured: false,
            detour: None,
        }
    }

    /// Writes rows, all of them or none; none where the last try had written them after all. Those that wait may be chained with them.
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
        match self.write_here(usage) {
            Ok(true) => {
                self.detoured = false;
                return Ok(());
            }
            Ok(false) => {}
            Err(error) if !self.detoured => (self.detour, self.detoured) = (Some(error), true),
            Err(_) => {}
        }
        let written = self.write_chained(usage).await;
        if written.is_err() {
            // No way leads there.
            (self.detour, self.detoured) = (None, false);
        }
        written
    }

    /// Chains the rows that wait.
    ///
    /// # Errors
    /// What the database says. It can be tried again; until it succeeds, rows are no longer written directly.
    pub async fn chain(&mut self) -> Result<(), Error> {
        if self.store.file.is_none() {
            // A server's are.
            return Ok(());
        }
        let (rows, records, counts) = (&[], &[], &Counts::new());
        let in_doubt = self.in_doubt;
        let chained = self
            .write_chained(Usage {
                rows,
                records,
                counts,
            })
            .await;
        // Of the rows of the last try it tells nothing.
        self.in_doubt |= in_doubt;
        chained
    }

    /// How many rows this has written that are not chained yet, at most: others chain them, too.
    pub fn unchained_rows(&self) -> usize {
        self.unchained_rows
    }

    /// Why rows could not go directly and went the longer way; of several that follow one another, of the first, once.
    pub fn take_detour(&mut self) -> Option<Error> {
        self.detour.take()
    }

    /// Writes few rows on this thread, where they wait to be chained; whether it did.
    fn write_here(&mut self, Usage { rows, records, .. }: Usage<'_>) -> Result<bool, Error> {
        // Of records it is looked whether they were deleted meanwhile.
        if self.in_doubt || !records.is_empty() || self.unchained_rows >= UNCHAINED_MAX {
            return Ok(false);
        }
        self.store.check_file()?;
        let written = self.direct.put(rows);
        self.in_doubt = written.is_err();
        let written = written?;
        if written {
            self.unchained_rows += rows.len();
            self.logged += rows.len();
        }
        Ok(written)
    }

    /// Writes rows behind those that wait, all of them chained.
    async fn write_chained(&mut self, usage: Usage<'_>) -> Result<(), Error> {
        // Until it is known to be otherwise, even if this is given up.
        let in_doubt = std::mem::replace(&mut self.in_doubt, true);
        let kept = self.connection.take();
        // Changes would go to the file of that name, and these rows to one that has none.
        self.store.check_file()?;
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.store.usage.acquire().await?,
        };
        let is_long = self.logged >= LOGGED_MAX && self.store.file.is_some();
        let writing = async {
            if is_long {
                // What can't be brought to the file stays in the log.
                let _ = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
                    .fetch_one(&mut *connection)
                    .await;
            }
            write(&mut connection, &self.store.database, usage, in_doubt).await
        };
        let written = tokio::time::timeout(ANSWER_MAX, writing)
            .await
            .unwrap_or(Err(Error::Silent));
        if is_long {
            self.logged = 0;
        }
        match written {
            Ok(()) => {
                self.in_doubt = false;
                self.connection = Some(connection);
                self.unchained_rows = 0;
                self.logged += usage.rows.len() + CHAIN_ROWS;
                Ok(())
            }
            Err(error) => {
                // One whose disk was full, or whose server is gone, may be of no use any more.
                connection.close_on_drop();
                Err(self.store.named_unchained(error).await)
            }
        }
    }
}

impl Store {
    /// Chains rows of usage that wait for it, whoever has written them.
    ///
    /// # Errors
    /// Names a trigger, or a row that somebody else has written there; what the database says.
    pub async fn chain_usage(&self) -> Result<(), Error> {
        self.check_triggers().await?;
        // Most find none, and then wait for nobody who writes.
        let waiting = sqlx::query("SELECT seq FROM usage_unchained LIMIT 1")
            .fetch_optional(&self.pool)
            .await?;
        if waiting.is_none() {
            return Ok(());
        }
        self.check_file()?;
        if self.file.is_none() {
            return self.check_waiting().await;
        }
        let chaining = async {
            let mut change = self.changes.begin_with(self.database.begin()).await?;
            chain_all(&mut change, &self.database).await?;
            Ok(change.commit().await?)
        };
        match chaining.await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.named_unchained(error).await),
        }
    }

    /// Why rows could not be chained: where somebody has written one that can't be, its number instead of what the database says of
    /// all together.
    async fn named_unchained(&self, error: Error) -> Error {
        // A server may be gone, and is not waited for once more.
        if self.file.is_none() {
            return error;
        }
        match self.broken_unchained().await {
            Ok(Some(seq)) => BrokenUsage::Waiting(seq).into(),
            Ok(None) | Err(_) => error,
        }
    }

    /// Names what changes rows in a file before they are chained, which no chain could tell. (A server's rows are chained as they
    /// are written.)
    async fn check_triggers(&self) -> Result<(), Error> {
        if self.file.is_none() {
            return Ok(());
        }
        // SQLite knows one by its kind in letters of either case.
        let found =
            sqlx::query("SELECT name FROM sqlite_schema WHERE type = 'trigger' COLLATE NOCASE LIMIT 1")
                .fetch_optional(&self.pool)
                .await?;
        match found {
            Some(row) => Err(BrokenUsage::Trigger(row.try_get(0)?).into()),
            None => Ok(()),
        }
    }

    /// Names a trigger, or the first row that can't be chained as it is.
    pub(super) async fn check_waiting(&self) -> Result<(), Error> {
        self.check_triggers().await?;
        match self.broken_unchained().await? {
            Some(seq) => Err(BrokenUsage::Waiting(seq).into()),
            None => Ok(()),
        }
    }

    /// The first row that can't be chained as it is. On a server this program chains rows as it writes them: none of its own waits.
    async fn broken_unchained(&self) -> Result<Option<i64>, Error> {
        let mut behind = i64::MIN;
        loop {
            let query = format!(
                "{EVENT}, CAST(seq AS BIGINT) AS seq, \
                 (SELECT COUNT(*) FROM usage_event AS chained WHERE chained.id = waiting.id) AS chained \
                 FROM usage_unchained AS waiting WHERE seq > $1 ORDER BY seq LIMIT {BATCH_ROWS_MAX}"
            );
            let rows = sqlx::query(sqlx::AssertSqlSafe(query))
                .bind(behind)
                .fetch_all(&self.pool)
                .await?;
            for row in &rows {
                behind = row.try_get("seq")?;
                if self.file.is_none() || event(row).is_err() || row.try_get::<i64, _>("chained")? > 0 {
                    return Ok(Some(behind));
                }
            }
            if rows.is_empty() {
                return Ok(None);
            }
        }
    }

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
}

/// Writes rows behind those that wait.
async fn write(
    connection: &mut PoolConnection<Any>,
    database: &Database,
    usage: Usage<'_>,
    in_doubt: bool,
) -> Result<(), Error> {
    let mut change = connection.begin_with(database.begin()).await?;
    lock(&mut change, database).await?;
    let known = in_doubt && is_known(&mut change, usage.rows).await?;
    let last = match database {
        Database::File(_) => chain(&mut change, database).await?,
        Database::Server(_) => last_batch(&mut change).await?,
    };
    if !known && !usage.rows.is_empty() {
        let (rows, records) = kept(&mut change, usage).await?;
        let new = behind(last.as_ref(), &rows);
        put(&mut change, database, &parts(&new, &rows, &records)).await?;
        leases::count(&mut change, usage.counts).await?;
    }
    Ok(change.commit().await?)
}

/// Chains all rows that wait, within a change of something else.
pub(super) async fn chain_all(change: &mut Transaction<'_, Any>, database: &Database) -> Result<(), Error> {
    lock(change, database).await?;
    chain(change, database).await.map(drop)
}

/// Waits for others that write usage, where the begin of a change does not.
async fn lock(change: &mut Transaction<'_, Any>, database: &Database) -> Result<(), Error> {
    if let Some(lock) = database.lock_usage() {
        sqlx::query(lock).fetch_one(&mut **change).await?;
    }
    Ok(())
}

/// Chains all rows that wait; the last batch there is then.
async fn chain(change: &mut Transaction<'_, Any>, database: &Database) -> Result<Option<UsageBatch>, Error> {
    let mut last = last_batch(change).await?;
    loop {
        let (rows, end) = next_waiting(change).await?;
        if rows.is_empty() {
            return Ok(last);
        }
        let new = behind(last.as_ref(), &rows);
        put(change, database, &parts(&new, &rows, &[])).await?;
        sqlx::query("DELETE FROM usage_unchained WHERE seq <= $1")
            .bind(end)
            .execute(&mut **change)
            .await?;
        last = Some(new);
    }
}

/// The rows of the next batch, and the last one's number among those that wait.
async fn next_waiting(change: &mut Transaction<'_, Any>) -> Result<(Vec<UsageEvent>, i64), Error> {
    let query = format!(
        "{EVENT}, CAST(seq AS BIGINT) AS seq FROM usage_unchained ORDER BY seq LIMIT {BATCH_ROWS_MAX}"
    );
    let found = sqlx::query(sqlx::AssertSqlSafe(query))
        .fetch_all(&mut **change)
        .await?;
    let rows = found.iter().map(event).collect::<Result<Vec<_>, _>>()?;
    let end = found.last().map_or(Ok(0), |last| last.try_get("seq"))?;
    Ok((rows, end))
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
    let known = sqlx::query(
        "SELECT id FROM usage_event WHERE id = $1 UNION ALL SELECT id FROM usage_unchained WHERE id = $1",
    )
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
