//! What was asked and answered, recorded in a file and on a server.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use rempart_governance::{
    BrokenContent, Content, ContentQuery, Counts, DAY_MS, DAY_S, Error, NewKeyRequest, Noted, Outcome,
    Policy, ReaderKey, Recording, Role, Sealed, Store, Usage, UsageEvent, UsageWriter, now_ms, now_s, pack,
};

use support::Place;

on_both! {
    what_is_recorded_is_opened_by_its_reader_alone
    a_record_that_was_changed_or_taken_out_is_found
    nothing_is_recorded_that_the_chain_does_not_tell
    records_go_when_they_are_due_or_somebody_says_so
    a_request_that_runs_while_its_records_are_deleted_has_none
    a_copy_has_no_records
    a_recording_is_what_the_chain_says
    a_recording_is_not_longer_than_what_tells_of_it
    an_erased_person_has_no_records
}

/// A project that is recorded.
struct Recorded {
    project: String,
    row: i64,
    reader: ReaderKey,
}

impl Recorded {
    async fn begin(store: &Store, name: &str) -> Self {
        let project = store.create_project("test", name, &[]).await.unwrap().id;
        let reader = ReaderKey::make().unwrap();
        let recording = Recording {
            reader: Some(reader.public()),
            fingerprints: false,
            days: 1,
            until: now_s() + 100_000,
        };
        store.set_recording("test", &project, &recording).await.unwrap();
        let row = store.recordings().await.unwrap()[&project].row;
        Self { project, row, reader }
    }

    /// A request and its record, which is kept for a day.
    fn request(&self, at: i64, key: &str, began_ms: i64) -> (UsageEvent, Content) {
        let id = format!("request{at}");
        let sealed = Sealed::seal(&self.reader.public(), &id, &pack(b"who am I?"), &pack(b"Anna"));
        let record = Content {
            request: id.clone(),
            project: self.project.clone(),
            key: key.to_owned(),
            began_ms,
            due_ms: Content::due(began_ms, 1),
            announced: self.row,
            fingerprint: "f".repeat(64),
            sealed: sealed.unwrap(),
        };
        let row = UsageEvent {
            id,
            began_ms,
            project: self.project.clone(),
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
}

async fn write(store: &Store, some: Vec<(UsageEvent, Content)>) {
    let (rows, records): (Vec<_>, Vec<_>) = some.into_iter().unzip();
    let (rows, records, counts) = (&*rows, &*records, &Counts::new());
    let mut writer = UsageWriter::new(store.clone());
    let usage = Usage {
        rows,
        records,
        counts,
    };
    writer.write_all(usage).await.unwrap();
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
    let (a, b) = (
        Recorded::begin(&store, "a").await,
        Recorded::begin(&store, "b").await,
    );
    let (reader, other) = (&a.reader, &b.reader);
    let again = ReaderKey::parse(&reader.reveal()).unwrap();
    assert!(again.public() == reader.public() && again.public() != other.public());
    assert_eq!(format!("{reader:?}"), "ReaderKey");
    let now = now_ms();
    let of_a = (0..3).map(|at| a.request(at, "abcdefgh", now + at));
    let of_b = (3..5).map(|at| b.request(at, "abcdefgh", now + at));
    write(&store, of_a.chain(of_b).collect()).await;
    assert_eq!(proven(&store).await.unwrap(), 5);
    let found = store.contents(&of(&a.project), 2).await.unwrap();
    assert_eq!(found.len(), 2);
    let behind = found.last().map(|last| (last.began_ms, last.request.clone()));
    let rest = ContentQuery {
        behind,
        ..of(&a.project)
    };
    let rest = store.contents(&rest, 10).await.unwrap();
    let names: Vec<&str> = rest.iter().map(|one| one.request.as_str()).collect();
    assert_eq!(names, ["request2"]);
    for one in found.iter().chain(&rest) {
        let (asked, answered) = reader.open(&one.request, &one.sealed).unwrap();
        assert_eq!(
            (asked.as_deref(), answered.as_slice()),
            (Some(&b"who am I?"[..]), &b"Anna"[..])
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
    assert_eq!(kept.iter().map(|kept| kept.records).sum::<i64>(), 5);
    // Of a body that was not read nothing was asked, which is not an empty one.
    let unread = Sealed::seal(&reader.public(), "x", &[], &pack(b"[]")).unwrap();
    assert_eq!(reader.open("x", &unread), Some((None, b"[]".to_vec())));
    let empty = Sealed::seal(&reader.public(), "x", &pack(b""), &pack(b"[]")).unwrap();
    assert_eq!(reader.open("x", &empty), Some((Some(Vec::new()), b"[]".to_vec())));
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

/// Somebody who writes to the database past the store has the server record for their own key.
async fn nothing_is_recorded_that_the_chain_does_not_tell(place: Place) {
    let store = place.open().await;
    let (mut a, b) = (
        Recorded::begin(&store, "a").await,
        Recorded::begin(&store, "b").await,
    );
    let detail = serde_json::to_string(&Recording {
        reader: Some(b.reader.public()),
        fingerprints: false,
        days: 1,
        until: now_s() + 1_000,
    });
    for row in [-7, 0, 99] {
        place
            .run(&format!(
                "INSERT INTO audit_event (seq, at_ms, actor, action, object, detail, previous, hash) VALUES \
                 ({row}, 0, 'x', 'content.recording', '{}', '{}', '', '')",
                a.project,
                detail.as_ref().unwrap()
            ))
            .await;
        // A row that does not fit is not followed, and none from before the first is seen.
        let taken = store.recordings().await;
        assert!(taken.is_err() || taken.unwrap()[&a.project].row == a.row, "{row}");
        place
            .run(&format!("DELETE FROM audit_event WHERE seq = {row}"))
            .await;
    }
    let now = now_ms();
    let unannounced = |store: Store, request: (UsageEvent, Content)| async move {
        write(&store, vec![request]).await;
        matches!(
            proven(&store).await,
            Err(Error::Content(BrokenContent::Unannounced(_)))
        )
    };
    write(&store, vec![a.request(0, "abcdefgh", now)]).await;
    assert_eq!(proven(&store).await.unwrap(), 1);
    // Written by a server that was told otherwise for a while: each in a copy, as it stays in the chain of usage.
    let (row, reader) = (a.row, ReaderKey::make().unwrap());
    store.close().await;
    for (at, wrong) in [
        "another row",
        "another project's",
        "another reader",
        "other days",
        "long before",
        "when it was over",
    ]
    .into_iter()
    .enumerate()
    {
        let (database, direct) = place.copy(&format!("copy{at}")).await;
        sqlx::Connection::close(direct).await.unwrap();
        let copy = Store::open(&database).await.unwrap();
        let began_ms = match wrong {
            "long before" => now - 2 * DAY_MS,
            "when it was over" => now + 3 * DAY_MS,
            _ => now,
        };
        a.row = match wrong {
            "another row" => row - 1,
            "another project's" => b.row,
            _ => row,
        };
        let (mut used, mut record) = a.request(1, "abcdefgh", began_ms);
        if wrong == "another reader" {
            record.sealed = Sealed::seal(&reader.public(), &record.request, &[], &[]).unwrap();
        }
        if wrong == "other days" {
            record.due_ms += 1;
        }
        used.content = record.mark();
        assert!(unannounced(copy.clone(), (used, record)).await, "{wrong}");
        copy.close().await;
    }
    a.row = row;
    let store = place.open().await;
    // What took its place is what holds.
    let other = Recording {
        reader: Some(b.reader.public()),
        fingerprints: false,
        days: 1,
        until: now_s() + 1_000,
    };
    store.set_recording("test", "a", &other).await.unwrap();
    assert!(unannounced(store.clone(), a.request(2, "abcdefgh", now_ms() + DAY_MS / 2)).await);
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
        principal.recording.map(|announced| announced.recording.clone())
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

async fn a_recording_is_not_longer_than_what_tells_of_it(place: Place) {
    let store = place.open().await;
    store.create_project("test", "a", &[]).await.unwrap();
    let recording = |days, for_days| Recording {
        reader: Some(ReaderKey::make().unwrap().public()),
        fingerprints: false,
        days,
        until: now_s() + for_days * DAY_S,
    };
    let refused = |done: Result<_, Error>| matches!(done, Err(Error::Refused(_)));
    // Rows of usage are kept for 183 days.
    assert!(refused(
        store.set_recording("test", "a", &recording(184, 9)).await
    ));
    let short = |policy: &mut Policy| (policy.audit, policy.usage) = (Some(40), Some(50));
    store.change_retention("test", short).await.unwrap();
    assert!(refused(store.set_recording("test", "a", &recording(5, 41)).await));
    assert!(refused(store.set_recording("test", "a", &recording(51, 9)).await));
    store
        .set_recording("test", "a", &recording(45, 39))
        .await
        .unwrap();
    for shorter in [(Some(38), Some(50)), (Some(40), Some(44))] {
        let set = |policy: &mut Policy| (policy.audit, policy.usage) = shorter;
        let done = store.change_retention("test", set).await;
        assert!(matches!(done, Err(Error::Refused(_))), "{shorter:?}");
    }
    // Who archives a project ends what is recorded of it.
    store.archive_project("test", "a").await.unwrap();
    let known = store.recordings().await.unwrap();
    assert!(known.values().all(|known| !known.recording.runs(now_s())));
    store
        .change_retention("test", |policy| policy.audit = Some(38))
        .await
        .unwrap();
}

async fn an_erased_person_has_no_records(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let store = place.open().await;
    let store = store
        .with_secret_of("test", &folder.path().join("secret"))
        .await
        .unwrap();
    let a = Recorded::begin(&store, "a").await;
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
    let now = now_ms();
    let hers = (0..700).map(|at| a.request(at, &key, now));
    let all: Vec<_> = hers.chain([a.request(700, "abcdefgh", now)]).collect();
    for some in all.chunks(400) {
        write(&store, some.to_vec()).await;
    }
    assert_eq!(store.content_of_key(&key).await.unwrap().len(), 700);
    store.erase_person("test", &person.id).await.unwrap();
    assert!(store.content_of_key(&key).await.unwrap().is_empty());
    assert_eq!(proven(&store).await.unwrap(), 1);
    // A request of hers that ran meanwhile has no record.
    write(&store, vec![a.request(701, &key, now)]).await;
    assert_eq!(proven(&store).await.unwrap(), 1);
    // Of another key than hers nothing may be missing.
    place.run("DELETE FROM content").await;
    assert!(matches!(
        proven(&store).await,
        Err(Error::Content(BrokenContent::Missing(_)))
    ));
    // Prompts are found in their own project.
    let mark = store.fingerprint(&a.project, "x").unwrap();
    assert_ne!(mark, store.fingerprint("b", "x").unwrap());
    let (mut used, mut record) = a.request(702, "abcdefgh", now);
    record.fingerprint = mark;
    used.content = record.mark();
    write(&store, vec![(used, record)]).await;
    let found = store.find_prompt(&a.project, "x").await.unwrap();
    assert_eq!(found, [("request702".to_owned(), "abcdefgh".to_owned(), now)]);
    assert!(store.find_prompt(&a.project, "y").await.unwrap().is_empty());
}
