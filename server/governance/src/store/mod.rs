//! Where identities, rights and the audit chain are kept: an SQLite file, asked in words that other databases understand, too.

mod audit;
mod keys;
mod limits;
mod proof;
mod setting;
mod usage;

use std::fs::{File, OpenOptions};
use std::os::fd::IntoRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers};
use sqlx::{Any, AnyPool, Executor as _, Transaction};
use thiserror::Error;

pub use keys::{NewKeyRequest, Project};
pub use limits::WEIGHT_MAX;
pub use proof::UsageProof;
pub use usage::{UsageSum, UsageWriter};

use crate::usage::BrokenUsage;

/// Connections to the database.
const CONNECTIONS_MAX: u32 = 4;
/// How long one is waited for, and the file when another process writes to it.
const WAIT: Duration = Duration::from_secs(5);
/// Who may read the file: its owner.
const MODE: u32 = 0o600;
/// For what is to outlive a loss of power as soon as it is acknowledged.
const AT_EVERY_COMMIT: &str = "FULL";

/// Why something was not stored or read.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    #[error("the database can't be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("the file can't be used")]
    File(#[from] std::io::Error),
    #[error("the system has no randomness")]
    Random(#[from] getrandom::Error),
    /// What was asked for can't be.
    #[error("{0}")]
    Refused(String),
    /// What is asked for is more than so many sums.
    #[error("that is more than {0} sums: ask for a shorter time")]
    TooMany(usize),
    #[error(transparent)]
    Broken(#[from] BrokenUsage),
    /// It does not hold what this program writes.
    #[error("the database holds a row that this program has not written: {0}")]
    Unsound(String),
}

/// A connection to what is kept. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    /// Changes have a connection of their own, and never the same one twice: one whose change failed, as the disk was full, may be
    /// of no use any more. Readers do not wait for them.
    changes: AnyPool,
    /// For what is used, so that no change waits for it.
    usage: AnyPool,
    /// For long reads, so that what must be read often does not wait for them.
    reports: AnyPool,
    path: Arc<Path>,
    /// Device and number of the file that was opened.
    file: (u64, u64),
}

impl Store {
    /// Opens a database, makes it if there is none, and brings its tables up to date.
    ///
    /// # Errors
    /// Says what the system or the database said.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        Self::open_file(path, true).await
    }

    /// The same, but there must be one.
    ///
    /// # Errors
    /// As [`Store::open`], and where there is none.
    pub async fn open_existing(path: &Path) -> Result<Self, Error> {
        Self::open_file(path, false).await
    }

    async fn open_file(path: &Path, create: bool) -> Result<Self, Error> {
        if !create && !path.exists() {
            let message = format!(
                "there is no database {}: `rempart serve --database` makes it",
                path.display()
            );
            return Err(Error::Refused(message));
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(create)
            .mode(MODE)
            .open(path)?;
        let path = std::path::absolute(path)?;
        install_default_drivers();
        let options: AnyConnectOptions = url_of(&path)?.parse()?;
        let pool = pool_of(CONNECTIONS_MAX, AT_EVERY_COMMIT)
            .connect_with(options.clone())
            .await?;
        let changes = pool_of_one_use().connect_with(options.clone()).await?;
        let store = Self {
            pool,
            changes,
            usage: pool_of(1, "NORMAL").connect_lazy_with(options.clone()),
            reports: pool_of(1, AT_EVERY_COMMIT).connect_lazy_with(options),
            path: path.into(),
            file: identity(&file)?,
        };
        store.migrate(file).await?;
        Ok(store)
    }

    /// Brings the tables up to date; of several processes one after the other.
    async fn migrate(&self, file: File) -> Result<(), Error> {
        // The database's own locks are of another kind.
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        let file = locked.map_err(std::io::Error::other)??;
        let migrated = sqlx::migrate!().run(&self.pool).await;
        file.unlock()?;
        // It stays open for as long as the process lives: to close any descriptor of a file takes all POSIX locks on it from the
        // process, the database's own, too, and others would take its log away.
        let _ = file.into_raw_fd();
        Ok(migrated?)
    }

    /// Whether the file that was opened is still the one of its name.
    ///
    /// # Errors
    /// Where it was moved, deleted or replaced: then nothing that is read here is true any more.
    pub fn check_file(&self) -> Result<(), Error> {
        let now = std::fs::metadata(&self.path)?;
        if (now.dev(), now.ino()) == self.file {
            return Ok(());
        }
        let message = format!("{} was replaced by another file", self.path.display());
        Err(Error::Refused(message))
    }

    /// Ends all connections; the last process to do so leaves one file.
    pub async fn close(&self) {
        self.changes.close().await;
        self.usage.close().await;
        self.reports.close().await;
        self.pool.close().await;
    }

    /// Begins a change, which waits for another that is under way.
    async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        // It would else begin as a reader, and fail where two want to write.
        Ok(self.changes.begin_with("BEGIN IMMEDIATE").await?)
    }
}

fn pool_of(connections: u32, synced: &'static str) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(WAIT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                let wait = WAIT.as_millis();
                let settings = format!(
                    "PRAGMA busy_timeout = {wait}; PRAGMA journal_mode = WAL; PRAGMA synchronous = {synced}; \
                     PRAGMA foreign_keys = ON"
                );
                connection.execute(sqlx::AssertSqlSafe(settings)).await?;
                Ok(())
            })
        })
}

/// One connection at a time, each for one change.
fn pool_of_one_use() -> AnyPoolOptions {
    pool_of(1, AT_EVERY_COMMIT).after_release(|_, _| Box::pin(async { Ok(false) }))
}

fn identity(file: &File) -> std::io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A path as the database's URL, in which every character means itself.
fn url_of(path: &Path) -> Result<String, Error> {
    let no_text = || Error::Refused("the path of the database must be UTF-8".to_owned());
    let text = path.to_str().ok_or_else(no_text)?;
    let encoded: String = text
        .bytes()
        .map(|byte| match byte {
            b'/' | b'-' | b'_' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect();
    Ok(format!("sqlite://{encoded}?mode=rw"))
}

/// The time, in Unix seconds.
pub fn now_s() -> i64 {
    now_ms() / 1000
}

/// The time, in Unix milliseconds.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn every_character_of_a_path_means_itself() {
        let url = url_of(&PathBuf::from("/a b/ü%41?x#y:1.db")).unwrap();
        assert_eq!(url, "sqlite:///a%20b/%C3%BC%2541%3Fx%23y%3A1.db?mode=rw");
    }
}
