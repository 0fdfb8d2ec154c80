//! What clients say and what the model answers is in no log line, no metric and no error, at any level.

use std::io;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Request;
use rempart::config::{LogArgs, LogFormat, LogLevel};
use rempart::telemetry;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use super::support::{TestServer, merged};

const CANARY: &str = "canary-7f3a";

#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

/// Requests of every kind and fault, each with the canary wherever a client may write.
async fn speak(server: &TestServer) -> Vec<String> {
    let mut bodies = Vec::new();
    for fields in [
        json!({}),
        json!({"stream": true}),
        json!({"stop": CANARY}),
        json!({"user": CANARY, "metadata": {CANARY: CANARY}}),
        json!({"temperature": CANARY}),
        json!({"model": format!("{CANARY} \u{e9}")}),
        json!({"response_format": {"type": CANARY}}),
        json!({"messages": [{"role": CANARY, "content": CANARY}]}),
        json!({"messages": [{"role": "user", "content": CANARY.repeat(40)}]}),
        json!({"messages": [{"role": "user", "content": [{"type": CANARY}]}]}),
        json!({"logit_bias": {CANARY: 1}}),
        json!({"tools": [{"type": "function", "function": {"name": CANARY, "description": CANARY}}], "max_tokens": 9}),
        json!({"tools": [{"type": "function", "function": {"name": format!("{CANARY} ")}}]}),
        json!({"tools": [{"name": CANARY, "input_schema": {"pattern": CANARY}}], "tool_choice": {"type": CANARY}}),
        json!({"messages": [{"role": "assistant", "tool_calls": [
            {"id": CANARY, "function": {"name": CANARY, "arguments": CANARY}}
        ]}]}),
        json!({"previous_response_id": CANARY}),
        json!({format!("{CANARY} "): 1}),
    ] {
        let message = json!({"max_tokens": 40, "messages": [{"role": "user", "content": CANARY}], "model": "test-model"});
        bodies.push(merged(message, fields).to_string());
    }
    bodies.push(format!("{{\"messages\": {CANARY}"));
    bodies.push(format!("{{\"{CANARY} \": NaN}}"));
    let mut answers = Vec::new();
    for body in bodies {
        answers.push(server.post_text("/v1/chat/completions", &body).await.body);
        let completion = body.replace("messages", "prompt");
        answers.push(server.post_text("/v1/completions", &completion).await.body);
        answers.push(server.post_text("/v1/messages", &body).await.body);
        let response = body.replace("messages", "input");
        let answer = server.post_text("/v1/responses", &response).await;
        // Who is answered is told what they asked for; an error repeats nothing.
        answers.extend((answer.status != 200).then_some(answer.body));
    }
    server
        .controls
        .fail
        .store(1, std::sync::atomic::Ordering::Relaxed);
    answers.push(
        server
            .chat(json!({"messages": [{"role": "user", "content": CANARY}]}))
            .await
            .body,
    );
    for path in [
        format!("/{CANARY}"),
        format!("/v1/models/{CANARY}%20x"),
        format!("/version?key={CANARY}"),
    ] {
        let request = Request::get(path).header("authorization", format!("Bearer {CANARY}"));
        let request = request
            .header("x-request-id", format!("{CANARY} "))
            .header("traceparent", CANARY);
        answers.push(server.send(request.body(Body::empty()).unwrap()).await.body);
    }
    answers
}

#[tokio::test]
async fn nothing_tells_the_canary() {
    // The engine's thread and the blocking pool log to the process's subscriber, this thread to its own.
    let process = Log::default();
    let args = LogArgs {
        log_format: LogFormat::Json,
        log_level: LogLevel::Trace,
    };
    tracing::subscriber::set_global_default(telemetry::subscriber(&args, process.clone())).unwrap();
    for level in [LogLevel::Error, LogLevel::Info, LogLevel::Trace] {
        for format in [LogFormat::Human, LogFormat::Json] {
            let log = Log::default();
            let args = LogArgs {
                log_format: format,
                log_level: level,
            };
            let guard = tracing::subscriber::set_default(telemetry::subscriber(&args, log.clone()));
            let server = TestServer::start(&[]).await;
            let answers = speak(&server).await;
            let page = server.get("/metrics").await.body;
            drop(guard);
            let lines = log.text();
            assert!(
                level == LogLevel::Error || lines.contains("generation ended"),
                "the log works"
            );
            assert!(!lines.contains(CANARY), "{lines}");
            assert!(!page.contains(CANARY), "{page}");
            for answer in answers {
                assert!(!answer.contains(CANARY), "{answer}");
            }
        }
    }
    let lines = process.text();
    assert!(lines.contains("a step failed"), "the engine's thread logs");
    assert!(!lines.contains(CANARY), "{lines}");
}
