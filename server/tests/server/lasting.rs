//! Answers that are still being made when what was shown for them ends.

use std::cell::Cell;
use std::time::{Duration, Instant};

use axum::http::Method;
use http_body_util::BodyExt as _;
use rempart_governance::{NewKey, NewKeyRequest, Outcome, Role, now_s};
use serde_json::{Value, json};

use super::support::{Governed, chat_body, clock_reaches, governed, merged, request};

/// What the server has to notice it in, and to end the answer.
const NOTICED: Duration = Duration::from_secs(2);
/// What it is waited for where the machine stops meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// What asks each endpoint for a stream, and what its error looks like.
fn streams() -> [(&'static str, Value, Value); 4] {
    let stream = json!({"stream": true});
    let code = json!("key_ended");
    [
        (
            "/v1/chat/completions",
            chat_body(stream.clone()),
            json!({"error": {"code": code, "type": "invalid_request_error"}}),
        ),
        (
            "/v1/completions",
            json!({"model": "test-model", "prompt": "a", "stream": true}),
            json!({"error": {"code": code}}),
        ),
        (
            "/v1/messages",
            chat_body(merged(stream, json!({"max_tokens": 5}))),
            json!({"type": "error", "error": {"code": code, "type": "authentication_error"}}),
        ),
        (
            "/v1/responses",
            json!({"model": "test-model", "input": "a", "stream": true}),
            json!({"type": "error", "code": code}),
        ),
    ]
}

/// Whether one object has all that another has.
fn has(whole: &Value, part: &Value) -> bool {
    match part.as_object() {
        Some(fields) => fields.iter().all(|(name, part)| has(&whole[name], part)),
        None => whole == part,
    }
}

/// A stream whose engine is held in the middle of it: nothing comes of itself.
async fn held(governed: &Governed, key: &NewKey, path: &str, body: Value) -> axum::body::Body {
    governed.server.controls.close();
    let body = governed.begun(key, path, body).await;
    governed.server.controls.held().await;
    body
}

/// Lets the engine go on, and waits until it has: before that it could not be held anew.
async fn released(governed: &Governed) {
    governed.server.controls.open();
    assert_eq!(governed.chat(&governed.first, json!({})).await.status, 200);
}

/// The last event of a stream that ends by itself, and how long it took.
async fn last_event(body: axum::body::Body) -> (Value, Duration) {
    let began = Instant::now();
    let read = tokio::time::timeout(PATIENCE, body.collect()).await;
    let bytes = read
        .expect("it ends, although its engine does not")
        .unwrap()
        .to_bytes();
    let took = began.elapsed();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let mut data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    (serde_json::from_str(data.next_back().unwrap()).unwrap(), took)
}

/// Checks that an end is noticed in time, in one of three tries: the machine may stop in another.
async fn noticed(once: impl AsyncFn() -> Duration) {
    let mut took = Vec::new();
    for _ in 0..3 {
        let one = once().await;
        if one < NOTICED {
            return;
        }
        took.push(one);
    }
    panic!("it is noticed late: {took:?}");
}

#[tokio::test]
async fn a_stream_ends_with_its_key_in_its_own_shape() {
    let (governed, other) = Governed::with_member().await;
    let ended = Cell::new(0);
    for (path, body, error) in streams() {
        noticed(async || {
            let key = governed.key("default", Role::Member).await;
            governed.look().await;
            let running = held(&governed, &key, path, body.clone()).await;
            governed.store.revoke_key("test", &key.id.0).await.unwrap();
            governed.look().await;
            let (last, took) = last_event(running).await;
            assert!(has(&last, &error), "{path}: {last}");
            ended.set(ended.get() + 1);
            released(&governed).await;
            took
        })
        .await;
        // Another's goes on to its end, also where something changes.
        assert_eq!(governed.chat(&other, json!({})).await.status, 200);
        let beside = held(&governed, &other, path, body).await;
        governed.key("default", Role::Member).await;
        governed.look().await;
        governed.server.controls.open();
        let bytes = beside.collect().await.unwrap().to_bytes();
        assert!(!String::from_utf8_lossy(&bytes).contains("key_ended"), "{path}");
    }
    let rows = governed.rows().await;
    let cut: Vec<_> = rows.iter().filter(|row| row.status == 401).collect();
    assert_eq!(cut.len(), ended.get(), "{rows:?}");
    assert!(
        cut.iter()
            .all(|row| row.outcome == Outcome::Failed.name() || row.outcome == Outcome::Refused.name())
    );
}

#[tokio::test]
async fn an_answer_ends_by_the_clock_too() {
    let governed = governed(&[]).await;
    noticed(async || {
        let expires = now_s() + 8;
        let wanted = NewKeyRequest {
            project: "default",
            role: Role::Member,
            name: "brief",
            expires: Some(expires),
            owner: None,
        };
        let key = governed.store.create_key("test", &wanted).await.unwrap();
        governed.look().await;
        let chat = chat_body(json!({"stream": true}));
        let body = held(&governed, &key, "/v1/chat/completions", chat).await;
        clock_reaches(expires).await;
        // Nothing changed in the database, and nobody looked.
        let (last, took) = last_event(body).await;
        assert_eq!(last["error"]["code"], "key_ended");
        released(&governed).await;
        took
    })
    .await;
}

#[tokio::test]
async fn an_answer_ends_with_its_project_and_a_whole_one_too() {
    let governed = governed(&[]).await;
    let store = &governed.store;
    let chat = || chat_body(json!({"stream": true}));
    let projects = Cell::new(0);
    for what in ["archived", "revoked"] {
        noticed(async || {
            projects.set(projects.get() + 1);
            let name = format!("{what}{}", projects.get());
            let project = store.create_project("test", &name, &[]).await.unwrap();
            let key = governed.key(&name, Role::Member).await;
            governed.look().await;
            let body = held(&governed, &key, "/v1/chat/completions", chat()).await;
            // What is another's ends nothing here.
            governed.key("default", Role::Member).await;
            governed.look().await;
            if what == "archived" {
                store.archive_project("test", &project.id).await.unwrap();
            } else {
                store.revoke_key("test", &key.id.0).await.unwrap();
            }
            governed.look().await;
            let (last, took) = last_event(body).await;
            assert_eq!(last["error"]["code"], "key_ended", "{what}");
            released(&governed).await;
            took
        })
        .await;
    }
    // One that comes as a whole does not come.
    let key = governed.key("default", Role::Member).await;
    governed.look().await;
    governed.server.controls.close();
    let asked = governed.send(
        key.reveal(),
        Method::POST,
        "/v1/chat/completions",
        Some(chat_body(json!({}))),
    );
    let ending = async {
        governed.server.controls.held().await;
        store.revoke_key("test", &key.id.0).await.unwrap();
        governed.look().await;
    };
    let (answer, ()) = tokio::join!(asked, ending);
    assert_eq!(
        (answer.status.as_u16(), answer.json()["error"]["code"].clone()),
        (401, json!("key_ended"))
    );
}

#[tokio::test]
async fn where_nobody_is_asked_for_a_key_nothing_ends() {
    let server = super::support::TestServer::start(&[]).await;
    let answer = server
        .send(request(
            None,
            Method::POST,
            "/v1/chat/completions",
            Some(chat_body(json!({}))),
        ))
        .await;
    assert_eq!(answer.status, 200);
}
