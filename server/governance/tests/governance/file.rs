//! What is true of an SQLite file alone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rempart_governance::{Database, Error, Noted, Store, UsageEvent, UsageWriter};

use crate::support::Place;

async fn open(path: &Path) -> Result<Store, Error> {
    Store::open(&Database::File(path.to_owned())).await
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
        assert!(open(place).await.is_err(), "{}", place.display());
    }
    let missing = folder.path().join("typo.db");
    assert!(matches!(
        Store::open_existing(&Database::File(missing.clone())).await,
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
        let store = open(&path).await.unwrap();
        store.create_project("cli:root", "a", &[]).await.unwrap();
        store.close().await;
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        // Closed, it is one file that has everything.
        let copy = folder.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let copied = Store::open_existing(&Database::File(copy)).await.unwrap();
        assert_eq!(copied.projects().await.unwrap().len(), 1, "{name}");
        copied.close().await;
    }
}

#[tokio::test]
async fn a_file_that_was_moved_or_replaced_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rempart.db");
    let store = open(&path).await.unwrap();
    store.check_file().unwrap();
    std::fs::rename(&path, folder.path().join("elsewhere.db")).unwrap();
    assert!(store.check_file().is_err());
    std::fs::write(&path, "").unwrap();
    assert!(store.check_file().is_err());
}

/// To close a descriptor of the file would take the database's locks from this process: whoever reads it then and ends thinks
/// that they are the last, and takes the log away.
#[tokio::test]
async fn a_stranger_that_reads_takes_no_log_away() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("rempart.db");
    let store = open(&place).await.unwrap();
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
    assert_eq!(open(&place).await.unwrap().projects().await.unwrap().len(), 3);
}

/// A row that its table passes over, as somebody has made it, goes the longer way.
#[tokio::test]
async fn no_row_is_lost_where_its_table_ignores_some() {
    let place = Place::file();
    let store = place.open().await;
    let table = place
        .text("SELECT sql FROM sqlite_schema WHERE name = 'usage_unchained'")
        .await;
    let (columns, end) = table.rsplit_once(')').unwrap();
    place.run("DROP TABLE usage_unchained").await;
    place
        .run(&format!("{columns}, UNIQUE (project) ON CONFLICT IGNORE){end}"))
        .await;
    let mut writer = UsageWriter::new(store.clone());
    for id in ["one", "two"] {
        let row = UsageEvent {
            id: id.to_owned(),
            began_ms: 1_700_000_000_000,
            project: "proj_a".to_owned(),
            key: "abcdefgh".to_owned(),
            model: "m".to_owned(),
            endpoint: "/v1/chat/completions".to_owned(),
            status: 200,
            ..UsageEvent::default()
        };
        writer.write(&[row]).await.unwrap();
    }
    assert!(writer.take_detour().is_some());
    assert_eq!(store.prove(&Noted::default()).await.unwrap().usage.0, 2);
}
