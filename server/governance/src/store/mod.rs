//! Where identities, rights and the audit chain are kept: an SQLite file, asked in words that other databases understand, too.

mod audit;
mod keys;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers};
use sqlx::{Any, AnyPool, Executor as _, Transaction};
use thiserror::Error;

pub use keys::{NewKeyRequest, Project};

/// Connections to the database.
const CONNECTIONS_MAX: u32 = 4;
/// How long one is waited for, and SQLite's file when another process writes to it.
const WAIT: Duration = Duration::from_secs(5);

/// Why something was not stored or read.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("preparing the database: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("the system has no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// What was asked for can't be.
    #[error("{0}")]
    Refused(String),
    /// It does not hold what this program writes.
    #[error("the database holds a row that this program has not written: {0}")]
    Unsound(String),
}

/// A connection to what is kept. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
}

impl Store {
    /// Opens a database, makes it if it is a file that is not there, and brings its tables up to date. `place` is a path, or an
    /// `sqlite:` URL.
    ///
    /// # Errors
    /// Says what the database said.
    pub async fn open(place: &str) -> Result<Self, Error> {
        install_default_drivers();
        let is_url = place.starts_with("sqlite:") || place.contains("://");
        let url = if is_url {
            place.to_owned()
        } else {
            format!("sqlite://{place}?mode=rwc")
        };
        let options: AnyConnectOptions = url.parse()?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(WAIT)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    // What was acknowledged outlives a loss of power.
                    let wait = WAIT.as_millis();
                    let settings = format!(
                        "PRAGMA busy_timeout = {wait}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                         PRAGMA foreign_keys = ON"
                    );
                    connection.execute(sqlx::AssertSqlSafe(settings)).await?;
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        sqlx::migrate!().run(&pool).await?;
        Ok(Self { pool })
    }

    /// Begins a change, which waits for another that is under way.
    async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        // It would else begin as a reader, and fail where two want to write.
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// The time, in Unix seconds.
pub fn now_s() -> i64 {
    now_ms() / 1000
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
