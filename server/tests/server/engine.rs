//! The engine thread under pressure and in trouble.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rempart::engine_thread::Health;
use serde_json::json;
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::support::{SCRIPT, TestServer, chat_body, finished, post_request};

/// Without keys there is nobody to be kept from anything: no refusal waits for another.
#[tokio::test]
async fn without_keys_all_are_refused_at_once() {
    let queue = ["--queue-requests-max", "2", "--sequences-max", "1"];
    let pace = ["--refusals-per-second", "1", "--refusal-wait-max-ms", "60000"];
    let server = TestServer::start(&[queue, pace].concat()).await;
    server.controls.close();
    let _running = send(&server, 1);
    server.controls.held().await;
    let mut asked = send(&server, 24);
    let began = Instant::now();
    for _ in 0..22 {
        assert_eq!(asked.join_next().await.unwrap().unwrap(), 503);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Sends chat requests that nobody waits for here.
fn send(server: &TestServer, count: usize) -> JoinSet<u16> {
    let mut running = JoinSet::new();
    for _ in 0..count {
        let request = post_request(
            "/v1/chat/completions",
            chat_body(json!({"temperature": 0})).to_string(),
        );
        let answer = server.router.clone().oneshot(request);
        running.spawn(async move { answer.await.unwrap().status().as_u16() });
    }
    running
}

#[tokio::test]
async fn a_full_queue_answers_at_once_with_the_time_to_wait() {
    let server = TestServer::start(&["--queue-requests-max", "2", "--sequences-max", "1"]).await;
    server.controls.close();
    let first = send(&server, 1);
    server.controls.held().await;
    // The step in flight holds the first; these two fill the queue, taken up only when it ends.
    let waiting = send(&server, 2);
    let rejected = "vllm:admission_rejections_total{model_name=\"test-model\",engine=\"0\",reason=\"max_num_queued_reqs\"}";
    let overloaded = loop {
        let request = post_request("/v1/chat/completions", chat_body(json!({})).to_string());
        let answer = tokio::time::timeout(Duration::from_millis(200), server.send(request)).await;
        if let Ok(answer) = answer {
            break answer;
        }
    };
    assert_eq!(overloaded.status, 503);
    assert_eq!(overloaded.json()["error"]["code"], "server_is_overloaded");
    let seconds: u64 = overloaded.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=120).contains(&seconds));
    assert!(server.metric(rejected).await >= 1.0);
    // What has no room is not prepared: not even what is wrong with it is found out. It is counted once.
    let prepared = "rempart_prepare_duration_seconds_count";
    let before = (server.metric(prepared).await, server.metric(rejected).await);
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
    ]
    .repeat(2)
    {
        let wrong = json!({"model": "test-model", "temperature": -1}).to_string();
        assert_eq!(server.send(post_request(path, wrong)).await.status, 503, "{path}");
    }
    let after = (server.metric(prepared).await, server.metric(rejected).await);
    // One of those that were sent first may have been on its way still, and each path was asked twice.
    assert!((0.0..=1.0).contains(&(after.0 - before.0)), "{after:?}");
    assert!((8.0..=9.0).contains(&(after.1 - before.1)), "{after:?}");
    server.controls.open();
    assert_eq!(first.join_all().await, [200]);
    // Those that came after the request that was refused may have been refused as well.
    assert!(
        waiting
            .join_all()
            .await
            .iter()
            .all(|status| [200, 503].contains(status))
    );
    assert_eq!(server.chat(json!({})).await.status, 200, "room again");
}

#[tokio::test]
async fn a_failed_step_fails_its_requests_only() {
    for panics in [false, true] {
        let server = TestServer::start(&[]).await;
        let count = if panics {
            &server.controls.panic
        } else {
            &server.controls.fail
        };
        count.store(1, Ordering::Relaxed);
        let answer = server.chat(json!({})).await;
        assert_eq!(answer.status, 500);
        assert_eq!(answer.json()["error"]["code"], "internal_error");
        let next = server.chat(json!({"temperature": 0})).await.json();
        assert_eq!(next["choices"][0]["message"]["content"], SCRIPT);
        assert_eq!(server.get("/readyz").await.status, 200);
        count.store(1, Ordering::Relaxed);
        let streamed = server.chat(json!({"stream": true})).await;
        assert_eq!(streamed.status, 200);
        assert_eq!(
            streamed.events().last().unwrap()["error"]["code"],
            "internal_error"
        );
        assert!(!streamed.body.contains("[DONE]"));
    }
}

#[tokio::test]
async fn the_third_failure_within_a_minute_ends_the_engine() {
    let server = TestServer::start(&[]).await;
    server.controls.panic.store(3, Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(server.chat(json!({})).await.status, 500);
    }
    assert!(server.engine.ended().await);
    assert_eq!(server.app.registry.lost().await, "test-model");
    assert_eq!(server.engine.health(), Health::Failed);
    assert_eq!(server.get("/readyz").await.status, 503);
    assert_eq!(server.get("/livez").await.status, 503);
    assert_eq!(
        server.chat(json!({})).await.json()["error"]["code"],
        "server_not_ready"
    );
}

#[tokio::test]
async fn a_stalled_step_turns_readiness_red() {
    let server = TestServer::start(&["--stall-timeout-s", "1"]).await;
    server.controls.close();
    let running = send(&server, 1);
    server.controls.held().await;
    while server.get("/readyz").await.status == 200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(server.engine.health(), Health::Stalled { .. }));
    assert_eq!(server.get("/livez").await.status, 200);
    server.controls.open();
    assert_eq!(running.join_all().await, [200]);
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_within_a_step() {
    let server = TestServer::start(&[]).await;
    for (streamed, left) in [(false, 3.0), (true, 6.0)] {
        server.controls.close();
        let body = chat_body(json!({"n": 3, "stream": streamed, "max_tokens": 200, "ignore_eos": true}));
        let request = post_request("/v1/chat/completions", body.to_string());
        let mut leaving = JoinSet::new();
        let router = server.router.clone();
        leaving.spawn(async move {
            let response = router.oneshot(request).await.unwrap();
            http_body_util::BodyExt::collect(response.into_body())
                .await
                .unwrap();
        });
        server.controls.held().await;
        leaving.shutdown().await;
        server.controls.open();
        server.metric_becomes(&finished("abort"), left).await;
        assert!(server.metric("rempart_kv_blocks_used").await.abs() < f64::EPSILON);
    }
    // Far fewer than the 1200 that were asked for.
    assert!(server.metric("vllm:generation_tokens_total").await < 20.0);
}

#[tokio::test]
async fn requests_share_steps() {
    let server = TestServer::start(&[]).await;
    server.controls.close();
    let first = send(&server, 1);
    server.controls.held().await;
    let more = send(&server, 7);
    let queued = async {
        // One is in the step; the others are on their way to the engine.
        while server.metric("rempart_prepare_duration_seconds_count").await < 8.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    queued.await;
    server.controls.open();
    assert_eq!(first.join_all().await.len() + more.join_all().await.len(), 8);
    // 29 steps for one after the other of eight would be 232.
    let steps = server.metric("vllm:iteration_tokens_total_count").await;
    assert!(steps < 150.0, "{steps}");
}

#[tokio::test]
async fn a_request_ends_at_its_deadline() {
    // Longer than a machine stops: its step is held before its time is over.
    let server = TestServer::start(&["--request-timeout-s", "5"]).await;
    server.controls.close();
    let running = send(&server, 1);
    server.controls.held().await;
    tokio::time::sleep(Duration::from_millis(5100)).await;
    server.controls.open();
    assert_eq!(running.join_all().await, [504]);
}

#[tokio::test]
async fn a_long_prompt_is_cut_smaller_beside_a_running_answer() {
    for (target_ms, limited) in [("10", true), ("0", false)] {
        let server = TestServer::start(&["--step-tokens-max", "64", "--itl-target-ms", target_ms]).await;
        server.controls.token_ms.store(1, Ordering::Relaxed);
        // The first prompt is computed in the first step and decodes from then on.
        let answer = server
            .complete(json!({"prompt": ["a", "b".repeat(200)], "max_tokens": 20}))
            .await;
        assert_eq!(answer.status, 200);
        let steps = server.metric("rempart_steps_prefill_limited_total").await;
        assert_eq!(steps > 0.0, limited, "{steps}");
        // Sixteen tokens take longer than the target, and are allowed all the same.
        let budget = server.metric("rempart_prefill_budget_tokens").await;
        assert!(
            (budget - if limited { 16.0 } else { 64.0 }).abs() < 0.5,
            "{budget}"
        );
    }
}

#[tokio::test]
async fn guesses_change_nothing_but_the_steps() {
    let steps = "vllm:iteration_tokens_total_count";
    let bodies = [
        // The model begins again and again; the second answer stops in the middle of what was guessed.
        json!({"max_tokens": 120, "ignore_eos": true, "temperature": 0, "logprobs": 2}),
        json!({"max_tokens": 120, "ignore_eos": true, "seed": 7, "stop": ["wörld. One two three.\u{0}", "two"], "min_tokens": 50}),
        json!({"max_tokens": 20, "frequency_penalty": 0.2, "seed": 3}),
    ];
    let mut answers = Vec::new();
    let mut took = Vec::new();
    for tokens in ["0", "8"] {
        let server = TestServer::start(&["--speculative-tokens", tokens]).await;
        let mut said = Vec::new();
        for body in &bodies {
            let answer = server.complete(body.clone()).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            said.push(answer.json());
        }
        let accepted = server.metric("vllm:spec_decode_num_accepted_tokens_total").await;
        let drafted = server.metric("vllm:spec_decode_num_draft_tokens_total").await;
        assert!(
            accepted <= drafted && (accepted > 0.0) == (tokens == "8"),
            "{accepted} of {drafted}"
        );
        answers.push(said);
        took.push(server.metric(steps).await);
    }
    assert_eq!(answers[0], answers[1]);
    assert!(took[1] < 0.7 * took[0], "{took:?}");
}
