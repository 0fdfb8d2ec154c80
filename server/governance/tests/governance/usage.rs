//! What was used, in a file and on a server.

use std::collections::BTreeSet;
use std::time::Duration;

use rempart_governance::{Error, Noted, Outcome, Store, UsageEvent, UsageSum, UsageWriter};
use sqlx::Connection as _;

use crate::support::Place;

on_both! {
    what_was_used_is_summed_and_proven
    usage_that_was_changed_is_found
    costs_have_one_currency
    two_that_write_keep_one_chain
    a_batch_that_was_there_after_all_keeps_nobody_waiting
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
    assert!(
        writer.write(&[used(161), used(3)]).await.is_err(),
        "no request has two rows"
    );
    assert_eq!(proven(&store).await.unwrap(), 160, "and none of that was written");
    let changed = tokio::time::timeout(Duration::from_secs(3), store.create_project("test", "sales", &[]));
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
        let _ = UsageWriter::new(store.clone()).write(&[used(100)]).await;
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
    let next = tokio::time::timeout(Duration::from_secs(2), writers[1].write(&[used(3)])).await;
    next.expect("nobody holds the lock").unwrap();
    assert_eq!(proven(&store).await.unwrap(), 2);
}

/// Rows that go alone are written past the driver, whose connection keeps the log short in turns.
#[tokio::test]
async fn the_log_of_a_file_stays_short_however_many_rows_go_alone() {
    let place = Place::file();
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    let mut reader = place.raw().await;
    for at in 0..3_000 {
        writer.write(&[used(at)]).await.unwrap();
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
    // Those of a thousand rows, at most: the reader kept 500, and some 500 go before the log begins anew. All are 60 MiB.
    assert!(log < 30 << 20, "{log} bytes");
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
