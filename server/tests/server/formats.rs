//! Answers that must follow a format.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{TestServer, merged};

/// No white space, which the model of these tests would otherwise prefer to everything.
fn no_blanks() -> Value {
    json!({"9": -100, "10": -100, "13": -100, "32": -100})
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["name", "age"],
        "additionalProperties": false
    })
}

/// Formats with the only text, or the text that the model prefers.
fn formats() -> Vec<(Value, &'static str)> {
    let outputs = |fields: Value| json!({"structured_outputs": fields});
    let schema = json!({"name": "person", "strict": true, "schema": person()});
    vec![
        (
            outputs(json!({"choice": ["Yes", "No \"maybe\" \\ é"]})),
            "No \"maybe\" \\ é",
        ),
        (outputs(json!({"regex": "[0-9]{3}-(a|b)é"})), "000-aé"),
        (
            outputs(json!({"grammar": "start: \"ab\" num | \"cd\"\nnum: /[5-7]/"})),
            "ab5",
        ),
        (outputs(json!({"json": person()})), r#"{"name":"Ada","age":0}"#),
        (
            outputs(json!({"json": person().to_string()})),
            r#"{"name":"Ada","age":0}"#,
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": schema}}),
            r#"{"name":"Ada","age":0}"#,
        ),
    ]
}

fn base(fields: Value) -> Value {
    merged(
        json!({"temperature": 0, "max_tokens": 60, "logit_bias": no_blanks()}),
        fields,
    )
}

#[tokio::test]
async fn an_answer_is_of_the_format_and_ends_with_it() {
    let server = TestServer::start(&[]).await;
    for (format, text) in formats() {
        let answer = server.chat(base(format.clone())).await;
        assert_eq!(answer.status, 200, "{format}: {}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["choices"][0]["message"]["content"], text, "{format}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{format}");
        // A token for each byte, those that had no alternative included.
        assert_eq!(answer["usage"]["completion_tokens"], text.len(), "{format}");
        let completion = server.complete(base(format)).await.json();
        assert_eq!(completion["choices"][0]["text"], text);
    }
}

#[tokio::test]
async fn json_objects() {
    let server = TestServer::start(&[]).await;
    let bias = merged(no_blanks(), json!({"34": -100}));
    let fields = json!({"response_format": {"type": "json_object"}, "logit_bias": bias});
    let answer = server.chat(base(fields)).await.json();
    assert_eq!(
        answer["choices"][0]["message"]["content"], "{}",
        "without a quote there is no key"
    );
}

#[tokio::test]
async fn a_stream_is_the_whole_answer() {
    let server = TestServer::start(&[]).await;
    for (format, text) in formats() {
        for more in [
            json!({}),
            json!({"logprobs": true, "top_logprobs": 2}),
            json!({"n": 3}),
        ] {
            let fields = merged(base(format.clone()), more.clone());
            let streamed = server.chat(merged(fields.clone(), json!({"stream": true}))).await;
            let whole = server.chat(fields).await.json();
            for (at, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
                assert_eq!(choice["message"]["content"], text, "{format} {more}");
                assert_eq!(streamed.streamed(at), text, "{format} {more}");
                if let Some(logprobs) = choice["logprobs"]["content"].as_array() {
                    assert_eq!(logprobs.len(), text.len(), "an entry for every token");
                    assert!(
                        logprobs
                            .iter()
                            .all(|entry| entry["top_logprobs"].as_array().unwrap().len() == 2)
                    );
                }
            }
        }
    }
}

/// At a temperature, with seeds: whatever is drawn is of the format, and the same for the same seed.
#[tokio::test]
async fn what_is_drawn_is_of_the_format() {
    let server = TestServer::start(&[]).await;
    for seed in 0..20 {
        let fields = base(json!({
            "structured_outputs": {"regex": "(yes|no|perhaps), [a-f]{4}[0-9]?"},
            "temperature": 2, "seed": seed, "n": 2, "logit_bias": null
        }));
        let (first, second) = (
            server.chat(fields.clone()).await.json(),
            server.chat(fields).await.json(),
        );
        assert_eq!(first["choices"], second["choices"]);
        for choice in first["choices"].as_array().unwrap() {
            let text = choice["message"]["content"].as_str().unwrap();
            let (word, rest) = text.split_once(", ").unwrap();
            assert!(["yes", "no", "perhaps"].contains(&word), "{text}");
            assert!(
                rest.bytes().take(4).all(|byte| (b'a'..=b'f').contains(&byte)),
                "{text}"
            );
            assert!((4..=5).contains(&rest.len()), "{text}");
        }
    }
}

#[tokio::test]
async fn a_limit_on_tokens_cuts_a_format_too() {
    let server = TestServer::start(&[]).await;
    let fields = json!({"structured_outputs": {"choice": ["abcdefgh"]}, "max_tokens": 3});
    let answer = server.chat(base(fields)).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "abc");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

/// What vLLM's parameter may not say, and the parameter that its error names.
fn broken_outputs() -> Vec<(Value, &'static str)> {
    let outputs = |fields: Value| json!({"structured_outputs": fields});
    vec![
        (outputs(json!({"regex": "(unclosed"})), "structured_outputs"),
        (
            outputs(json!({"regex": "(".repeat(200) + &")".repeat(200)})),
            "structured_outputs",
        ),
        (outputs(json!({"regex": "(?=a)b"})), "structured_outputs"),
        (
            outputs(json!({"grammar": "start: nothing"})),
            "structured_outputs",
        ),
        (
            outputs(json!({"grammar": "(".repeat(3000)})),
            "structured_outputs",
        ),
        (outputs(json!({"json": "{"})), "structured_outputs"),
        (outputs(json!({"json": "[".repeat(1000)})), ""),
        (outputs(json!({"json": 1})), "structured_outputs.json"),
        (
            outputs(json!({"json": {"type": "nothing"}})),
            "structured_outputs",
        ),
        (outputs(json!({"choice": []})), "structured_outputs.choice"),
        (
            outputs(json!({"choice": ["a", "b", "c", "d"]})),
            "structured_outputs.choice",
        ),
        (
            outputs(json!({"choice": ["a", ""]})),
            "structured_outputs.choice[1]",
        ),
        (
            outputs(json!({"regex": "a".repeat(5001)})),
            "structured_outputs.regex",
        ),
        (
            outputs(json!({"regex": "a", "choice": ["a"]})),
            "structured_outputs",
        ),
        (
            outputs(json!({"whitespace_pattern": " "})),
            "structured_outputs.whitespace_pattern",
        ),
        (outputs(json!({"regexp": "a"})), "structured_outputs.regexp"),
    ]
}

/// The same of OpenAI's, and what neither can be combined with.
fn broken_formats() -> Vec<(Value, &'static str)> {
    let outputs = |fields: Value| json!({"structured_outputs": fields});
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
    vec![
        (
            schema(json!({"type": "string", "minLength": 5, "maxLength": 3})),
            "response_format",
        ),
        (
            schema(json!({"$ref": "https://example.com/schema.json"})),
            "response_format",
        ),
        (schema(json!({"$ref": "#/$defs/missing"})), "response_format"),
        (schema(json!([])), "response_format.json_schema.schema"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
        ),
        (
            json!({"response_format": {"type": "json_object", "json_schema": {}}}),
            "response_format.json_schema",
        ),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (json!({"response_format": {}}), "response_format.type"),
        (
            json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
            "structured_outputs",
        ),
        (
            merged(outputs(json!({"regex": "a"})), json!({"min_tokens": 1})),
            "min_tokens",
        ),
        (
            merged(outputs(json!({"regex": "a"})), json!({"ignore_eos": true})),
            "ignore_eos",
        ),
    ]
}

#[tokio::test]
async fn a_format_that_cannot_be_followed_says_why() {
    let server = TestServer::start(&["--format-bytes-max", "5000", "--format-choices-max", "3"]).await;
    for (fields, param) in [broken_outputs(), broken_formats()].concat() {
        let answer = server.chat(base(fields.clone())).await;
        assert_eq!(answer.status, 400, "{fields}: {}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["param"].as_str().unwrap_or(""), param, "{fields}: {error}");
        assert!(error["message"].as_str().unwrap().len() < 500, "{error}");
    }
    assert_eq!(
        server.chat(base(json!({"max_tokens": 1}))).await.status,
        200,
        "and nobody else is harmed"
    );
}

#[tokio::test]
async fn what_takes_too_long_is_refused_in_time() {
    let server = TestServer::start(&["--grammar-timeout-ms", "1"]).await;
    let properties: serde_json::Map<String, Value> = (0..400)
        .map(|i| {
            (
                format!("p{i}"),
                json!({"type": "string", "pattern": "^[a-z]{3,40}[0-9]+$"}),
            )
        })
        .collect();
    let schema = json!({"type": "object", "properties": properties});
    let began = Instant::now();
    let answer = server.chat(json!({"structured_outputs": {"json": schema}})).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.body.contains("limit of 1 ms"), "{}", answer.body);
    assert!(began.elapsed() < Duration::from_secs(20));
}

/// What made the compiler recurse until its stack was full, compute and allocate without end, or follow every reading of a
/// text: each is refused in time, and the server lives.
#[tokio::test]
async fn hostile_formats_harm_nobody() {
    let server = TestServer::start(&[]).await;
    let outputs = |fields: Value| json!({"structured_outputs": fields});
    let rules: Vec<String> = (0..5400).map(|i| format!("r{i}: r{}", i + 1)).collect();
    let rules = rules.join("\n");
    let chain: serde_json::Map<String, Value> = (0..2000)
        .map(|i| {
            (
                i.to_string(),
                json!({"prefixItems": [{"$ref": format!("#/$defs/{}", i + 1)}]}),
            )
        })
        .chain([("2000".to_owned(), json!({"type": "null"}))])
        .collect();
    for (fields, refused) in [
        (
            json!({"grammar": format!("start: r0\n{rules}\nr5400: \"a\"")}),
            false,
        ),
        (json!({"json": {"$ref": "#/$defs/0", "$defs": chain}}), false),
        (
            json!({"json": {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}}),
            true,
        ),
        (json!({"regex": "a?".repeat(60_000)}), true),
        (json!({"grammar": "start: start start | /./"}), false),
        (json!({"grammar": "start: \"A\" %json {\"not\": {}}"}), true),
        (json!({"grammar": "start: \"a\" start"}), true),
        (json!({"choice": ["a\u{7f}b"]}), false),
    ] {
        let began = Instant::now();
        let answer = server.chat(base(outputs(fields.clone()))).await;
        let text = fields.to_string();
        let shown = &text[..text.len().min(80)];
        if refused {
            assert_eq!(answer.status, 400, "{shown}: {}", answer.body);
        } else {
            assert!(
                [200, 400].contains(&answer.status.as_u16()),
                "{shown}: {}",
                answer.body
            );
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{shown}");
        assert_eq!(
            server.chat(base(json!({"max_tokens": 1}))).await.status,
            200,
            "after {shown}"
        );
    }
}
