//! A copy of a database, and a database of a copy.

use std::collections::BTreeSet;

use rempart_governance::{
    Database, Error, Metric, Noted, Outcome, Role, Secret, Store, Subject, UsageEvent, UsageWriter, now_s,
    verify,
};
use sqlx::Row as _;

use crate::support::{Place, key};

on_both! {
    what_is_restored_is_what_there_was
    no_part_of_a_copy_is_restored
    a_copy_is_of_every_table
}

async fn filled(place: &Place) -> Store {
    let secret = Secret::open_or_make(&place.folder().join("secret")).unwrap();
    let store = place.open().await.with_secret("cli:root", secret).await.unwrap();
    store
        .create_project("cli:root", "sales", &["m".to_owned()])
        .await
        .unwrap();
    let anna = store
        .add_person("cli:root", "anna@example.org", "Anna", Role::Member)
        .await
        .unwrap();
    store.add_member("cli:root", "sales", &anna.id).await.unwrap();
    store
        .create_account("cli:root", "sales", "crm", Some(None))
        .await
        .unwrap();
    let limits = [(Metric::TokensPerDay, Some(5))];
    store
        .set_limits("cli:root", &Subject::Project("sales".to_owned()), &limits)
        .await
        .unwrap();
    let mut writer = UsageWriter::new(store.clone());
    for batch in 0..3 {
        let rows: Vec<UsageEvent> = (0..100).map(|at| used(batch * 100 + at)).collect();
        writer.write(&rows).await.unwrap();
    }
    store
}

fn used(at: i64) -> UsageEvent {
    UsageEvent {
        id: format!("id{at}"),
        began_ms: 1_700_000_000_000 + 60_000 * at,
        project: "proj_a".to_owned(),
        key: "abcdefgh".to_owned(),
        model: "a \"model\"\u{e9}".to_owned(),
        endpoint: "/v1/embeddings".to_owned(),
        input: 10,
        cached: 4,
        output: at,
        first_ms: (at % 2 == 0).then_some(7),
        duration_ms: 5,
        status: 200,
        outcome: Outcome::Completed.name().to_owned(),
        cost_nano: 3,
        content: String::new(),
    }
}

async fn copy_of(store: &Store) -> (Vec<u8>, u64) {
    let (mut copy, mut told) = (Vec::new(), 0);
    let rows = store.back_up("cli:root", &mut copy, || told += 1).await.unwrap();
    assert_eq!(rows, told);
    (copy, rows)
}

/// A row that was written is in the copy, chained or not.
#[tokio::test]
async fn rows_that_wait_to_be_chained_are_restored_on_both() {
    let place = Place::file();
    let store = filled(&place).await;
    let mut writer = UsageWriter::new(store.clone());
    for at in 300..305 {
        writer.write(&[used(at)]).await.unwrap();
    }
    assert_eq!(writer.unchained_rows(), 5);
    let (copy, rows) = copy_of(&store).await;
    for other in [Place::file(), Place::server()] {
        let restored = other.open().await;
        let read = restored.restore("cli:root", copy.as_slice(), || ());
        assert_eq!(read.await.unwrap(), rows);
        let waiting = other
            .text("SELECT CAST(COUNT(*) AS TEXT) FROM usage_unchained")
            .await;
        assert_eq!(waiting, "0");
        assert_eq!(restored.prove(&Noted::default()).await.unwrap().usage.0, 305);
        assert_eq!(
            restored.usage_events(301, 305).await.unwrap(),
            (300..305).map(used).collect::<Vec<_>>()
        );
    }
}

/// Into a database of either kind.
async fn what_is_restored_is_what_there_was(place: Place) {
    let store = filled(&place).await;
    let member = key(&store, "sales", Role::Member).await;
    let (copy, rows) = copy_of(&store).await;
    assert!(rows > 300 + 3 + 10);
    assert!(
        !String::from_utf8_lossy(&copy).contains("anna@"),
        "names stay sealed"
    );
    for other in [Place::file(), Place::server()] {
        let restored = other.open().await;
        assert_eq!(
            restored
                .restore("cli:root", copy.as_slice(), || ())
                .await
                .unwrap(),
            rows
        );
        assert_eq!(restored.prove(&Noted::default()).await.unwrap().usage.0, 300);
        assert_eq!(
            restored.usage_events(1, 300).await.unwrap(),
            store.usage_events(1, 300).await.unwrap()
        );
        let (before, after) = (
            store.audit_events(0).await.unwrap(),
            restored.audit_events(0).await.unwrap(),
        );
        verify(&after, None).unwrap();
        assert_eq!(after[..before.len()], before);
        assert_eq!(after.last().unwrap().action, "database.restored");
        assert_eq!(restored.limits().await.unwrap(), store.limits().await.unwrap());
        assert_eq!(
            restored.projects().await.unwrap(),
            store.projects().await.unwrap()
        );
        let directory = restored.directory().await.unwrap();
        assert!(directory.authenticate(member.reveal(), now_s()).is_ok());
        // With the secret the people have names again, and without it none.
        assert!(restored.people().await.unwrap()[0].named.is_none());
        let secret = Secret::open(&place.folder().join("secret")).unwrap();
        let restored = restored.with_secret("cli:root", secret).await.unwrap();
        assert_eq!(restored.people().await.unwrap(), store.people().await.unwrap());
        let again = restored.restore("cli:root", copy.as_slice(), || ()).await;
        assert!(matches!(again, Err(Error::Refused(_))), "it is not a new one");
    }
}

async fn no_part_of_a_copy_is_restored(place: Place) {
    let source = Place::file();
    let (copy, _) = copy_of(&filled(&source).await).await;
    let text = String::from_utf8(copy).unwrap();
    let store = place.open().await;
    let lines: Vec<&str> = text.lines().collect();
    let cut = lines[..lines.len() - 1].join("\n");
    let short = [&lines[..lines.len() - 2], &lines[lines.len() - 1..]]
        .concat()
        .join("\n");
    for wrong in [
        "",
        "{}",
        "[]",
        &cut,
        &short,
        &text[..text.len() / 2],
        &text.replace("sales", "sale5"),
        &text.replace("\"rempart_backup\":1", "\"rempart_backup\":2"),
        &text.replace(
            "\"columns\":[\"name\",\"value\"]",
            "\"columns\":[\"value\",\"name\"]",
        ),
        &text.replace("\"table\":\"setting\"", "\"table\":\"sqlite_master\""),
        "[[[[[[[[[[[[[[[[[[[[[",
        &format!("{text}x"),
        &format!("{text}{text}"),
    ] {
        let restored = store.restore("cli:root", wrong.as_bytes(), || ()).await;
        assert!(restored.is_err(), "{}", &wrong[..wrong.len().min(60)]);
        assert_eq!(store.audit_end().await.unwrap().0, 0, "nothing of it is there");
    }
    store.restore("cli:root", text.as_bytes(), || ()).await.unwrap();
}

/// Whatever a migration adds is in the copy.
async fn a_copy_is_of_every_table(place: Place) {
    let store = place.open().await;
    let (copy, _) = copy_of(&store).await;
    let copied: BTreeSet<(String, String)> = String::from_utf8(copy)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let table = value.get("table")?.as_str()?.to_owned();
            let columns = value["columns"].as_array()?.clone();
            Some(
                columns
                    .into_iter()
                    .map(move |column| (table.clone(), column.as_str().unwrap().to_owned())),
            )
        })
        .flatten()
        .collect();
    let query = match place.database() {
        Database::File(_) => {
            "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'"
        }
        Database::Server(_) => {
            "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT) FROM information_schema.columns \
             WHERE table_schema = 'public'"
        }
    };
    let rows = sqlx::query(query)
        .fetch_all(&mut place.raw().await)
        .await
        .unwrap();
    let there: BTreeSet<(String, String)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .filter(|(table, _): &(String, String)| !table.starts_with("_sqlx") && !table.starts_with("sqlite_"))
        // What servers have for a moment; it is made anew from rows of usage.
        .filter(|(table, _)| !["limit_count", "limit_lease"].contains(&table.as_str()))
        .collect();
    // What was asked and answered is in no copy, where it would outlive its time.
    let there = there
        .into_iter()
        .filter(|(table, _)| table != "content")
        .collect();
    assert_eq!(copied, there);
}
