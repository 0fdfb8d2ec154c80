//! Reasoning in front of answers.

use serde_json::{Value, json};

use crate::support::{REASONING_TEMPLATE, TestServer, merged};

const THINKING: &str = "<think>\nHm, <tool_call>?\n</think>\n\nYes.";

async fn server(script: &str) -> TestServer {
    TestServer::saying(Some(REASONING_TEMPLATE), script, &[]).await
}

async fn message(server: &TestServer, fields: Value) -> (Value, Value) {
    let answer = server
        .chat(merged(
            json!({"temperature": 0, "max_tokens": 120}),
            fields.clone(),
        ))
        .await;
    assert_eq!(answer.status, 200, "{fields}: {}", answer.body);
    let answer = answer.json();
    (answer["choices"][0]["message"].clone(), answer["usage"].clone())
}

#[tokio::test]
async fn reasoning_is_apart_and_counted() {
    let server = server(THINKING).await;
    let (said, usage) = message(&server, json!({})).await;
    assert_eq!(said["reasoning_content"], "Hm, <tool_call>?");
    assert_eq!(said["content"], "Yes.");
    // Two markers, and a token for each byte between them.
    let between = THINKING.find("</think>").unwrap() - "<think>".len();
    assert_eq!(
        usage["completion_tokens_details"]["reasoning_tokens"],
        between + 2
    );
    let stream = server.chat(json!({"temperature": 0, "stream": true})).await;
    let told = |key: &str| -> String {
        let events = stream.events();
        let parts = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"][key].as_str());
        parts.collect()
    };
    assert_eq!(told("reasoning_content"), "Hm, <tool_call>?");
    assert_eq!(told("content"), "Yes.");
}

#[tokio::test]
async fn a_budget_closes_the_span() {
    let server = server(THINKING).await;
    for (budget, reasoning) in [(0, None), (3, Some("Hm")), (50, Some("Hm, <tool_call>?"))] {
        for logprobs in [false, true] {
            let fields = json!({"thinking_token_budget": budget, "logprobs": logprobs});
            let (said, usage) = message(&server, fields).await;
            assert_eq!(said["reasoning_content"].as_str(), reasoning, "{budget}");
            let tokens = usage["completion_tokens_details"]["reasoning_tokens"]
                .as_u64()
                .unwrap();
            assert!(tokens <= budget + 2, "{budget}: {tokens}");
            assert_ne!(said["content"], "", "{budget}");
        }
    }
}

#[tokio::test]
async fn formats_and_calls_begin_behind_it() {
    let server = server("<think>Hm.</think>7").await;
    let (said, _) = message(&server, json!({"structured_outputs": {"regex": "[0-9]"}})).await;
    assert_eq!(
        (said["reasoning_content"].as_str(), said["content"].as_str()),
        (Some("Hm."), Some("7"))
    );
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"additionalProperties": false}}}]);
    let fields = json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "logit_bias": {"9": -100, "10": -100, "13": -100, "32": -100}});
    let (said, _) = message(&server, fields).await;
    assert_eq!(said["reasoning_content"], "Hm.");
    assert_eq!(
        said["tool_calls"][0]["function"],
        json!({"name": "f", "arguments": "{}"})
    );
    // A model that answers at once may do so.
    let server = self::server("7").await;
    let (said, usage) = message(&server, json!({"structured_outputs": {"regex": "[0-9]"}})).await;
    assert_eq!(
        (&said["reasoning_content"], said["content"].as_str()),
        (&Value::Null, Some("7"))
    );
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
}

async fn prompt(server: &TestServer, fields: Value) -> String {
    let base = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let tokens = server.post("/tokenize", merged(base, fields)).await.json()["tokens"].clone();
    let text = server.post("/detokenize", json!({"tokens": tokens})).await.json();
    text["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn effort_reaches_the_template() {
    let server = server(THINKING).await;
    let closed = |text: &str| text.ends_with("</think>\n\n");
    assert!(!closed(&prompt(&server, json!({})).await));
    assert!(closed(
        &prompt(&server, json!({"reasoning_effort": "none"})).await
    ));
    assert!(!closed(
        &prompt(&server, json!({"reasoning_effort": "low"})).await
    ));
    assert!(closed(
        &prompt(
            &server,
            json!({"chat_template_kwargs": {"enable_thinking": false}})
        )
        .await
    ));
    let history = json!({"messages": [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}, {"role": "user", "content": "So?"}
    ]});
    assert!(prompt(&server, history).await.contains("<think>Hm.</think>Yes."));
}

#[tokio::test]
async fn a_model_that_does_not_reason_says_so() {
    let server = TestServer::start(&[]).await;
    for (fields, param) in [
        (json!({"reasoning_effort": "low"}), "reasoning_effort"),
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (json!({"thinking_token_budget": 5}), "thinking_token_budget"),
        (json!({"thinking_token_budget": -1}), "thinking_token_budget"),
    ] {
        let answer = server.chat(fields.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{fields}"
        );
    }
}
