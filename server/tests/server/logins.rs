//! What whoever shows a token of the login may do, and until when.

use axum::http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt as _;
use rempart_governance::{KeyKind, Person, Project, Role, Secret, now_s};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::support::issuer::{AUDIENCE, ISSUER, Signer, set};
use super::support::{Answer, Governed, chat_body, clock_reaches, governed, read, request};

const LEEWAY_S: i64 = 60;

/// A server that takes the tokens of a login, and Anna, in the project sales.
struct LoggedIn {
    governed: Governed,
    signer: Signer,
    file: std::path::PathBuf,
    anna: Person,
    sales: Project,
    _folder: tempfile::TempDir,
}

impl LoggedIn {
    async fn begin(role: Role) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.json");
        let signer = Signer::p256();
        std::fs::write(&file, set(&[signer.jwk("k")])).unwrap();
        let governed = governed(&[
            "--database",
            "here",
            "--oidc-issuer",
            ISSUER,
            "--oidc-audience",
            AUDIENCE,
            "--oidc-keys",
            file.to_str().unwrap(),
        ])
        .await;
        let secret = governed.folder.path().join("rempart.db.secret");
        let secret = Secret::open(&secret).unwrap();
        let store = governed.store.clone().with_known_secret(secret).await.unwrap();
        let sales = store.create_project("test", "sales", &[]).await.unwrap();
        let anna = store
            .add_person("test", "Anna@example.org", "Anna", role)
            .await
            .unwrap();
        store.add_member("test", "sales", &anna.id).await.unwrap();
        governed.look().await;
        Self {
            governed: Governed { store, ..governed },
            signer,
            file,
            anna,
            sales,
            _folder: folder,
        }
    }

    fn token(&self, claims: Value) -> String {
        self.signer.token("ES256", "k", claims)
    }

    async fn ask(&self, key: &str, project: Option<&str>) -> Answer {
        self.ask_for(key, project, "/v1/models").await
    }

    async fn ask_for(&self, key: &str, project: Option<&str>, path: &str) -> Answer {
        let mut asked = request(Some(key), Method::GET, path, None);
        if let Some(project) = project {
            let headers: &mut HeaderMap = asked.headers_mut();
            headers.insert("openai-project", HeaderValue::from_str(project).unwrap());
        }
        read(&self.governed.server.router, asked).await
    }

    /// The keys of Anna's tokens.
    async fn token_keys(&self) -> Vec<String> {
        let own = self.governed.store.keys_of(&self.anna.id).await.unwrap();
        let tokens = own.into_iter().filter(|key| key.kind == KeyKind::Token);
        tokens.map(|key| key.id.0).collect()
    }
}

fn told(answer: &Answer) -> (u16, String) {
    let code = answer.json()["error"]["code"].clone();
    (
        answer.status.as_u16(),
        code.as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn who_shows_a_token_is_somebody_until_they_leave() {
    let here = LoggedIn::begin(Role::Member).await;
    let (token, store) = (here.token(json!({})), &here.governed.store);
    let asked = here.governed.send(
        &token,
        Method::POST,
        "/v1/chat/completions",
        Some(chat_body(json!({}))),
    );
    assert_eq!(asked.await.status, 200);
    let keys = here.token_keys().await;
    let rows = here.governed.rows().await;
    assert_eq!((rows.len(), keys.len()), (1, 1));
    assert_eq!((&rows[0].key, &rows[0].project), (&keys[0], &here.sales.id));
    // Another token of hers is the same key, wherever clients put it.
    let other = here.token(json!({"jti": "another", "email": "ANNA@example.org"}));
    assert_eq!(here.ask(&other, None).await.status, 200);
    let mut asked = request(None, Method::GET, "/v1/models", None);
    let headers: &mut HeaderMap = asked.headers_mut();
    headers.insert("x-api-key", HeaderValue::from_str(&other).unwrap());
    assert_eq!(read(&here.governed.server.router, asked).await.status, 200);
    assert_eq!(here.token_keys().await, keys);
    assert_eq!(here.ask_for(&token, None, "/metrics").await.status, 403);
    store
        .set_person_role("test", &here.anna.id, Role::Admin)
        .await
        .unwrap();
    here.governed.look().await;
    assert_eq!(here.ask_for(&token, None, "/metrics").await.status, 200);
    store
        .set_person_role("test", &here.anna.id, Role::Member)
        .await
        .unwrap();
    here.governed.look().await;
    assert_eq!(here.ask_for(&token, None, "/metrics").await.status, 403);
    // The key is an operator's to end, and to make good again.
    store.revoke_key("test", &keys[0]).await.unwrap();
    here.governed.look().await;
    let ended = here.ask(&token, None).await;
    assert_eq!(told(&ended), (401, "invalid_api_key".to_owned()));
    store.restore_token_key("test", &keys[0]).await.unwrap();
    here.governed.look().await;
    assert_eq!(here.ask(&token, None).await.status, 200);
    store.end_person("test", &here.anna.id).await.unwrap();
    here.governed.look().await;
    let gone = here.ask(&token, None).await;
    assert_eq!(gone.body, ended.body, "nobody is told why");
    assert_eq!(gone.headers["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn who_somebody_is_at_the_login_outlasts_their_address() {
    let here = LoggedIn::begin(Role::Member).await;
    let store = &here.governed.store;
    let of = |email: &str, subject: &str| here.token(json!({"email": email, "sub": subject}));
    let ask = async |email: &str, subject: &str| here.ask(&of(email, subject), None).await.status.as_u16();
    // Of tokens that come at one time one binds.
    let (one, two) = (of("anna@example.org", "one"), of("anna@example.org", "one"));
    let (one, two) = tokio::join!(here.ask(&one, None), here.ask(&two, None));
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (200, 200));
    let login = store.subject_of(&here.anna.id).await.unwrap().unwrap();
    assert_eq!((login.issuer.as_str(), login.subject.as_str()), (ISSUER, "one"));
    // Whoever else is given her address by the login is not she.
    let other = here.ask(&of("anna@example.org", "two"), None).await;
    assert_eq!(told(&other), (401, "invalid_api_key".to_owned()));
    here.governed
        .metric_becomes("rempart_access_denied_total{reason=\"token_subject\"}", 1.0)
        .await;
    // She is, under another address, unless that is or was somebody else's.
    assert_eq!(ask("anna.new@example.org", "one").await, 200);
    let bob = store
        .add_person("test", "bob@example.org", "Bob", Role::Member)
        .await
        .unwrap();
    here.governed.look().await;
    assert_eq!(ask("bob@example.org", "one").await, 401);
    store.end_person("test", &bob.id).await.unwrap();
    here.governed.look().await;
    assert_eq!(ask("bob@example.org", "one").await, 401);
    assert_eq!(
        store
            .subject_of(&bob.id)
            .await
            .unwrap()
            .map(|login| login.subject),
        None
    );
    // An account that was made again is hers once an operator has said so.
    store.unbind_subject("test", &here.anna.id).await.unwrap();
    here.governed.look().await;
    assert_eq!(ask("anna@example.org", "two").await, 200);
    assert_eq!(ask("anna@example.org", "one").await, 401);
    assert_eq!(here.token_keys().await.len(), 1);
    assert!(here.governed.server.app.access.close().await);
    let rows = store.audit_events(0).await.unwrap();
    let denied = rows
        .iter()
        .find(|row| row.action == "login.failed" && row.object == here.anna.id);
    assert!(denied.unwrap().detail.contains("token_subject"));
    let bound = rows
        .iter()
        .filter(|row| row.action == "user.bound" && row.actor == "server");
    assert_eq!(bound.count(), 2);
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_with_what_its_person_may() {
    let here = LoggedIn::begin(Role::Member).await;
    let (store, controls) = (&here.governed.store, &here.governed.server.controls);
    let whole = here.token(json!({}));
    assert_eq!(here.ask(&whole, None).await.status, 200);
    let begin = async |token: &str| {
        controls.close();
        let body = Some(chat_body(json!({"stream": true})));
        let asked = request(Some(token), Method::POST, "/v1/chat/completions", body);
        let answer = here.governed.server.router.clone().oneshot(asked).await.unwrap();
        assert_eq!(answer.status(), 200);
        controls.held().await;
        answer.into_body()
    };
    let brief = begin(&here.token(json!({"exp": now_s() - LEEWAY_S + 8}))).await;
    let text = brief.collect().await.unwrap().to_bytes();
    assert!(
        String::from_utf8_lossy(&text).contains("key_ended"),
        "by its own time"
    );
    // Before the gate is closed again, what it held must be through.
    let pass = async || {
        controls.open();
        let through = here.governed.chat(&here.governed.first, json!({})).await;
        assert_eq!(through.status, 200);
    };
    pass().await;
    for change in ["role", "leave"] {
        let running = begin(&whole).await;
        match change {
            "role" => store
                .set_person_role("test", &here.anna.id, Role::Auditor)
                .await
                .unwrap(),
            _ => store.end_person("test", &here.anna.id).await.unwrap(),
        }
        here.governed.look().await;
        let text = running.collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&text).contains("key_ended"), "{change}");
        pass().await;
        if change == "role" {
            store
                .set_person_role("test", &here.anna.id, Role::Member)
                .await
                .unwrap();
            here.governed.look().await;
        }
    }
}

#[tokio::test]
async fn a_token_is_of_the_project_that_is_named() {
    let here = LoggedIn::begin(Role::Member).await;
    let (token, store) = (here.token(json!({})), &here.governed.store);
    let office = store.create_project("test", "office", &[]).await.unwrap();
    for own in [here.sales.id.as_str(), "sales", ""] {
        assert_eq!(here.ask(&token, Some(own)).await.status, 200, "{own}");
    }
    for other in ["office", &office.id, "none", "é"] {
        let refused = here.ask(&token, Some(other)).await;
        assert_eq!(told(&refused), (401, "mismatched_project".to_owned()), "{other}");
    }
    store.add_member("test", "office", &here.anna.id).await.unwrap();
    here.governed.look().await;
    let which = here.ask(&token, None).await;
    assert_eq!(told(&which), (400, "project_required".to_owned()));
    assert!(which.body.contains("OpenAI-Project") && which.body.contains(&office.id));
    assert_eq!(here.ask(&token, Some("office")).await.status, 200);
    assert_eq!(here.token_keys().await.len(), 2);
    for project in [&here.sales.id, &office.id] {
        store.remove_member("test", project, &here.anna.id).await.unwrap();
    }
    here.governed.look().await;
    assert_eq!(
        told(&here.ask(&token, None).await),
        (403, "no_project".to_owned())
    );
    // An ordinary key is of one project, whoever says otherwise.
    let first = here.governed.first.reveal();
    for own in ["default", ""] {
        assert_eq!(here.ask(first, Some(own)).await.status, 200);
    }
    let refused = here.ask(first, Some("sales")).await;
    assert_eq!(told(&refused), (401, "mismatched_project".to_owned()));
    let mut asked = request(Some(first), Method::GET, "/v1/models", None);
    let headers: &mut HeaderMap = asked.headers_mut();
    headers.append("openai-project", HeaderValue::from_static("default"));
    headers.append("openai-project", HeaderValue::from_static("sales"));
    assert_eq!(read(&here.governed.server.router, asked).await.status, 401);
}

#[tokio::test]
async fn bad_tokens_are_counted_by_their_reason_and_change_nothing() {
    let here = LoggedIn::begin(Role::Member).await;
    let end = here.governed.store.audit_end().await.unwrap();
    let bad = [
        ("token_expired", here.token(json!({"exp": 1}))),
        ("token_person", here.token(json!({"email": "bob@example.org"}))),
        ("token_address", here.token(json!({"email": "nobody"}))),
        ("token_signature", Signer::p256().token("ES256", "k", json!({}))),
        ("token_malformed", "a.b".to_owned()),
        ("key", "sk-rempart-x".to_owned()),
    ];
    for (reason, token) in &bad {
        for _ in 0..3 {
            let refused = here.ask(token, None).await;
            assert_eq!(told(&refused), (401, "invalid_api_key".to_owned()), "{reason}");
        }
        let series = format!("rempart_access_denied_total{{reason=\"{reason}\"}}");
        here.governed.metric_becomes(&series, 3.0).await;
    }
    assert_eq!(here.governed.store.audit_end().await.unwrap(), end);
    assert!(here.governed.server.app.access.close().await);
    let rows = here.governed.store.audit_events(end.0).await.unwrap();
    let denied: Vec<_> = rows.iter().filter(|row| row.action == "login.failed").collect();
    assert_eq!(denied.len(), bad.len());
    for row in denied {
        assert_eq!(row.object, "unknown");
        assert!(row.detail.contains(r#""count":3"#), "{}", row.detail);
        assert!(bad.iter().all(|(_, token)| !row.detail.contains(token)));
    }
}

#[tokio::test]
async fn keys_are_read_again_and_bad_ones_are_not_taken() {
    let here = LoggedIn::begin(Role::Member).await;
    let oidc = here.governed.server.app.access.oidc().unwrap();
    let token = here.token(json!({}));
    assert_eq!(here.ask(&token, None).await.status, 200);
    std::fs::write(&here.file, "{").unwrap();
    oidc.reload();
    assert_eq!(here.ask(&token, None).await.status, 200);
    let next = Signer::p256();
    std::fs::write(&here.file, set(&[next.jwk("next")])).unwrap();
    let following = tokio::task::JoinSet::from_iter([oidc.follow()]);
    here.governed
        .metric_becomes("rempart_oidc_reloads_total{result=\"success\"}", 1.0)
        .await;
    here.governed
        .metric_becomes("rempart_oidc_reloads_total{result=\"failure\"}", 1.0)
        .await;
    // What the old key has verified is not good any more, although it was known.
    assert_eq!(here.ask(&token, None).await.status, 401);
    assert_eq!(
        here.ask(&next.token("ES256", "next", json!({})), None)
            .await
            .status,
        200
    );
    drop(following);
}

#[tokio::test]
async fn a_token_that_is_known_still_ends() {
    let here = LoggedIn::begin(Role::Member).await;
    let ends = now_s() + 8;
    let brief = here.token(json!({"exp": ends - LEEWAY_S}));
    assert_eq!(here.ask(&brief, None).await.status, 200);
    clock_reaches(ends + 1).await;
    assert_eq!(here.ask(&brief, None).await.status, 401);
}
