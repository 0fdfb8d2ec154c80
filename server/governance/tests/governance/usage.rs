//! What was used, in a file and on a server.

use std::collections::BTreeSet;
use std::time::Duration;

use rempart_governance::{Error, Noted, Outcome, Store, UsageEvent, UsageSum, UsageWriter};
use sqlx::Connection as _;

use crate::support::{FREE_MAX, Place};

on_both! {
    what_was_used_is_summed_and_proven
    usage_that_was_changed_is_found
    costs_have_one_currency
    two_that_write_keep_one_chain
    a_batch_that_was_there_after_all_keeps_nobody_waiting
    rows_count_before_they_are_chained
    what_can_not_be_chained_ends_the_writing
}

fn used(at: i64) -> UsageEvent {
    UsageEvent {
        id: format!("id{at}"),
        began_ms: 1_700_000_000_000 + 60_000 * at,
        project: if at % 2 == 0 { "proj_a" } else { "proj_b" }.to_owned(),
        key: "abcdefgh".to_owned(),
        model: "m".to_owned(),
        endpoint: "/v1/chat/completions".to_owned(),
        input: 10,
        cached: 4,
        output: at,
        first_ms: None,
        duration_ms: 5,
        status: 200,
        outcome: Outcome::Completed.name().to_owned(),
        cost_nano: 3,
        content: String::new(),
    }
}

async fn proven(store: &Store) -> Result<i64, Error> {
    Ok(store.prove(&Noted::default()).await?.usage.0)
}

async fn what_was_used_is_summed_and_proven(place: Place) {
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    // Two hours and forty minutes, in batches of different sizes.
    let mut rows: Vec<UsageEvent> = (0..160).map(used).collect();
    Outcome::Refused.name().clone_into(&mut rows[50].outcome);
    for batch in [&rows[..1], &rows[1..100], &rows[100..]] {
        writer.write(batch).await.unwrap();
    }
    assert_eq!(proven(&store).await.unwrap(), 160);
    assert_eq!(store.usage_events(1, 160).await.unwrap(), rows);
    // So many that a file's are chained at once, too.
    let again: Vec<UsageEvent> = (200..220).chain([3]).map(used).collect();
    assert!(writer.write(&again).await.is_err(), "no request has two rows");
    assert_eq!(proven(&store).await.unwrap(), 160, "and none of that was written");
    let changed = tokio::time::timeout(FREE_MAX, store.create_project("test", "sales", &[]));
    changed.await.expect("nobody keeps a lock").unwrap();
    // After a failure nobody knows whether the rows are there: those that are, are not written again.
    writer.write(&rows[1..100]).await.unwrap();
    assert_eq!(proven(&store).await.unwrap(), 160);
    writer.write(&[used(160)]).await.unwrap();
    let total = |sums: &[UsageSum], of: fn(&UsageSum) -> i64| sums.iter().map(of).sum::<i64>();
    for span in [60, 3_600, 86_400] {
        let sums = store
            .usage(1_600_000_000, 1_800_000_000, span, 1_000)
            .await
            .unwrap();
        assert_eq!(total(&sums, |sum| sum.total.requests), 160, "{span}");
        assert_eq!(total(&sums, |sum| sum.total.refused), 1, "{span}");
        assert_eq!(total(&sums, |sum| sum.total.output), 160 * 161 / 2);
        assert_eq!(
            total(&sums, |sum| sum.total.input
                + sum.total.cached
                + sum.total.cost_nano),
            17 * 161
        );
        assert!(sums.iter().all(|sum| sum.start % span == 0));
        let distinct: BTreeSet<_> = sums.iter().map(|sum| (sum.start, &sum.project)).collect();
        assert_eq!(distinct.len(), sums.len());
    }
    let first_hour = 1_700_000_000 / 3_600 * 3_600;
    let hour = store
        .usage(first_hour, first_hour + 3_600, 3_600, 1_000)
        .await
        .unwrap();
    let minutes = store
        .usage(first_hour, first_hour + 3_600, 60, 1_000)
        .await
        .unwrap();
    assert_eq!(
        total(&hour, |sum| sum.total.output),
        total(&minutes, |sum| sum.total.output)
    );
    assert!(matches!(
        store.usage(first_hour, first_hour + 3_600, 60, 10).await,
        Err(Error::TooMany(10))
    ));
}

/// Every change that somebody may make to the file, and back.
async fn usage_that_was_changed_is_found(place: Place) {
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    let rows: Vec<UsageEvent> = (0..9).map(used).collect();
    for batch in rows.chunks(3) {
        writer.write(batch).await.unwrap();
        writer.chain().await.unwrap();
    }
    let (count, last) = store.prove(&Noted::default()).await.unwrap().usage;
    let noted = Noted {
        usage: vec![last.unwrap().into()],
        ..Noted::default()
    };
    assert!(store.prove(&noted).await.unwrap().contains);
    assert_eq!((count, noted.usage[0].end.0), (9, 3));
    drop(writer);
    store.close().await;
    for (at, change) in [
        "UPDATE usage_event SET output = 0 WHERE seq = 7",
        "UPDATE usage_event SET outcome = 'failed' WHERE seq = 1",
        "UPDATE usage_event SET content = '1:a' WHERE seq = 1",
        "UPDATE usage_event SET output = 'x' WHERE seq = 1",
        "UPDATE usage_event SET seq = 99 WHERE seq = 1",
        "DELETE FROM usage_event WHERE seq = 9",
        "DELETE FROM usage_batch WHERE seq = 2",
        "DELETE FROM usage_batch WHERE seq = 3",
        "INSERT INTO usage_event SELECT 10, 'new', began_ms, project, api_key, model, endpoint, input, cached, output, first_ms, \
         duration_ms, status, outcome, cost_nano, content FROM usage_event WHERE seq = 9",
        "INSERT INTO usage_event SELECT 'x', 'new', began_ms, project, api_key, model, endpoint, input, cached, output, first_ms, \
         duration_ms, status, outcome, cost_nano, content FROM usage_event WHERE seq = 9",
        "UPDATE usage_batch SET last_row = 9223372036854775807 WHERE seq = 3",
        "UPDATE usage_batch SET seq = 9223372036854775807 WHERE seq = 3",
        "UPDATE usage_bucket SET cost_nano = 0",
        "UPDATE usage_bucket SET input = 9223372036854775807",
        "DELETE FROM usage_bucket WHERE project = 'proj_a'",
        "INSERT INTO usage_bucket VALUES (0, 'a', 'b', 'c', 'd', 1, 0, 0, 0, 0, 0)",
        // With rows, batch and sums together: only what was noted tells.
        "DELETE FROM usage_batch WHERE seq = 3; DELETE FROM usage_event WHERE seq > 6; DELETE FROM usage_bucket",
    ]
    .into_iter()
    .enumerate()
    {
        if change.contains("'x'") && !place.is_file() {
            // It refuses a text where a number should be.
            continue;
        }
        let (changed, mut direct) = place.copy(&format!("changed{at}")).await;
        sqlx::raw_sql(change).execute(&mut direct).await.unwrap();
        direct.close().await.unwrap();
        let store = Store::open(&changed).await.unwrap();
        let proof = store.prove(&noted).await;
        assert!(proof.is_err() || !proof.as_ref().unwrap().contains, "{change}: {proof:?}");
        // And nothing panics.
        let mut writer = UsageWriter::new(store.clone());
        let _ = writer.write(&[used(100)]).await;
        let _ = writer.chain().await;
        let _ = store.usage(0, i64::MAX, 86_400, 100).await;
    }
}

async fn costs_have_one_currency(place: Place) {
    let store = place.open().await;
    assert_eq!(store.currency().await.unwrap(), None);
    store.settle_currency("server", "eur").await.unwrap();
    store.settle_currency("server", "eur").await.unwrap();
    assert!(matches!(
        store.settle_currency("server", "usd").await,
        Err(Error::Refused(_))
    ));
    assert_eq!(store.currency().await.unwrap().as_deref(), Some("eur"));
    let rows = store.audit_events(0).await.unwrap();
    assert_eq!(
        rows.iter()
            .filter(|row| row.action == "organization.updated")
            .count(),
        1
    );
}

/// Each finds out by itself that the other has written.
async fn two_that_write_keep_one_chain(place: Place) {
    let (store, other) = (place.open().await, place.open().await);
    let mut writers = [UsageWriter::new(store.clone()), UsageWriter::new(other)];
    for at in 0..24 {
        // Now one of them several times, now in turns.
        let writer = &mut writers[usize::from(at % 3 == 0 || at > 15 && at % 2 == 0)];
        writer.write(&[used(at)]).await.unwrap();
        if at % 2 == 0 {
            writer.chain().await.unwrap();
        }
    }
    assert_eq!(proven(&store).await.unwrap(), 24);
}

/// After a failure in which nobody could tell whether the rows were written.
async fn a_batch_that_was_there_after_all_keeps_nobody_waiting(place: Place) {
    let (store, other) = (place.open().await, place.open().await);
    let mut writers = [UsageWriter::new(store.clone()), UsageWriter::new(other)];
    writers[0].write(&[used(1)]).await.unwrap();
    // The same row again is refused, and from then on it is in doubt.
    assert!(writers[0].write(&[used(2), used(1)]).await.is_err());
    writers[0].write(&[used(1)]).await.unwrap();
    let next = tokio::time::timeout(FREE_MAX, writers[1].write(&[used(3)])).await;
    next.expect("nobody holds the lock").unwrap();
    assert_eq!(proven(&store).await.unwrap(), 2);
}

/// Whoever writes them, whoever chains them, and whenever.
async fn rows_count_before_they_are_chained(place: Place) {
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    for at in 0..90 {
        writer.write(&[used(at)]).await.unwrap();
    }
    assert_eq!(writer.unchained_rows(), if place.is_file() { 90 } else { 0 });
    let spans = [60, 3_600, 86_400];
    let sums = async |store: &Store| {
        let mut all = Vec::new();
        for span in spans {
            all.push(
                store
                    .usage(1_600_000_000, 1_800_000_000, span, 1_000)
                    .await
                    .unwrap(),
            );
        }
        all
    };
    let before = sums(&store).await;
    assert_eq!(before[2].iter().map(|sum| sum.total.requests).sum::<i64>(), 90);
    // The process dies: what it has written waits for the next one.
    drop(writer);
    let next = place.open().await;
    let mut writer = UsageWriter::new(next.clone());
    writer.chain().await.unwrap();
    assert_eq!(sums(&next).await, before);
    let batches = place.text("SELECT CAST(COUNT(*) AS TEXT) FROM usage_batch").await;
    assert_eq!(batches, if place.is_file() { "1" } else { "90" });
    assert_eq!(proven(&next).await.unwrap(), 90);
    // Both write and both chain, and one of them is asked for rows.
    let mut other = UsageWriter::new(store.clone());
    for at in 90..190 {
        writer.write(&[used(at)]).await.unwrap();
        other.write(&[used(at + 100)]).await.unwrap();
        match at % 30 {
            7 => writer.chain().await.unwrap(),
            14 => other.chain().await.unwrap(),
            28 => {
                store.chain_usage().await.unwrap();
                assert_eq!(store.usage_end().await.unwrap(), 2 * at - 88);
            }
            _ => {}
        }
    }
    assert_eq!(proven(&store).await.unwrap(), 290);
    let rows = store.usage_events(1, 1_000).await.unwrap();
    assert_eq!(rows.iter().map(|row| &row.id).collect::<BTreeSet<_>>().len(), 290);
}

/// Nothing piles up that nobody can prove.
async fn what_can_not_be_chained_ends_the_writing(place: Place) {
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    writer.write(&[used(0)]).await.unwrap();
    place.run("ALTER TABLE usage_batch RENAME TO gone").await;
    for _ in 0..2 {
        // Of a server there is nothing to chain by itself: its row fails.
        assert_eq!(writer.chain().await.is_err(), place.is_file());
        assert!(writer.write(&[used(1)]).await.is_err());
    }
    place.run("ALTER TABLE gone RENAME TO usage_batch").await;
    writer.write(&[used(1)]).await.unwrap();
    assert_eq!(proven(&store).await.unwrap(), 2);
}

/// What can't be chained, as another writes, is told beside what is proven; and nobody waits for it who can do without.
#[tokio::test]
async fn rows_that_can_not_be_chained_are_counted_and_exported() {
    let place = Place::file();
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    writer.write(&[used(0), used(1)]).await.unwrap();
    writer.chain().await.unwrap();
    // Before all others, and by a clock that was ahead.
    let waiting = [used(-1), used(4_000_000)];
    writer.write(&waiting).await.unwrap();
    let mut other = place.raw().await;
    let change = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let proof = store.prove(&Noted::default()).await.unwrap();
    assert_eq!((proof.usage.0, proof.unchained), (2, 2));
    let (key, end) = (used(0).key, store.usage_end().await.unwrap());
    assert_eq!(store.unchained_usage_of(&key).await.unwrap(), waiting);
    assert_eq!(
        store.usage_events_of(&key, 1, end).await.unwrap(),
        [used(0), used(1)]
    );
    assert_eq!(
        store.oldest().await.unwrap().usage,
        Some(used(-1).began_ms / 1_000)
    );
    let ahead = store.held_until_ms(1_900_000_000_000).await.unwrap();
    assert_eq!(ahead, Some(waiting[1].began_ms));
    change.rollback().await.unwrap();
    let proof = store.prove(&Noted::default()).await.unwrap();
    assert_eq!((proof.usage.0, proof.unchained), (4, 0));
}

/// What keeps rows from being chained for good is told, and no proof holds meanwhile.
#[tokio::test]
async fn rows_that_somebody_keeps_from_being_chained_are_told() {
    let place = Place::file();
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    writer.write(&[used(0)]).await.unwrap();
    writer.chain().await.unwrap();
    place.run("CREATE UNIQUE INDEX one ON usage_event (model)").await;
    writer.write(&[used(1)]).await.unwrap();
    let found = store.prove(&Noted::default()).await;
    assert!(matches!(found, Err(Error::Database(_))), "{found:?}");
    place.run("DROP INDEX one").await;
    let trigger = "CREATE TRIGGER cheaper AFTER INSERT ON usage_unchained BEGIN UPDATE usage_unchained SET input = 0; END";
    place.run(trigger).await;
    let found = store.prove(&Noted::default()).await.unwrap_err().to_string();
    assert!(
        found.starts_with("the database has the trigger \"cheaper\", which"),
        "{found}"
    );
    place.run("DROP TRIGGER cheaper").await;
    assert_eq!(proven(&store).await.unwrap(), 2);
}

/// A chain that was changed is told so, whatever waits behind it.
#[tokio::test]
async fn rows_that_wait_hide_no_change_of_the_chain() {
    for change in [
        "DELETE FROM usage_batch WHERE seq = 2",
        "UPDATE usage_batch SET seq = 9223372036854775807 WHERE seq = 2",
        "UPDATE usage_event SET seq = 3 WHERE seq = 2",
    ] {
        let place = Place::file();
        let store = place.open().await;
        let mut writer = UsageWriter::new(store.clone());
        for at in 0..2 {
            writer.write(&[used(at)]).await.unwrap();
            writer.chain().await.unwrap();
        }
        writer.write(&[used(2)]).await.unwrap();
        place.run(change).await;
        let found = store.prove(&Noted::default()).await;
        assert!(matches!(found, Err(Error::Usage(_))), "{change}: {found:?}");
    }
}

/// A chain that fails tells nothing of rows of the last try, which may be there.
#[tokio::test]
async fn what_is_in_doubt_stays_so_while_chains_are_tried() {
    let place = Place::file();
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    writer.write(&[used(0)]).await.unwrap();
    // The same row again is refused, and from then on it is in doubt.
    assert!(writer.write(&[used(1), used(0)]).await.is_err());
    place.run("ALTER TABLE usage_batch RENAME TO gone").await;
    assert!(writer.chain().await.is_err());
    place.run("ALTER TABLE gone RENAME TO usage_batch").await;
    writer.chain().await.unwrap();
    writer.write(&[used(0)]).await.unwrap();
    assert_eq!(proven(&store).await.unwrap(), 1);
}

/// What somebody else has written among those that wait is named, and neither chained nor passed over.
#[tokio::test]
async fn a_row_that_waits_and_is_not_of_this_program_is_named() {
    let place = Place::file();
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    for (number, change) in [
        (2, "UPDATE usage_unchained SET id = 'id0' WHERE seq = 2"),
        (1, "UPDATE usage_unchained SET input = 'many' WHERE seq = 1"),
    ] {
        writer.write(&[used(10 * number)]).await.unwrap();
        writer.chain().await.unwrap();
        let own = used(10 * number).id;
        writer
            .write(&[used(10 * number + 1), used(10 * number + 2)])
            .await
            .unwrap();
        place.run(&change.replace("id0", &own)).await;
        let named = format!("row {number} of the table usage_unchained is none");
        let failed = [
            writer.chain().await.unwrap_err(),
            writer.write(&[used(10 * number + 3)]).await.unwrap_err(),
            store.chain_usage().await.unwrap_err(),
            store.prove(&Noted::default()).await.unwrap_err(),
        ];
        for error in failed {
            assert!(error.to_string().starts_with(&named), "{error}");
        }
        place
            .run(&format!("DELETE FROM usage_unchained WHERE seq = {number}"))
            .await;
        writer.write(&[used(10 * number + 3)]).await.unwrap();
    }
    assert_eq!(proven(&store).await.unwrap(), 6);
}

/// What somebody else has put where rows wait is not taken for a row of this program, nor carried into a copy that can't be restored.
#[tokio::test]
async fn a_row_of_somebody_else_is_named_on_a_server_and_before_a_copy() {
    const COLUMNS: &str = "id, began_ms, project, api_key, model, endpoint, input, cached, output, first_ms, duration_ms, status, outcome, cost_nano";
    for place in [Place::file(), Place::server()] {
        let store = place.open().await;
        UsageWriter::new(store.clone()).write(&[used(0)]).await.unwrap();
        assert_eq!(proven(&store).await.unwrap(), 1);
        place
            .run(&format!(
                "INSERT INTO usage_unchained (seq, {COLUMNS}, content) SELECT 7, {COLUMNS}, '' FROM usage_event"
            ))
            .await;
        let failed = [
            store.chain_usage().await.unwrap_err(),
            store.prove(&Noted::default()).await.unwrap_err(),
            store.back_up("cli:root", Vec::new(), || ()).await.unwrap_err(),
        ];
        for error in failed {
            let named = "row 7 of the table usage_unchained is none";
            assert!(error.to_string().starts_with(named), "{error}");
        }
        place.run("UPDATE usage_unchained SET id = 'another'").await;
        // A file's own rows wait there, too.
        assert_eq!(store.chain_usage().await.is_ok(), place.is_file());
    }
}

/// Rows that go alone are written past the driver, whose connection keeps the log short as it chains them, few or many at a time.
#[tokio::test]
async fn the_log_of_a_file_stays_short_however_many_rows_go_alone() {
    let place = Place::file();
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    let mut reader = place.raw().await;
    for at in 0..3_000 {
        writer.write(&[used(at)]).await.unwrap();
        if at > 2_000 && at % 3 == 0 {
            writer.chain().await.unwrap();
        }
        // While somebody reads, the log can't begin anew.
        match at {
            500 => {
                let read = "BEGIN; SELECT COUNT(*) FROM usage_event";
                sqlx::raw_sql(read).execute(&mut reader).await.unwrap();
            }
            1_000 => drop(sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap()),
            _ => {}
        }
    }
    reader.close().await.unwrap();
    assert_eq!(proven(&store).await.unwrap(), 3_000);
    let log = std::fs::metadata(place.folder().join("rempart.db-wal"))
        .unwrap()
        .len();
    // Those of a thousand rows, at most: the reader kept 500, and some 500 go before the log begins anew. All are 40 MiB.
    assert!(log < 16 << 20, "{log} bytes");
    drop(writer);
    store.close().await;
    let left = std::fs::read_dir(place.folder()).unwrap().count();
    assert_eq!(left, 1, "closed, it is one file");
}

#[tokio::test]
async fn a_row_waits_for_whoever_writes_to_the_file() {
    let place = Place::file();
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    for at in 0..4 {
        writer.write(&[used(at)]).await.unwrap();
    }
    let mut other = place.raw().await;
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    let waits = Duration::from_millis(300);
    let row = [used(4)];
    let (written, released) = tokio::join!(writer.write(&row), async {
        tokio::time::sleep(waits).await;
        sqlx::raw_sql("COMMIT").execute(&mut other).await
    });
    released.unwrap();
    written.unwrap();
    writer.write(&[used(5)]).await.unwrap();
    assert_eq!(proven(&store).await.unwrap(), 6);
}
