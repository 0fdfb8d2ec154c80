//! Keys that tokens and certificates open.

use rempart_governance::{
    Actor, Denied, Directory, Error, Holder, KeyHash, KeyId, KeyKind, NewKeyRequest, Person, Role, Secret,
    Store, now_s, verify,
};

use crate::support::{Place, key};

on_both! {
    a_token_opens_what_its_person_may
    who_a_person_is_at_the_login_stays_so
    who_a_person_was_at_the_login_goes_with_them
    of_many_first_tokens_one_binds
    one_key_is_made_of_many_first_uses
    a_certificate_is_of_one_key
    a_copy_from_before_there_were_kinds_is_restored
}

const ANNA: &str = "Anna.Example@example.org";

async fn open(place: &Place) -> Store {
    let secret = Secret::open_or_make(&place.folder().join("secret")).unwrap();
    place.open().await.with_secret("cli:root", secret).await.unwrap()
}

async fn anna(store: &Store, role: Role) -> (Person, String) {
    let project = store.create_project("cli:root", "sales", &[]).await.unwrap();
    let added = store
        .add_person("cli:root", ANNA, "Anna Example", role)
        .await
        .unwrap();
    store.add_member("cli:root", "sales", &added.id).await.unwrap();
    (added, project.id)
}

fn token_key(directory: &Directory, person: &Person, project: &str) -> KeyId {
    directory.token_key(&person.id, project).unwrap().clone()
}

async fn opens(store: &Store, key: &KeyId) -> Result<Role, Denied> {
    let directory = store.directory().await.unwrap();
    directory.principal(key, now_s()).map(|principal| principal.role)
}

async fn a_token_opens_what_its_person_may(place: Place) {
    let store = open(&place).await;
    let (anna, project) = anna(&store, Role::Admin).await;
    let mark = store.mark_of("anna.example@EXAMPLE.org").unwrap();
    assert!(store.mark_of("anna").is_err());
    let directory = store.directory().await.unwrap();
    let Holder::Unbound(insider) = directory.people().holder(&mark, "") else {
        panic!("she is here, and nobody at the login")
    };
    assert_eq!(
        (&insider.id, insider.projects.as_slice()),
        (&anna.id, &[(project.clone(), "sales".to_owned())][..])
    );
    assert_eq!(directory.token_key(&anna.id, &project), None);
    store
        .ensure_token_key("server", &anna.id, &project)
        .await
        .unwrap();
    let key = token_key(&store.directory().await.unwrap(), &anna, &project);
    assert_eq!(opens(&store, &key).await, Ok(Role::Admin));
    // It governs as any key of an admin does, and no more.
    let admin = Actor::Key(&key.0);
    store.create_project(admin, "other", &[]).await.unwrap();
    // With less of a role it is not gone: it is of that role.
    store
        .set_person_role("cli:root", &anna.id, Role::Member)
        .await
        .unwrap();
    assert_eq!(opens(&store, &key).await, Ok(Role::Member));
    let refused = store.create_project(admin, "third", &[]).await;
    assert!(matches!(refused, Err(Error::Forbidden(Role::Member))));
    // Once revoked it stays so, however often a token is shown.
    store.revoke_key("cli:root", &key.0).await.unwrap();
    store
        .ensure_token_key("server", &anna.id, &project)
        .await
        .unwrap();
    assert_eq!(opens(&store, &key).await, Err(Denied::Revoked));
    store.restore_token_key("cli:root", &key.0).await.unwrap();
    assert_eq!(opens(&store, &key).await, Ok(Role::Member));
    // So does a leaver's; who joins again is let in again, as what they are then.
    store.remove_member("cli:root", &project, &anna.id).await.unwrap();
    assert_eq!(opens(&store, &key).await, Err(Denied::Revoked));
    assert!(store.restore_token_key("cli:root", &key.0).await.is_err());
    assert!(
        store
            .ensure_token_key("server", &anna.id, "proj_x")
            .await
            .is_err()
    );
    store.end_person("cli:root", &anna.id).await.unwrap();
    let gone = store.directory().await.unwrap();
    assert_eq!(gone.people().holder(&mark, ""), Holder::Nobody);
    store
        .add_person("cli:root", ANNA, "Anna Example", Role::Auditor)
        .await
        .unwrap();
    assert_eq!(opens(&store, &key).await, Err(Denied::Revoked));
    store.add_member("cli:root", "sales", &anna.id).await.unwrap();
    assert_eq!(opens(&store, &key).await, Ok(Role::Auditor));
    verify(&store.audit_events(0).await.unwrap(), None).unwrap();
    store.erase_person("cli:root", ANNA).await.unwrap();
    assert_eq!(opens(&store, &key).await, Err(Denied::Revoked));
    assert!(store.restore_token_key("cli:root", &key.0).await.is_err());
}

const ISSUER: &str = "https://login.example.org";
const SUBJECT: &str = "f3c1d2aa-anna-at-the-login";

/// Whom a token of an address and a subject is of.
async fn held(store: &Store, email: &str, subject: &str) -> String {
    let (address, subject) = (
        store.mark_of(email).unwrap(),
        store.mark_of_subject(ISSUER, subject).unwrap(),
    );
    match store
        .directory()
        .await
        .unwrap()
        .people()
        .holder(&address, &subject)
    {
        Holder::Known(person) => format!("known {}", person.id),
        Holder::Unbound(person) => format!("unbound {}", person.id),
        Holder::Other(person) => format!("other {}", person.id),
        Holder::Nobody => "nobody".to_owned(),
    }
}

async fn who_a_person_is_at_the_login_stays_so(place: Place) {
    let store = open(&place).await;
    let (anna, _) = anna(&store, Role::Member).await;
    let bob = store
        .add_person("cli:root", "bob@example.org", "Bob", Role::Member)
        .await
        .unwrap();
    assert_eq!(held(&store, ANNA, SUBJECT).await, format!("unbound {}", anna.id));
    let bind = |person: &str, subject: &'static str| {
        let (store, person) = (store.clone(), person.to_owned());
        async move { store.bind_subject("server", &person, (ISSUER, subject)).await }
    };
    bind(&anna.id, SUBJECT).await.unwrap();
    bind(&anna.id, SUBJECT).await.unwrap();
    assert_eq!(held(&store, ANNA, SUBJECT).await, format!("known {}", anna.id));
    assert_eq!(held(&store, ANNA, "another").await, format!("other {}", anna.id));
    assert_eq!(
        held(&store, "anna.new@example.org", SUBJECT).await,
        format!("known {}", anna.id)
    );
    assert_eq!(
        held(&store, "bob@example.org", SUBJECT).await,
        format!("other {}", bob.id)
    );
    assert_eq!(held(&store, "eve@example.org", "another").await, "nobody");
    // Another login may call somebody else the same.
    assert_ne!(
        store.mark_of_subject(ISSUER, SUBJECT).unwrap(),
        store.mark_of_subject("https://another.example", SUBJECT).unwrap()
    );
    for (person, subject) in [(&anna.id, "another"), (&bob.id, SUBJECT)] {
        let refused = bind(person, subject).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    }
    assert!(matches!(bind("user_x", "another").await, Err(Error::Missing(_))));
    let login = store.subject_of(&anna.id).await.unwrap().unwrap();
    assert_eq!((login.issuer.as_str(), login.subject.as_str()), (ISSUER, SUBJECT));
    // An account that was made again binds anew, once an operator has said so.
    store.unbind_subject("cli:root", &anna.id).await.unwrap();
    assert!(matches!(
        store.unbind_subject("cli:root", &anna.id).await,
        Err(Error::Missing(_))
    ));
    assert_eq!(held(&store, "anna.new@example.org", SUBJECT).await, "nobody");
    bind(&anna.id, "another").await.unwrap();
    assert_eq!(held(&store, ANNA, "another").await, format!("known {}", anna.id));
    let rows = store.audit_events(0).await.unwrap();
    verify(&rows, None).unwrap();
    let told = rows
        .iter()
        .filter(|row| row.object == anna.id)
        .map(|row| row.action.as_str());
    let told: Vec<&str> = told.filter(|action| action.ends_with("bound")).collect();
    assert_eq!(told, ["user.bound", "user.unbound", "user.bound"]);
    assert!(
        rows.iter()
            .all(|row| !row.detail.contains(SUBJECT) && !row.detail.contains(ISSUER))
    );
}

async fn who_a_person_was_at_the_login_goes_with_them(place: Place) {
    let store = open(&place).await;
    let (anna, _) = anna(&store, Role::Member).await;
    let bind = async || {
        store
            .bind_subject("server", &anna.id, (ISSUER, SUBJECT))
            .await
            .unwrap();
    };
    bind().await;
    // It is in a copy, which opens with the secret alone, and nowhere as it is.
    let mut copy = Vec::new();
    store.back_up("cli:root", &mut copy, || {}).await.unwrap();
    let text = String::from_utf8(copy).unwrap();
    assert!(!text.contains(SUBJECT) && !text.contains("login.example.org"));
    let fresh = Place::file();
    let secret = Secret::open(&place.folder().join("secret")).unwrap();
    let restored = fresh.open().await;
    restored
        .restore("cli:root", text.as_bytes(), || {})
        .await
        .unwrap();
    let restored = restored.with_known_secret(secret).await.unwrap();
    assert_eq!(held(&restored, ANNA, SUBJECT).await, format!("known {}", anna.id));
    let login = restored.subject_of(&anna.id).await.unwrap().unwrap();
    assert_eq!(login.subject, SUBJECT);
    // Who left is found by neither, nor is somebody by the address of who left; who comes back is bound to nothing.
    store.end_person("cli:root", &anna.id).await.unwrap();
    assert!(store.subject_of(&anna.id).await.unwrap().is_none());
    assert_eq!(held(&store, ANNA, SUBJECT).await, "nobody");
    let bob = store
        .add_person("cli:root", "bob@example.org", "Bob", Role::Member)
        .await
        .unwrap();
    store
        .bind_subject("server", &bob.id, (ISSUER, "bob"))
        .await
        .unwrap();
    assert_eq!(held(&store, ANNA, "bob").await, "nobody");
    store
        .add_person("cli:root", ANNA, "Anna", Role::Member)
        .await
        .unwrap();
    assert_eq!(
        held(&store, ANNA, "another").await,
        format!("unbound {}", anna.id)
    );
    bind().await;
    store.erase_person("cli:root", &anna.id).await.unwrap();
    assert!(store.subject_of(&anna.id).await.unwrap().is_none());
    let mut raw = place.raw().await;
    let rows = sqlx::query("SELECT person FROM subject")
        .fetch_all(&mut raw)
        .await
        .unwrap();
    assert_eq!(rows.len(), 1, "Bob's alone");
    // Her address is free for somebody else, whom it finds.
    assert_eq!(held(&store, ANNA, "bob").await, format!("known {}", bob.id));
    verify(&store.audit_events(0).await.unwrap(), None).unwrap();
}

async fn of_many_first_tokens_one_binds(place: Place) {
    let store = open(&place).await;
    let (anna, _) = anna(&store, Role::Member).await;
    let bind = |subject| store.bind_subject("server", &anna.id, (ISSUER, subject));
    let (one, two, three) = tokio::join!(bind("one"), bind("two"), bind("three"));
    let bound = [one, two, three].into_iter().flatten().count();
    assert_eq!(bound, 1);
    assert!(store.subject_of(&anna.id).await.unwrap().is_some());
}

async fn one_key_is_made_of_many_first_uses(place: Place) {
    let store = open(&place).await;
    let (anna, project) = anna(&store, Role::Member).await;
    let ensure = || store.ensure_token_key("server", &anna.id, &project);
    let (one, two, three) = tokio::join!(ensure(), ensure(), ensure());
    for made in [one, two, three] {
        made.unwrap();
    }
    let own = store.keys_of(&anna.id).await.unwrap();
    assert_eq!((own.len(), own[0].kind), (1, KeyKind::Token));
    assert_eq!(own[0].name, "token");
}

async fn a_certificate_is_of_one_key(place: Place) {
    let store = open(&place).await;
    let (anna, project) = anna(&store, Role::Member).await;
    let wanted = NewKeyRequest {
        project: "sales",
        role: Role::Service,
        name: "nightly",
        expires: None,
        owner: None,
    };
    let hash = KeyHash::of_public_key(b"a public key");
    let make = || store.create_certificate_key("cli:root", &wanted, &hash);
    let made = make().await.unwrap();
    assert!(matches!(make().await, Err(Error::Refused(why)) if why.contains(&made.0)));
    let directory = store.directory().await.unwrap();
    assert_eq!(directory.certificate_key(&hash), Some(&made));
    assert_eq!(opens(&store, &made).await, Ok(Role::Service));
    assert!(store.restore_token_key("cli:root", &made.0).await.is_err());
    store.revoke_key("cli:root", &made.0).await.unwrap();
    let again = make().await.unwrap();
    let directory = store.directory().await.unwrap();
    assert_eq!(directory.certificate_key(&hash), Some(&again));
    // Neither a person's role nor their leaving reaches a key that is nobody's; one of theirs ends.
    let own = NewKeyRequest {
        role: Role::Member,
        owner: Some(&anna.id),
        ..wanted
    };
    let other = KeyHash::of_public_key(b"another");
    let own = store
        .create_certificate_key("cli:root", &own, &other)
        .await
        .unwrap();
    store.remove_member("cli:root", &project, &anna.id).await.unwrap();
    assert_eq!(opens(&store, &own).await, Err(Denied::Revoked));
    assert_eq!(opens(&store, &again).await, Ok(Role::Service));
}

async fn a_copy_from_before_there_were_kinds_is_restored(place: Place) {
    let store = open(&place).await;
    let (anna, project) = anna(&store, Role::Member).await;
    let secret = key(&store, "sales", Role::Member).await;
    let mut copy = Vec::new();
    store.back_up("cli:root", &mut copy, || {}).await.unwrap();
    let whole = String::from_utf8(copy).unwrap();
    assert!(whole.contains(r#""owner","kind"]"#));
    let mut before = String::new();
    for line in whole.lines() {
        let mut line = line
            .replace(r#""owner","kind"]"#, r#""owner"]"#)
            .replace(r#",null,"secret"]"#, ",null]");
        if line.starts_with(r#"{"end""#) {
            let mut end: serde_json::Value = serde_json::from_str(&line).unwrap();
            end["sha256"] = digest(&before).into();
            line = end.to_string();
        }
        before += &line;
        before.push('\n');
    }
    assert_ne!(whole, before);
    let fresh = Place::file();
    let restored = fresh.open().await;
    restored
        .restore("cli:root", before.as_bytes(), || {})
        .await
        .unwrap();
    let directory = restored.directory().await.unwrap();
    assert!(directory.authenticate(secret.reveal(), now_s()).is_ok());
    // And one of now has tokens' keys, too.
    store
        .ensure_token_key("server", &anna.id, &project)
        .await
        .unwrap();
    let mut copy = Vec::new();
    store.back_up("cli:root", &mut copy, || {}).await.unwrap();
    let fresh = Place::file();
    let restored = fresh.open().await;
    restored
        .restore("cli:root", copy.as_slice(), || {})
        .await
        .unwrap();
    let key = token_key(&restored.directory().await.unwrap(), &anna, &project);
    assert_eq!(opens(&restored, &key).await, Ok(Role::Member));
}

fn digest(text: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(text.as_bytes());
    digest
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
