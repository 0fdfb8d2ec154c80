//! A database for one test: an SQLite file, or a PostgreSQL server of its own.

mod postgres;
pub(crate) mod recorded;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rempart_governance::{Database, NewKey, NewKeyRequest, Role, Store};
use sqlx::any::install_default_drivers;
use sqlx::{AnyConnection, Connection as _};

use postgres::Cluster;

/// How long a lock is waited for that nobody should hold: for one that is kept the database gives up after five seconds.
pub(crate) const FREE_MAX: Duration = Duration::from_secs(30);

pub(crate) enum Place {
    File {
        path: PathBuf,
        folder: tempfile::TempDir,
    },
    Server {
        cluster: Cluster,
        name: String,
    },
}

impl Place {
    pub(crate) fn file() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::File {
            path: folder.path().join("rempart.db"),
            folder,
        }
    }

    pub(crate) fn server() -> Self {
        Self::Server {
            cluster: Cluster::start(),
            name: "postgres".to_owned(),
        }
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self, Self::File { .. })
    }

    /// Where all that is kept is kept.
    pub(crate) fn folder(&self) -> &Path {
        match self {
            Self::File { folder, .. } => folder.path(),
            Self::Server { cluster, .. } => cluster.folder(),
        }
    }

    pub(crate) fn database(&self) -> Database {
        match self {
            Self::File { path, .. } => Database::File(path.clone()),
            Self::Server { cluster, name } => Database::Server(cluster.url(name)),
        }
    }

    pub(crate) async fn open(&self) -> Store {
        Store::open(&self.database()).await.unwrap()
    }

    /// A connection past the store, as somebody has who may write to it.
    pub(crate) async fn raw(&self) -> AnyConnection {
        install_default_drivers();
        let url = match self {
            Self::File { path, .. } => format!("sqlite://{}", path.display()),
            Self::Server { cluster, name } => cluster.url(name),
        };
        AnyConnection::connect(&url).await.unwrap()
    }

    /// Changes it past the store.
    pub(crate) async fn run(&self, statement: &str) {
        let mut raw = self.raw().await;
        let done = sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut raw);
        done.await.unwrap();
        raw.close().await.unwrap();
    }

    /// One text of it.
    pub(crate) async fn text(&self, query: &str) -> String {
        let mut raw = self.raw().await;
        let row = sqlx::query(sqlx::AssertSqlSafe(query.to_owned())).fetch_one(&mut raw);
        let text = sqlx::Row::try_get(&row.await.unwrap(), 0).unwrap();
        raw.close().await.unwrap();
        text
    }

    /// What is kept, as it is now, in a database of another name, and a connection past the store to it. Nobody may use this one
    /// meanwhile.
    pub(crate) async fn copy(&self, name: &str) -> (Database, AnyConnection) {
        let (statement, copy, mut raw, url) = match self {
            Self::File { folder, .. } => {
                let copy = folder.path().join(format!("{name}.db"));
                let statement = format!("VACUUM INTO '{}'", copy.display());
                let url = format!("sqlite://{}", copy.display());
                (statement, Database::File(copy), self.raw().await, url)
            }
            Self::Server { cluster, name: own } => {
                install_default_drivers();
                let statement = format!("CREATE DATABASE {name} TEMPLATE {own}");
                let raw = AnyConnection::connect(&cluster.url("template1")).await.unwrap();
                let url = cluster.url(name);
                (statement, Database::Server(url.clone()), raw, url)
            }
        };
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&mut raw)
            .await
            .unwrap();
        raw.close().await.unwrap();
        (copy, AnyConnection::connect(&url).await.unwrap())
    }
}

/// Makes a key.
pub(crate) async fn key(store: &Store, project: &str, role: Role) -> NewKey {
    let wanted = NewKeyRequest {
        project,
        role,
        name: "laptop",
        expires: None,
        owner: None,
    };
    store.create_key("cli:root", &wanted).await.unwrap()
}

/// Has each of these run on either kind of database.
macro_rules! on_both {
    ($($name:ident)*) => {
        $(
            mod $name {
                #[tokio::test]
                async fn file() {
                    super::$name($crate::support::Place::file()).await;
                }

                #[tokio::test]
                async fn server() {
                    super::$name($crate::support::Place::server()).await;
                }
            }
        )*
    };
}
