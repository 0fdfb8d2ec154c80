//! What was kept for long enough goes, and what is left is proven as before.

use rempart_governance::{
    Checkpoint, DAY_MS, Deleted, Error, Note, Noted, Outcome, Policy, Proof, Role, Secret, Store, UsageEvent,
    UsageWriter, now_ms,
};
use sqlx::Connection as _;

use crate::support::Place;

on_both! {
    what_is_old_goes_and_the_rest_is_proven
    what_is_kept_for_ever_stays
    a_chain_without_new_rows_goes_on
    more_than_one_step_goes
    what_was_changed_after_a_deletion_is_found
    a_deletion_that_was_made_up_is_found
    what_is_due_is_what_the_chain_says
    two_that_delete_do_it_once
    who_comes_back_is_not_forgotten
    who_left_long_ago_is_forgotten
    a_policy_is_kept_and_recorded
    a_clock_that_was_ahead_or_behind_breaks_nothing
}

fn used(at: i64, began_ms: i64) -> UsageEvent {
    UsageEvent {
        id: format!("id{at}"),
        began_ms,
        project: if at % 2 == 0 { "proj_a" } else { "proj_b" }.to_owned(),
        key: format!("key{:05}", at % 3),
        model: "m".to_owned(),
        endpoint: "/v1/chat/completions".to_owned(),
        input: 10,
        cached: 4,
        output: at,
        first_ms: Some(3),
        duration_ms: 5,
        status: 200,
        outcome: Outcome::Completed.name().to_owned(),
        cost_nano: 3,
        content: String::new(),
    }
}

/// Writes rows of today, in batches of three.
async fn write(store: &Store, from: i64, to: i64) {
    let mut writer = UsageWriter::new(store.clone());
    let rows: Vec<UsageEvent> = (from..to).map(|at| used(at, now_ms())).collect();
    for batch in rows.chunks(3) {
        writer.write(batch).await.unwrap();
        writer.chain().await.unwrap();
    }
}

async fn trim(store: &Store, days: i64) -> Deleted {
    store
        .trim("cli:root", now_ms() + days * DAY_MS, |_| ())
        .await
        .unwrap()
}

/// What sums tell of all times.
async fn output(store: &Store) -> i64 {
    let sums = store.usage(0, 40_000_000_000, 3_600, 100_000).await.unwrap();
    sums.iter().map(|sum| sum.total.output).sum()
}

/// At a time behind all deletions of these tests.
async fn prove(store: &Store, noted: &Noted) -> Result<Proof, Error> {
    store.prove_at(noted, now_ms() + 50_000 * DAY_MS).await
}

async fn noted(store: &Store) -> Noted {
    let proof = prove(store, &Noted::default()).await.unwrap();
    Noted {
        audit: vec![proof.audit.1.into()],
        usage: proof.usage.1.into_iter().map(Note::from).collect(),
    }
}

async fn what_is_old_goes_and_the_rest_is_proven(place: Place) {
    let store = place.open().await;
    for name in ["sales", "support"] {
        store.create_project("cli:root", name, &[]).await.unwrap();
    }
    write(&store, 0, 20).await;
    let early = noted(&store).await;
    assert_eq!(trim(&store, 182).await, Deleted::default());
    let deleted = trim(&store, 184).await;
    assert_eq!((deleted.usage, deleted.audit, deleted.sums), (20, 0, 0));
    assert_eq!(output(&store).await, 190, "sums stay");
    let sums = store.usage(0, 40_000_000_000, 3_600, 100).await.unwrap();
    assert!(
        sums.iter()
            .all(|sum| sum.key.is_empty() && sum.start % 86_400 == 0)
    );
    assert_eq!(sums.len(), 2, "one for each project and day");
    let proof = prove(&store, &early).await.unwrap();
    assert_eq!(proof.usage.0, 0);
    assert!(proof.contains, "the last batch is there, without its rows");
    write(&store, 20, 30).await;
    let late = noted(&store).await;
    assert_eq!(trim(&store, 182).await, Deleted::default(), "nothing twice");
    let proof = prove(&store, &late).await.unwrap();
    assert!(proof.contains && proof.usage.0 == 10);

    let deleted = trim(&store, 368).await;
    assert_eq!((deleted.usage, deleted.sums), (10, 0));
    assert!(deleted.audit > 0);
    let mut both = early.clone();
    both.audit.extend(late.audit);
    both.usage.extend(late.usage);
    let proof = prove(&store, &both).await.unwrap();
    assert!(proof.contains);
    assert_eq!(proof.untold, 1, "the batch; the row is the last that went");
    assert_eq!(output(&store).await, 29 * 30 / 2);
    let deleted = trim(&store, 1_100).await;
    assert_eq!(deleted.sums, 4, "of two days: what came later went with the next");
    assert_eq!(output(&store).await, 0);
    prove(&store, &both).await.unwrap();
    // Of a copy, too.
    let mut copy = Vec::new();
    store.back_up("cli:root", &mut copy, || ()).await.unwrap();
    for other in [Place::file(), Place::server()] {
        let restored = other.open().await;
        restored
            .restore("cli:root", copy.as_slice(), || ())
            .await
            .unwrap();
        let proof = prove(&restored, &both).await.unwrap();
        assert!(proof.contains && proof.trimmed.usage.is_some());
    }
}

async fn what_is_kept_for_ever_stays(place: Place) {
    let store = place.open().await;
    let policy = Policy {
        usage: None,
        audit: None,
        sums: None,
        people: None,
    };
    store.set_retention("cli:root", &policy).await.unwrap();
    write(&store, 0, 5).await;
    assert_eq!(trim(&store, 30_000).await, Deleted::default());
    let proof = prove(&store, &Noted::default()).await.unwrap();
    assert_eq!((proof.usage.0, proof.trimmed.audit), (5, None));
}

/// The next row stands behind one that is gone.
async fn a_chain_without_new_rows_goes_on(place: Place) {
    let store = place.open().await;
    store.create_project("cli:root", "sales", &[]).await.unwrap();
    write(&store, 0, 4).await;
    trim(&store, 2_000).await;
    trim(&store, 4_000).await;
    trim(&store, 6_000).await;
    let (seq, _) = store.audit_end().await.unwrap();
    assert!(seq >= 4, "{seq}");
    write(&store, 4, 8).await;
    let proof = prove(&store, &Noted::default()).await.unwrap();
    assert_eq!((proof.usage.0, proof.usage.1.unwrap().0), (4, 4));
}

async fn more_than_one_step_goes(place: Place) {
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    let rows: Vec<UsageEvent> = (0..12_000).map(|at| used(at, now_ms())).collect();
    for batch in rows.chunks(500) {
        writer.write(batch).await.unwrap();
    }
    let mut steps = 0;
    let deleted = store
        .trim("cli:root", now_ms() + 200 * DAY_MS, |_| steps += 1)
        .await
        .unwrap();
    assert_eq!((deleted.usage, steps), (12_000, 4));
    assert_eq!(output(&store).await, 12_000 * 11_999 / 2);
    assert_eq!(prove(&store, &Noted::default()).await.unwrap().usage.0, 0);
}

/// Every change that somebody may make behind a deletion, and that looks like one.
async fn what_was_changed_after_a_deletion_is_found(place: Place) {
    let store = place.open().await;
    write(&store, 0, 9).await;
    trim(&store, 184).await;
    write(&store, 9, 15).await;
    trim(&store, 368).await;
    write(&store, 15, 21).await;
    let noted = noted(&store).await;
    store.close().await;
    for (at, change) in [
        "UPDATE usage_bucket SET output = output + 1 WHERE api_key = ''",
        "UPDATE usage_bucket SET project = 'proj_c' WHERE api_key = '' AND project = 'proj_a'",
        "DELETE FROM usage_bucket WHERE api_key = '' AND project = 'proj_a'",
        "UPDATE usage_bucket SET hour = hour - 86400 WHERE api_key = ''",
        "DELETE FROM usage_bucket",
        "INSERT INTO usage_bucket VALUES (4102444800, 'a', '', 'c', 'd', 1, 0, 0, 0, 0, 0)",
        // More than was due.
        "DELETE FROM usage_event WHERE seq <= 16",
        "DELETE FROM usage_event WHERE seq <= 18; DELETE FROM usage_batch WHERE seq < 6",
        "DELETE FROM usage_event; DELETE FROM usage_batch",
        "UPDATE usage_batch SET last_row = last_row + 1 WHERE seq = 5",
        "DELETE FROM audit_event WHERE action = 'retention.run' AND seq = (SELECT MAX(seq) FROM audit_event)",
        "DELETE FROM audit_event WHERE seq = (SELECT MIN(seq) FROM audit_event)",
        "UPDATE audit_event SET detail = '{}' WHERE seq = (SELECT MAX(seq) FROM audit_event)",
        "UPDATE audit_event SET action = 'x' WHERE action = 'retention.run'",
    ]
    .into_iter()
    .enumerate()
    {
        let (changed, mut direct) = place.copy(&format!("changed{at}")).await;
        let done = sqlx::raw_sql(change).execute(&mut direct).await.unwrap();
        assert!(done.rows_affected() > 0, "{change}");
        direct.close().await.unwrap();
        let store = Store::open(&changed).await.unwrap();
        let proof = prove(&store, &noted).await;
        assert!(
            proof.is_err() || !proof.as_ref().unwrap().contains,
            "{change}: {proof:?}"
        );
        // And nothing panics.
        let _ = UsageWriter::new(store.clone())
            .write(&[used(100, now_ms())])
            .await;
        let _ = store.trim("cli:root", now_ms() + 600 * DAY_MS, |_| ()).await;
    }
}

/// A day in 1970, of whose sums this is the digest: there are none.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What somebody does to a database, and what the row says that shall excuse it: its object and its detail.
fn made_up(checkpoint: &Checkpoint) -> Vec<(String, &'static str, String)> {
    let policy = r#""policy":{"usage":183,"audit":366,"sums":1098,"people":366}"#;
    let (seq, hash) = &checkpoint.audit;
    let (batch, batch_hash) = checkpoint.usage.as_ref().unwrap();
    let now = now_ms();
    let (year, long) = (now - 367 * DAY_MS, now - 5_000 * DAY_MS);
    let audit = |seq: i64, at_ms: i64, days: i64| {
        format!(
            r#"{{{policy},"audit":{{"seq":{seq},"hash":"{hash}","at_ms":{at_ms},"days":{days}}},"usage":null,"sums":null}}"#
        )
    };
    let usage = |at_ms: i64| {
        format!(
            r#"{{{policy},"audit":null,"usage":{{"seq":{batch},"hash":"{batch_hash}","at_ms":{at_ms},"days":183}},"sums":null}}"#
        )
    };
    let sums = |to: i64| {
        format!(
            r#"{{{policy},"audit":null,"usage":null,"sums":{{"from":0,"from_days":0,"to":{to},"to_days":183,"batch":{batch},"digest":"{EMPTY}"}}}}"#
        )
    };
    let before = format!("DELETE FROM audit_event WHERE seq < {seq}");
    let all = "DELETE FROM audit_event".to_owned();
    let rows = "DELETE FROM usage_event; DELETE FROM usage_bucket; DELETE FROM usage_batch WHERE seq < 3";
    let invented = "INSERT INTO usage_bucket SELECT 0, project, '', model, endpoint, 9, 0, 9, 9, 9, 9 FROM usage_bucket LIMIT 1";
    let due = (now / DAY_MS - 183) * 86_400;
    vec![
        (before.clone(), "audit", audit(*seq, year, 366)),
        (before.clone(), "audit", audit(*seq, now, 366)),
        // Everything that was noted, and a chain that is all made up.
        (all.clone(), "audit", audit(seq + 5, year, 366)),
        (all, "audit", audit(0, long, 366)),
        (rows.to_owned(), "usage", usage(year)),
        (rows.to_owned(), "usage", usage(now)),
        (invented.to_owned(), "sums", sums(now / 1_000 + 86_400 * 36_500)),
        (invented.to_owned(), "sums", sums(0)),
        ("DELETE FROM usage_bucket".to_owned(), "sums", sums(due)),
        (before, "audit", "{}".to_owned()),
    ]
}

/// Rows that say, in the words of this program, what was never done.
async fn a_deletion_that_was_made_up_is_found(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::open_or_make(&folder.path().join("secret")).unwrap();
    let store = place.open().await.with_secret("cli:root", secret).await.unwrap();
    store.create_project("cli:root", "sales", &[]).await.unwrap();
    write(&store, 0, 9).await;
    let detail = "{}".to_owned();
    store
        .record("cli:root", "user.deleted", "user_a", detail)
        .await
        .unwrap();
    let checkpoint = store.checkpoint().await.unwrap();
    let note = |end| Note {
        end,
        at_ms: Some(checkpoint.at_ms),
    };
    let noted = Noted {
        audit: vec![note(checkpoint.audit.clone())],
        usage: checkpoint.usage.clone().into_iter().map(note).collect(),
    };
    let whole = store.prove(&noted).await.unwrap();
    assert!(whole.contains && whole.usage.0 == 9);
    store.close().await;
    for (at, (change, object, detail)) in made_up(&checkpoint).into_iter().enumerate() {
        let (changed, mut direct) = place.copy(&format!("forged{at}")).await;
        let asked = sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone()));
        asked.execute(&mut direct).await.unwrap();
        direct.close().await.unwrap();
        let store = Store::open(&changed).await.unwrap();
        store
            .record("server", "retention.run", object, detail.clone())
            .await
            .unwrap();
        let proof = store.prove(&noted).await;
        assert!(proof.is_err(), "{change}: {detail}: {proof:?}");
    }
}

/// What somebody has made of the policy without a row of the program's.
async fn what_is_due_is_what_the_chain_says(place: Place) {
    let store = place.open().await;
    write(&store, 0, 6).await;
    let wrong = r#"{"usage":-1,"audit":-1,"sums":-1,"people":-1}"#.to_owned();
    store
        .record("cli:root", "retention.updated", "retention", wrong)
        .await
        .unwrap();
    assert!(matches!(store.retention().await, Err(Error::Unsound(_))));
    let trimmed = store.trim("cli:root", now_ms() + 9_000 * DAY_MS, |_| ()).await;
    assert!(matches!(trimmed, Err(Error::Unsound(_))), "{trimmed:?}");
    assert_eq!(prove(&store, &Noted::default()).await.unwrap().usage.0, 6);
    // A deletion by another policy than the one that was set.
    store.set_retention("cli:root", &Policy::default()).await.unwrap();
    trim(&store, 184).await;
    prove(&store, &Noted::default()).await.unwrap();
    let last = store.audit_events(0).await.unwrap().pop().unwrap();
    let other = last.detail.replace("\"usage\":183", "\"usage\":32");
    store
        .record("server", "retention.run", "usage", other)
        .await
        .unwrap();
    let proof = prove(&store, &Noted::default()).await;
    assert!(matches!(proof, Err(Error::Retention(_))), "{proof:?}");
}

async fn two_that_delete_do_it_once(place: Place) {
    let (store, other) = (place.open().await, place.open().await);
    write(&store, 0, 30).await;
    let now = now_ms() + 400 * DAY_MS;
    let (one, two) = tokio::join!(store.trim("one", now, |_| ()), other.trim("two", now, |_| ()));
    assert_eq!(one.unwrap().usage + two.unwrap().usage, 30);
    assert_eq!(prove(&store, &Noted::default()).await.unwrap().usage.0, 0);
    assert_eq!(output(&store).await, 29 * 30 / 2);
}

async fn who_comes_back_is_not_forgotten(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::open_or_make(&folder.path().join("secret")).unwrap();
    let store = place.open().await.with_secret("cli:root", secret).await.unwrap();
    let add = async || {
        store
            .add_person("cli:root", "anna@example.org", "Anna", Role::Member)
            .await
    };
    let anna = add().await.unwrap().id;
    store.end_person("cli:root", &anna).await.unwrap();
    assert_eq!(add().await.unwrap().id, anna);
    assert_eq!(trim(&store, 400).await.people, 0);
    assert_eq!(store.people().await.unwrap().len(), 1);
}

async fn who_left_long_ago_is_forgotten(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::open_or_make(&folder.path().join("secret")).unwrap();
    let store = place.open().await.with_secret("cli:root", secret).await.unwrap();
    let mut ids = Vec::new();
    for name in ["anna", "bert"] {
        let email = format!("{name}@example.org");
        let person = store
            .add_person("cli:root", &email, name, Role::Member)
            .await
            .unwrap();
        ids.push(person.id);
    }
    store.end_person("cli:root", &ids[0]).await.unwrap();
    assert_eq!(trim(&store, 366).await.people, 0);
    assert!(store.oldest().await.unwrap().people.is_some());
    let deleted = trim(&store, 368).await;
    assert_eq!(deleted.people, 1);
    let left: Vec<String> = store
        .people()
        .await
        .unwrap()
        .into_iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(left, [ids[1].clone()]);
    assert_eq!(store.oldest().await.unwrap().people, None);
    let checkpoint = store.checkpoint().await.unwrap();
    let read = Checkpoint::read(&checkpoint.line(), None).unwrap();
    let noted = Noted {
        audit: vec![read.audit.into()],
        ..Noted::default()
    };
    assert!(prove(&store, &noted).await.unwrap().contains);
}

async fn a_policy_is_kept_and_recorded(place: Place) {
    let store = place.open().await;
    assert_eq!(store.retention().await.unwrap(), Policy::default());
    let short = Policy {
        usage: Some(40),
        sums: Some(40),
        ..Policy::default()
    };
    store.set_retention("cli:root", &short).await.unwrap();
    assert_eq!(store.retention().await.unwrap(), short);
    let wrong = Policy {
        usage: Some(1),
        ..short
    };
    let refused = store.set_retention("cli:root", &wrong).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    write(&store, 0, 6).await;
    // Rows and sums at one time.
    let due = store.due(now_ms() + 50 * DAY_MS).await.unwrap();
    let deleted = trim(&store, 50).await;
    assert_eq!((deleted.usage, deleted.sums), (6, 2));
    assert_eq!((due.usage, due.audit, due.people), (6, deleted.audit, 0));
    assert_eq!(
        store.due(now_ms() + 50 * DAY_MS).await.unwrap(),
        Deleted::default()
    );
    assert_eq!(store.held_until_ms(now_ms()).await.unwrap(), None);
    assert!(store.newest_ms().await.unwrap().is_some());
    // And longer again: nothing comes back, and nothing breaks.
    store.set_retention("cli:root", &Policy::default()).await.unwrap();
    write(&store, 6, 12).await;
    assert_eq!(trim(&store, 100).await, Deleted::default());
    prove(&store, &Noted::default()).await.unwrap();
    assert_eq!(trim(&store, 200).await.usage, 6);
    prove(&store, &Noted::default()).await.unwrap();
    let rows = store.audit_events(0).await.unwrap();
    let set = rows.iter().filter(|row| row.action == "retention.updated");
    assert_eq!(set.count(), 2);
}

/// A row that waits is chained, and goes when its time has come; one that can't be keeps nothing else.
#[tokio::test]
async fn rows_that_wait_are_kept_no_longer_than_others() {
    let place = Place::file();
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    writer.write(&[used(0, now_ms())]).await.unwrap();
    assert_eq!(trim(&store, 1).await.usage, 0);
    let waiting = "SELECT CAST(COUNT(*) AS TEXT) FROM usage_unchained";
    assert_eq!(place.text(waiting).await, "0");
    assert_eq!(trim(&store, 190).await.usage, 1);
    writer.write(&[used(1, now_ms())]).await.unwrap();
    place
        .run("CREATE TRIGGER refuses BEFORE INSERT ON usage_batch BEGIN SELECT RAISE(ABORT, 'refused'); END")
        .await;
    let (mut told, later) = (Deleted::default(), now_ms() + 800 * DAY_MS);
    assert!(store.trim("cli:root", later, |now| told = now).await.is_err());
    assert!(told.audit > 0 && place.text(waiting).await == "1");
}

/// Requests that began in times that are not now.
async fn a_clock_that_was_ahead_or_behind_breaks_nothing(place: Place) {
    let store = place.open().await;
    let mut writer = UsageWriter::new(store.clone());
    let now = now_ms();
    let rows: Vec<UsageEvent> = [0, 1, now - 400 * DAY_MS, now, now + 400 * DAY_MS, now + 1]
        .into_iter()
        .enumerate()
        .map(|(at, began)| used(i64::try_from(at).unwrap(), began))
        .collect();
    for batch in rows.chunks(2) {
        writer.write(batch).await.unwrap();
        writer.chain().await.unwrap();
    }
    assert_eq!(store.held_until_ms(now).await.unwrap(), Some(now + 400 * DAY_MS));
    let deleted = trim(&store, 190).await;
    assert_eq!(deleted.usage, 4, "the last batch has a row of later");
    prove(&store, &Noted::default()).await.unwrap();
    writer
        .write(&[used(10, 5), used(11, now - DAY_MS)])
        .await
        .unwrap();
    prove(&store, &Noted::default()).await.unwrap();
    trim(&store, 190).await;
    prove(&store, &Noted::default()).await.unwrap();
    trim(&store, 1_000).await;
    prove(&store, &Noted::default()).await.unwrap();
    assert_eq!(store.usage_end().await.unwrap(), 0);
}
