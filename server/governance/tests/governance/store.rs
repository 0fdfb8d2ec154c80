//! The store for real, in a file and on a server.

use std::path::Path;
use std::time::Duration;

use rempart_governance::{Broken, Denied, Error, NewKey, NewKeyRequest, Role, Store, now_s, verify};
use tokio::task::JoinSet;

use crate::support::{FREE_MAX, Place, key};

on_both! {
    keys_open_until_they_are_revoked_or_their_project_ends
    names_are_checked
    no_secret_is_kept
    writers_in_two_processes_keep_one_chain
    a_row_that_was_changed_in_the_file_is_found
    nothing_that_is_recorded_looks_like_another_row
    a_new_database_gets_one_first_key_whoever_opens_it
    one_bad_row_locks_nobody_else_out
    after_failures_changes_are_made_again
    who_gives_up_waiting_keeps_nobody_waiting
}

async fn whole_chain(store: &Store) -> Result<(i64, String), Broken> {
    verify(&store.audit_events(0).await.unwrap(), None)
}

async fn keys_open_until_they_are_revoked_or_their_project_ends(place: Place) {
    let store = place.open().await;
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
        Err(Error::Missing(_))
    ));
    store.archive_project("cli:root", "sales").await.unwrap();
    assert_eq!(whose(&two).await, Err(Denied::Unknown));
    let late = NewKeyRequest {
        project: "sales",
        role: Role::Member,
        name: "x",
        expires: None,
        owner: None,
    };
    assert!(matches!(
        store.create_key("cli:root", &late).await,
        Err(Error::Refused(_))
    ));
    // Opened again, all of it is there.
    drop(store);
    let store = place.open().await;
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
            "api_key.deleted",
            "project.archived"
        ]
    );
    assert_eq!(verify(&rows, None).unwrap(), (7, rows[6].hash.clone()));
    let projects = store.projects().await.unwrap();
    let sales = projects.iter().find(|project| project.name == "sales").unwrap();
    assert!(sales.archived.is_some() && sales.models == ["large", "small"]);
}

async fn names_are_checked(place: Place) {
    let store = place.open().await;
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

/// Reads all files of a folder; how many bytes that were.
fn read_all(folder: &Path, look: &dyn Fn(&[u8])) -> usize {
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            read += read_all(&entry.path(), look);
        } else if kind.is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            look(&bytes);
            read += bytes.len();
        }
    }
    read
}

async fn no_secret_is_kept(place: Place) {
    let store = place.open().await;
    store.create_project("cli:root", "a", &[]).await.unwrap();
    let key = key(&store, "a", Role::Owner).await;
    let secret = key.reveal().rsplit('-').next().unwrap();
    let read = read_all(place.folder(), &|bytes| {
        let found = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!found(&secret[..20]));
    });
    assert!(read > 10_000, "the database was looked at");
}

async fn writers_in_two_processes_keep_one_chain(place: Place) {
    let stores = [place.open().await, place.open().await];
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

async fn a_row_that_was_changed_in_the_file_is_found(place: Place) {
    let store = place.open().await;
    for at in 0..5 {
        let detail = format!("{{\"at\":{at}}}");
        store
            .record("cli:root", "server.started", "server", detail)
            .await
            .unwrap();
    }
    assert_eq!(whole_chain(&store).await.unwrap().0, 5);
    let end = whole_chain(&store).await.unwrap();
    let mut raw = place.raw().await;
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

async fn nothing_that_is_recorded_looks_like_another_row(place: Place) {
    let store = place.open().await;
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

async fn a_new_database_gets_one_first_key_whoever_opens_it(place: Place) {
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let database = place.database();
        tasks.spawn(async move {
            let store = Store::open(&database).await.unwrap();
            store.create_first("server", "default", "first").await.unwrap()
        });
    }
    let made = tasks.join_all().await;
    assert_eq!(made.iter().flatten().count(), 1);
    let store = place.open().await;
    assert_eq!(
        (
            store.keys().await.unwrap().len(),
            store.audit_end().await.unwrap().0
        ),
        (1, 2)
    );
}

async fn one_bad_row_locks_nobody_else_out(place: Place) {
    let store = place.open().await;
    store.create_project("cli:root", "a", &[]).await.unwrap();
    let (good, bad) = (
        key(&store, "a", Role::Member).await,
        key(&store, "a", Role::Member).await,
    );
    let mut raw = place.raw().await;
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
async fn after_failures_changes_are_made_again(place: Place) {
    let store = place.open().await;
    let mut raw = place.raw().await;
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

/// Somebody makes a change for so long that another gives up, and another is cut off while it waits.
async fn who_gives_up_waiting_keeps_nobody_waiting(place: Place) {
    let (store, other) = (place.open().await, place.open().await);
    let mut raw = place.raw().await;
    let begin = if place.is_file() {
        "BEGIN IMMEDIATE"
    } else {
        "BEGIN; SELECT COUNT(*) FROM pg_advisory_xact_lock(8241937502110001)"
    };
    sqlx::raw_sql(begin).execute(&mut raw).await.unwrap();
    let waiting = store.create_project("cli:root", "a", &[]);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), waiting)
            .await
            .is_err()
    );
    assert!(
        store.create_project("cli:root", "b", &[]).await.is_err(),
        "it waits for five seconds"
    );
    sqlx::raw_sql("ROLLBACK").execute(&mut raw).await.unwrap();
    for (at, one) in [&store, &other, &store].into_iter().enumerate() {
        let name = format!("c{at}");
        let made = tokio::time::timeout(FREE_MAX, one.create_project("cli:root", &name, &[]));
        made.await.expect("nobody holds it").unwrap();
    }
    assert_eq!(whole_chain(&store).await.unwrap().0, 3);
}
