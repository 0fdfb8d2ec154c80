//! What a database has, in numbers, for somebody who is to help: no row is read, and nothing is changed.

use std::path::Path;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, install_default_drivers};
use sqlx::{AnyConnection, AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use tokio::time::timeout;

use super::database::WAIT;
use super::{Database, Error, backup, migrations};

/// For counting the rows of all tables.
const COUNTING_MAX: Duration = Duration::from_mins(1);
/// Tables that no copy has.
const IN_NO_COPY: [&str; 3] = ["content", "limit_count", "limit_lease"];

/// What a database has, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// The program that keeps it, and its version.
    pub program: String,
    /// The last change of the tables that was made to it.
    pub version: i64,
    /// The last that this program knows.
    pub version_known: usize,
    /// Bytes of an SQLite file with its log; `None` of a server's.
    pub bytes: Option<u64>,
    /// The rows of each table; `None` where there is no such table.
    pub rows: Vec<(&'static str, Option<i64>)>,
}

impl Database {
    /// Counts what is in it. Unlike [`super::Store::open_existing`] this brings no table up to date, so that a server of an older
    /// version goes on.
    ///
    /// # Errors
    /// There is none, it does not answer in time, or what it said.
    pub async fn census(&self) -> Result<Census, Error> {
        if let Self::File(path) = self
            && !path.is_file()
        {
            let message = format!("there is no database {}", path.display());
            return Err(Error::Refused(message));
        }
        install_default_drivers();
        let options: AnyConnectOptions = self.url()?.parse()?;
        let options = options.disable_statement_logging();
        let connecting = timeout(WAIT, AnyConnection::connect_with(&options));
        let mut connection = connecting.await.map_err(|_| Error::Silent)??;
        let counted = timeout(COUNTING_MAX, self.count(&mut connection)).await;
        let _ = timeout(WAIT, connection.close()).await;
        counted.map_err(|_| Error::Silent)?
    }

    async fn count(&self, connection: &mut AnyConnection) -> Result<Census, Error> {
        let (settings, program, bytes) = match self {
            Self::File(path) => (
                "PRAGMA query_only = ON",
                "SELECT 'SQLite ' || sqlite_version()",
                Some(length(path)),
            ),
            Self::Server(_) => (
                "SET default_transaction_read_only = on",
                "SELECT 'PostgreSQL ' || current_setting('server_version')",
                None,
            ),
        };
        sqlx::query(settings).execute(&mut *connection).await?;
        let program = sqlx::query(program).fetch_one(&mut *connection).await?;
        let version = "SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations WHERE success";
        let version = sqlx::query(version).fetch_one(&mut *connection).await?;
        let mut rows = Vec::new();
        for table in backup::tables().chain(IN_NO_COPY) {
            let query = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
            rows.push(match sqlx::query(query).fetch_one(&mut *connection).await {
                Ok(row) => (table, Some(row.try_get(0)?)),
                // It is of a version before that table, or this one's user may not read it.
                Err(sqlx::Error::Database(_)) => (table, None),
                Err(error) => return Err(error.into()),
            });
        }
        Ok(Census {
            program: program.try_get(0)?,
            version: version.try_get(0)?,
            version_known: migrations::known(),
            bytes,
            rows,
        })
    }
}

/// Of a file of SQLite's with its log.
fn length(path: &Path) -> u64 {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    [path, Path::new(&log)]
        .into_iter()
        .filter_map(|file| std::fs::metadata(file).ok())
        .map(|file| file.len())
        .sum()
}
