//! What clients are told when they are wrong.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::support::{Answer, CONTEXT, TestServer, chat_body, merged};

fn line(what: &str, answer: &Answer) -> String {
    let error = &answer.json()["error"];
    let text = |field: &str| error[field].as_str().unwrap_or("null").to_owned();
    assert_eq!(
        error.as_object().unwrap().len(),
        4,
        "message, type, param, code and nothing else"
    );
    format!(
        "{what}: {} {} param={} code={} | {}",
        answer.status.as_u16(),
        text("type"),
        text("param"),
        text("code"),
        text("message")
    )
}

#[tokio::test]
async fn parameters_of_chat() {
    let server = TestServer::start(&[]).await;
    let cases = [
        json!({"tool_choice": "required"}),
        json!({"functions": []}),
        json!({"function_call": "auto"}),
        json!({"audio": {"voice": "alloy", "format": "wav"}}),
        json!({"modalities": ["text", "audio"]}),
        json!({"prediction": {"type": "text", "content": "x"}}),
        json!({"prediction": {"type": "content"}}),
        json!({"prompt_logprobs": 1, "stream": true}),
        json!({"web_search_options": {}}),
        json!({"reasoning_effort": "low"}),
        json!({"best_of": 2}),
        json!({"priority": -1}),
        json!({"suffix": "x"}),
        json!({"chat_template": "x"}),
        json!({"chat_template_kwargs": {"messages": true}}),
        json!({"echo": true}),
        json!({"guided_json": {}}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
        json!({"stream": true, "stream_options": {"include_usages": true}}),
        json!({"temprature": 1}),
        json!({"frobnicate": 1}),
        json!({"a b c": 1}),
        json!({"temperature": "hot"}),
        json!({"stream": 1}),
        json!({"stop": ""}),
        json!({"stop": ["a", ""]}),
        json!({"stop": [1]}),
        json!({"stop": vec!["a"; 17]}),
        json!({"stop": "x".repeat(513)}),
        json!({"stop_token_ids": [261]}),
        json!({"stop_token_ids": [-1]}),
        json!({"logit_bias": {"261": 1}}),
        json!({"logit_bias": {"07": 1}}),
        json!({"logit_bias": {"x": 1}}),
        json!({"logit_bias": {"7": 101}}),
        json!({"logit_bias": [1]}),
        json!({"top_logprobs": 1}),
        json!({"logprobs": 1}),
        json!({"min_tokens": 5, "max_tokens": 4}),
        json!({"max_tokens": CONTEXT}),
        json!({"model": "other"}),
        json!({"model": "nobody should see this \u{1f600}"}),
        json!({"model": null}),
        json!({"model": 7}),
        json!({"messages": []}),
        json!({"messages": null}),
        json!({"messages": "hi"}),
        json!({"messages": ["hi"]}),
        json!({"messages": [{"content": "hi"}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "wizard", "content": "hi"}]}),
        json!({"messages": [{"role": "function", "content": "hi", "name": "f"}]}),
        json!({"messages": [{"role": "user", "content": 7}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "poem", "text": "x"}]}]}),
        json!({"messages": [{"role": "user", "content": "hi", "mood": "good"}]}),
        json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}]}),
        json!({"messages": [{"role": "user", "content": "x".repeat(300)}]}),
    ];
    let mut table = Vec::new();
    for fields in cases {
        let what: String = fields.to_string().chars().take(70).collect();
        table.push(line(&what, &server.chat(fields).await));
    }
    insta::assert_snapshot!(table.join("\n"));
}

#[tokio::test]
async fn parameters_of_completions() {
    let server = TestServer::start(&["--prompts-max", "4"]).await;
    let cases = [
        json!({"prompt": null}),
        json!({"prompt": ""}),
        json!({"prompt": []}),
        json!({"prompt": [[]]}),
        json!({"prompt": {}}),
        json!({"prompt": [true]}),
        json!({"prompt": ["a", 1]}),
        json!({"prompt": [1, "a"]}),
        json!({"prompt": [1.5]}),
        json!({"prompt": [261]}),
        json!({"prompt": [-1]}),
        json!({"prompt": [4_294_967_296_u64]}),
        json!({"prompt": ["a", "b", "c", "d", "e"]}),
        json!({"prompt": ["a", "b", "c"], "n": 2}),
        json!({"max_tokens": 0}),
        json!({"best_of": 1}),
        json!({"suffix": "x"}),
        json!({"logprobs": true}),
        json!({"messages": []}),
        json!({"prompt": "x".repeat(256)}),
        json!({"prompt": "x".repeat(250), "max_tokens": 7}),
    ];
    let mut table = Vec::new();
    for fields in cases {
        let what: String = fields.to_string().chars().take(70).collect();
        table.push(line(&what, &server.complete(fields).await));
    }
    insta::assert_snapshot!(table.join("\n"));
}

#[tokio::test]
async fn requests_that_are_no_requests() {
    let server = TestServer::start(&["--body-bytes-max", "2000", "--prompt-bytes-max", "400"]).await;
    let mut table = Vec::new();
    for (what, body) in [
        ("not JSON", "secret".to_owned()),
        ("cut off", r#"{"model":"secret"#.to_owned()),
        ("an array", "[]".to_owned()),
        ("NaN", r#"{"model": "secret", "top_p": NaN}"#.to_owned()),
        (
            "Infinity",
            r#"{"model": "secret", "messages": [{"role": Infinity}]}"#.to_owned(),
        ),
        ("twice", r#"{"model": "secret", "model": "secret"}"#.to_owned()),
        ("a lone surrogate", r#"{"model": "\ud800"}"#.to_owned()),
        ("too deep", format!("{}{}", "[".repeat(65), "]".repeat(65))),
        ("too large", " ".repeat(2001)),
        (
            "too much text",
            chat_body(json!({"user": "u", "messages": [{"role": "user", "content": "s".repeat(401)}]}))
                .to_string(),
        ),
    ] {
        let answer = server.post_text("/v1/chat/completions", &body).await;
        assert!(!answer.body.contains("secret"));
        table.push(line(what, &answer));
    }
    let plain = Request::post("/v1/chat/completions")
        .body(Body::from("{}"))
        .unwrap();
    table.push(line("no content type", &server.send(plain).await));
    let compressed = Request::post("/v1/completions")
        .header("content-type", "application/json")
        .header("content-encoding", "gzip");
    table.push(line(
        "compressed",
        &server.send(compressed.body(Body::from("x")).unwrap()).await,
    ));
    let bytes = Request::post("/v1/completions").header("content-type", "application/json");
    table.push(line(
        "not UTF-8",
        &server
            .send(bytes.body(Body::from(b"{\"model\":\"\xff\"}".to_vec())).unwrap())
            .await,
    ));
    table.push(line("no such path", &server.get("/v2/nothing").await));
    table.push(line("wrong method", &server.get("/v1/chat/completions").await));
    table.push(line("no such model", &server.get("/v1/models/nothing").await));
    table.push(line("no UTF-8 model", &server.get("/v1/models/%ff").await));
    insta::assert_snapshot!(table.join("\n"));
}

#[tokio::test]
async fn numbers_of_the_context_are_told() {
    let server = TestServer::start(&[]).await;
    let answer = server.complete(json!({"prompt": "x".repeat(CONTEXT + 44)})).await;
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("256") && message.contains("300"), "{message}");
}

#[tokio::test]
async fn every_documented_parameter_of_openai_is_known() {
    // From OpenAI's own specification of August 2026: each is taken, or refused as unsupported, never as unknown.
    let server = TestServer::start(&[]).await;
    for name in [
        "metadata",
        "top_logprobs",
        "temperature",
        "top_p",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "messages",
        "model",
        "service_tier",
        "modalities",
        "verbosity",
        "reasoning_effort",
        "max_completion_tokens",
        "frequency_penalty",
        "presence_penalty",
        "web_search_options",
        "response_format",
        "audio",
        "store",
        "moderation",
        "stream",
        "stop",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "n",
        "prediction",
        "seed",
        "stream_options",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "function_call",
        "functions",
    ] {
        let absent = server
            .chat(merged(json!({"max_tokens": 1}), json!({name: null})))
            .await;
        let required = ["messages", "model"].contains(&name);
        assert_eq!(absent.status.as_u16(), if required { 400 } else { 200 }, "{name}");
        let answer = server.chat(json!({name: {"x": 1}})).await;
        if answer.status != 200 {
            let error = answer.json()["error"].clone();
            assert!(
                error["param"].as_str().unwrap().starts_with(name),
                "{name}: {error}"
            );
            assert_ne!(
                error["code"],
                if name == "stream_options" {
                    Value::Null
                } else {
                    json!("unknown_parameter")
                }
            );
        }
    }
}
