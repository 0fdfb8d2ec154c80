//! Few rows of usage, written to a file by the thread that has them: an answer waits for its row, and to wake the driver's thread
//! and to be woken by it takes longer than SQLite does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, params_from_iter};

use super::database::Durable;
use super::parts::{Part, Value};
use super::{Database, Store};
use crate::usage::UsageEvent;

/// Rows that are written so: each holds up the thread for some 10 microseconds, or 40 where it is alone.
const ROWS_MAX: usize = 16;

/// A connection of its own to the file.
pub(super) struct Direct {
    path: Option<PathBuf>,
    settings: String,
    /// Kept unless it failed.
    connection: Option<Connection>,
}

impl Direct {
    /// Of a store in a file; of another it never writes.
    pub(super) fn of(store: &Store) -> Self {
        let path = match &*store.database {
            Database::File(path) => Some(path.clone()),
            Database::Server(_) => None,
        };
        Self {
            path,
            settings: store.database.settings(Durable::AtEverySync, Duration::ZERO),
            connection: None,
        }
    }

    /// Writes rows to those that wait to be chained, all or none, and waits for nobody: whether it did. Otherwise they are too many,
    /// or another connection is writing.
    ///
    /// # Errors
    /// What the database says.
    pub(super) fn put(&mut self, rows: &[UsageEvent]) -> rusqlite::Result<bool> {
        let Some(path) = self.path.as_ref().filter(|_| rows.len() <= ROWS_MAX) else {
            return Ok(false);
        };
        let kept = self.connection.take();
        let opened = kept.map_or_else(|| unless_busy(open(path, &self.settings)), |kept| Ok(Some(kept)))?;
        let Some(connection) = opened else {
            return Ok(false);
        };
        let written = unless_busy(write(&connection, rows))?;
        self.connection = Some(connection);
        Ok(written.is_some())
    }
}

fn open(path: &Path, settings: &str) -> rusqlite::Result<Connection> {
    // The file is there: the store has opened it. A path is no URL, and the connection one task's.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.execute_batch(settings)?;
    Ok(connection)
}

fn write(connection: &Connection, rows: &[UsageEvent]) -> rusqlite::Result<()> {
    let insert = |row: &UsageEvent| {
        let part = Part::Unchained(row);
        let mut statement = connection.prepare_cached(part.words())?;
        match statement.execute(params_from_iter(part.values()))? {
            1 => Ok(()),
            // Somebody has made the table pass rows over.
            rows => Err(rusqlite::Error::StatementChangedRows(rows)),
        }
    };
    // A statement is a change by itself.
    if let [row] = rows {
        return insert(row);
    }
    let run = |words: &str| connection.prepare_cached(words)?.execute([]).map(drop);
    run("BEGIN IMMEDIATE")?;
    let written = rows.iter().try_for_each(insert).and_then(|()| run("COMMIT"));
    // What is not committed is taken back; some errors have ended it already.
    if written.is_err() && !connection.is_autocommit() {
        run("ROLLBACK")?;
    }
    written
}

/// `None` where another connection is writing.
fn unless_busy<T>(done: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    let busy = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked];
    match done {
        Err(error) if error.sqlite_error_code().is_some_and(|code| busy.contains(&code)) => Ok(None),
        done => done.map(Some),
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Number(number) => number.to_sql(),
            Self::Known(number) => number.to_sql(),
            Self::Text(text) => text.to_sql(),
        }
    }
}
