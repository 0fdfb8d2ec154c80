//! `/v1/responses`.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::support::{Answer, REASONING_TEMPLATE, SCRIPT, TestServer, merged};

const CALLING: &str =
    "Let me see.\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ada\"}}\n</tool_call>";

async fn post(server: &TestServer, fields: Value) -> Answer {
    let base = json!({"model": "test-model", "input": "Hi", "temperature": 0});
    server.post("/v1/responses", merged(base, fields)).await
}

/// The response of a stream's last event, after a look at all the others.
fn streamed(answer: &Answer) -> Value {
    let (mut items, mut texts) = (Vec::<Value>::new(), Vec::<String>::new());
    for (number, event) in answer
        .body
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .enumerate()
    {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        assert_eq!(data["sequence_number"], number);
        let at = usize::try_from(data["output_index"].as_u64().unwrap_or_default()).unwrap();
        match data["type"].as_str().unwrap() {
            "response.created" | "response.in_progress" => {
                assert_eq!(data["response"]["status"], "in_progress");
            }
            "response.output_item.added" => {
                assert_eq!((at, items.len()), (items.len(), texts.len()));
                items.push(data["item"].clone());
                texts.push(String::new());
            }
            "response.content_part.added" => assert_eq!(data["part"]["text"], ""),
            "response.output_text.delta"
            | "response.reasoning_text.delta"
            | "response.function_call_arguments.delta" => {
                assert_eq!(data["item_id"], items[at]["id"]);
                texts[at] += data["delta"].as_str().unwrap();
            }
            "response.output_text.done" | "response.reasoning_text.done" => {
                assert_eq!(data["text"], texts[at]);
            }
            "response.function_call_arguments.done" => assert_eq!(data["arguments"], texts[at]),
            "response.content_part.done" => assert_eq!(data["part"]["text"], texts[at]),
            "response.output_item.done" => {
                assert_eq!(data["item"]["id"], items[at]["id"]);
                items[at] = data["item"].clone();
            }
            "response.completed" | "response.incomplete" => {
                assert_eq!(data["response"]["output"], Value::from(items));
                return data["response"].clone();
            }
            other => panic!("unknown event {other}"),
        }
    }
    panic!("no end: {}", answer.body);
}

/// The answer, the same whether streamed or not, with what is random left out.
async fn both(server: &TestServer, fields: Value) -> Value {
    let answer = post(server, fields.clone()).await;
    assert_eq!(answer.status, 200, "{fields}: {}", answer.body);
    let whole: Value = serde_json::from_str(&answer.body).unwrap();
    let told = streamed(&post(server, merged(fields.clone(), json!({"stream": true}))).await);
    let [whole, told] = [whole, told].map(|mut response| {
        assert!(response["id"].as_str().unwrap().starts_with("resp_"));
        for name in ["id", "created_at", "completed_at"] {
            response[name] = Value::Null;
        }
        response["usage"]["input_tokens_details"] = Value::Null;
        for item in response["output"].as_array_mut().unwrap() {
            item["id"] = Value::Null;
            if item["type"] == "function_call" {
                item["call_id"] = Value::Null;
            }
        }
        response
    });
    assert_eq!(told, whole, "{fields}");
    whole
}

fn text_item(text: &str) -> Value {
    let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
    json!({"id": null, "type": "message", "role": "assistant", "status": "completed", "content": [part]})
}

#[tokio::test]
async fn an_input_is_answered() {
    let server = TestServer::start(&[]).await;
    let response = both(
        &server,
        json!({"instructions": "Be kind.", "metadata": {"a": "b"}}),
    )
    .await;
    assert_eq!(response["output"], json!([text_item(SCRIPT)]));
    assert_eq!(
        (&response["status"], &response["store"]),
        (&json!("completed"), &json!(true))
    );
    assert_eq!(
        (&response["metadata"], &response["instructions"]),
        (&json!({"a": "b"}), &json!("Be kind."))
    );
    assert_eq!(response["usage"]["output_tokens"], SCRIPT.len() + 1);
    let parts = json!([{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]);
    let fields = json!({"instructions": "Be kind.", "input": parts});
    assert_eq!(
        both(&server, fields).await["usage"]["input_tokens"],
        response["usage"]["input_tokens"]
    );
    let count = json!({"model": "test-model", "input": "Hi", "instructions": "Be kind."});
    let count = server.post("/v1/responses/input_tokens", count).await.json();
    assert_eq!(count["input_tokens"], response["usage"]["input_tokens"]);
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_incomplete() {
    let server = TestServer::start(&[]).await;
    let response = both(&server, json!({"max_output_tokens": 3})).await;
    assert_eq!(response["status"], "incomplete");
    assert_eq!(
        response["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    assert_eq!(response["output"][0]["status"], "incomplete");
}

#[tokio::test]
async fn functions_are_called() {
    let server = TestServer::saying(None, CALLING, &[]).await;
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let tools = json!([{"type": "function", "name": "weather", "parameters": schema}]);
    let response = both(&server, json!({"tools": tools})).await;
    let call = json!({
        "id": null, "type": "function_call", "call_id": null, "name": "weather", "arguments": "{\"city\": \"Ada\"}",
        "status": "completed"
    });
    assert_eq!(response["output"], json!([text_item("Let me see."), call]));
    let input = json!([
        {"role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\": \"Ada\"}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "c1", "output": "21 °C"},
    ]);
    let response = both(&server, json!({"input": input, "tools": tools})).await;
    let messages = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Ada\"}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "21 °C"},
    ]);
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": schema}});
    let same = server
        .post("/tokenize", json!({"messages": messages, "tools": [tool]}))
        .await
        .json();
    assert_eq!(
        response["usage"]["input_tokens"], same["count"],
        "the prompt is that of chat"
    );
    for choice in [
        json!("none"),
        json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}),
    ] {
        both(&server, json!({"tools": tools, "tool_choice": choice})).await;
    }
}

#[tokio::test]
async fn reasoning_and_formats() {
    let server = TestServer::saying(Some(REASONING_TEMPLATE), "<think>Hm.</think>{}", &[]).await;
    let format = json!({"format": {"type": "json_schema", "name": "x", "schema": {"type": "object", "additionalProperties": false}}});
    let response = both(&server, json!({"text": format, "reasoning": {"effort": "high"}})).await;
    let thought = json!({"type": "reasoning_text", "text": "Hm."});
    let reasoning =
        json!({"id": null, "type": "reasoning", "summary": [], "content": [thought], "status": "completed"});
    assert_eq!(response["output"], json!([reasoning, text_item("{}")]));
    assert_eq!(response["usage"]["output_tokens_details"]["reasoning_tokens"], 5);
}

#[tokio::test]
async fn likelihoods_are_told_if_asked_for() {
    let server = TestServer::start(&[]).await;
    let fields = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let response = both(&server, fields).await;
    let logprobs = response["output"][0]["content"][0]["logprobs"]
        .as_array()
        .unwrap();
    assert_eq!(logprobs.len(), SCRIPT.len());
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

async fn delete(server: &TestServer, path: &str) -> Answer {
    let request = Request::delete(path).header("host", "localhost");
    server.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_kept_answer_can_be_gone_on_from() {
    let server = TestServer::saying(None, SCRIPT, &[]).await;
    let first = post(&server, json!({"instructions": "Only now."})).await.body;
    let first: Value = serde_json::from_str(&first).unwrap();
    let path = format!("/v1/responses/{}", first["id"].as_str().unwrap());
    assert_eq!(
        serde_json::from_str::<Value>(&server.get(&path).await.body).unwrap(),
        first
    );
    let next = both(
        &server,
        json!({"previous_response_id": first["id"], "input": "And?"}),
    )
    .await;
    let messages = json!([
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": SCRIPT}, {"role": "user", "content": "And?"}
    ]);
    let same = server
        .post("/tokenize", json!({"messages": messages}))
        .await
        .json();
    assert_eq!(next["usage"]["input_tokens"], same["count"]);
    let items: Value = serde_json::from_str(&server.get(&format!("{path}/input_items")).await.body).unwrap();
    assert_eq!(
        items["data"].as_array().unwrap().len(),
        1,
        "what was sent, not what was answered"
    );
    assert_eq!(items["first_id"], items["data"][0]["id"]);
    assert_eq!(server.get(&format!("{path}?stream=true")).await.status, 400);
    assert_eq!(delete(&server, &path).await.status, 200);
    for answer in [delete(&server, &path).await, server.get(&path).await] {
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (404, &json!("response_not_found"))
        );
    }
    let answer = post(&server, json!({"previous_response_id": first["id"]})).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["param"]),
        (400, &json!("previous_response_id"))
    );
    let unkept: Value = serde_json::from_str(&post(&server, json!({"store": false})).await.body).unwrap();
    assert_eq!(unkept["store"], false);
    assert_eq!(
        server
            .get(&format!("/v1/responses/{}", unkept["id"].as_str().unwrap()))
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn a_server_may_keep_nothing() {
    let server = TestServer::start(&["--responses-retention-s", "0"]).await;
    let response: Value = serde_json::from_str(&post(&server, json!({})).await.body).unwrap();
    assert_eq!(response["store"], false);
    assert_eq!(post(&server, json!({"store": true})).await.status, 400);
}

#[tokio::test]
async fn bad_requests_are_named() {
    let server = TestServer::start(&[]).await;
    for (fields, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            "input[0].type",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (
            json!({"input": [{"type": "function_call_output", "output": "x"}]}),
            "input[0].call_id",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"conversation": "x"}), "conversation"),
        (json!({"include": ["file_search_call.results"]}), "include"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (
            json!({"text": {"format": {"type": "grammar"}}}),
            "text.format.type",
        ),
        (json!({"reasoning": {"effort": "low"}}), "reasoning.effort"),
        (json!({"input": [{"type": "reasoning", "summary": []}]}), "input"),
        (json!({"input": "x".repeat(300)}), "input"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"n": 2}), "n"),
    ] {
        let answer = post(&server, fields.clone()).await;
        assert_eq!(answer.status, 400, "{fields}");
        assert_eq!(
            answer.json()["error"]["param"],
            param,
            "{fields}: {}",
            answer.body
        );
    }
}

/// What answers repeat has limits, because it is held as long as they run.
#[tokio::test]
async fn metadata_has_the_limits_of_openai() {
    let server = TestServer::start(&[]).await;
    let many: serde_json::Map<String, Value> = (0..17).map(|at| (at.to_string(), json!("x"))).collect();
    for metadata in [
        json!(5),
        json!([1]),
        json!({"a": 1}),
        json!({"a": "x".repeat(513)}),
        json!({"x".repeat(65): "a"}),
        json!(many),
    ] {
        let answer = post(&server, json!({"metadata": metadata})).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (400, &json!("metadata"))
        );
    }
    let body = r#"{"model": "test-model", "input": "Hi", "metadata": {"a": 1e999}}"#;
    assert_eq!(server.post_text("/v1/responses", body).await.status, 400);
}
