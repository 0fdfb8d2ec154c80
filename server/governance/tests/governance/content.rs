//! What was asked and answered, recorded in a file and on a server.

use rempart_governance::{
    BrokenContent, ContentQuery, DAY_S, Error, NewKeyRequest, Policy, ReaderKey, Recording, Role, Sealed,
    now_ms, now_s, pack,
};

use crate::support::Place;
use crate::support::recorded::{Recorded, of, proven, write};

on_both! {
    what_is_recorded_is_opened_by_its_reader_alone
    a_wrong_recording_is_refused
    a_recording_is_what_the_chain_says
    a_recording_is_not_longer_than_what_tells_of_it
    an_erased_person_has_no_records
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

async fn a_wrong_recording_is_refused(place: Place) {
    let store = place.open().await;
    store.create_project("test", "a", &[]).await.unwrap();
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
    let good = Recording {
        reader: Some(ReaderKey::make().unwrap().public()),
        fingerprints: false,
        days: 30,
        until: now_s() + 1_000,
    };
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
