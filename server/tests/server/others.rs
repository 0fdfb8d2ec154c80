//! The smaller endpoints, and what surrounds every request.

use axum::body::Body;
use axum::http::{Request, Version};
use rempart::shutdown::Phase;
use serde_json::json;

use super::support::{TestServer, chat_body, post_request};

#[tokio::test]
async fn models() {
    let server = TestServer::start(&[]).await;
    let list = server.get("/v1/models").await.json();
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| &card["id"])
        .collect();
    assert_eq!(ids, ["test-model", "alias", "embedder", "ranker"]);
    let one = server.get("/v1/models/test-model").await;
    assert_eq!(one.status, 200);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&one.body).unwrap()["id"],
        "test-model"
    );
    insta::assert_json_snapshot!(one.json());
}

#[tokio::test]
async fn tokens_and_back() {
    let server = TestServer::start(&[]).await;
    let text = "aé <|im_end|>";
    let answer = server
        .post("/tokenize", json!({"prompt": text, "return_token_strs": true}))
        .await
        .json();
    assert_eq!(answer["max_model_len"], 256);
    assert_eq!(answer["token_strs"][0], "a");
    let back = server
        .post(
            "/detokenize",
            json!({"model": "alias", "tokens": answer["tokens"]}),
        )
        .await
        .json();
    assert_eq!(back, json!({"prompt": text}));
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": false});
    let answer = server.post("/tokenize", chat).await.json();
    assert_eq!(
        answer["tokens"],
        json!([257, 117, 115, 101, 114, 10, 97, 258, 10])
    );
    assert_eq!(answer["token_strs"], json!(null));
    assert_eq!(
        server.post("/detokenize", json!({"tokens": [261]})).await.status,
        400
    );
    assert_eq!(
        server
            .post("/tokenize", json!({"prompt": "a", "model": "other"}))
            .await
            .status,
        404
    );
    assert_eq!(
        server
            .post("/tokenize", json!({"prompt": "a", "colour": 1}))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn tokens_make_no_more_text_than_a_prompt_may_have() {
    let server = TestServer::start(&["--prompt-bytes-max", "100"]).await;
    // Token 258 has the ten bytes of "<|im_end|>".
    for (count, expected) in [(10, 200), (11, 400)] {
        let answer = server
            .post("/detokenize", json!({"tokens": vec![258; count]}))
            .await;
        assert_eq!(answer.status, expected, "{}", answer.body);
    }
}

#[tokio::test]
async fn one_source_is_tokenized() {
    let server = TestServer::start(&[]).await;
    let messages = json!([{"role": "user", "content": "a"}]);
    for (body, code) in [
        (json!({"prompt": "a", "messages": messages}), "invalid_value"),
        (json!({"model": "alias"}), "missing_required_parameter"),
        (
            json!({"prompt": null, "messages": null}),
            "missing_required_parameter",
        ),
    ] {
        let answer = server.post("/tokenize", body).await;
        assert_eq!(answer.status, 400);
        let error = answer.json()["error"].clone();
        assert_eq!(error["message"], "send exactly one of `prompt` and `messages`");
        assert_eq!(error["code"], code);
    }
    // Templates bring their own, so nothing would come of it.
    let special = json!({"messages": messages, "add_special_tokens": true});
    assert_eq!(
        server.post("/tokenize", special).await.json()["error"]["param"],
        "add_special_tokens"
    );
    let one = json!({"prompt": null, "messages": messages, "add_special_tokens": false});
    assert_eq!(server.post("/tokenize", one).await.status, 200);
}

fn asks(version: Version, uri: &str, hosts: &[&str]) -> Request<Body> {
    let mut request = Request::get(uri).version(version);
    for host in hosts {
        request = request.header("host", *host);
    }
    request.body(Body::empty()).unwrap()
}

/// The status, past the router itself, which adds no host.
async fn status(server: &TestServer, request: Request<Body>) -> u16 {
    let answer = tower::ServiceExt::oneshot(server.router.clone(), request).await;
    answer.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_foreign_host_is_refused() {
    let server = TestServer::start(&[]).await;
    let (one, zero, two) = (Version::HTTP_11, Version::HTTP_10, Version::HTTP_2);
    for (version, uri, hosts, expected) in [
        (one, "/version", &["localhost:8080"][..], 200),
        (one, "/version", &["127.0.0.1:8080"], 200),
        (one, "/version", &["[::1]:8080"], 200),
        (one, "/version", &["evil.example"], 403),
        (one, "/v1/models", &["evil.example:8080"], 403),
        (one, "/metrics", &["evil.example"], 403),
        (one, "/nothing", &["evil.example"], 403),
        (one, "/version", &["localhost", "evil.example"], 403),
        (one, "http://evil.example/version", &["localhost"], 403),
        (one, "http://localhost/version", &["localhost"], 200),
        (two, "http://localhost:8080/version", &[], 200),
        (two, "http://evil.example/version", &[], 403),
        (one, "/version", &[], 400),
        (zero, "/version", &[], 200),
        (zero, "/version", &["evil.example"], 403),
    ] {
        let got = status(&server, asks(version, uri, hosts)).await;
        assert_eq!(got, expected, "{version:?} {uri} {hosts:?}");
    }
    let error = server.send(asks(one, "/version", &["evil.example"])).await.json()["error"].clone();
    assert_eq!(error["code"], "host_not_allowed");
    assert!(error["message"].as_str().unwrap().contains("--allowed-host"));
}

#[tokio::test]
async fn hosts_can_be_added_and_a_remote_bind_takes_any() {
    let ask = |host| asks(Version::HTTP_11, "/version", &[host]);
    let named = TestServer::start(&["--allowed-host", "llm.example,b.example"]).await;
    for (host, expected) in [
        ("LLM.example:80", 200),
        ("b.example", 200),
        ("localhost", 200),
        ("c.example", 403),
    ] {
        assert_eq!(status(&named, ask(host)).await, expected, "{host}");
    }
    let remote = &["--bind", "0.0.0.0:8080", "--allow-remote"];
    let any = TestServer::start(remote).await;
    assert_eq!(status(&any, ask("c.example")).await, 200);
    let arguments = [&remote[..], &["--allowed-host", "llm.example"]].concat();
    let strict = TestServer::start(&arguments).await;
    assert_eq!(status(&strict, ask("c.example")).await, 403);
    assert_eq!(status(&strict, ask("llm.example")).await, 200);
}

#[tokio::test]
async fn a_large_head_gets_an_error_like_any_other() {
    let server = TestServer::start(&[]).await;
    let head = |bytes: usize| {
        let request = Request::get("/version").header("x-large", "x".repeat(bytes));
        request.body(Body::empty()).unwrap()
    };
    assert_eq!(server.send(head(16_000)).await.status, 200);
    let answer = server.send(head(16_400)).await;
    assert_eq!(answer.status, 431);
    assert_eq!(answer.headers["connection"], "close");
    assert_eq!(answer.json()["error"]["code"], "head_too_large");
}

#[tokio::test]
async fn readiness_needs_a_token() {
    let server = TestServer::cold(&[]);
    assert_eq!(server.get("/livez").await.body, r#"{"status":"alive"}"#);
    for path in ["/readyz", "/health"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 503);
        assert_eq!(
            answer.body,
            r#"{"status":"not ready","reason":"no token was made yet"}"#
        );
    }
    server.warm_up().await;
    assert_eq!(server.get("/readyz").await.body, r#"{"status":"ready"}"#);
    let told = server.get("/version").await.json();
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    let build = told["build"].as_str().unwrap();
    assert!(
        build.len() >= 16 && build.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{build}"
    );
}

#[tokio::test]
async fn a_server_that_is_confined_tells_so() {
    let server = TestServer::cold(&["--zero-egress"]);
    assert_eq!(
        server.get("/readyz").await.body,
        r#"{"status":"not ready","reason":"no token was made yet","zero_egress":true}"#
    );
    server.warm_up().await;
    assert_eq!(
        server.get("/readyz").await.body,
        r#"{"status":"ready","zero_egress":true}"#
    );
    assert_eq!(server.get("/livez").await.body, r#"{"status":"alive"}"#);
}

#[tokio::test]
async fn a_draining_server_refuses_new_work_and_stays_alive() {
    let server = TestServer::start(&[]).await;
    server.app.shutdown.advance(Phase::Draining);
    let answer = server.chat(json!({})).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["connection"], "close");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.json()["error"]["code"], "server_is_draining");
    assert_eq!(server.get("/readyz").await.status, 503);
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.get("/v1/models").await.status, 200);
}

#[tokio::test]
async fn request_ids_are_kept_or_made() {
    let server = TestServer::start(&[]).await;
    let long = "x".repeat(129);
    for (sent, kept) in [
        ("abc-123", true),
        ("a b", false),
        (long.as_str(), false),
        ("", false),
    ] {
        let request = Request::get("/version")
            .header("x-request-id", sent)
            .body(Body::empty())
            .unwrap();
        let answer = server.send(request).await;
        let id = answer.headers["x-request-id"].to_str().unwrap();
        assert_eq!(id == sent, kept);
        assert!(kept || id.len() == 32);
    }
    assert_eq!(server.get("/nothing").await.headers["x-request-id"].len(), 32);
}

#[tokio::test]
async fn the_metrics_page_has_these_names() {
    let server = TestServer::start(&[]).await;
    server.chat(json!({"temperature": 0})).await;
    server.get("/some/path?with=query").await;
    let page = server.get("/metrics").await;
    assert_eq!(
        page.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let mut names: Vec<&str> = page
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    names.sort_unstable();
    insta::assert_snapshot!(names.join("\n"));
    assert!(!page.body.contains("/some/path"));
    let labels = r#"{model_name="test-model",engine="0"}"#;
    assert!(
        (server
            .metric(&format!("vllm:generation_tokens_total{labels}"))
            .await
            - 31.0)
            .abs()
            < 0.1
    );
    let routes = r#"http_requests_total{handler="/v1/chat/completions",method="POST",status="200"}"#;
    assert!((server.metric(routes).await - 1.0).abs() < 0.1);
    let buckets: Vec<&str> = page
        .body
        .lines()
        .filter_map(|line| {
            line.strip_prefix(
                r#"vllm:time_to_first_token_seconds_bucket{model_name="test-model",engine="0",le=""#,
            )
        })
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(
        buckets.join(" "),
        "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560 +Inf"
    );
}

#[tokio::test]
async fn a_second_http_request_in_flight_is_counted() {
    let server = TestServer::start(&[]).await;
    server.controls.close();
    let router = server.router.clone();
    let request = post_request("/v1/chat/completions", chat_body(json!({})).to_string());
    let running = tokio::task::JoinSet::from_iter([tower::ServiceExt::oneshot(router, request)]);
    server.controls.held().await;
    // The scrape is itself in flight.
    server
        .metric_becomes("rempart_http_requests_in_flight", 2.0)
        .await;
    server.controls.open();
    assert_eq!(running.join_all().await[0].as_ref().unwrap().status(), 200);
    server
        .metric_becomes("rempart_http_requests_in_flight", 1.0)
        .await;
}
