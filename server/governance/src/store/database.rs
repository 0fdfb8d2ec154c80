//! Which database: an SQLite file, or a PostgreSQL server, and what each is told in words of its own.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rusqlite::ffi;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::Error;

/// How long a lock of another process is waited for.
pub(super) const WAIT: Duration = Duration::from_secs(5);
/// How long a server keeps the locks of a process that has gone silent in the middle of a change.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// Who may read the file: its owner.
const MODE: u32 = 0o600;
/// Behind the name of a file: what is locked while a server serves from it.
const SERVING: &str = ".serving";
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
const URL: &str = "postgres://USER@HOST:PORT/DATABASE, with what is special in it written as %HH";
/// What may stand behind a `?`: the driver tells others in its log, with their values.
const PARAMETERS: [&str; 9] = [
    "host",
    "port",
    "dbname",
    "user",
    "password",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
];

/// A database's place. Printed, it tells no password.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A file of SQLite's.
    File(PathBuf),
    /// A server of PostgreSQL's, by its URL as libpq has them.
    Server(String),
}

/// What a lost machine may take of what is written by a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Durable {
    /// Nothing.
    AtEveryCommit,
    /// What was not synced since.
    AtEverySync,
}

/// How a server of a database is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a socket of this machine.
    Socket,
    Tcp {
        host: String,
        port: u16,
    },
}

impl Database {
    /// Lets no other process serve from a file until what this returns is dropped: each counts limits by itself. (Servers of one
    /// PostgreSQL database count together.)
    ///
    /// # Errors
    /// Where another one does, and what the system says.
    pub fn claim(&self) -> Result<Option<File>, Error> {
        let Self::File(path) = self else {
            return Ok(None);
        };
        // By whatever links it was reached. A lock of the file itself is for migrations.
        let made = OpenOptions::new().append(true).create(true).mode(MODE).open(path);
        drop(made?);
        let path = std::fs::canonicalize(path)?;
        let mut name = path.clone().into_os_string();
        name.push(SERVING);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            .open(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Refused(format!(
                "another server serves from {}: several share a PostgreSQL database, where they count limits together",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// How it is reached; `None` where it is a file.
    pub fn way(&self) -> Option<Way> {
        let Self::Server(url) = self else {
            return None;
        };
        // It was read once, or there would be no such value.
        let options: PgConnectOptions = url.parse().ok()?;
        let host = options.get_host();
        if options.get_socket().is_some() || host.starts_with('/') {
            return Some(Way::Socket);
        }
        Some(Way::Tcp {
            host: host.to_owned(),
            port: options.get_port(),
        })
    }

    /// Whether others than this machine could read on the way there, as it has no TLS that proves who is there.
    pub fn is_exposed(&self) -> bool {
        let Self::Server(url) = self else {
            return false;
        };
        url.parse::<PgConnectOptions>().is_ok_and(|options| {
            let local = options.get_socket().is_some()
                || matches!(options.get_host(), "localhost" | "127.0.0.1" | "::1" | "[::1]");
            !local
                && !matches!(
                    options.get_ssl_mode(),
                    PgSslMode::VerifyFull | PgSslMode::VerifyCa
                )
        })
    }

    /// What a connection is told first, that waits for a lock for so long.
    pub(super) fn settings(&self, durable: Durable, wait: Duration) -> String {
        let (wait, silent) = (wait.as_millis(), SILENT_MAX.as_millis());
        match self {
            Self::File(_) => {
                let synced = match durable {
                    Durable::AtEveryCommit => "FULL",
                    Durable::AtEverySync => "NORMAL",
                };
                // Who writes usage says when the log is brought to the file.
                let pages = match durable {
                    Durable::AtEveryCommit => 1000,
                    Durable::AtEverySync => 0,
                };
                format!(
                    "PRAGMA busy_timeout = {wait}; PRAGMA journal_mode = WAL; PRAGMA synchronous = {synced}; \
                     PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; PRAGMA wal_autocheckpoint = {pages}"
                )
            }
            // It commits several at one time by itself, so that nothing is won by less.
            Self::Server(_) => format!(
                "SET application_name = 'rempart'; SET synchronous_commit = on; SET lock_timeout = {wait}; \
                 SET idle_in_transaction_session_timeout = {silent}"
            ),
        }
    }

    /// Whether that a change was refused says nothing of what is in a file: another writes, the disk is full or fails, or the file
    /// can't be written.
    pub(super) fn is_passing(&self, error: &sqlx::Error) -> bool {
        let Self::File(_) = self else { return false };
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        let code = code.and_then(|code| code.parse().ok());
        matches!(error, sqlx::Error::PoolTimedOut) || code.is_some_and(is_of_the_system)
    }

    /// Begins a change.
    pub(super) fn begin(&self) -> &'static str {
        match self {
            // It would else begin as a reader, and fail where two want to write.
            Self::File(_) => "BEGIN IMMEDIATE",
            // Whoever waited for the lock is to see what was changed meanwhile.
            Self::Server(_) => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }

    /// Has a change of everything but usage be the only one, where its beginning does not. (To lock the table would keep a server's
    /// own upkeep out, too. The numbers mean nothing, but are the same in all versions.)
    pub(super) fn lock_changes(&self) -> Option<&'static str> {
        match self {
            Self::File(_) => None,
            Self::Server(_) => Some("SELECT COUNT(*) FROM pg_advisory_xact_lock(8241937502110001)"),
        }
    }

    /// The same of usage.
    pub(super) fn lock_usage(&self) -> Option<&'static str> {
        match self {
            Self::File(_) => None,
            Self::Server(_) => Some("SELECT COUNT(*) FROM pg_advisory_xact_lock(8241937502110002)"),
        }
    }

    /// Begins what sees one moment, whatever is written meanwhile.
    pub(super) fn begin_moment(&self) -> &'static str {
        match self {
            Self::File(_) => "BEGIN",
            Self::Server(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }

    /// Behind what texts are ordered by: has that be by their bytes, whatever language the database is of.
    pub(super) fn by_bytes(&self) -> &'static str {
        match self {
            Self::File(_) => "COLLATE BINARY",
            Self::Server(_) => "COLLATE \"C\"",
        }
    }

    /// As the driver wants it.
    pub(super) fn url(&self) -> Result<String, Error> {
        match self {
            Self::File(path) => url_of(path),
            Self::Server(url) => Ok(url.clone()),
        }
    }
}

/// Whether an extended code of SQLite is of what is around a file, and not of what is in it. The last byte is the kind.
fn is_of_the_system(code: i32) -> bool {
    let is_of_the_file = [
        ffi::SQLITE_IOERR_READ,
        ffi::SQLITE_IOERR_SHORT_READ,
        ffi::SQLITE_IOERR_DATA,
        ffi::SQLITE_IOERR_CORRUPTFS,
        ffi::SQLITE_READONLY_DBMOVED,
    ];
    let kinds = [
        ffi::SQLITE_BUSY,
        ffi::SQLITE_LOCKED,
        ffi::SQLITE_READONLY,
        ffi::SQLITE_IOERR,
        ffi::SQLITE_FULL,
        ffi::SQLITE_CANTOPEN,
        ffi::SQLITE_PROTOCOL,
    ];
    kinds.contains(&(code & 0xff)) && !is_of_the_file.contains(&code)
}

impl FromStr for Database {
    type Err = String;

    /// Reads a path, or a URL that begins with `postgres://`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is the path of a file, or the URL of a PostgreSQL server".to_owned());
        }
        if !SCHEMES.iter().any(|scheme| text.starts_with(scheme)) {
            // Whoever mistypes a URL has no file of that name, whose name would tell the password.
            let scheme = text.split(':').next().unwrap_or_default().to_ascii_lowercase();
            let meant = ["postgres", "postgresql"].contains(&scheme.as_str()) && scheme.len() < text.len();
            if meant || text.contains("://") || text.trim() != text {
                return Err(format!("it is the path of a file, or a URL: {URL}"));
            }
            return Ok(Self::File(PathBuf::from(text)));
        }
        // What is wrong with it may be the password: it is not told.
        let _: PgConnectOptions = text
            .parse()
            .map_err(|_| format!("a URL looks like this: {URL}"))?;
        let query = text.split_once('?').map_or("", |(_, query)| query);
        let names = query.split('&').filter(|pair| !pair.is_empty());
        let known = |pair: &str| PARAMETERS.contains(&pair.split('=').next().unwrap_or_default());
        if !names.into_iter().all(known) {
            return Err(format!(
                "the parameters of a URL can be {}",
                PARAMETERS.join(", ")
            ));
        }
        Ok(Self::Server(text.to_owned()))
    }
}

impl fmt::Display for Database {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(formatter),
            Self::Server(url) => {
                let Ok(options) = url.parse::<PgConnectOptions>() else {
                    return formatter.write_str("postgres://");
                };
                let place = match options.get_socket() {
                    Some(socket) => socket.display().to_string(),
                    None => format!("{}:{}", options.get_host(), options.get_port()),
                };
                let name = options.get_database().unwrap_or_else(|| options.get_username());
                write!(formatter, "postgres://{place}/{name}")
            }
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A file that was opened, and which one it was.
#[derive(Debug)]
pub(super) struct Opened {
    path: PathBuf,
    /// Where SQLite has its log: beside the file itself, not beside a link to it.
    log: PathBuf,
    /// Device and number.
    identity: (u64, u64),
}

impl Opened {
    /// Opens the file of a database, or makes one.
    pub(super) fn open(path: &Path, create: bool) -> Result<(File, Self), Error> {
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
        let mut log = std::fs::canonicalize(&path)?.into_os_string();
        log.push("-wal");
        let metadata = file.metadata()?;
        let opened = Self {
            path,
            log: log.into(),
            identity: (metadata.dev(), metadata.ino()),
        };
        Ok((file, opened))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Refuses where the file of that name is another by now.
    pub(super) fn check(&self) -> Result<(), Error> {
        let now = std::fs::metadata(&self.path)?;
        if (now.dev(), now.ino()) == self.identity {
            return Ok(());
        }
        let message = format!("{} was replaced by another file", self.path.display());
        Err(Error::Refused(message))
    }
}

/// A path as the driver's URL, in which every character means itself.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_a_path_means_itself() {
        let url = url_of(&PathBuf::from("/a b/ü%41?x#y:1.db")).unwrap();
        assert_eq!(url, "sqlite:///a%20b/%C3%BC%2541%3Fx%23y%3A1.db?mode=rw");
    }

    #[test]
    fn one_server_at_a_time_serves_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let [path, link] = ["a.db", "b.db"].map(|name| folder.path().join(name));
        std::fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let claim = |path: &Path| Database::File(path.to_owned()).claim();
        let first = claim(&path).unwrap();
        for other in [&path, &link] {
            let refused = claim(other).unwrap_err().to_string();
            assert!(refused.starts_with("another server serves from"), "{refused}");
        }
        drop(first);
        assert!(claim(&link).unwrap().is_some());
        // Also by a link to a file that is to be made.
        let [new, link] = ["c.db", "d.db"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink(&new, &link).unwrap();
        let first = claim(&link).unwrap();
        assert!(claim(&new).is_err() && first.is_some());
    }

    #[test]
    fn the_log_of_a_linked_file_is_beside_the_file() {
        let [folder, links] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (path, link) = (folder.path().join("a.db"), links.path().join("b.db"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let (_, opened) = Opened::open(&link, true).unwrap();
        assert_eq!(opened.path(), link);
        let connection = rusqlite::Connection::open(&link).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n)")
            .unwrap();
        assert!(std::fs::metadata(opened.log()).unwrap().len() > 0);
    }

    #[test]
    fn a_password_is_never_told() {
        let url = "postgresql://rempart:hunter2@db.example:5433/usage?sslmode=require";
        let database: Database = url.parse().unwrap();
        let told = format!("{database} {database:?}");
        assert_eq!(
            told,
            "postgres://db.example:5433/usage postgres://db.example:5433/usage"
        );
        for wrong in [
            "postgres://rempart:hunter2@db.example:nine/usage",
            "postgres://rempart:hunt/er2@db.example/usage",
            "postgres://db/a?pasword=hunter2",
            "Postgres://rempart:hunter2@db/a",
            " postgres://rempart:hunter2@db/a",
            "postgres:/rempart:hunter2@db/a",
            "postgresql+asyncpg://rempart:hunter2@db/a",
        ] {
            let told = wrong.parse::<Database>().unwrap_err();
            assert!(!told.contains("hunt"), "{told}");
        }
    }

    #[test]
    fn what_is_no_url_is_a_path() {
        for path in ["rempart.db", "/var/lib/rempart.db", "postgres", "a:b"] {
            assert_eq!(path.parse(), Ok(Database::File(PathBuf::from(path))), "{path}");
        }
        assert!("".parse::<Database>().is_err());
    }

    #[test]
    fn who_could_read_on_the_way_is_known() {
        let exposed = |url: &str| url.parse::<Database>().unwrap().is_exposed();
        assert!(!exposed("rempart.db"));
        assert!(!exposed("postgres://localhost/a"));
        assert!(!exposed("postgres://a@127.0.0.1:1/a"));
        assert!(!exposed("postgres:///a?host=/run/postgresql"));
        assert!(!exposed("postgres://db/a?sslmode=verify-full"));
        for url in [
            "postgres://db/a",
            "postgres://db/a?sslmode=require",
            "postgres://10.0.0.1/a",
        ] {
            assert!(exposed(url), "{url}");
        }
    }

    /// Numbers of <https://www.sqlite.org/rescode.html>.
    #[test]
    fn codes_of_a_disk_and_of_others_that_write_are_not_of_what_is_in_a_file() {
        let (busy, locked, readonly, written, full) = ([5, 517], [6, 262], [8, 264], [778, 1034], [13, 14]);
        for code in [busy, locked, readonly, written, full].as_flattened() {
            assert!(is_of_the_system(*code), "{code}");
        }
        for of_the_file in [1, 11, 19, 26, 266, 522, 1032, 1811, 2067] {
            assert!(!is_of_the_system(of_the_file), "{of_the_file}");
        }
    }
}
