//! Calls of functions.

use serde_json::{Value, json};

use crate::support::{Answer, SCRIPT, TestServer, merged};

const CALLING: &str = "Let me see.\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ada\"}}\n</tool_call>\n\
                       <tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";

fn function(name: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

fn tools() -> Value {
    let city = json!({
        "type": "object", "properties": {"city": {"enum": ["Ada", "Bob"]}}, "required": ["city"], "additionalProperties": false
    });
    json!([
        function("weather", &city),
        function(
            "time",
            &json!({"type": "object", "properties": {}, "additionalProperties": false})
        ),
    ])
}

/// No white space and no second call, which the model of these tests would otherwise prefer to everything.
fn base(fields: Value) -> Value {
    let bias = json!({"9": -100, "10": -100, "13": -100, "32": -100});
    let base = json!({"tools": tools(), "temperature": 0, "max_tokens": 200, "logit_bias": bias});
    merged(base, fields)
}

/// A message as a client puts it together from a stream.
fn streamed(answer: &Answer, index: usize) -> (Value, Value) {
    let (mut content, mut reasoning, mut calls) = (Value::Null, Value::Null, Vec::<Value>::new());
    let mut reason = Value::Null;
    let add = |to: &mut Value, more: &Value| {
        if let Some(more) = more.as_str() {
            *to = format!("{}{more}", to.as_str().unwrap_or_default()).into();
        }
    };
    for event in answer.events() {
        for choice in event["choices"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|choice| choice["index"] == index)
        {
            let delta = &choice["delta"];
            add(&mut content, &delta["content"]);
            add(&mut reasoning, &delta["reasoning_content"]);
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let at = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                if at == calls.len() {
                    assert_eq!(call["type"], "function");
                    assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
                    calls.push(json!({"name": call["function"]["name"], "arguments": ""}));
                }
                add(&mut calls[at]["arguments"], &call["function"]["arguments"]);
            }
            if !choice["finish_reason"].is_null() {
                assert!(reason.is_null(), "one reason");
                reason = choice["finish_reason"].clone();
            }
        }
    }
    (
        json!({"content": content, "reasoning": reasoning, "calls": calls}),
        reason,
    )
}

/// The same of an answer that was not streamed.
fn whole(answer: &Value, index: usize) -> (Value, Value) {
    let choice = &answer["choices"][index];
    let message = &choice["message"];
    let calls: Vec<Value> = message["tool_calls"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|call| {
            assert_eq!(call["type"], "function");
            call["function"].clone()
        })
        .collect();
    let message =
        json!({"content": message["content"], "reasoning": message["reasoning_content"], "calls": calls});
    (message, choice["finish_reason"].clone())
}

/// The answer to fields, the same whether it is streamed or not.
async fn both(server: &TestServer, fields: Value) -> (Value, Value) {
    let stream = server.chat(merged(fields.clone(), json!({"stream": true}))).await;
    let answer = server.chat(fields.clone()).await;
    assert_eq!(answer.status, 200, "{fields}: {}", answer.body);
    let answer = answer.json();
    let mut first = None;
    for at in 0..answer["choices"].as_array().unwrap().len() {
        let (mut message, reason) = whole(&answer, at);
        let (mut told, told_reason) = streamed(&stream, at);
        // A stream can't say beforehand that there will be no content.
        for message in [&mut message, &mut told] {
            if message["content"] == "" {
                message["content"] = Value::Null;
            }
        }
        assert_eq!((&told, &told_reason), (&message, &reason), "{fields}");
        first.get_or_insert((message, reason));
    }
    first.unwrap()
}

#[tokio::test]
async fn a_call_that_is_required_is_made() {
    let server = TestServer::saying(None, SCRIPT, &[]).await;
    let named = json!({"type": "function", "function": {"name": "weather"}});
    let only = json!({"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]});
    for (choice, name, arguments) in [
        (json!("required"), "time", "{}"),
        (named, "weather", "{\"city\":\"Ada\"}"),
        (
            json!({"type": "allowed_tools", "allowed_tools": only}),
            "time",
            "{}",
        ),
    ] {
        let fields = base(json!({"tool_choice": choice, "parallel_tool_calls": false}));
        let (message, reason) = both(&server, fields).await;
        let calls = json!([{"name": name, "arguments": arguments}]);
        assert_eq!(
            message,
            json!({"content": null, "reasoning": null, "calls": calls})
        );
        assert_eq!(reason, "tool_calls");
    }
}

#[tokio::test]
async fn a_model_calls_in_its_answer() {
    let server = TestServer::saying(None, CALLING, &[]).await;
    let fields = json!({"tools": tools(), "temperature": 0, "max_tokens": 200, "n": 2});
    let (message, reason) = both(&server, fields.clone()).await;
    let weather = json!({"name": "weather", "arguments": "{\"city\": \"Ada\"}"});
    let calls = json!([weather, {"name": "time", "arguments": "{}"}]);
    assert_eq!(
        message,
        json!({"content": "Let me see.", "reasoning": null, "calls": calls})
    );
    assert_eq!(reason, "tool_calls");
    let one = merged(fields.clone(), json!({"parallel_tool_calls": false}));
    let (message, reason) = both(&server, one).await;
    assert_eq!(
        (&message["calls"], reason),
        (&json!([weather]), json!("tool_calls"))
    );
    // What looks like a call is none where nothing may be called.
    let none = merged(fields, json!({"tool_choice": "none"}));
    let (message, reason) = both(&server, none).await;
    assert_eq!(
        (message["content"].as_str(), reason),
        (Some(CALLING), json!("stop"))
    );
}

/// As small models do it.
#[tokio::test]
async fn a_call_without_its_tags_is_one_if_the_function_is_known() {
    let call = |name: &str| format!("{{\"name\": \"{name}\", \"arguments\": {{\"city\": \"Bob\"}}}}");
    for (script, made) in [
        (call("weather"), 1),
        (format!("{}\n{}", call("weather"), call("weather")), 2),
        (call("Ada"), 0),
        (format!("So: {}", call("weather")), 0),
    ] {
        let server = TestServer::saying(None, &script, &[]).await;
        let (message, reason) = both(
            &server,
            json!({"tools": tools(), "temperature": 0, "max_tokens": 200}),
        )
        .await;
        assert_eq!(
            message["calls"].as_array().unwrap().len(),
            made,
            "{script}: {message}"
        );
        assert_eq!(reason, if made > 0 { "tool_calls" } else { "stop" });
        if made == 0 {
            assert_eq!(message["content"], script);
        }
    }
}

#[tokio::test]
async fn an_answer_need_not_call() {
    let server = TestServer::saying(None, SCRIPT, &[]).await;
    let (message, reason) = both(&server, json!({"tools": tools(), "temperature": 0})).await;
    assert_eq!(
        (message["content"].as_str(), reason),
        (Some(SCRIPT), json!("stop"))
    );
    let fields = base(
        json!({"response_format": {"type": "json_object"}, "logit_bias": {"9": -100, "10": -100, "13": -100, "32": -100, "34": -100, "60": -100}}),
    );
    let (message, _) = both(&server, fields).await;
    assert_eq!(message["content"], "{}", "an answer without calls has the format");
}

#[tokio::test]
async fn stop_strings_mean_nothing_in_calls() {
    let server = TestServer::saying(None, CALLING, &[]).await;
    let fields =
        json!({"tools": tools(), "temperature": 0, "max_tokens": 200, "stop": ["city", "see.x", "name"]});
    let (message, reason) = both(&server, fields.clone()).await;
    assert_eq!(message["content"], "Let me see.");
    assert_eq!(
        (message["calls"].as_array().unwrap().len(), reason),
        (2, json!("tool_calls"))
    );
    let (message, reason) = both(&server, merged(fields, json!({"stop": " see"}))).await;
    assert_eq!(
        message,
        json!({"content": "Let me", "reasoning": null, "calls": []})
    );
    assert_eq!(reason, "stop");
}

#[tokio::test]
async fn what_was_cut_off_ends_for_its_length() {
    let server = TestServer::saying(None, CALLING, &[]).await;
    for max_tokens in 1..CALLING.len() {
        let fields = json!({"tools": tools(), "temperature": 0, "max_tokens": max_tokens});
        let (_, reason) = both(&server, fields).await;
        assert_eq!(reason, "length", "{max_tokens}");
    }
}

#[tokio::test]
async fn every_token_has_its_likelihood() {
    let server = TestServer::saying(None, CALLING, &[]).await;
    let fields = json!({"tools": tools(), "temperature": 0, "max_tokens": 200, "logprobs": true});
    let answer = server.chat(fields.clone()).await.json();
    assert_eq!(
        answer["choices"][0]["logprobs"]["content"]
            .as_array()
            .unwrap()
            .len(),
        CALLING.len()
    );
    let stream = server.chat(merged(fields, json!({"stream": true}))).await;
    let entries: usize = stream
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .map(Vec::len)
        .sum();
    assert_eq!(entries, CALLING.len());
}

/// A schema that can't be followed stops only who insists on it.
#[tokio::test]
async fn schemas_that_cannot_be_followed() {
    let server = TestServer::saying(None, CALLING, &[]).await;
    let parameters = json!({"type": "object", "properties": {"city": {"pattern": "(?!x)"}}});
    let weather = function("weather", &parameters);
    let time = tools()[1].clone();
    let fields = |weather: &Value, choice: &str| json!({"tools": [weather, time], "tool_choice": choice, "temperature": 0, "max_tokens": 200});
    let (message, _) = both(&server, fields(&weather, "auto")).await;
    assert_eq!(message["calls"][0]["arguments"], "{\"city\": \"Ada\"}");
    let mut strict = weather.clone();
    strict["function"]["strict"] = json!(true);
    for fields in [fields(&strict, "auto"), fields(&weather, "required")] {
        // The second time it is known.
        for _ in 0..2 {
            let answer = server.chat(fields.clone()).await;
            assert_eq!(answer.status, 400);
            let error = &answer.json()["error"];
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!("tools"), &json!("invalid_format")),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn calls_of_the_history_are_told() {
    let server = TestServer::saying(None, SCRIPT, &[]).await;
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Ada\"}"}});
    let messages = json!([
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21 °C"},
    ]);
    let tokens = server
        .post("/tokenize", json!({"messages": messages, "tools": tools()}))
        .await
        .json();
    let ids = tokens["tokens"].clone();
    let text = server.post("/detokenize", json!({"tokens": ids})).await.json()["prompt"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        text.contains(
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ada\"}}\n</tool_call>"
        ),
        "{text}"
    );
    assert!(
        text.contains("21 °C") && text.contains("\"name\":\"time\""),
        "{text}"
    );
}

fn bad_tools() -> Vec<(Value, &'static str)> {
    let tool = |function: Value| json!([{"type": "function", "function": function}]);
    let history = |call: Value| json!({"messages": [{"role": "assistant", "tool_calls": [call]}]});
    let call =
        |name: &str, arguments: &str| json!({"id": "1", "function": {"name": name, "arguments": arguments}});
    vec![
        (json!({"tools": {}}), "tools"),
        (json!({"tools": [1]}), "tools[0]"),
        (json!({"tools": [{"type": "custom"}]}), "tools[0].type"),
        (json!({"tools": tool(json!({}))}), "tools[0].function.name"),
        (
            json!({"tools": tool(json!({"name": "a b"}))}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": tool(json!({"name": "x".repeat(129)}))}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": tool(json!({"name": "a", "parameters": 1}))}),
            "tools[0].function.parameters",
        ),
        (
            json!({"tools": tool(json!({"name": "a", "parameters": {"type": "array"}}))}),
            "tools[0].function.parameters.type",
        ),
        (
            json!({"tools": tool(json!({"name": "a", "x": 1}))}),
            "tools[0].function.x",
        ),
        (
            json!({"tools": [tools()[0], tools()[0]]}),
            "tools[1].function.name",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": tools(), "tool_choice": "any"}), "tool_choice"),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "x"}}}),
            "tool_choice",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function"}}),
            "tool_choice.function",
        ),
        (json!({"tools": tools(), "min_tokens": 3}), "min_tokens"),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "messages[0].tool_call_id",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}),
            "messages[0].tool_calls",
        ),
        (
            history(call("a", "[1]")),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            history(call("a\n", "{}")),
            "messages[0].tool_calls[0].function.name",
        ),
        (
            history(json!({"function": {"name": "a"}})),
            "messages[0].tool_calls[0].id",
        ),
    ]
}

#[tokio::test]
async fn bad_tools_are_named() {
    let server = TestServer::saying(None, SCRIPT, &[]).await;
    for (fields, param) in bad_tools() {
        let answer = server.chat(fields.clone()).await;
        assert_eq!(answer.status, 400, "{fields}");
        assert_eq!(
            answer.json()["error"]["param"],
            param,
            "{fields}: {}",
            answer.body
        );
    }
}

/// A thousand answers of random tools and choices, drawn at a high temperature: streamed or not, they are the same, and
/// arguments that were not cut off are JSON.
#[tokio::test]
async fn a_thousand_streams_are_the_whole_answer() {
    let server = TestServer::saying(None, SCRIPT, &[]).await;
    let schemas = [
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        json!({"type": "object", "properties": {"t": {"type": "string", "maxLength": 5}}, "required": ["t"]}),
        json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}}),
        json!({"type": "object", "additionalProperties": false}),
    ];
    let mut made = 0;
    for case in 0..1000_usize {
        let one = function(["f", "get_it", "a-b.c"][case % 3], &schemas[case % 4]);
        let tools = if case % 5 < 2 {
            json!([one])
        } else {
            json!([one, function("other", &schemas[case / 4 % 4])])
        };
        let temperature = [0.7, 1.0, 2.0][case / 3 % 3];
        let mut fields = json!({
            "temperature": temperature, "seed": case, "max_tokens": 20 + case % 100,
            "logit_bias": {"60": 8, "10": -5}
        });
        if case % 10 == 9 {
            fields["response_format"] = json!({"type": "json_object"});
        }
        if case % 10 < 8 || case % 20 == 9 {
            fields["tools"] = tools;
            fields["tool_choice"] = json!(if case % 2 == 0 { "required" } else { "auto" });
            fields["parallel_tool_calls"] = json!(case % 7 < 4);
        }
        let (message, reason) = both(&server, fields.clone()).await;
        let calls = message["calls"].as_array().unwrap();
        made += calls.len();
        let (last, cut) = (calls.len().saturating_sub(1), reason == "length");
        for (at, call) in calls.iter().enumerate().filter(|(at, _)| !(cut && *at == last)) {
            let text = call["arguments"].as_str().unwrap();
            assert!(
                serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object()),
                "{fields}: {at} {text}"
            );
        }
    }
    assert!(made > 300, "{made} calls");
}
