//! Few rows of usage, written to a file by the thread that has them: an answer waits for its row, and to wake the driver's thread
//! and to be woken by it takes longer than SQLite does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, params_from_iter};

use super::database::Durable;
use super::parts::{Part, Value};
use super::{Database, Store};

/// Parts of a batch that are written so: each holds up the thread for some 10 microseconds.
const PARTS_MAX: usize = 8;
/// Of so many batches the first few go the long way. Its connection brings what the log has grown by to the file, with syncs that
/// no reactor is to wait for; the first writer after that syncs the beginning of the log, and so does a row here where it is the
/// first after another connection has done so.
const TURNS: u32 = 256;
const TURNS_OF_OTHERS: u32 = 2;

/// A connection of its own to the file.
pub(super) struct Direct {
    path: Option<PathBuf>,
    settings: String,
    /// Kept unless it failed.
    connection: Option<Connection>,
    turn: u32,
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
            turn: 0,
        }
    }

    /// Writes the parts of a batch, all or none, and waits for nobody: whether it did. Otherwise they are too many, another
    /// connection is writing, or it is the turn of the long way.
    ///
    /// # Errors
    /// What the database says.
    pub(super) fn put(&mut self, parts: &[Part<'_>]) -> rusqlite::Result<bool> {
        let Some(path) = self.path.as_ref().filter(|_| parts.len() <= PARTS_MAX) else {
            return Ok(false);
        };
        self.turn = (self.turn + 1) % TURNS;
        if self.turn < TURNS_OF_OTHERS {
            return Ok(false);
        }
        let kept = self.connection.take();
        let opened = kept.map_or_else(|| unless_busy(open(path, &self.settings)), |kept| Ok(Some(kept)))?;
        let Some(connection) = opened else {
            return Ok(false);
        };
        let written = unless_busy(write(&connection, parts))?;
        self.connection = Some(connection);
        Ok(written.is_some())
    }
}

fn open(path: &Path, settings: &str) -> rusqlite::Result<Connection> {
    // The file is there: the store has opened it. A path is no URL, and the connection one task's.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.execute_batch(settings)?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
    Ok(connection)
}

/// What is not committed is taken back. (The driver's own change would have its begin and its end read anew each time.)
fn write(connection: &Connection, parts: &[Part<'_>]) -> rusqlite::Result<()> {
    let run = |words: &str| connection.prepare_cached(words)?.execute([]);
    run("BEGIN IMMEDIATE")?;
    let insert = |part: &Part<'_>| {
        let mut statement = connection.prepare_cached(part.words())?;
        statement.execute(params_from_iter(part.values())).map(drop)
    };
    let written = parts
        .iter()
        .try_for_each(insert)
        .and_then(|()| run("COMMIT").map(drop));
    // Some errors have ended it already.
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
