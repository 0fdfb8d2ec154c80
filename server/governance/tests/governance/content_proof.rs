//! The proof of what was asked and answered, and what is deleted of it.

use rempart_governance::{
    BrokenContent, Content, DAY_MS, Error, Noted, ReaderKey, Recording, Sealed, Store, UsageEvent, now_ms,
    now_s,
};

use crate::support::Place;
use crate::support::recorded::{Recorded, of, proven, write};

on_both! {
    a_record_that_was_changed_or_taken_out_is_found
    a_row_that_does_not_fit_is_not_followed
    nothing_is_recorded_that_the_chain_does_not_tell
    a_request_that_runs_while_its_records_are_deleted_has_none
    a_copy_has_no_records
    records_go_when_they_are_due_or_somebody_says_so
}

async fn a_record_that_was_changed_or_taken_out_is_found(place: Place) {
    let store = place.open().await;
    let a = Recorded::begin(&store, "a").await;
    let now = now_ms();
    let all = (0..3).map(|at| a.request(at, "abcdefgh", now));
    write(&store, all.collect()).await;
    for (column, value) in [
        ("asked", "'AAAA'"),
        ("answered", "reader"),
        ("reader", "answered"),
        ("fingerprint", "''"),
        ("due_ms", "due_ms + 1"),
        ("announced", "announced - 1"),
        ("project", "'proj_b'"),
        ("api_key", "'hgfedcba'"),
        ("began_ms", "began_ms - 1"),
    ] {
        let number = column.ends_with("_ms") || column == "announced";
        let is = "FROM content WHERE request = 'request1'";
        let was = place.text(&format!("SELECT CAST({column} AS TEXT) {is}")).await;
        let set = async |value: &str| {
            let change = format!("UPDATE content SET {column} = {value} WHERE request = 'request1'");
            place.run(&change).await;
        };
        set(value).await;
        let broken = proven(&store).await;
        assert!(
            matches!(&broken, Err(Error::Content(BrokenContent::Changed(request))) if request == "request1"),
            "{column}: {broken:?}"
        );
        set(&if number { was } else { format!("'{was}'") }).await;
    }
    assert_eq!(proven(&store).await.unwrap(), 3);
    // A record of no request.
    place
        .run(
            "INSERT INTO content SELECT 'requestx', project, api_key, began_ms, due_ms, announced, fingerprint, reader, asked, \
             answered, bytes FROM content WHERE request = 'request1'",
        )
        .await;
    assert!(matches!(
        proven(&store).await,
        Err(Error::Content(BrokenContent::Changed(_)))
    ));
    place.run("DELETE FROM content WHERE request = 'requestx'").await;
    place.run("DELETE FROM content WHERE request = 'request1'").await;
    assert!(matches!(
        proven(&store).await,
        Err(Error::Content(BrokenContent::Missing(_)))
    ));
    // That it was due, or that there was none, would be another row of usage than was written.
    for mark in ["''", "'5:' || content"] {
        let was = place
            .text("SELECT content FROM usage_event WHERE id = 'request1'")
            .await;
        let set = async |mark: &str| {
            let change = format!("UPDATE usage_event SET content = {mark} WHERE id = 'request1'");
            place.run(&change).await;
        };
        set(mark).await;
        assert!(matches!(proven(&store).await, Err(Error::Usage(_))), "{mark}");
        set(&format!("'{was}'")).await;
    }
    // Two days later it would be gone anyway.
    let later = store.prove_at(&Noted::default(), now + 2 * DAY_MS).await;
    assert_eq!(later.unwrap().content, 2);
}

/// What somebody has a server record who writes to the database past the store.
fn other(reader: &ReaderKey) -> Recording {
    Recording {
        reader: Some(reader.public()),
        fingerprints: false,
        days: 1,
        until: now_s() + 1_000,
    }
}

async fn a_row_that_does_not_fit_is_not_followed(place: Place) {
    let store = place.open().await;
    let a = Recorded::begin(&store, "a").await;
    let detail = serde_json::to_string(&other(&ReaderKey::make().unwrap())).unwrap();
    for row in [-7, 0, 99] {
        place
            .run(&format!(
                "INSERT INTO audit_event (seq, at_ms, actor, action, object, detail, previous, hash) VALUES \
                 ({row}, 0, 'x', 'content.recording', '{}', '{detail}', '', '')",
                a.project
            ))
            .await;
        // None from before the first is seen.
        let taken = store.recordings().await;
        assert!(taken.is_err() || taken.unwrap()[&a.project].row == a.row, "{row}");
        place
            .run(&format!("DELETE FROM audit_event WHERE seq = {row}"))
            .await;
    }
}

/// Writes a request as a server does that was told something else for a while; whether the proof finds that nobody announced it.
async fn is_unannounced(store: &Store, request: (UsageEvent, Content)) -> bool {
    write(store, vec![request]).await;
    matches!(
        proven(store).await,
        Err(Error::Content(BrokenContent::Unannounced(_)))
    )
}

async fn nothing_is_recorded_that_the_chain_does_not_tell(place: Place) {
    let store = place.open().await;
    let mut a = Recorded::begin(&store, "a").await;
    let b = Recorded::begin(&store, "b").await;
    let (now, row) = (now_ms(), a.row);
    write(&store, vec![a.request(0, "abcdefgh", now)]).await;
    assert_eq!(proven(&store).await.unwrap(), 1);
    store.close().await;
    let all = [
        ("another row", row - 1, now),
        ("another project's", b.row, now),
        ("another reader", row, now),
        ("other days", row, now),
        ("long before", row, now - 2 * DAY_MS),
        ("when it was over", row, now + 3 * DAY_MS),
    ];
    for (at, (wrong, row, began_ms)) in all.into_iter().enumerate() {
        // Each in a copy, as it stays in the chain of usage.
        let (database, direct) = place.copy(&format!("copy{at}")).await;
        sqlx::Connection::close(direct).await.unwrap();
        let copy = Store::open(&database).await.unwrap();
        a.row = row;
        let (mut used, mut record) = a.request(1, "abcdefgh", began_ms);
        if wrong == "another reader" {
            record.sealed = Sealed::seal(&b.reader.public(), &record.request, &[], &[]).unwrap();
        }
        if wrong == "other days" {
            record.due_ms += 1;
        }
        used.content = record.mark();
        assert!(is_unannounced(&copy, (used, record)).await, "{wrong}");
        copy.close().await;
    }
    a.row = row;
    let store = place.open().await;
    // What took its place is what holds.
    store.set_recording("test", "a", &other(&b.reader)).await.unwrap();
    let later = a.request(2, "abcdefgh", now_ms() + DAY_MS / 2);
    assert!(is_unannounced(&store, later).await);
}

async fn a_request_that_runs_while_its_records_are_deleted_has_none(place: Place) {
    let store = place.open().await;
    let (a, b) = (
        Recorded::begin(&store, "a").await,
        Recorded::begin(&store, "b").await,
    );
    let began = now_ms();
    write(
        &store,
        (0..3).map(|at| a.request(at, "abcdefgh", began)).collect(),
    )
    .await;
    assert_eq!(store.delete_content("test", "a").await.unwrap(), 3);
    assert_eq!(
        proven(&store).await.unwrap(),
        0,
        "the chain tells that they were deleted"
    );
    assert!(store.delete_content("test", "c").await.is_err());
    write(
        &store,
        vec![a.request(3, "abcdefgh", began), b.request(4, "abcdefgh", began)],
    )
    .await;
    assert_eq!(proven(&store).await.unwrap(), 1);
    let rows = store.usage_events(1, 10).await.unwrap();
    let marked: Vec<bool> = rows.iter().map(|row| !row.content.is_empty()).collect();
    assert_eq!(marked, [true, true, true, false, true]);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    write(&store, vec![a.request(5, "abcdefgh", now_ms())]).await;
    assert_eq!(proven(&store).await.unwrap(), 2);
}

async fn a_copy_has_no_records(place: Place) {
    let store = place.open().await;
    let a = Recorded::begin(&store, "a").await;
    write(&store, vec![a.request(1, "abcdefgh", now_ms())]).await;
    let sealed = store.contents(&of(&a.project), 1).await.unwrap().remove(0).sealed;
    let mut copy = Vec::new();
    store.back_up("test", &mut copy, || ()).await.unwrap();
    assert!(!String::from_utf8(copy.clone()).unwrap().contains(&sealed.asked));
    let other = Place::file();
    let restored = other.open().await;
    restored.restore("test", copy.as_slice(), || ()).await.unwrap();
    // The chain tells why it is missing.
    assert_eq!(proven(&restored).await.unwrap(), 0);
    assert_eq!(proven(&store).await.unwrap(), 1);
}

async fn records_go_when_they_are_due_or_somebody_says_so(place: Place) {
    let store = place.open().await;
    let (a, b) = (
        Recorded::begin(&store, "a").await,
        Recorded::begin(&store, "b").await,
    );
    let now = now_ms();
    write(
        &store,
        (0..400).map(|at| a.request(at, "abcdefgh", now)).collect(),
    )
    .await;
    write(
        &store,
        (400..700).map(|at| b.request(at, "abcdefgh", now)).collect(),
    )
    .await;
    let later = now + DAY_MS / 2;
    let some = [
        a.request(700, "k", later),
        a.request(701, "k", later),
        b.request(702, "k", later),
    ];
    write(&store, some.into()).await;
    assert_eq!(proven(&store).await.unwrap(), 703);
    let next_day = now + DAY_MS + DAY_MS / 4;
    assert_eq!(store.due(next_day).await.unwrap().content, 700);
    assert_eq!(store.trim("test", next_day, |_| ()).await.unwrap().content, 700);
    let proof = store.prove_at(&Noted::default(), next_day).await.unwrap();
    assert_eq!(proof.content, 3);
    assert!(
        matches!(
            proven(&store).await,
            Err(Error::Content(BrokenContent::Missing(_)))
        ),
        "they were not due today"
    );
    // They go with the rows of their requests at the latest.
    let far = now + 200 * DAY_MS;
    let gone = store.trim("test", far, |_| ()).await.unwrap();
    assert_eq!((gone.content, gone.usage), (3, 703));
    assert_eq!(store.prove_at(&Noted::default(), far).await.unwrap().content, 0);
}
