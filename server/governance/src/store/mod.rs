//! Where identities, rights, usage and the audit chain are kept: an SQLite file or a PostgreSQL server, asked in the same words.

mod accounts;
mod audit;
mod backup;
mod census;
mod content;
mod database;
mod direct;
mod keys;
mod leases;
mod limits;
mod members;
mod migrations;
mod parts;
mod people;
mod projects;
mod proof;
mod retention;
mod setting;
mod subjects;
mod tokens;
mod usage;
mod usage_writer;

use std::fs::File;
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers};
use sqlx::{Any, AnyPool, ConnectOptions as _, Connection as _, Executor as _, Row as _, Transaction};
use thiserror::Error;

pub use accounts::ServiceAccount;
pub use audit::{AuditQuery, Record};
pub use census::Census;
pub use content::{ContentQuery, Kept};
pub use database::{Database, Way};
use database::{Durable, Opened, WAIT};
pub use keys::NewKeyRequest;
pub use leases::{ASKS_MAX, Counts, Leases};
pub use limits::WEIGHT_MAX;
pub use members::Member;
pub use people::Person;
pub use projects::Project;
pub use proof::{Note, Noted, Proof};
pub use retention::{Deleted, Oldest};
pub use subjects::LoginSubject;
pub use usage::UsageSum;
pub use usage_writer::{Usage, UsageWriter};

use crate::actor::{Acting, Actor};
use crate::audit::Broken;
use crate::content::BrokenContent;
use crate::retention::BrokenRetention;
use crate::role::Role;
use crate::secret::Secret;
use crate::usage::BrokenUsage;

/// Connections to the database.
const CONNECTIONS_MAX: u32 = 4;

/// Why something was not stored or read.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The same of a row that was written directly.
    #[error("the database failed")]
    Direct(#[from] rusqlite::Error),
    #[error("the database can't be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("the file can't be used")]
    File(#[from] std::io::Error),
    #[error("the database does not answer")]
    Silent,
    #[error("the system has no randomness")]
    Random(#[from] getrandom::Error),
    /// What was asked for can't be.
    #[error("{0}")]
    Refused(String),
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// Who asked has no key that is good any more.
    #[error("the key has ended")]
    Ended,
    /// Nobody gives or takes what they do not have.
    #[error("what has the role {0} is for those of that role to give and to take")]
    Forbidden(Role),
    /// What is asked for is more than so many sums.
    #[error("that is more than {0} sums: ask for a shorter time")]
    TooMany(usize),
    #[error(transparent)]
    Audit(#[from] Broken),
    #[error(transparent)]
    Usage(#[from] BrokenUsage),
    #[error(transparent)]
    Content(#[from] BrokenContent),
    #[error(transparent)]
    Retention(#[from] BrokenRetention),
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
    /// For what servers lease of limits, so that no request waits for anything else.
    leases: AnyPool,
    /// For long reads, so that what must be read often does not wait for them.
    reports: AnyPool,
    /// For what must be read in time, whatever else is read: see [`Store::apart`].
    looks: AnyPool,
    database: Arc<Database>,
    /// Where it is a file.
    file: Option<Arc<Opened>>,
    /// What names of people are sealed with, where it is known.
    secret: Option<Arc<Secret>>,
}

impl Store {
    /// Opens a database, makes it if there is none, and brings its tables up to date.
    ///
    /// # Errors
    /// Says what the system or the database said.
    pub async fn open(database: &Database) -> Result<Self, Error> {
        Self::open_or_make(database, true).await
    }

    /// The same, but there must be one.
    ///
    /// # Errors
    /// As [`Store::open`], and where there is none.
    pub async fn open_existing(database: &Database) -> Result<Self, Error> {
        Self::open_or_make(database, false).await
    }

    async fn open_or_make(database: &Database, make: bool) -> Result<Self, Error> {
        install_default_drivers();
        let (file, opened) = match database {
            Database::File(path) => {
                let (file, opened) = Opened::open(path, make)?;
                (Some(file), Some(opened))
            }
            Database::Server(_) => (None, None),
        };
        let database = match &opened {
            // Whatever the process's folder is later.
            Some(opened) => Database::File(opened.path().to_owned()),
            None => database.clone(),
        };
        let mut options: AnyConnectOptions = database.url()?.parse()?;
        options = options.disable_statement_logging();
        let whole = || database.settings(Durable::AtEveryCommit, WAIT);
        let pool = pool_of(CONNECTIONS_MAX, whole())
            .connect_with(options.clone())
            .await?;
        let changes = match &database {
            Database::File(_) => pool_of_one_use(whole()),
            // What is left of a change that was given up is rolled back there, and to connect anew takes long.
            Database::Server(_) => pool_of(1, whole()),
        };
        let changes = changes.connect_lazy_with(options.clone());
        let of_usage = database.settings(Durable::AtEverySync, WAIT);
        let store = Self {
            pool,
            changes,
            usage: pool_of_one_use(of_usage).connect_lazy_with(options.clone()),
            leases: pool_of(1, whole()).connect_lazy_with(options.clone()),
            reports: pool_of(1, whole()).connect_lazy_with(options.clone()),
            looks: pool_of(1, whole()).connect_lazy_with(options),
            database: Arc::new(database),
            file: opened.map(Arc::new),
            secret: None,
        };
        if !make {
            store.check_made().await?;
        }
        store.migrate(file).await?;
        Ok(store)
    }

    /// Refuses a server's database that has no tables. (A file that is there is looked into by the migration.)
    async fn check_made(&self) -> Result<(), Error> {
        if let Database::File(_) = *self.database {
            return Ok(());
        }
        let tables = sqlx::query(
            "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = 'audit_event'",
        )
        .fetch_one(&self.pool)
        .await?;
        if tables.try_get::<i64, _>(0)? == 0 {
            let message = format!(
                "{} has no tables: `rempart serve --database` makes them",
                self.database
            );
            return Err(Error::Refused(message));
        }
        Ok(())
    }

    /// The same, whose reads wait for no others.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self {
            pool: self.looks.clone(),
            ..self.clone()
        }
    }

    /// Brings the tables up to date; of several processes one after the other.
    async fn migrate(&self, file: Option<File>) -> Result<(), Error> {
        let Some(file) = file else {
            // A server has a lock for this, which the migration takes.
            return Ok(migrations::migrator().run(&self.pool).await?);
        };
        // The database's own locks are of another kind.
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        let file = locked.map_err(std::io::Error::other)??;
        let migrated = migrations::migrator().run(&self.pool).await;
        file.unlock()?;
        // It stays open for as long as the process lives: to close any descriptor of a file takes all POSIX locks on it from the
        // process, the database's own, too, and others would take its log away.
        let _ = file.into_raw_fd();
        Ok(migrated?)
    }

    /// Whether others than one process at a time may serve from it: then what they use is counted there.
    pub fn is_shared(&self) -> bool {
        matches!(*self.database, Database::Server(_))
    }

    /// Whether the file that was opened is still the one of its name.
    ///
    /// # Errors
    /// Where it was moved, deleted or replaced: then nothing that is read here is true any more.
    pub fn check_file(&self) -> Result<(), Error> {
        self.file.as_ref().map_or(Ok(()), |opened| opened.check())
    }

    /// Ends all connections, but those to a server that does not answer; the last process to do so leaves one file.
    pub async fn close(&self) {
        let pools = [
            &self.changes,
            &self.usage,
            &self.leases,
            &self.reports,
            &self.looks,
            &self.pool,
        ];
        for pool in pools {
            // Whoever waited longer for a server that is gone would wait for ever.
            let _ = tokio::time::timeout(WAIT, pool.close()).await;
        }
    }

    /// Overwrites what was deleted, as far as that is not done yet: an SQLite file's log still has it. (On a server what names
    /// people is sealed wherever it was.)
    ///
    /// # Errors
    /// Where somebody reads the log all the while: what was deleted is still there.
    async fn clean(&self) -> Result<(), Error> {
        if let Database::File(_) = *self.database {
            let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
                .fetch_one(&self.pool)
                .await?;
            if row.try_get::<i32, _>(0)? != 0 {
                let message = "it is done, but the file's log is in use and has what was deleted until the last that uses it ends";
                return Err(Error::Refused(message.to_owned()));
            }
        }
        Ok(())
    }

    /// Has the log of an SQLite file go on where it began, as soon as nobody reads it, so that what was deleted is overwritten; waits
    /// for nobody.
    async fn overwrite(&self) -> Result<(), Error> {
        if let Database::File(_) = *self.database {
            sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
                .fetch_one(&self.pool)
                .await?;
        }
        Ok(())
    }

    /// Begins a change, which waits for another that is under way.
    async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        let mut change = self.changes.begin_with(self.database.begin()).await?;
        // Within it: one that is given up while it waits is rolled back.
        if let Some(lock) = self.database.lock_changes() {
            sqlx::query(lock).fetch_one(&mut *change).await?;
        }
        Ok(change)
    }

    /// Begins the change of somebody. What a key may do is what it may do now, whatever was known of it when it was shown.
    async fn begin_as(
        &self,
        actor: impl Into<Actor<'_>>,
    ) -> Result<(Transaction<'static, Any>, Acting), Error> {
        let mut change = self.begin().await?;
        let acting = match actor.into() {
            Actor::Operator(name) => Acting {
                name: name.to_owned(),
                role: None,
            },
            Actor::Key(id) => Acting {
                name: format!("key:{id}"),
                role: Some(keys::governing(&mut change, id).await?),
            },
        };
        Ok((change, acting))
    }
}

fn pool_of(connections: u32, settings: String) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(WAIT)
        .after_connect(move |connection, _| {
            let settings = settings.clone();
            Box::pin(async move {
                connection.execute(sqlx::AssertSqlSafe(settings)).await?;
                Ok(())
            })
        })
        .after_release(|connection, _| {
            Box::pin(async {
                // One that was left in the middle of an answer, as its server is gone, would keep its place for ever.
                let answers = tokio::time::timeout(WAIT, connection.ping()).await;
                answers.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
                Ok(true)
            })
        })
}

/// One connection at a time, each for one change.
fn pool_of_one_use(settings: String) -> AnyPoolOptions {
    pool_of(1, settings).after_release(|_, _| Box::pin(async { Ok(false) }))
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
