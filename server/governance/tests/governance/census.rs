//! What a database has, in numbers.

use std::collections::BTreeSet;

use rempart_governance::{Database, Error, Role};

use crate::support::{Place, key};

on_both! {
    every_table_is_counted
    an_old_database_is_counted_and_stays_old
}

async fn every_table_is_counted(place: Place) {
    let store = place.open().await;
    store.create_project("cli:root", "sales", &[]).await.unwrap();
    key(&store, "sales", Role::Member).await;
    let census = place.database().census().await.unwrap();
    let rows = |name: &str| {
        let mut tables = census.rows.iter();
        tables.find(|(table, _)| *table == name).unwrap().1
    };
    let audited = i64::try_from(store.audit_events(0).await.unwrap().len()).unwrap();
    assert_eq!(rows("api_key"), Some(1));
    assert_eq!(rows("audit_event"), Some(audited));
    assert_eq!(rows("content"), Some(0));
    assert_eq!(usize::try_from(census.version).unwrap(), census.version_known);
    let (program, query) = match place.database() {
        Database::File(_) => ("SQLite 3.", "SELECT name FROM sqlite_master WHERE type = 'table'"),
        Database::Server(_) => (
            "PostgreSQL ",
            "SELECT CAST(table_name AS TEXT) FROM information_schema.tables WHERE table_schema = 'public'",
        ),
    };
    assert!(census.program.starts_with(program), "{}", census.program);
    assert_eq!(census.bytes.is_some_and(|bytes| bytes > 0), place.is_file());
    let there: Vec<(String,)> = sqlx::query_as(query)
        .fetch_all(&mut place.raw().await)
        .await
        .unwrap();
    let there: BTreeSet<String> = there
        .into_iter()
        .map(|(name,)| name)
        .filter(|name| !name.starts_with("_sqlx") && !name.starts_with("sqlite_"))
        .collect();
    let counted: BTreeSet<String> = census.rows.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(counted, there);
}

/// A server of the version before goes on with it.
async fn an_old_database_is_counted_and_stays_old(place: Place) {
    place.open().await.close().await;
    place.run("DROP TABLE content").await;
    let last = "DELETE FROM _sqlx_migrations WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)";
    place.run(last).await;
    for _ in 0..2 {
        let census = place.database().census().await.unwrap();
        assert_eq!(usize::try_from(census.version).unwrap() + 1, census.version_known);
        assert!(census.rows.contains(&("content", None)), "{census:?}");
        assert!(census.rows.contains(&("person", Some(0))), "{census:?}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_and_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("typo.db");
    let told = Database::File(path.clone()).census().await;
    assert!(matches!(told, Err(Error::Refused(_))), "{told:?}");
    assert!(!path.exists());
}
