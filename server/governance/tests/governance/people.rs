//! People, programs and what is theirs.

use rempart_governance::{
    Actor, AuditQuery, Checkpoint, Database, Denied, Error, NewKey, NewKeyRequest, Person, Project, Role,
    Secret, Store, now_s, verify,
};

use crate::support::{Place, key};

on_both! {
    a_leaver_has_no_access_from_then_on
    who_was_erased_is_nobody_and_the_chain_holds
    nobody_gives_or_takes_what_they_do_not_have
    programs_have_keys_of_their_own
    rows_are_found_by_who_what_where_and_when
    rows_come_in_pages
    a_project_changes_its_name_and_its_models
    a_checkpoint_is_of_both_chains
    another_secret_is_refused
}

const ANNA: &str = "Anna.Example@example.org";

async fn open(place: &Place) -> Store {
    let secret = Secret::open_or_make(&place.folder().join("secret")).unwrap();
    place.open().await.with_secret("cli:root", secret).await.unwrap()
}

async fn project(store: &Store, name: &str) -> Project {
    let all = store.projects().await.unwrap();
    all.into_iter().find(|project| project.name == name).unwrap()
}

async fn own_key(store: &Store, owner: &str, role: Role) -> Result<NewKey, Error> {
    let wanted = NewKeyRequest {
        project: "sales",
        role,
        name: "Annas Laptop",
        expires: None,
        owner: Some(owner),
    };
    store.create_key("cli:root", &wanted).await
}

/// Anna, in the project sales.
async fn anna(store: &Store, role: Role) -> Person {
    store.create_project("cli:root", "sales", &[]).await.unwrap();
    let anna = store
        .add_person("cli:root", ANNA, "Anna Example", role)
        .await
        .unwrap();
    store.add_member("cli:root", "sales", &anna.id).await.unwrap();
    anna
}

async fn opens(store: &Store, key: &NewKey) -> Result<(), Denied> {
    store
        .directory()
        .await
        .unwrap()
        .authenticate(key.reveal(), now_s())
        .map(drop)
}

async fn a_leaver_has_no_access_from_then_on(place: Place) {
    let store = open(&place).await;
    let anna = anna(&store, Role::Auditor).await;
    assert!(matches!(
        own_key(&store, &anna.id, Role::Member).await,
        Err(Error::Refused(_))
    ));
    store
        .set_person_role("cli:root", &anna.id, Role::Admin)
        .await
        .unwrap();
    let (admin, member) = (
        own_key(&store, &anna.id, Role::Admin).await.unwrap(),
        own_key(&store, &anna.id, Role::Member).await.unwrap(),
    );
    // With less of a role, keys that may do more end.
    store
        .set_person_role("cli:root", &anna.id, Role::Member)
        .await
        .unwrap();
    assert_eq!(opens(&store, &admin).await, Err(Denied::Revoked));
    assert_eq!(opens(&store, &member).await, Ok(()));
    let project = project(&store, "sales").await.id;
    store.remove_member("cli:root", &project, &anna.id).await.unwrap();
    assert_eq!(opens(&store, &member).await, Err(Denied::Revoked));
    assert!(own_key(&store, &anna.id, Role::Member).await.is_err());
    store.add_member("cli:root", "sales", &anna.id).await.unwrap();
    let last = own_key(&store, &anna.id, Role::Member).await.unwrap();
    store.end_person("cli:root", &anna.id).await.unwrap();
    assert_eq!(opens(&store, &last).await, Err(Denied::Revoked));
    assert!(matches!(
        own_key(&store, &anna.id, Role::Member).await,
        Err(Error::Missing(_))
    ));
    assert!(matches!(
        store.end_person("cli:root", &anna.id).await,
        Err(Error::Missing(_))
    ));
    // Other characters that become small as these do are no way of writing it: U+212A and U+212B, signs of units.
    for other in [
        "ann\u{212b}@example.org",
        "\u{212a}ate@example.org",
        "anna@example.org\u{130}",
    ] {
        let known = store.person(other).await;
        assert!(matches!(known, Err(Error::Refused(_))), "{other}");
    }
    assert!(matches!(
        store.person("\u{c4}nna@example.org").await,
        Err(Error::Missing(_))
    ));
    // Who it was is known, by any way of writing the address; and they may come back.
    let left = store.person("anna.example@EXAMPLE.org").await.unwrap();
    assert!(left.ended.is_some() && left.named.unwrap().name == "Anna Example");
    let back = store
        .add_person("cli:root", ANNA, "Anna Example", Role::Member)
        .await
        .unwrap();
    assert_eq!((back.id, back.ended), (anna.id, None));
    assert_eq!(store.members(&project).await.unwrap(), []);
}

/// How often a text is in the files of a database.
fn occurrences(place: &Place, text: &str) -> usize {
    fn look(folder: &std::path::Path, text: &[u8], found: &mut usize) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                look(&entry.path(), text, found);
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                *found += bytes.windows(text.len()).filter(|window| *window == text).count();
            }
        }
    }
    let mut found = 0;
    look(place.folder(), text.as_bytes(), &mut found);
    found
}

async fn who_was_erased_is_nobody_and_the_chain_holds(place: Place) {
    let store = open(&place).await;
    let anna = anna(&store, Role::Member).await;
    let key = own_key(&store, &anna.id, Role::Member).await.unwrap();
    let names = [ANNA, "anna.example@example.org", "Anna Example", "Annas Laptop"];
    assert_eq!(store.keys().await.unwrap()[0].name, "Annas Laptop");
    assert!(
        names.iter().all(|name| occurrences(&place, name) == 0),
        "it is sealed from the first"
    );
    // With the secret these would be her name again: they must not be left in the file either.
    let sealed = [
        place.text("SELECT sealed FROM person").await,
        place.text("SELECT mark FROM person").await,
    ];
    assert!(sealed.iter().all(|text| occurrences(&place, text) > 0));
    store.erase_person("cli:root", ANNA).await.unwrap();
    assert_eq!(opens(&store, &key).await, Err(Denied::Revoked));
    assert!(matches!(store.person(ANNA).await, Err(Error::Missing(_))));
    assert!(matches!(store.person(&anna.id).await, Err(Error::Missing(_))));
    assert!(store.people().await.unwrap().is_empty());
    assert_eq!(store.keys().await.unwrap()[0].name, "erased");
    let rows = store.audit_events(0).await.unwrap();
    verify(&rows, None).unwrap();
    assert!(
        rows.iter()
            .any(|row| row.action == "user.erased" && row.object == anna.id)
    );
    assert!(names.iter().all(|name| occurrences(&place, name) == 0));
    // A server keeps what was deleted until its own upkeep, and its log longer (docs/gdpr.md).
    assert!(!place.is_file() || sealed.iter().all(|text| occurrences(&place, text) == 0));
    // Somebody new of that address is somebody else.
    let new = store
        .add_person("cli:root", ANNA, "Anna Example", Role::Member)
        .await
        .unwrap();
    assert_ne!(new.id, anna.id);
}

async fn nobody_gives_or_takes_what_they_do_not_have(place: Place) {
    let store = open(&place).await;
    let anna = anna(&store, Role::Owner).await;
    let owned = own_key(&store, &anna.id, Role::Owner).await.unwrap();
    let office = store.create_project("cli:root", "office", &[]).await.unwrap();
    let own = key(&store, &office.id, Role::Admin).await;
    let admin = Actor::Key(&own.id.0);
    let wanted = |role| NewKeyRequest {
        project: "sales",
        role,
        name: "x",
        expires: None,
        owner: None,
    };
    for role in [Role::Owner, Role::Auditor] {
        assert!(matches!(
            store.create_key(admin, &wanted(role)).await,
            Err(Error::Forbidden(_))
        ));
        let added = store.add_person(admin, "b@example.org", "B", role).await;
        assert!(matches!(added, Err(Error::Forbidden(_))));
        let raised = store.set_person_role(admin, &anna.id, role).await;
        assert!(matches!(raised, Err(Error::Forbidden(_))));
    }
    let project = project(&store, "sales").await.id;
    for refused in [
        store.revoke_key(admin, &owned.id.0).await,
        store.set_expiry(admin, &owned.id.0, 1).await,
        store.end_person(admin, &anna.id).await,
        store.erase_person(admin, &anna.id).await,
        store.remove_member(admin, &project, &anna.id).await,
        store.archive_project(admin, "sales").await,
    ] {
        assert!(
            matches!(refused, Err(Error::Forbidden(Role::Owner))),
            "{refused:?}"
        );
    }
    assert_eq!(opens(&store, &owned).await, Ok(()), "and nothing of it was done");
    let made = store.create_key(admin, &wanted(Role::Admin)).await.unwrap();
    store.revoke_key(admin, &made.id.0).await.unwrap();
    let rows = store.audit_events(0).await.unwrap();
    let name = format!("key:{}", own.id.0);
    assert_eq!(rows.iter().filter(|row| row.actor == name).count(), 2);
    // What a key may do is what it may do now.
    let member = self::key(&store, &office.id, Role::Member).await;
    let refused = store
        .create_key(Actor::Key(&member.id.0), &wanted(Role::Member))
        .await;
    assert!(matches!(refused, Err(Error::Forbidden(Role::Member))));
    store.revoke_key("cli:root", &own.id.0).await.unwrap();
    for ended in [own.id.0.as_str(), "nothing"] {
        let refused = store.create_key(Actor::Key(ended), &wanted(Role::Admin)).await;
        assert!(matches!(refused, Err(Error::Ended)), "{ended}");
    }
}

async fn programs_have_keys_of_their_own(place: Place) {
    let store = open(&place).await;
    let sales = store.create_project("cli:root", "sales", &[]).await.unwrap();
    let other = store.create_project("cli:root", "other", &[]).await.unwrap();
    let expires = now_s() + 1_000;
    let (crm, key) = store
        .create_account("cli:root", "sales", "crm", Some(Some(expires)))
        .await
        .unwrap();
    let key = key.unwrap();
    let record = store.keys().await.unwrap().remove(0);
    assert_eq!(record.owner.as_ref(), Some(&crm.id));
    assert_eq!((record.role, record.expires), (Role::Service, Some(expires)));
    assert!(own_key(&store, &crm.id, Role::Member).await.is_err());
    let second = own_key(&store, &crm.id, Role::Service).await.unwrap();
    store
        .rename_account("cli:root", &sales.id, &crm.id, "erp")
        .await
        .unwrap();
    assert_eq!(store.accounts(&sales.id).await.unwrap()[0].name, "erp");
    for missing in [
        store.end_account("cli:root", &other.id, &crm.id).await,
        store
            .rename_account("cli:root", &sales.id, "svc_acct_x", "x")
            .await,
    ] {
        assert!(matches!(missing, Err(Error::Missing(_))));
    }
    store.end_account("cli:root", &sales.id, &crm.id).await.unwrap();
    for key in [&key, &second] {
        assert_eq!(opens(&store, key).await, Err(Denied::Revoked));
    }
    assert!(store.accounts(&sales.id).await.unwrap().is_empty());
    assert!(own_key(&store, &crm.id, Role::Service).await.is_err());
}

async fn rows_are_found_by_who_what_where_and_when(place: Place) {
    let store = open(&place).await;
    let anna = anna(&store, Role::Admin).await;
    let key = own_key(&store, &anna.id, Role::Admin).await.unwrap();
    let by = format!("key:{}", key.id.0);
    store
        .record(&by, "model.load", "m", "{}".to_owned())
        .await
        .unwrap();
    store.create_project("cli:root", "it's 100 %", &[]).await.unwrap();
    let all = store.find_audit(&AuditQuery::default(), 100).await.unwrap();
    let end = store.audit_end().await.unwrap().0;
    assert_eq!(i64::try_from(all.len()).unwrap(), end);
    assert!(all.windows(2).all(|two| two[0].seq > two[1].seq));
    let found = async |query: AuditQuery| -> Vec<String> {
        let rows = store.find_audit(&query, 100).await.unwrap();
        rows.into_iter().map(|row| row.action).collect()
    };
    let list = |text: &str| vec![text.to_owned()];
    for actor in [anna.id.as_str(), &key.id.0, &by] {
        let query = AuditQuery {
            actors: list(actor),
            ..AuditQuery::default()
        };
        assert_eq!(found(query).await, ["model.load"], "{actor}");
    }
    let sales = project(&store, "sales").await.id;
    let query = AuditQuery {
        projects: list(&sales),
        ..AuditQuery::default()
    };
    assert_eq!(
        found(query).await,
        ["api_key.created", "role.assignment.created", "project.created"]
    );
    let query = AuditQuery {
        actions: vec!["user.added".to_owned(), "model.load".to_owned()],
        objects: vec![anna.id.clone(), "m".to_owned()],
        ..AuditQuery::default()
    };
    assert_eq!(found(query).await, ["model.load", "user.added"]);
    let at = all[2].at_ms;
    let query = AuditQuery {
        from_ms: Some(at),
        to_ms: Some(at),
        ..AuditQuery::default()
    };
    assert!(found(query).await.contains(&all[2].action));
    let query = AuditQuery {
        from_ms: Some(at + 1_000_000),
        ..AuditQuery::default()
    };
    assert!(found(query).await.is_empty());
}

async fn rows_come_in_pages(place: Place) {
    let store = open(&place).await;
    anna(&store, Role::Admin).await;
    let end = store.audit_end().await.unwrap().0;
    let list = |text: &str| vec![text.to_owned()];
    for hostile in [
        "' OR 1=1 --",
        "$1",
        "%",
        "_____________________",
        "proj_%",
        "\"",
        "é",
    ] {
        let by = AuditQuery {
            actors: list(hostile),
            ..AuditQuery::default()
        };
        let of = AuditQuery {
            projects: list(hostile),
            ..AuditQuery::default()
        };
        for query in [by, of] {
            let found = store.find_audit(&query, 100).await.unwrap();
            assert!(found.is_empty(), "{hostile}");
        }
    }
    let page = async |before, behind| -> Vec<i64> {
        let query = AuditQuery {
            before,
            behind,
            ..AuditQuery::default()
        };
        let rows = store.find_audit(&query, 2).await.unwrap();
        rows.into_iter().map(|row| row.seq).collect()
    };
    assert_eq!(page(None, None).await, [end, end - 1]);
    assert_eq!(page(Some(end - 1), None).await, [end - 2, end - 3]);
    assert_eq!(page(None, Some(1)).await, [3, 2]);
}

async fn a_project_changes_its_name_and_its_models(place: Place) {
    let store = open(&place).await;
    let sales = store.create_project("cli:root", "sales", &[]).await.unwrap();
    store.create_project("cli:root", "other", &[]).await.unwrap();
    store.rename_project("cli:root", "sales", "sales").await.unwrap();
    store
        .rename_project("cli:root", &sales.id, "Vertrieb")
        .await
        .unwrap();
    for taken in ["other", "", &project(&store, "other").await.id] {
        let renamed = store.rename_project("cli:root", &sales.id, taken).await;
        assert!(matches!(renamed, Err(Error::Refused(_))), "{taken}");
    }
    let models = ["b".to_owned(), "a".to_owned(), "b".to_owned()];
    store.set_rights("cli:root", "Vertrieb", &models).await.unwrap();
    assert_eq!(project(&store, "Vertrieb").await.models, ["a", "b"]);
    let many: Vec<String> = (0..1_001).map(|at| at.to_string()).collect();
    assert!(store.set_rights("cli:root", "Vertrieb", &many).await.is_err());
    store.set_rights("cli:root", "Vertrieb", &[]).await.unwrap();
    assert!(project(&store, "Vertrieb").await.models.is_empty());
    assert!(matches!(
        store.set_rights("cli:root", "sales", &[]).await,
        Err(Error::Missing(_))
    ));
}

async fn a_checkpoint_is_of_both_chains(place: Place) {
    let store = open(&place).await;
    let checkpoint = store.checkpoint().await.unwrap();
    assert_eq!(checkpoint.audit, store.audit_end().await.unwrap());
    assert_eq!(checkpoint.usage, None);
    let key = store.secret().unwrap().public_key();
    assert_eq!(Checkpoint::read(&checkpoint.line(), Some(&key)), Ok(checkpoint));
    assert!(
        place.open().await.checkpoint().await.is_err(),
        "it needs the secret"
    );
}

async fn another_secret_is_refused(place: Place) {
    let store = open(&place).await;
    let anna = anna(&store, Role::Member).await;
    // Without it the name of her key would be there for everyone.
    let unsealed = own_key(&place.open().await, &anna.id, Role::Member).await;
    assert!(matches!(unsealed, Err(Error::Refused(_))));
    let other = Secret::open_or_make(&place.folder().join("other")).unwrap();
    let opened = place.open().await.with_secret("cli:root", other).await;
    assert!(matches!(opened, Err(Error::Refused(_))));
    // The place beside a file, and nothing of a server.
    let beside = Secret::place(&place.database(), None);
    match place.database() {
        Database::File(path) => assert_eq!(beside, Some(path.with_extension("db.secret"))),
        Database::Server(_) => assert_eq!(beside, None),
    }
}
