//! What a server with keys records of each request: one row, however the request ends.

mod chaining;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::http::Method;
use http_body_util::BodyExt as _;
use rempart_governance::{Noted, Role, UsageEvent};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use self::chaining::rename;
use super::support::{Governed, chat_body, governed, request};

const CHAT: &str = "/v1/chat/completions";

impl Governed {
    /// Waits for a row that nobody waited for.
    async fn rows_become(&self, count: usize) -> Vec<UsageEvent> {
        let began = Instant::now();
        loop {
            let rows = self.rows().await;
            if rows.len() >= count {
                return rows;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{rows:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn tokens(usage: &Value) -> [i64; 3] {
    let number = |value: &Value| value.as_i64().unwrap();
    [
        number(&usage["prompt_tokens"]),
        number(&usage["prompt_tokens_details"]["cached_tokens"]),
        number(&usage["completion_tokens"]),
    ]
}

#[tokio::test]
async fn an_answer_that_was_read_has_its_row() {
    let (governed, key) = Governed::with_member().await;
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (at, fields) in [json!({}), json!({}), stream].into_iter().enumerate() {
        let answer = governed.chat(&key, fields).await;
        // Nothing is waited for: it is there.
        let rows = governed.rows().await;
        assert_eq!(rows.len(), at + 1);
        let row = rows.last().unwrap();
        let usage = if at < 2 {
            answer.json()["usage"].clone()
        } else {
            answer
                .events()
                .iter()
                .find(|event| !event["usage"].is_null())
                .unwrap()["usage"]
                .clone()
        };
        let [input, cached, output] = tokens(&usage);
        assert_eq!([row.input, row.cached, row.output], [input, cached, output]);
        assert_eq!(
            cached > 0,
            at > 0,
            "the prompt of the first is cached for the others"
        );
        assert_eq!(
            row.cost_nano,
            (input - cached) * 2_000 + cached * 500 + output * 8_000
        );
        assert_eq!((row.model.as_str(), row.endpoint.as_str()), ("test-model", CHAT));
        assert_eq!(
            (row.key.as_str(), row.status, row.outcome.as_str()),
            (key.id.0.as_str(), 200, "completed")
        );
        assert!(row.project.starts_with("proj_") && row.first_ms.unwrap() <= row.duration_ms);
    }
}

#[tokio::test]
async fn whatever_asks_a_model_has_a_row() {
    let (governed, key) = Governed::with_member().await;
    let question = json!([{"role": "user", "content": "Hi"}]);
    let asked = [
        (
            "/v1/completions",
            json!({"model": "alias", "prompt": ["a", "b"], "n": 2, "max_tokens": 3}),
        ),
        (
            "/v1/messages",
            json!({"model": "test-model", "max_tokens": 4, "messages": question}),
        ),
        ("/v1/responses", json!({"model": "test-model", "input": "Hi"})),
        (
            "/v1/embeddings",
            json!({"model": "embedder", "input": ["a", "b c"]}),
        ),
        (
            "/v1/rerank",
            json!({"model": "ranker", "query": "a", "documents": ["b", "c"]}),
        ),
        (
            "/v1/score",
            json!({"model": "ranker", "text_1": "a", "text_2": "b"}),
        ),
    ];
    for (at, (path, body)) in asked.iter().enumerate() {
        let answer = governed.post(&key, path, body.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let rows = governed.rows().await;
        assert_eq!((rows.len(), rows[at].endpoint.as_str()), (at + 1, *path));
        assert!(rows[at].input > 0 && rows[at].status == 200);
        let made = at < 3;
        assert_eq!(
            (rows[at].output > 0, rows[at].first_ms.is_some()),
            (made, made),
            "{path}"
        );
    }
    let rows = governed.rows().await;
    assert_eq!((rows[0].model.as_str(), rows[0].output), ("test-model", 12));
    assert_eq!(rows[3].cost_nano, rows[3].input * 1_000);
    // What asks no model has none.
    for (path, body) in [
        (
            "/v1/messages/count_tokens",
            json!({"model": "test-model", "messages": question}),
        ),
        (
            "/v1/responses/input_tokens",
            json!({"model": "test-model", "input": "Hi"}),
        ),
        ("/tokenize", json!({"prompt": "Hi"})),
    ] {
        assert_eq!(governed.post(&key, path, body).await.status, 200, "{path}");
    }
    governed.send(key.reveal(), Method::GET, "/v1/models", None).await;
    governed
        .send("sk-wrong", Method::POST, CHAT, Some(chat_body(json!({}))))
        .await;
    assert_eq!(governed.rows().await.len(), asked.len());
}

#[tokio::test]
async fn what_fails_has_a_row_too() {
    let (governed, key) = Governed::with_member().await;
    governed.chat(&key, json!({"temperature": -1})).await;
    governed.chat(&key, json!({"model": "none"})).await;
    governed
        .post(&key, "/v1/embeddings", json!({"model": "embedder", "input": []}))
        .await;
    governed.server.controls.fail.store(1, Ordering::SeqCst);
    assert_eq!(governed.chat(&key, json!({})).await.status, 500);
    let rows = governed.rows().await;
    let ends: Vec<(i64, &str)> = rows
        .iter()
        .map(|row| (row.status, row.outcome.as_str()))
        .collect();
    assert_eq!(
        ends,
        [
            (400, "refused"),
            (404, "refused"),
            (400, "refused"),
            (500, "failed")
        ]
    );
    assert!(rows.iter().all(|row| row.output == 0 && row.cost_nano >= 0));
    // A stream that breaks off, of two seconds.
    governed.server.controls.token_ms.store(10, Ordering::SeqCst);
    let body = chat_body(json!({"stream": true, "max_tokens": 200, "ignore_eos": true}));
    let mut stream = governed.begun(&key, CHAT, body).await;
    let first = stream.frame().await.unwrap().unwrap();
    assert!(first.is_data());
    governed.server.controls.fail.store(1, Ordering::SeqCst);
    let rest = stream.collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&rest).contains("error"));
    let row = governed.rows_become(5).await.remove(4);
    assert_eq!((row.status, row.outcome.as_str()), (500, "failed"));
    assert!(row.input > 0);
}

#[tokio::test]
async fn who_leaves_pays_for_what_was_made() {
    let (governed, key) = Governed::with_member().await;
    let body = chat_body(json!({"stream": true, "max_tokens": 200, "ignore_eos": true}));
    // All of them take a second.
    governed.server.controls.token_ms.store(5, Ordering::Relaxed);
    let mut stream = governed.begun(&key, CHAT, body).await;
    for _ in 0..4 {
        stream.frame().await.unwrap().unwrap();
    }
    drop(stream);
    governed.server.controls.token_ms.store(0, Ordering::Relaxed);
    let row = governed.rows_become(1).await.remove(0);
    assert_eq!((row.status, row.outcome.as_str()), (499, "cancelled"));
    assert!(row.input > 0 && (1..200).contains(&row.output), "{row:?}");
    // One that waits for a whole answer.
    governed.server.controls.close();
    let body = chat_body(json!({"max_tokens": 200}));
    let asked = request(Some(key.reveal()), Method::POST, CHAT, Some(body));
    let waiting = governed.server.router.clone().oneshot(asked);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), waiting)
            .await
            .is_err()
    );
    governed.server.controls.open();
    let row = governed.rows_become(2).await.remove(1);
    assert_eq!((row.status, row.outcome.as_str()), (499, "cancelled"));
}

#[tokio::test]
async fn without_a_record_no_model_is_asked() {
    let (governed, key) = Governed::with_member().await;
    rename(&governed, "usage_unchained", "gone").await;
    // The answer is made and told; its row waits.
    let began = Instant::now();
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(20));
    let refused = governed.chat(&key, json!({})).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["code"]),
        (503, &json!("server_not_ready"))
    );
    assert_eq!(governed.server.get("/readyz").await.status, 503);
    assert_eq!(
        governed
            .post(&key, "/tokenize", json!({"prompt": "Hi"}))
            .await
            .status,
        200
    );
    rename(&governed, "gone", "usage_unchained").await;
    assert_eq!(governed.rows_become(1).await[0].outcome, "completed");
    let began = Instant::now();
    while governed.chat(&key, json!({})).await.status != 200 {
        assert!(began.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    governed
        .server
        .metric_is_with(governed.first.reveal(), "rempart_usage_rows_total", 2.0)
        .await;
}

#[tokio::test]
async fn every_request_that_runs_has_a_place_for_its_row() {
    let governed = governed(&["--usage-requests-max", "2"]).await;
    governed.server.controls.close();
    let ask = || {
        let asked = request(
            Some(governed.first.reveal()),
            Method::POST,
            CHAT,
            Some(chat_body(json!({}))),
        );
        governed.server.router.clone().oneshot(asked)
    };
    let (one, two) = (ask(), ask());
    let third = async {
        // The others hold their places as soon as they have begun.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let third = ask().await.unwrap();
        governed.server.controls.open();
        third.status().as_u16()
    };
    let (one, two, third) = tokio::join!(one, two, third);
    assert_eq!(
        (
            one.unwrap().status().as_u16(),
            two.unwrap().status().as_u16(),
            third
        ),
        (200, 200, 503)
    );
    assert_eq!(ask().await.unwrap().status(), 200);
    governed.server.app.access.close().await;
    assert_eq!(
        ask().await.unwrap().status(),
        503,
        "nothing begins when the last rows are written"
    );
}

/// The row of every kind of stream is there when its last event is.
#[tokio::test]
async fn every_stream_that_was_read_has_its_row() {
    let (governed, key) = Governed::with_member().await;
    let question = json!([{"role": "user", "content": "Hi"}]);
    let asked = [
        (
            "/v1/messages",
            json!({"model": "test-model", "max_tokens": 4, "messages": question, "stream": true}),
            "message_stop",
        ),
        (
            "/v1/responses",
            json!({"model": "test-model", "input": "Hi", "stream": true}),
            "response.completed",
        ),
        (
            "/v1/completions",
            json!({"model": "test-model", "prompt": "Hi", "stream": true}),
            "[DONE]",
        ),
    ];
    for (at, (path, body, end)) in asked.into_iter().enumerate() {
        let mut stream = governed.begun(&key, path, body).await;
        while let Some(frame) = stream.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            if String::from_utf8_lossy(&data).contains(end) {
                break;
            }
        }
        let rows = governed.rows().await;
        assert_eq!(
            (rows.len(), rows[at].outcome.as_str()),
            (at + 1, "completed"),
            "{path}"
        );
    }
    let proof = governed.store.prove(&Noted::default()).await.unwrap();
    assert_eq!(proof.usage.0, 3);
}

/// The end comes, although the file is gone to which the last row belongs.
#[tokio::test]
async fn the_end_is_not_kept_by_a_row_that_can_not_be_written() {
    let (governed, key) = Governed::with_member().await;
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    let place = governed.folder.path().join("rempart.db");
    std::fs::rename(&place, governed.folder.path().join("elsewhere.db")).unwrap();
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    let closing = governed.server.app.access.close();
    tokio::time::timeout(Duration::from_secs(20), closing)
        .await
        .unwrap();
}

/// What others read keeps no row from the disk, and what they write no answer for long.
#[tokio::test]
async fn others_that_use_the_file_are_waited_for() {
    let (governed, key) = Governed::with_member().await;
    let url = format!("sqlite://{}", governed.folder.path().join("rempart.db").display());
    let mut other = <sqlx::AnyConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    let mut took: Vec<Duration> = Vec::new();
    // The machine may stop in one of three.
    while took.last().is_none_or(|took| *took >= Duration::from_secs(4)) {
        let tries = took.len();
        assert!(tries < 3, "{took:?}");
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        let began = Instant::now();
        assert_eq!(governed.chat(&key, json!({})).await.status, 200);
        took.push(began.elapsed());
        assert_eq!(
            governed.chat(&key, json!({})).await.status,
            503,
            "nobody knows for how long"
        );
        assert_eq!(governed.rows().await.len(), tries);
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        assert_eq!(governed.rows_become(tries + 1).await.len(), tries + 1);
        while governed.server.get("/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    governed.store.sync_log().await.unwrap();
}

/// A server with too many rows to tell them all at one time tells so, and goes on.
#[tokio::test]
async fn what_no_place_is_left_for_is_refused_and_not_taken() {
    let (governed, key) = Governed::with_member().await;
    governed.server.controls.close();
    let all: Vec<_> = (0..64).map(|_| governed.chat(&key, json!({}))).collect();
    let waiting = futures::future::join_all(all);
    let opening = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        governed.server.controls.open();
    };
    let (answers, ()) = tokio::join!(waiting, opening);
    let taken = answers.iter().filter(|answer| answer.status == 200).count();
    let rows = governed.rows().await;
    let count = |outcome: &str| rows.iter().filter(|row| row.outcome == outcome).count();
    assert_eq!(
        (rows.len(), count("completed"), count("refused")),
        (64, taken, 64 - taken)
    );
}

/// What is made for a client that does not read is paid for.
#[tokio::test]
async fn an_answer_that_nobody_read_is_counted() {
    let (governed, key) = Governed::with_member().await;
    let body = chat_body(json!({"stream": true, "max_tokens": 200, "ignore_eos": true}));
    let unread = governed.begun(&key, CHAT, body).await;
    let series = "vllm:generation_tokens_total{model_name=\"test-model\",engine=\"0\"}";
    governed.metric_becomes(series, 201.0).await;
    // Tokens are counted a moment before they are brought, and those of one answer before the next one is begun.
    assert_eq!(governed.chat(&key, json!({})).await.status, 200);
    drop(unread);
    let rows = governed.rows_become(2).await;
    let row = rows.iter().find(|row| row.outcome == "cancelled").unwrap();
    assert_eq!(row.output, 200);
    assert!(row.input > 0);
}

/// Where the operator has asked for it, and under names that tell nobody who they are.
#[tokio::test]
async fn projects_are_counted_where_that_is_asked_for() {
    for arguments in [&[][..], &["--project-metrics", "--database", "elsewhere.db"]] {
        let governed = governed(arguments).await;
        let sales = governed.store.create_project("test", "sales", &[]).await.unwrap();
        let key = governed.key("sales", Role::Member).await;
        governed.look().await;
        assert_eq!(governed.chat(&key, json!({})).await.status, 200);
        assert_eq!(governed.chat(&key, json!({"temperature": -1})).await.status, 400);
        let rows = governed.rows_become(2).await;
        let labels = |model: &str| format!("{{project=\"{}\",model_name=\"{model}\"", sales.id);
        let requests = |model: &str, outcome: &str| {
            format!(
                "rempart_project_requests_total{},outcome=\"{outcome}\"}} 1",
                labels(model)
            )
        };
        let answer = rows.iter().find(|row| row.outcome == "completed").unwrap();
        let tokens = |name: &str, count: i64| {
            format!("rempart_project_{name}_total{}}} {count}", labels("test-model"))
        };
        let page = governed
            .send(governed.first.reveal(), Method::GET, "/metrics", None)
            .await;
        for line in [
            requests("test-model", "completed"),
            requests("", "refused"),
            tokens("prompt_tokens", answer.input),
            tokens("generation_tokens", answer.output),
        ] {
            assert_eq!(
                page.body.lines().any(|told| told == line),
                !arguments.is_empty(),
                "{line}"
            );
        }
        assert!(!page.body.contains("sales"));
        assert_eq!(page.body.contains("rempart_project_"), !arguments.is_empty());
    }
}
