//! What was asked and answered, recorded in a file and on a server.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use rempart_governance::{
    BrokenContent, Content, ContentQuery, DAY_MS, Error, NewKeyRequest, Noted, Outcome, ReaderKey, Recording,
    Role, Sealed, Store, UsageEvent, UsageWriter, now_ms, now_s, pack,
};

use support::Place;

on_both! {
    what_is_recorded_is_opened_by_its_reader_alone
    a_record_that_was_changed_or_taken_out_is_found
    records_go_when_they_are_due_or_somebody_says_so
    a_copy_has_no_records
    a_recording_is_what_the_chain_says
    an_erased_person_has_no_records
}

/// A request of a project and its record, which is kept for a day.
fn recorded(at: i64, project: &str, key: &str, reader: &ReaderKey, began_ms: i64) -> (UsageEvent, Content) {
    let id = format!("request{at}");
    let record = Content {
        request: id.clone(),
        project: project.to_owned(),
        key: key.to_owned(),
        began_ms,
        due_ms: Content::due(began_ms, 1),
        fingerprint: "f".repeat(64),
        sealed: Sealed::seal(&reader.public(), &id, &pack(b"who am I?"), &pack(b"Anna")).unwrap(),
    };
    let row = UsageEvent {
        id,
        began_ms,
        project: project.to_owned(),
        key: key.to_owned(),
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
        content: record.mark(),
    };
    (row, record)
}

async fn write(store: &Store, some: Vec<(UsageEvent, Content)>) {
    let (rows, records): (Vec<_>, Vec<_>) = some.into_iter().unzip();
    UsageWriter::new(store.clone())
        .write_with(&rows, &records)
        .await
        .unwrap();
}

async fn proven(store: &Store) -> Result<i64, Error> {
    Ok(store.prove(&Noted::default()).await?.content)
}

fn of(project: &str) -> ContentQuery {
    ContentQuery {
        project: project.to_owned(),
        ..ContentQuery::default()
    }
}

async fn what_is_recorded_is_opened_by_its_reader_alone(place: Place) {
    let store = place.open().await;
    let (reader, other) = (ReaderKey::make().unwrap(), ReaderKey::make().unwrap());
    let again = ReaderKey::parse(&reader.reveal()).unwrap();
    assert!(again.public() == reader.public() && again.public() != other.public());
    assert_eq!(format!("{reader:?}"), "ReaderKey");
    let now = now_ms();
    let rows = (0..5).map(|at| {
        recorded(
            at,
            if at < 3 { "proj_a" } else { "proj_b" },
            "abcdefgh",
            &reader,
            now + at,
        )
    });
    write(&store, rows.collect()).await;
    assert_eq!(proven(&store).await.unwrap(), 5);
    let found = store.contents(&of("proj_a"), 2).await.unwrap();
    assert_eq!(found.len(), 2);
    let behind = found.last().map(|last| (last.began_ms, last.request.clone()));
    let rest = ContentQuery {
        behind,
        ..of("proj_a")
    };
    let rest = store.contents(&rest, 10).await.unwrap();
    assert_eq!(
        rest.iter().map(|one| one.request.as_str()).collect::<Vec<_>>(),
        ["request2"]
    );
    for one in found.iter().chain(&rest) {
        let (asked, answered) = reader.open(&one.request, &one.sealed).unwrap();
        assert_eq!(
            (asked.as_slice(), answered.as_slice()),
            (&b"who am I?"[..], &b"Anna"[..])
        );
        assert_eq!(other.open(&one.request, &one.sealed), None);
        assert_eq!(
            reader.open("request9", &one.sealed),
            None,
            "it is bound to its request"
        );
        let swapped = Sealed {
            asked: one.sealed.answered.clone(),
            answered: one.sealed.asked.clone(),
            ..one.sealed.clone()
        };
        assert_eq!(reader.open(&one.request, &swapped), None);
    }
    let kept = store.kept_content().await.unwrap();
    assert_eq!(kept.iter().map(|kept| kept.records).collect::<Vec<_>>(), [3, 2]);
    let known = ContentQuery {
        fingerprint: Some("f".repeat(64)),
        ..of("proj_b")
    };
    assert_eq!(store.contents(&known, 10).await.unwrap().len(), 2);
    let unknown = ContentQuery {
        fingerprint: Some("e".repeat(64)),
        ..of("proj_b")
    };
    assert!(store.contents(&unknown, 10).await.unwrap().is_empty());
}

async fn a_record_that_was_changed_or_taken_out_is_found(place: Place) {
    let store = place.open().await;
    let reader = ReaderKey::make().unwrap();
    let now = now_ms();
    let all: Vec<_> = (0..3)
        .map(|at| recorded(at, "proj_a", "abcdefgh", &reader, now))
        .collect();
    write(&store, all.clone()).await;
    for (column, value) in [
        ("asked", "'AAAA'"),
        ("answered", "reader"),
        ("reader", "answered"),
        ("fingerprint", "''"),
        ("due_ms", "due_ms + 1"),
        ("project", "'proj_b'"),
        ("api_key", "'hgfedcba'"),
        ("began_ms", "began_ms - 1"),
    ] {
        let was = place
            .text(&format!(
                "SELECT CAST({column} AS TEXT) FROM content WHERE request = 'request1'"
            ))
            .await;
        place
            .run(&format!(
                "UPDATE content SET {column} = {value} WHERE request = 'request1'"
            ))
            .await;
        let broken = proven(&store).await;
        assert!(
            matches!(&broken, Err(Error::Content(BrokenContent::Changed(request))) if request == "request1"),
            "{column}: {broken:?}"
        );
        let back = if column.ends_with("_ms") {
            was
        } else {
            format!("'{was}'")
        };
        place
            .run(&format!(
                "UPDATE content SET {column} = {back} WHERE request = 'request1'"
            ))
            .await;
    }
    assert_eq!(proven(&store).await.unwrap(), 3);
    // A record of no request.
    place.run("INSERT INTO content SELECT 'requestx', project, api_key, began_ms, due_ms, fingerprint, reader, asked, answered FROM content WHERE request = 'request1'").await;
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
        place
            .run(&format!(
                "UPDATE usage_event SET content = {mark} WHERE id = 'request1'"
            ))
            .await;
        assert!(matches!(proven(&store).await, Err(Error::Usage(_))), "{mark}");
        place
            .run(&format!(
                "UPDATE usage_event SET content = '{was}' WHERE id = 'request1'"
            ))
            .await;
    }
    // Two days later it would be gone anyway.
    let later = store.prove_at(&Noted::default(), now + 2 * DAY_MS).await;
    assert_eq!(later.unwrap().content, 2);
}

async fn records_go_when_they_are_due_or_somebody_says_so(place: Place) {
    let store = place.open().await;
    let reader = ReaderKey::make().unwrap();
    let [a, b] = [
        store.create_project("test", "a", &[]).await.unwrap().id,
        store.create_project("test", "b", &[]).await.unwrap().id,
    ];
    let now = now_ms();
    let old = (0..700).map(|at| recorded(at, &a, "abcdefgh", &reader, now - 2 * DAY_MS + at));
    write(&store, old.take(400).collect()).await;
    let old = (400..700).map(|at| recorded(at, &b, "abcdefgh", &reader, now - 2 * DAY_MS + at));
    write(&store, old.collect()).await;
    let new = [(700, &a), (701, &a), (702, &b)]
        .map(|(at, project)| recorded(at, project, "abcdefgh", &reader, now));
    write(&store, new.into()).await;
    assert_eq!(proven(&store).await.unwrap(), 703);
    assert_eq!(store.trim("test", now, |_| ()).await.unwrap().content, 700);
    assert_eq!(proven(&store).await.unwrap(), 3);
    assert_eq!(store.delete_content("test", "a").await.unwrap(), 2);
    assert_eq!(
        proven(&store).await.unwrap(),
        1,
        "the chain tells that they were deleted"
    );
    assert!(store.delete_content("test", "c").await.is_err());
    // They go with the rows of their requests at the latest.
    let far = now + 200 * DAY_MS;
    let gone = store.trim("test", far, |_| ()).await.unwrap();
    assert_eq!((gone.content, gone.usage), (1, 703));
    assert_eq!(store.prove_at(&Noted::default(), far).await.unwrap().content, 0);
}

async fn a_copy_has_no_records(place: Place) {
    let store = place.open().await;
    let reader = ReaderKey::make().unwrap();
    write(&store, vec![recorded(1, "proj_b", "abcdefgh", &reader, now_ms())]).await;
    let mut copy = Vec::new();
    store.back_up("test", &mut copy, || ()).await.unwrap();
    assert!(
        !String::from_utf8(copy.clone())
            .unwrap()
            .contains(&reader.public())
    );
    let other = Place::file();
    let restored = other.open().await;
    restored.restore("test", copy.as_slice(), || ()).await.unwrap();
    // The chain tells why it is missing.
    assert_eq!(proven(&restored).await.unwrap(), 0);
    assert_eq!(proven(&store).await.unwrap(), 1);
}

async fn a_recording_is_what_the_chain_says(place: Place) {
    let store = place.open().await;
    let project = store.create_project("test", "a", &[]).await.unwrap().id;
    let request = NewKeyRequest {
        project: "a",
        role: Role::Member,
        name: "k",
        expires: None,
        owner: None,
    };
    let key = store.create_key("test", &request).await.unwrap();
    let reader = ReaderKey::make().unwrap().public();
    let good = Recording {
        reader: Some(reader.clone()),
        fingerprints: false,
        days: 30,
        until: now_s() + 1_000,
    };
    let refused = [
        Recording {
            days: 0,
            ..good.clone()
        },
        Recording {
            days: 367,
            ..good.clone()
        },
        Recording {
            until: now_s() + 367 * 86_400,
            ..good.clone()
        },
        Recording {
            reader: Some(reader[1..].to_owned()),
            ..good.clone()
        },
        Recording {
            reader: Some("z".repeat(64)),
            ..good.clone()
        },
        // There is no secret.
        Recording {
            fingerprints: true,
            ..good.clone()
        },
    ];
    for wrong in refused {
        assert!(
            matches!(
                store.set_recording("test", "a", &wrong).await,
                Err(Error::Refused(_))
            ),
            "{wrong:?}"
        );
    }
    let recorded = async || {
        let directory = store.directory().await.unwrap();
        let principal = directory.authenticate(key.reveal(), now_s()).unwrap();
        principal.recording.map(|recording| (*recording).clone())
    };
    assert_eq!(recorded().await, None);
    assert_eq!(store.set_recording("test", "a", &good).await.unwrap(), project);
    assert_eq!(recorded().await, Some(good.clone()));
    assert!(good.runs(now_s()) && !good.runs(good.until));
    let stopped = Recording {
        until: 0,
        ..good.clone()
    };
    store.set_recording("test", &project, &stopped).await.unwrap();
    assert_eq!(recorded().await, Some(stopped.clone()));
    assert!(!stopped.runs(now_s()));
    assert_eq!(store.recordings().await.unwrap().len(), 1);
    let nothing = Recording { reader: None, ..good };
    assert!(!nothing.runs(now_s()));
}

async fn an_erased_person_has_no_records(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let store = place.open().await;
    let store = store
        .with_secret_of("test", &folder.path().join("secret"))
        .await
        .unwrap();
    let project = store.create_project("test", "a", &[]).await.unwrap().id;
    let person = store
        .add_person("test", "anna@example.org", "Anna", Role::Member)
        .await
        .unwrap();
    store.add_member("test", "a", "anna@example.org").await.unwrap();
    let request = NewKeyRequest {
        project: "a",
        role: Role::Member,
        name: "k",
        expires: None,
        owner: Some(&person.id),
    };
    let key = store.create_key("test", &request).await.unwrap().id.0;
    let reader = ReaderKey::make().unwrap();
    let now = now_ms();
    let some =
        [(0, key.as_str()), (1, "abcdefgh")].map(|(at, key)| recorded(at, &project, key, &reader, now));
    write(&store, some.into()).await;
    assert_eq!(
        store.content_of_key(&key).await.unwrap(),
        [("request0".to_owned(), now, Content::due(now, 1))]
    );
    store.erase_person("test", &person.id).await.unwrap();
    assert!(store.content_of_key(&key).await.unwrap().is_empty());
    assert_eq!(proven(&store).await.unwrap(), 1);
    // Of another key than hers nothing may be missing.
    place.run("DELETE FROM content").await;
    assert!(matches!(
        proven(&store).await,
        Err(Error::Content(BrokenContent::Missing(_)))
    ));
    assert_ne!(
        store.fingerprint("a", "x").unwrap(),
        store.fingerprint("b", "x").unwrap()
    );
}
