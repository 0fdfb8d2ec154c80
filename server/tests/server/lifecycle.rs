//! Models that come and go while others serve.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use rempart::http::observe::ADMIN_ROUTES;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::support::{Answer, SCRIPT, STORED, TestServer, chat_body, post_request, read};

async fn say(server: &TestServer, model: &str) -> Answer {
    server.chat(json!({"model": model, "temperature": 0})).await
}

fn content(answer: &Answer) -> Value {
    answer.json()["choices"][0]["message"]["content"].clone()
}

fn code(answer: &Answer) -> Value {
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    body["error"]["code"].clone()
}

fn ids(list: &Answer) -> Vec<String> {
    let list = list.json();
    let cards = list["data"].as_array().unwrap().iter();
    cards
        .map(|card| card["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Sends a chat request that nobody waits for here.
fn send(server: &TestServer, fields: Value) -> JoinSet<(u16, String)> {
    let router = server.router.clone();
    let request = post_request("/v1/chat/completions", chat_body(fields).to_string());
    JoinSet::from_iter([async move {
        let answer = read(&router, request).await;
        (answer.status.as_u16(), answer.body)
    }])
}

#[tokio::test]
async fn requests_go_to_the_model_that_they_name() {
    let server = TestServer::start(&[]).await;
    assert_eq!(server.administer("/admin/models/stored/load").await.status, 200);
    assert_eq!(content(&say(&server, "stored").await), STORED);
    assert_eq!(say(&server, "stored").await.json()["model"], "stored");
    for name in ["test-model", "alias"] {
        assert_eq!(content(&say(&server, name).await), SCRIPT);
    }
    let all = ["test-model", "alias", "stored", "embedder", "ranker"];
    assert_eq!(ids(&server.get("/v1/models").await), all);
    // What is wrong with a request is told before that there is no such model.
    let wrong = server.chat(json!({"model": "other", "temperature": 9})).await;
    assert_eq!(code(&wrong), "out_of_range");
    let unknown = say(&server, "other").await;
    assert_eq!(unknown.status, 404);
    let message = unknown.json()["error"]["message"].to_string();
    assert!(all.iter().all(|name| message.contains(name)), "{message}");
    let tokens = server
        .post("/tokenize", json!({"model": "stored", "prompt": "a"}))
        .await;
    assert_eq!(tokens.status, 200);
    let labels = r#"{model_name="stored",engine="0"}"#;
    let made = server
        .metric(&format!("vllm:generation_tokens_total{labels}"))
        .await;
    assert!(made > 2.0 * STORED.len() as f64, "{made}");
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_model_comes_and_goes() {
    let server = TestServer::start(&[]).await;
    for _ in 0..3 {
        let loaded = server.administer("/admin/models/stored/load").await;
        let state: Value = serde_json::from_str(&loaded.body).unwrap();
        assert_eq!(
            (&state["state"], &state["kind"]),
            (&json!("ready"), &json!("generator"))
        );
        assert_eq!((&state["bytes"], &state["error"]), (&json!(40), &Value::Null));
        assert!(state["last_used"].as_i64().unwrap() > 1_700_000_000);
        let again = server.administer("/admin/models/stored/load").await;
        assert_eq!(again.status, 200, "nothing is left to do");
        assert_eq!(content(&say(&server, "stored").await), STORED);
        let unloaded = server.administer("/admin/models/stored/unload").await;
        assert_eq!(unloaded.status, 200);
        let state = server.state_of("stored").await;
        assert_eq!(
            (&state["state"], &state["bytes"]),
            (&json!("unloaded"), &json!(0))
        );
        let refused = say(&server, "stored").await;
        assert_eq!(
            (refused.status.as_u16(), code(&refused)),
            (503, json!("model_unloaded"))
        );
        assert_eq!(refused.headers["retry-after"], "10");
        assert!(!ids(&server.get("/v1/models").await).contains(&"stored".to_owned()));
    }
    assert_eq!(server.administer("/admin/models/stored/unload").await.status, 200);
    let series = |name: &str| format!(r#"rempart_model_{name}{{model_name="stored"}}"#);
    server.metric_becomes(&series("loads_total"), 3.0).await;
    server.metric_becomes(&series("loaded"), 0.0).await;
    let blocks = r#"rempart_kv_blocks_total{model_name="stored",engine="0"}"#;
    server.metric_becomes(blocks, 0.0).await;
    assert_eq!(content(&say(&server, "test-model").await), SCRIPT);
}

#[tokio::test]
async fn an_encoder_comes_and_goes() {
    let server = TestServer::start(&[]).await;
    let embed = async |model: &str| {
        let body = json!({"model": model, "input": "abba"});
        server.post("/v1/embeddings", body).await
    };
    assert_eq!(code(&embed("stored-encoder").await), "model_not_found");
    assert_eq!(
        server
            .administer("/admin/models/stored-encoder/load")
            .await
            .status,
        200
    );
    let vector = embed("stored-encoder").await.json()["data"][0]["embedding"].clone();
    assert_eq!(vector, json!([2.0, 2.0, 0.0, 0.0]));
    assert_eq!(server.state_of("stored-encoder").await["kind"], "embedder");
    assert_eq!(code(&say(&server, "stored-encoder").await), "model_not_supported");
    // One of the command line does, too.
    assert_eq!(
        server.administer("/admin/models/embedder/unload").await.status,
        200
    );
    assert_eq!(code(&embed("embedder").await), "model_unloaded");
    assert_eq!(server.administer("/admin/models/embedder/load").await.status, 200);
    assert_eq!(embed("embedder").await.status, 200);
}

#[tokio::test]
async fn what_cannot_be_loaded_leaves_all_else_as_it_was() {
    let server = TestServer::start(&[]).await;
    let missing = server.administer("/admin/models/nothing/load").await;
    assert_eq!(
        (missing.status.as_u16(), code(&missing)),
        (404, json!("model_not_found"))
    );
    for path in ["..%2F..%2Fetc", "hf:a%2Fb", "%2Fetc%2Fpasswd", "%FF"] {
        let answer = server.administer(&format!("/admin/models/{path}/load")).await;
        assert_eq!(answer.status, 404, "{path}");
    }
    for (name, why) in [
        ("damaged", "ends too early"),
        ("silent", "first token was not made"),
    ] {
        let failed = server.administer(&format!("/admin/models/{name}/load")).await;
        assert_eq!(
            (failed.status.as_u16(), code(&failed)),
            (422, json!("model_load_failed"))
        );
        assert!(failed.body.contains(why), "{}", failed.body);
        let state = server.state_of(name).await;
        assert_eq!((&state["state"], &state["bytes"]), (&json!("failed"), &json!(0)));
        assert!(state["error"].as_str().unwrap().contains(why), "{state}");
        let refused = say(&server, name).await;
        assert_eq!(code(&refused), "model_unloaded");
        assert!(!refused.body.contains(why), "that is for the operator");
    }
    assert_eq!(server.administer("/admin/models/stored/load").await.status, 200);
    let full = server.administer("/admin/models/second/load").await;
    assert!(full.body.contains("exceeds the memory"), "{}", full.body);
    assert_eq!(server.administer("/admin/models/stored/unload").await.status, 200);
    assert_eq!(
        server.administer("/admin/models/second/load").await.status,
        200,
        "room again"
    );
    assert_eq!(content(&say(&server, "test-model").await), SCRIPT);
    for path in ["/readyz", "/livez"] {
        assert_eq!(server.get(path).await.status, 200);
    }
    server
        .metric_becomes(r#"rempart_model_load_failures_total{model_name="damaged"}"#, 1.0)
        .await;
}

#[tokio::test]
async fn an_engine_that_gives_up_takes_its_own_model_only() {
    let server = TestServer::start(&[]).await;
    server.administer("/admin/models/stored/load").await;
    server.controls.panic.store(3, Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(code(&say(&server, "stored").await), "internal_error");
    }
    while server.state_of("stored").await["state"] != "failed" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(code(&say(&server, "stored").await), "model_unloaded");
    assert_eq!(content(&say(&server, "test-model").await), SCRIPT);
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.administer("/admin/models/stored/load").await.status, 200);
    assert_eq!(content(&say(&server, "stored").await), STORED);
}

#[tokio::test]
async fn running_requests_finish_before_their_model_goes() {
    let server = TestServer::start(&[]).await;
    server.administer("/admin/models/stored/load").await;
    server.controls.close();
    let running = send(&server, json!({"model": "stored", "temperature": 0}));
    server.controls.held().await;
    let admin = server.admin.clone();
    let request = || Request::post("/admin/models/stored/unload").header("host", "localhost");
    let unloading = JoinSet::from_iter([admin.oneshot(request().body(Body::empty()).unwrap())]);
    while server.state_of("stored").await["state"] != "draining" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(code(&say(&server, "stored").await), "model_unloaded");
    let busy = server.administer("/admin/models/stored/load").await;
    assert_eq!((busy.status.as_u16(), code(&busy)), (409, json!("model_busy")));
    server.controls.open();
    let (status, body) = running.join_all().await.remove(0);
    assert_eq!(status, 200);
    assert!(body.contains(STORED), "{body}");
    assert_eq!(unloading.join_all().await[0].as_ref().unwrap().status(), 200);
    assert_eq!(server.state_of("stored").await["state"], "unloaded");
}

#[tokio::test]
async fn requests_are_ended_when_their_time_is_over() {
    let server = TestServer::start(&["--unload-timeout-s", "0"]).await;
    server.administer("/admin/models/stored/load").await;
    // To its end an answer would take twice the deadline below.
    server.controls.token_ms.store(50, Ordering::Relaxed);
    for stream in [true, false] {
        server.administer("/admin/models/stored/load").await;
        let fields = json!({"model": "stored", "ignore_eos": true, "max_tokens": 200, "stream": stream});
        let running = send(&server, fields);
        let gauge = r#"vllm:num_requests_running{model_name="stored",engine="0"}"#;
        server.metric_becomes(gauge, 1.0).await;
        let began = Instant::now();
        assert_eq!(server.administer("/admin/models/stored/unload").await.status, 200);
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "it does not wait for the end"
        );
        let (status, body) = running.join_all().await.remove(0);
        assert_eq!(status, if stream { 200 } else { 503 });
        assert!(body.contains("model_unloaded"), "{body}");
        server.metric_becomes(gauge, 0.0).await;
    }
}

#[tokio::test]
async fn a_request_waits_for_a_model_that_is_reloaded() {
    let server = TestServer::start(&[]).await;
    server.administer("/admin/models/stored/load").await;
    server.controls.load_ms.store(2_000, Ordering::Relaxed);
    let admin = server.admin.clone();
    let request = Request::post("/admin/models/stored/reload").header("host", "localhost");
    let reloading = JoinSet::from_iter([admin.oneshot(request.body(Body::empty()).unwrap())]);
    while server.state_of("stored").await["state"] == "ready" {
        tokio::task::yield_now().await;
    }
    assert_eq!(content(&say(&server, "stored").await), STORED);
    assert_eq!(reloading.join_all().await[0].as_ref().unwrap().status(), 200);
    let series = r#"rempart_model_loads_total{model_name="stored"}"#;
    server.metric_becomes(series, 2.0).await;
}

#[tokio::test]
async fn an_idle_model_goes_and_comes_back_for_the_next_request() {
    let server = TestServer::start(&[]).await;
    server.administer("/admin/models/stored/load").await;
    let limit = Duration::from_millis(50);
    let _watching = JoinSet::from_iter([server.app.registry.clone().unload_idle(limit)]);
    for _ in 0..2 {
        while server.state_of("stored").await["state"] != "idle" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(ids(&server.get("/v1/models").await).contains(&"stored".to_owned()));
        let all = [say(&server, "stored"), say(&server, "stored")];
        for answer in futures::future::join_all(all).await {
            assert_eq!(content(&answer), STORED);
        }
    }
    // Somebody holds it: the test.
    assert_eq!(server.state_of("test-model").await["state"], "ready");
    server.administer("/admin/models/stored/unload").await;
    assert_eq!(code(&say(&server, "stored").await), "model_unloaded");
}

#[tokio::test]
async fn a_request_does_not_wait_longer_than_its_time() {
    // Longer than a machine stops, as it is also the time of the request that is answered in the end.
    let server = TestServer::start(&["--request-timeout-s", "5"]).await;
    server.administer("/admin/models/stored/load").await;
    let limit = Duration::from_millis(20);
    let watching = JoinSet::from_iter([server.app.registry.clone().unload_idle(limit)]);
    while server.state_of("stored").await["state"] != "idle" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(watching);
    // The first token can't be made.
    server.controls.close();
    let answer = say(&server, "stored").await;
    assert_eq!(
        (answer.status.as_u16(), code(&answer)),
        (504, json!("deadline_exceeded"))
    );
    server.controls.open();
    while server.state_of("stored").await["state"] != "ready" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(content(&say(&server, "stored").await), STORED);
}

#[tokio::test]
async fn administration_is_apart_and_not_for_pages() {
    let server = TestServer::start(&[]).await;
    for path in ["/admin/models", "/admin/models/stored/load"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
        assert_eq!(server.post(path, json!({})).await.status, 404, "{path}");
    }
    let ask = |host: &'static str, origin: Option<&'static str>| {
        let mut request = Request::post("/admin/models/stored/load").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let (admin, request) = (server.admin.clone(), request.body(Body::empty()).unwrap());
        async move { code(&read(&admin, request).await) }
    };
    assert_eq!(
        ask("localhost", Some("http://evil.example")).await,
        "origin_not_allowed"
    );
    assert_eq!(ask("localhost", None).await, Value::Null);
    let own = TestServer::start(&["--admin-bind", "127.0.0.1:0"]).await;
    let request = Request::get("/admin/models").header("host", "evil.example");
    let answer = read(&own.admin, request.body(Body::empty()).unwrap()).await;
    assert_eq!(code(&answer), "host_not_allowed");
}

#[tokio::test]
async fn administration_is_described() {
    let server = TestServer::start(&[]).await;
    let request = Request::get("/openapi.json").header("host", "localhost");
    let document = read(&server.admin, request.body(Body::empty()).unwrap()).await;
    let document: Value = serde_json::from_str(&document.body).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let mut described: Vec<&str> = paths.keys().map(String::as_str).collect();
    let mut routes = ADMIN_ROUTES.to_vec();
    described.sort_unstable();
    routes.sort_unstable();
    assert_eq!(described, routes);
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            for name in ["nothing", "damaged", "stored"] {
                let request = Request::builder()
                    .method(method.to_uppercase().as_str())
                    .uri(path.replace("{name}", name))
                    .header("host", "localhost")
                    .body(Body::empty());
                let status = read(&server.admin, request.unwrap()).await.status.as_u16();
                assert!(
                    operation["responses"].get(status.to_string()).is_some(),
                    "{method} {path} {name}: {status}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_model_that_works_is_not_given_up_for_files_that_do_not() {
    let server = TestServer::start(&[]).await;
    server.administer("/admin/models/stored/load").await;
    let damaged = &server.controls.files_damaged;
    damaged.store(true, Ordering::Relaxed);
    let failed = server.administer("/admin/models/stored/reload").await;
    assert_eq!(
        (failed.status.as_u16(), code(&failed)),
        (422, json!("model_load_failed"))
    );
    assert_eq!(server.state_of("stored").await["state"], "ready");
    assert_eq!(content(&say(&server, "stored").await), STORED);
    // One that was asked for at start, and that is gone because of it, makes the server unready.
    server.administer("/admin/models/embedder/unload").await;
    assert_eq!(server.get("/readyz").await.status, 200);
    server.administer("/admin/models/embedder/load").await;
    let unready = server.get("/readyz").await;
    assert_eq!(unready.status, 503);
    assert!(
        unready.body.contains("embedder could not be loaded again"),
        "{}",
        unready.body
    );
    damaged.store(false, Ordering::Relaxed);
    server.administer("/admin/models/embedder/load").await;
    assert_eq!(server.get("/readyz").await.status, 200);
}

/// Waits until the model is unloaded because nobody uses it.
async fn made_idle(server: &TestServer) {
    server.administer("/admin/models/stored/load").await;
    let limit = Duration::from_millis(20);
    let _watching = JoinSet::from_iter([server.app.registry.clone().unload_idle(limit)]);
    while server.state_of("stored").await["state"] != "idle" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_wrong_request_brings_no_model_back() {
    let server = TestServer::start(&[]).await;
    made_idle(&server).await;
    let wrong = [
        ("/v1/chat/completions", "temperature"),
        ("/v1/completions", "n"),
        ("/v1/responses", "top_p"),
        ("/v1/messages", "max_tokens"),
        ("/v1/messages/count_tokens", "messages"),
        ("/tokenize", "prompt"),
        ("/detokenize", "tokens"),
        ("/v1/responses/input_tokens", "input"),
    ];
    for (path, name) in wrong {
        let answer = server
            .post(path, json!({"model": "stored", name: "x", "more": 1}))
            .await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
    }
    assert_eq!(server.state_of("stored").await["state"], "idle");
    assert_eq!(content(&say(&server, "stored").await), STORED);
}

#[tokio::test]
async fn only_so_many_requests_wait_for_a_model() {
    let server = TestServer::start(&["--load-waiting-max", "2"]).await;
    made_idle(&server).await;
    server.controls.load_ms.store(2_000, Ordering::Relaxed);
    let all: Vec<_> = (0..5).map(|_| say(&server, "stored")).collect();
    let mut statuses: Vec<u16> = futures::future::join_all(all)
        .await
        .iter()
        .map(|answer| answer.status.as_u16())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503, 503, 503]);
    assert_eq!(content(&say(&server, "stored").await), STORED);
}

/// A body that names no model would get the first: where that is out, it is looked at all the same before it comes back.
#[tokio::test]
async fn a_wrong_request_without_a_name_brings_no_model_back() {
    let server = TestServer::start(&["--unload-timeout-s", "0"]).await;
    made_idle(&server).await;
    // Then the stored one is the first that generates.
    server.administer("/admin/models/test-model/unload").await;
    for body in ["{", "{}", "{\"model\": 7}", "[]"] {
        let answer = server.post_text("/v1/chat/completions", body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
    }
    assert_eq!(server.state_of("stored").await["state"], "idle");
    let tokens = server.post("/tokenize", json!({"prompt": "a"})).await;
    assert_eq!(tokens.status, 200);
    assert_eq!(server.state_of("stored").await["state"], "ready");
}

#[tokio::test]
async fn a_wrong_request_brings_no_encoder_back() {
    let server = TestServer::start(&[]).await;
    server.administer("/admin/models/stored-encoder/load").await;
    let limit = Duration::from_millis(20);
    let watching = JoinSet::from_iter([server.app.registry.clone().unload_idle(limit)]);
    while server.state_of("stored-encoder").await["state"] != "idle" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(watching);
    for path in [
        "/v1/embeddings",
        "/v1/rerank",
        "/rerank",
        "/v2/rerank",
        "/v1/score",
        "/score",
    ] {
        let answer = server
            .post(path, json!({"model": "stored-encoder", "more": 1}))
            .await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
    }
    assert_eq!(server.state_of("stored-encoder").await["state"], "idle");
}
