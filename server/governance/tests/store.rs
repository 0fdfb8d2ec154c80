//! The store for real, in a file.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rempart_governance::{Broken, Denied, Error, NewKey, NewKeyRequest, Role, Store, now_s, verify};
use sqlx::Connection as _;
use tokio::task::JoinSet;

async fn open(folder: &Path) -> Store {
    Store::open(&folder.join("rempart.db")).await.unwrap()
}

async fn key(store: &Store, project: &str, role: Role) -> NewKey {
    let wanted = NewKeyRequest {
        project,
        role,
        name: "laptop",
        expires: None,
    };
    store.create_key("cli:root", &wanted).await.unwrap()
}

async fn whole_chain(store: &Store) -> Result<(i64, String), Broken> {
    verify(&store.audit_events(0).await.unwrap(), None)
}

#[tokio::test]
async fn keys_open_until_they_are_revoked_or_their_project_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let models = ["small".to_owned(), "large".to_owned()];
    let sales = store.create_project("cli:root", "sales", &models).await.unwrap();
    store.create_project("cli:root", "research", &[]).await.unwrap();
    let (one, two, three) = (
        key(&store, "sales", Role::Member).await,
        key(&store, &sales.id, Role::Service).await,
        key(&store, "research", Role::Admin).await,
    );
    let whose = async |key: &NewKey| {
        store
            .directory()
            .await
            .unwrap()
            .authenticate(key.reveal(), now_s())
    };
    let first = whose(&one).await.unwrap();
    assert_eq!(
        (first.project.as_str(), first.role),
        (sales.id.as_str(), Role::Member)
    );
    assert!(first.may_use(["small"].into_iter()) && !first.may_use(["other"].into_iter()));
    let admin = whose(&three).await.unwrap();
    assert!(admin.may_use(["other"].into_iter()));
    assert_ne!(first.cache_salt(), admin.cache_salt());
    assert_eq!(first.cache_salt(), whose(&two).await.unwrap().cache_salt());
    store.revoke_key("cli:root", &one.id.0).await.unwrap();
    assert_eq!(whose(&one).await, Err(Denied::Revoked));
    assert!(matches!(
        store.revoke_key("cli:root", &one.id.0).await,
        Err(Error::Refused(_))
    ));
    store.archive_project("cli:root", "sales").await.unwrap();
    assert_eq!(whose(&two).await, Err(Denied::Unknown));
    let late = NewKeyRequest {
        project: "sales",
        role: Role::Member,
        name: "x",
        expires: None,
    };
    assert!(matches!(
        store.create_key("cli:root", &late).await,
        Err(Error::Refused(_))
    ));
    // Opened again, all of it is there.
    drop(store);
    let store = open(folder.path()).await;
    assert!(
        store
            .directory()
            .await
            .unwrap()
            .authenticate(three.reveal(), now_s())
            .is_ok()
    );
    check_record(&store).await;
}

/// What was refused left no row.
async fn check_record(store: &Store) {
    let rows = store.audit_events(0).await.unwrap();
    let actions: Vec<&str> = rows.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(
        actions,
        [
            "project.created",
            "project.created",
            "api_key.created",
            "api_key.created",
            "api_key.created",
            "api_key.revoked",
            "project.archived"
        ]
    );
    assert_eq!(verify(&rows, None).unwrap(), (7, rows[6].hash.clone()));
    let projects = store.projects().await.unwrap();
    let sales = projects.iter().find(|project| project.name == "sales").unwrap();
    assert!(sales.archived.is_some() && sales.models == ["large", "small"]);
}

#[tokio::test]
async fn names_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.create_project("cli:root", "a", &[]).await.unwrap();
    let long = "é".repeat(129);
    for name in [
        "",
        " a",
        "a\u{202e}b",
        "\u{200b}",
        "a",
        "line\nfeed",
        "\u{1b}[2J",
        &long,
    ] {
        let made = store.create_project("cli:root", name, &[]).await;
        assert!(matches!(made, Err(Error::Refused(_))), "{name}");
    }
    assert!(
        store
            .create_project("cli:root", &"é".repeat(128), &[])
            .await
            .is_ok()
    );
    assert_eq!(store.audit_end().await.unwrap().0, 2);
}

#[tokio::test]
async fn no_secret_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.create_project("cli:root", "a", &[]).await.unwrap();
    let key = key(&store, "a", Role::Owner).await;
    let secret = key.reveal().rsplit('-').next().unwrap();
    let mut read = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        read += bytes.len();
        let found = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!found(&secret[..20]));
    }
    assert!(read > 10_000, "the database was looked at");
}

#[tokio::test]
async fn writers_in_two_processes_keep_one_chain() {
    let folder = tempfile::tempdir().unwrap();
    let stores = [open(folder.path()).await, open(folder.path()).await];
    stores[0].create_project("cli:root", "a", &[]).await.unwrap();
    let mut tasks = JoinSet::new();
    for at in 0..60 {
        let store = stores[at % 2].clone();
        tasks.spawn(async move {
            let key = key(&store, "a", Role::Member).await;
            if at % 3 == 0 {
                store.revoke_key("cli:root", &key.id.0).await.unwrap();
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    assert_eq!(whole_chain(&stores[0]).await.unwrap().0, 1 + 60 + 20);
    assert_eq!(stores[1].keys().await.unwrap().len(), 60);
}

#[tokio::test]
async fn a_row_that_was_changed_in_the_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for at in 0..5 {
        let detail = format!("{{\"at\":{at}}}");
        store
            .record("cli:root", "server.started", "server", detail)
            .await
            .unwrap();
    }
    assert_eq!(whole_chain(&store).await.unwrap().0, 5);
    let end = whole_chain(&store).await.unwrap();
    let url = format!("sqlite://{}", folder.path().join("rempart.db").display());
    let mut raw = sqlx::AnyConnection::connect(&url).await.unwrap();
    let steps = [
        (
            "UPDATE audit_event SET actor = 'cli:eve' WHERE seq = 3",
            Some(Broken::Changed(3)),
        ),
        ("UPDATE audit_event SET actor = 'cli:root' WHERE seq = 3", None),
        ("DELETE FROM audit_event WHERE seq = 2", Some(Broken::Missing(3))),
    ];
    for (change, broken) in steps {
        sqlx::query(change).execute(&mut raw).await.unwrap();
        assert_eq!(whole_chain(&store).await.err(), broken, "{change}");
    }
    // The end is missing: the rest holds, and is not what was noted.
    sqlx::query("DELETE FROM audit_event WHERE seq > 1")
        .execute(&mut raw)
        .await
        .unwrap();
    assert_ne!(whole_chain(&store).await.unwrap(), end);
}

#[tokio::test]
async fn what_is_no_database_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    std::fs::write(
        &file,
        "no database at all, but a text that is long enough to be one",
    )
    .unwrap();
    for place in [
        file.as_path(),
        Path::new("/nowhere/rempart.db"),
        folder.path(),
        Path::new(""),
    ] {
        assert!(Store::open(place).await.is_err(), "{}", place.display());
    }
    let missing = folder.path().join("typo.db");
    assert!(matches!(
        Store::open_existing(&missing).await,
        Err(Error::Refused(_))
    ));
    assert!(!missing.exists(), "looking makes no database");
}

#[tokio::test]
async fn the_file_is_the_one_that_was_named_and_its_owner_s() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    for name in [
        "a b.db",
        "a%41.db",
        "a?b.db",
        "a:b#c.db",
        "ü.db",
        "sub/../here.db",
    ] {
        let path = folder.path().join(name);
        let store = Store::open(&path).await.unwrap();
        store.create_project("cli:root", "a", &[]).await.unwrap();
        store.close().await;
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        // Closed, it is one file that has everything.
        let copy = folder.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let copied = Store::open_existing(&copy).await.unwrap();
        assert_eq!(copied.projects().await.unwrap().len(), 1, "{name}");
        copied.close().await;
    }
}

#[tokio::test]
async fn a_file_that_was_moved_or_replaced_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let path = folder.path().join("rempart.db");
    store.check_file().unwrap();
    std::fs::rename(&path, folder.path().join("elsewhere.db")).unwrap();
    assert!(store.check_file().is_err());
    std::fs::write(&path, "").unwrap();
    assert!(store.check_file().is_err());
}

#[tokio::test]
async fn nothing_that_is_recorded_looks_like_another_row() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let long = "x".repeat(257);
    for text in ["a\n2 0 cli:root api_key.revoked", "\u{1b}[2J", &long] {
        for recorded in [
            store.record(text, "a", "b", "{}".to_owned()).await,
            store.record("a", text, "b", "{}".to_owned()).await,
            store.record("a", "b", text, "{}".to_owned()).await,
        ] {
            assert!(matches!(recorded, Err(Error::Refused(_))));
        }
    }
    assert_eq!(store.audit_end().await.unwrap().0, 0);
}

#[tokio::test]
async fn a_new_database_gets_one_first_key_whoever_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let path = folder.path().join("rempart.db");
        tasks.spawn(async move {
            let store = Store::open(&path).await.unwrap();
            store.create_first("server", "default", "first").await.unwrap()
        });
    }
    let made = tasks.join_all().await;
    assert_eq!(made.iter().flatten().count(), 1);
    let store = open(folder.path()).await;
    assert_eq!(
        (
            store.keys().await.unwrap().len(),
            store.audit_end().await.unwrap().0
        ),
        (1, 2)
    );
}

#[tokio::test]
async fn one_bad_row_locks_nobody_else_out() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.create_project("cli:root", "a", &[]).await.unwrap();
    let (good, bad) = (
        key(&store, "a", Role::Member).await,
        key(&store, "a", Role::Member).await,
    );
    let url = format!("sqlite://{}", folder.path().join("rempart.db").display());
    let mut raw = sqlx::AnyConnection::connect(&url).await.unwrap();
    sqlx::query("UPDATE api_key SET role = 'emperor' WHERE id = $1")
        .bind(&bad.id.0)
        .execute(&mut raw)
        .await
        .unwrap();
    let directory = store.directory().await.unwrap();
    assert!(directory.authenticate(good.reveal(), now_s()).is_ok());
    assert_eq!(
        directory.authenticate(bad.reveal(), now_s()),
        Err(Denied::Unknown)
    );
    assert!(matches!(store.keys().await, Err(Error::Unsound(_))));
}

/// A change that fails in its middle leaves nothing behind that would keep the next from being made.
#[tokio::test]
async fn after_failures_changes_are_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let url = format!("sqlite://{}", folder.path().join("rempart.db").display());
    let mut raw = sqlx::AnyConnection::connect(&url).await.unwrap();
    for change in [
        "ALTER TABLE audit_event RENAME TO gone",
        "ALTER TABLE gone RENAME TO audit_event",
    ] {
        sqlx::query(change).execute(&mut raw).await.unwrap();
        for at in 0..8 {
            let made = store.create_project("cli:root", &format!("{at}"), &[]).await;
            assert_eq!(
                made.is_ok(),
                change.starts_with("ALTER TABLE gone"),
                "{change}: {made:?}"
            );
        }
    }
    assert_eq!(whole_chain(&store).await.unwrap().0, 8);
}

/// To close a descriptor of the file would take the database's locks from this process: whoever reads it then and ends thinks
/// that they are the last, and takes the log away.
#[tokio::test]
async fn a_stranger_that_reads_takes_no_log_away() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("rempart.db");
    let store = open(folder.path()).await;
    let script = format!(
        "import sqlite3; c = sqlite3.connect('{}'); c.execute('SELECT COUNT(*) FROM audit_event').fetchone(); c.close()",
        place.display()
    );
    for round in 0..3 {
        store
            .create_project("cli:root", &format!("p{round}"), &[])
            .await
            .unwrap();
        let read = std::process::Command::new("python3")
            .args(["-c", &script])
            .status()
            .unwrap();
        assert!(read.success());
        let gone = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        let gone: Vec<_> = gone
            .filter(|file| file.starts_with(folder.path()) && file.to_string_lossy().contains("deleted"))
            .collect();
        assert!(gone.is_empty(), "{gone:?}");
    }
    store.close().await;
    assert_eq!(open(folder.path()).await.projects().await.unwrap().len(), 3);
}
