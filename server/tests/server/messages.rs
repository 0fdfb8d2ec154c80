//! Anthropic's Messages API.

use axum::body::Body;
use axum::http::Request;
use rempart::shutdown::Phase;
use serde_json::{Value, json};

use crate::support::{Answer, REASONING_TEMPLATE, SCRIPT, TestServer, merged};

const CALLING: &str =
    "Let me see.\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ada\"}}\n</tool_call>";

fn body(fields: Value) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let base = json!({"model": "test-model", "max_tokens": 300, "messages": messages, "temperature": 0});
    merged(base, fields)
}

async fn post(server: &TestServer, fields: Value) -> Answer {
    server.post("/v1/messages", body(fields)).await
}

/// The message that a stream's events make, as Anthropic's clients put it together.
fn streamed(answer: &Answer) -> Value {
    let mut message = Value::Null;
    let mut partial = String::new();
    for event in answer.body.split("\n\n").filter(|event| !event.is_empty()) {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        let index = usize::try_from(data["index"].as_u64().unwrap_or_default()).unwrap();
        match data["type"].as_str().unwrap() {
            "message_start" => message = data["message"].clone(),
            "content_block_start" => {
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(content.len(), index);
                content.push(data["content_block"].clone());
            }
            "content_block_delta" => {
                let block = &mut message["content"][index];
                let delta = &data["delta"];
                for (kind, key) in [("text_delta", "text"), ("thinking_delta", "thinking")] {
                    if delta["type"] == kind {
                        block[key] =
                            format!("{}{}", block[key].as_str().unwrap(), delta[key].as_str().unwrap())
                                .into();
                    }
                }
                partial += delta["partial_json"].as_str().unwrap_or_default();
            }
            "content_block_stop" => {
                if message["content"][index]["type"] == "tool_use" {
                    message["content"][index]["input"] =
                        serde_json::from_str(&partial).unwrap_or_else(|_| json!({}));
                    partial.clear();
                }
            }
            "message_delta" => {
                for key in ["stop_reason", "stop_sequence"] {
                    message[key] = data["delta"][key].clone();
                }
                message["usage"] = data["usage"].clone();
            }
            "message_stop" => return message,
            other => panic!("unknown event {other}"),
        }
    }
    panic!("no end: {}", answer.body);
}

/// The answer, the same whether streamed or not.
async fn both(server: &TestServer, fields: Value) -> Value {
    let answer = post(server, fields.clone()).await;
    assert_eq!(answer.status, 200, "{fields}: {}", answer.body);
    let mut whole: Value = serde_json::from_str(&answer.body).unwrap();
    let mut told = streamed(&post(server, merged(fields.clone(), json!({"stream": true}))).await);
    for message in [&mut whole, &mut told] {
        assert!(message["id"].as_str().unwrap().starts_with("msg_"));
        message["id"] = Value::Null;
        // What is cached differs from one to the other; the identifiers of calls are random.
        let usage = message["usage"].as_object_mut().unwrap();
        let input =
            usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
        usage.insert("input_tokens".to_owned(), input.into());
        usage.remove("cache_read_input_tokens");
        for block in message["content"].as_array_mut().unwrap() {
            if block["type"] == "tool_use" {
                assert!(block["id"].as_str().unwrap().starts_with("call_"));
                block["id"] = Value::Null;
            }
        }
    }
    assert_eq!(told, whole, "{fields}");
    whole
}

fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([{"name": "weather", "description": "Tells it", "input_schema": schema}])
}

#[tokio::test]
async fn a_message_is_answered() {
    let server = TestServer::start(&[]).await;
    let message = both(
        &server,
        json!({"max_tokens": 100, "system": [{"type": "text", "text": "Be kind."}]}),
    )
    .await;
    assert_eq!(message["content"], json!([{"type": "text", "text": SCRIPT}]));
    assert_eq!(
        (&message["stop_reason"], &message["stop_sequence"]),
        (&json!("end_turn"), &Value::Null)
    );
    // The token that ended it counts, too.
    assert_eq!(message["usage"]["output_tokens"], SCRIPT.len() + 1);
    let count = server
        .post("/v1/messages/count_tokens", body(json!({"system": "Be kind."})))
        .await
        .json();
    assert_eq!(count, json!({"input_tokens": message["usage"]["input_tokens"]}));
}

#[tokio::test]
async fn an_answer_says_what_ended_it() {
    let server = TestServer::start(&[]).await;
    let message = both(&server, json!({"max_tokens": 3})).await;
    assert_eq!(
        (&message["stop_reason"], &message["content"][0]["text"]),
        (&json!("max_tokens"), &json!("Hel"))
    );
    let message = both(
        &server,
        json!({"max_tokens": 50, "stop_sequences": ["x", " One"]}),
    )
    .await;
    assert_eq!(
        (&message["stop_reason"], &message["stop_sequence"]),
        (&json!("stop_sequence"), &json!(" One"))
    );
    assert_eq!(message["content"][0]["text"], "Hello, wörld.");
}

#[tokio::test]
async fn tools_are_used() {
    let server = TestServer::saying(None, CALLING, &[]).await;
    let message = both(&server, json!({"tools": tools()})).await;
    let text = json!({"type": "text", "text": "Let me see."});
    let call = json!({"type": "tool_use", "id": null, "name": "weather", "input": {"city": "Ada"}});
    assert_eq!(
        (&message["content"], &message["stop_reason"]),
        (&json!([text, call]), &json!("tool_use"))
    );
    let call = json!({"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Ada"}});
    let results = json!([{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "21 °C"}]}]);
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [text, call]},
        {"role": "user", "content": results},
    ]);
    let with_history = json!({"messages": messages, "tools": tools()});
    both(&server, with_history.clone()).await;
    let chat = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Ada\"}"}}
        ]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "21 °C"},
    ]);
    let schema = tools()[0]["input_schema"].clone();
    let tool = json!({"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": schema}});
    let same = server
        .post("/tokenize", json!({"messages": chat, "tools": [tool]}))
        .await
        .json();
    let count = server
        .post("/v1/messages/count_tokens", body(with_history))
        .await
        .json();
    assert_eq!(count["input_tokens"], same["count"], "the prompt is that of chat");
    for (choice, called) in [
        (json!({"type": "none"}), 0),
        (json!({"type": "auto", "disable_parallel_tool_use": true}), 1),
    ] {
        let message = both(&server, json!({"tools": tools(), "tool_choice": choice})).await;
        let calls = message["content"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|block| block["type"] == "tool_use");
        assert_eq!(calls.count(), called);
    }
}

#[tokio::test]
async fn thinking_is_told_to_who_asks() {
    let server = TestServer::saying(Some(REASONING_TEMPLATE), "<think>Hm.</think>Yes.", &[]).await;
    let yes = json!({"type": "text", "text": "Yes."});
    let message = both(&server, json!({})).await;
    assert_eq!(message["content"], json!([yes]));
    let asked = json!({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1100});
    let message = both(&server, asked).await;
    let thought = json!({"type": "thinking", "thinking": "Hm.", "signature": ""});
    assert_eq!(message["content"], json!([thought, yes]));
}

#[tokio::test]
async fn bad_requests_are_refused_in_both_shapes() {
    let server = TestServer::start(&[]).await;
    let block = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    for (fields, param) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"temperature": 1.5}), "temperature"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "messages[0].role",
        ),
        (
            block(json!({"type": "image", "source": {}})),
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "user", "content": []}]}),
            "messages[0].content",
        ),
        (
            json!({"output_config": {"effort": "low"}}),
            "output_config.effort",
        ),
        (
            block(json!({"type": "tool_result"})),
            "messages[0].content[0].tool_use_id",
        ),
        (
            json!({"tools": [{"name": "a b", "input_schema": {}}]}),
            "tools[0].name",
        ),
        (json!({"tools": [{"name": "a"}]}), "tools[0].input_schema"),
        (
            json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}),
            "tools[0].type",
        ),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"stop_sequences": [""]}), "stop_sequences[0]"),
        (json!({"thinking": {"type": "enabled"}}), "thinking.budget_tokens"),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1024}),
            "thinking.budget_tokens",
        ),
        (json!({"thinking": {"type": "adaptive"}}), "thinking"),
        (json!({"mcp_servers": []}), "mcp_servers"),
        (json!({"frobnicate": 1}), "frobnicate"),
    ] {
        let answer = post(&server, fields.clone()).await;
        assert_eq!(answer.status, 400, "{fields}");
        let error = answer.json();
        assert_eq!(
            (&error["type"], &error["error"]["type"]),
            (&json!("error"), &json!("invalid_request_error"))
        );
        assert_eq!(error["error"]["param"], param, "{fields}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().len() > 10);
    }
    let unknown = post(&server, json!({"model": "other"})).await;
    assert_eq!(
        (unknown.status.as_u16(), &unknown.json()["error"]["type"]),
        (404, &json!("not_found_error"))
    );
}

/// A method, a path, a host, a body's type and size; what comes of them.
type Refused = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    usize,
    u16,
    &'static str,
);

const REFUSED: [Refused; 6] = [
    ("GET", PATH, "localhost", JSON, 0, 405, "invalid_request_error"),
    ("POST", PATH, "evil.example", JSON, 0, 403, "permission_error"),
    (
        "POST",
        "/v1/messages/batches",
        "localhost",
        JSON,
        0,
        404,
        "not_found_error",
    ),
    (
        "POST",
        PATH,
        "localhost",
        "text/plain",
        0,
        415,
        "invalid_request_error",
    ),
    ("POST", PATH, "localhost", JSON, 2000, 413, "request_too_large"),
    ("POST", PATH, "localhost", JSON, 1, 400, "invalid_request_error"),
];
const PATH: &str = "/v1/messages";
const JSON: &str = "application/json";

/// Also those that no route made: Anthropic's clients look for the envelope.
#[tokio::test]
async fn every_error_has_the_envelope() {
    let server = TestServer::start(&["--body-bytes-max", "1000"]).await;
    for (method, path, host, content_type, bytes, status, kind) in REFUSED {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .header("content-type", content_type)
            .body(Body::from("{".repeat(bytes)));
        let answer = server.send(request.unwrap()).await;
        assert_eq!(answer.status, status, "{method} {path}");
        let error = answer.json();
        let types = (&error["type"], &error["error"]["type"]);
        assert_eq!(types, (&json!("error"), &json!(kind)), "{error}");
        assert!(error["error"]["message"].is_string());
        assert_eq!(answer.headers["content-type"], JSON);
    }
    server.app.shutdown.advance(Phase::Draining);
    let draining = server.post(PATH, json!({})).await;
    assert_eq!(draining.status, 503);
    assert_eq!(draining.json()["error"]["type"], "overloaded_error");
    assert_eq!(draining.headers["retry-after"], "1");
    for other in ["/v1/messages2", "/v1/chat"] {
        let answer = server.post(other, json!({})).await;
        assert_eq!(answer.status, 404);
        assert_eq!(answer.json()["type"], Value::Null);
    }
}
