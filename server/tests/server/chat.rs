//! `/v1/chat/completions`.

use serde_json::{Value, json};

use super::support::{IM_END, SCRIPT, TestServer, finished, merged};

#[tokio::test]
async fn a_whole_answer() {
    let server = TestServer::start(&[]).await;
    let answer = server.chat(json!({"temperature": 0})).await;
    assert_eq!(answer.status, 200);
    insta::assert_json_snapshot!(answer.json());
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_done() {
    let server = TestServer::start(&[]).await;
    let answer = server
        .chat(json!({"temperature": 0, "max_tokens": 9, "stream": true}))
        .await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    insta::assert_json_snapshot!(answer.events());
}

#[tokio::test]
async fn a_stream_with_usage() {
    let server = TestServer::start(&[]).await;
    let options = json!({"include_usage": true});
    let answer = server
        .chat(json!({"max_tokens": 2, "stream": true, "stream_options": options}))
        .await;
    insta::assert_json_snapshot!(answer.events());
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let answer = server
        .chat(json!({"max_tokens": 2, "stream": true, "stream_options": options}))
        .await;
    let completion: Vec<_> = answer
        .events()
        .iter()
        .map(|event| event["usage"]["completion_tokens"].clone())
        .collect();
    assert_eq!(json!(completion), json!([1, 1, 2, 2, 2, null]));
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = TestServer::start(&[]).await;
    for n in [1, 3] {
        let answer = server
            .chat(json!({"temperature": 0, "n": n, "stream": true}))
            .await;
        for index in 0..n {
            assert_eq!(answer.streamed(index), SCRIPT);
        }
        let finished = answer.body.matches("\"finish_reason\":\"stop\"").count();
        assert_eq!(finished, n, "one finish_reason for each choice");
    }
}

#[tokio::test]
async fn several_choices_are_counted_once_for_the_prompt() {
    let server = TestServer::start(&[]).await;
    let answer = server
        .chat(json!({"temperature": 0, "n": 2, "max_tokens": 5}))
        .await
        .json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!(answer["usage"]["completion_tokens"], 10);
    let one = server.chat(json!({"max_tokens": 5})).await.json();
    assert_eq!(answer["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn logprobs_come_with_bytes_and_alternatives() {
    let server = TestServer::start(&[]).await;
    let fields = json!({"temperature": 0, "max_tokens": 2, "logprobs": true, "top_logprobs": 2});
    insta::assert_json_snapshot!(server.chat(fields).await.json()["choices"][0]["logprobs"]);
}

#[tokio::test]
async fn streamed_logprobs_cover_the_text_exactly() {
    let server = TestServer::start(&[]).await;
    let fields = json!({"temperature": 0, "logprobs": true, "stream": true, "stop": ["two"]});
    let answer = server.chat(fields).await;
    let events = answer.events();
    let logprobs = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let bytes: Vec<u8> = logprobs
        .flatten()
        .flat_map(|entry| entry["bytes"].as_array().unwrap().clone())
        .map(|b| b.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "Hello, wörld. One ");
    assert_eq!(answer.streamed(0), "Hello, wörld. One ");
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_it() {
    let server = TestServer::start(&[]).await;
    for (fields, text) in [
        (json!({"stop": "One"}), "Hello, wörld. "),
        (json!({"stop": ["nothing", "wör"]}), "Hello, "),
        (
            json!({"stop": "One", "include_stop_str_in_output": true}),
            "Hello, wörld. One",
        ),
        (json!({"stop_token_ids": [u32::from(b'w')]}), "Hello, "),
        (
            json!({"stop_token_ids": [u32::from(b'w')], "include_stop_str_in_output": true}),
            "Hello, w",
        ),
        (json!({"stop": "three.x"}), SCRIPT),
    ] {
        let fields = super::support::merged(json!({"temperature": 0}), fields);
        let choice = server.chat(fields).await.json()["choices"][0].clone();
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(choice["finish_reason"], "stop");
    }
    // A text that is complete is no abort, although the engine was told to end it.
    server.metric_becomes(&finished("stop"), 6.0).await;
    assert!(server.metric(&finished("abort")).await.abs() < f64::EPSILON);
}

#[tokio::test]
async fn tokens_are_told_beside_their_text() {
    let server = TestServer::start(&[]).await;
    let prompt = server
        .post(
            "/tokenize",
            json!({"messages": [{"role": "user", "content": "Hi"}]}),
        )
        .await
        .json()["tokens"]
        .clone();
    let mut script: Vec<u32> = SCRIPT.bytes().map(u32::from).collect();
    script.push(IM_END);
    let fields = json!({"temperature": 0, "return_token_ids": true, "n": 2, "stop": "One tw!"});
    let whole = server.chat(fields.clone()).await.json();
    assert_eq!(whole["prompt_token_ids"], prompt);
    let streamed = server
        .chat(merged(fields, json!({"stream": true})))
        .await
        .events();
    for index in 0..2 {
        assert_eq!(whole["choices"][index]["token_ids"], json!(script));
        let own: Vec<&Value> = streamed
            .iter()
            .filter(|event| event["choices"][0]["index"] == index)
            .collect();
        assert_eq!(own[0]["prompt_token_ids"], prompt);
        assert!(
            own[1..]
                .iter()
                .all(|event| event.get("prompt_token_ids").is_none())
        );
        let told: Vec<Value> = own
            .iter()
            .filter_map(|event| event["choices"][0]["token_ids"].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(json!(told), json!(script));
    }
    let plain = server.chat(json!({})).await.json();
    assert!(plain.get("prompt_token_ids").is_none() && plain["choices"][0].get("token_ids").is_none());
}

#[tokio::test]
async fn min_tokens_holds_back_stop_strings() {
    let server = TestServer::start(&[]).await;
    // "Hello, wörld. One two three." has a byte, and so a token, for each character but "ö", which has two.
    for (min_tokens, stop, text) in [
        (3, "l", "He"),
        (4, "l", "Hel"),
        (5, "l", "Hello, wör"),
        (13, "l", SCRIPT),
        (5, "llo", "He"),
        (6, "llo", SCRIPT),
        (0, "l", "He"),
    ] {
        for streamed in [false, true] {
            let fields =
                json!({"temperature": 0, "min_tokens": min_tokens, "stop": stop, "stream": streamed});
            let answer = server.chat(fields).await;
            let told = if streamed {
                answer.streamed(0)
            } else {
                answer.json()["choices"][0]["message"]["content"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            };
            assert_eq!(told, text, "{min_tokens} {stop}");
        }
    }
}

#[tokio::test]
async fn tokens_are_limited_and_extended() {
    let server = TestServer::start(&[]).await;
    for field in ["max_tokens", "max_completion_tokens"] {
        let answer = server.chat(json!({"temperature": 0, field: 4})).await.json();
        assert_eq!(answer["choices"][0]["message"]["content"], "Hell");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 4);
    }
    let longer = json!({"temperature": 0, "max_tokens": 40, "ignore_eos": true});
    let answer = server.chat(longer).await.json();
    assert_eq!(answer["usage"]["completion_tokens"], 40);
    assert_eq!(
        answer["choices"][0]["message"]["content"],
        "Hello, wörld. One two three.Hello, wö"
    );
    let special =
        json!({"temperature": 0, "max_tokens": 32, "ignore_eos": true, "skip_special_tokens": false});
    let answer = server.chat(special).await.json();
    assert_eq!(
        answer["choices"][0]["message"]["content"],
        "Hello, wörld. One two three.<|im_end|>He"
    );
    let biased = json!({"temperature": 0, "max_tokens": 1, "logit_bias": {"88": 100}});
    assert_eq!(
        server.chat(biased).await.json()["choices"][0]["message"]["content"],
        "X"
    );
    let minimum = json!({"temperature": 0, "min_tokens": 35, "max_tokens": 35});
    assert_eq!(
        server.chat(minimum).await.json()["usage"]["completion_tokens"],
        35
    );
}

#[tokio::test]
async fn a_seed_repeats_an_answer() {
    let server = TestServer::start(&[]).await;
    let fields = json!({"temperature": 2, "seed": -7, "max_tokens": 30, "ignore_eos": true, "logit_bias": {"72": -12, "105": 5}});
    let first = server.chat(fields.clone()).await.json();
    assert_eq!(server.chat(fields).await.json()["choices"], first["choices"]);
}

#[tokio::test]
async fn content_may_come_in_parts_and_history_is_taken_back() {
    let server = TestServer::start(&[]).await;
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let messages = json!([
        {"role": "developer", "content": "c"},
        {"role": "user", "content": parts, "name": "d"},
        {"role": "assistant", "content": "e", "refusal": null, "annotations": [], "tool_calls": null, "audio": null},
        {"role": "user", "content": "f"},
    ]);
    let body = json!({"model": "alias", "messages": messages, "max_tokens": 1});
    assert_eq!(server.post("/v1/chat/completions", body).await.status, 200);
    let answer = server
        .post("/tokenize", json!({"messages": messages}))
        .await
        .json();
    let expected = "system\nc|user\na\nb|assistant\ne|user\nf|assistant\n"
        .replace('|', "")
        .len();
    assert_eq!(
        answer["count"],
        expected + 9 + 4,
        "five openings, four ends, and a line feed after each end"
    );
}

#[tokio::test]
async fn metadata_is_accepted() {
    let server = TestServer::start(&[]).await;
    let fields = json!({
        "user": "u", "metadata": {"a": "b"}, "store": false, "safety_identifier": "s", "service_tier": "auto",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "verbosity": "low", "tools": [],
        "tool_choice": "none", "parallel_tool_calls": true, "response_format": {"type": "text"},
        "modalities": ["text"], "n": 1, "logit_bias": {}, "stop": null, "seed": null, "priority": 0, "max_tokens": 1,
        "audio": null, "functions": null, "stream_options": null, "chat_template_kwargs": {"enable_thinking": false}
    });
    let answer = server.chat(fields).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn an_answer_may_continue_the_last_message() {
    let server = TestServer::start(&[]).await;
    let messages =
        json!([{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hell "}]);
    let fields = json!({
        "messages": messages, "continue_final_message": true, "return_token_ids": true, "max_tokens": 3
    });
    let answer = server.chat(fields.clone()).await.json();
    let prompt = server
        .post("/detokenize", json!({"tokens": answer["prompt_token_ids"]}))
        .await
        .json()["prompt"]
        .clone();
    assert_eq!(
        prompt,
        "<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\nHell "
    );
    let tokenized = server
        .post(
            "/tokenize",
            json!({"messages": messages, "continue_final_message": true}),
        )
        .await;
    assert_eq!(tokenized.json()["tokens"], answer["prompt_token_ids"]);
    let end = json!([{"role": "assistant", "content": "end"}]);
    let tokens = server
        .post(
            "/tokenize",
            json!({"messages": end, "continue_final_message": true, "return_token_strs": true}),
        )
        .await
        .json();
    assert_eq!(
        tokens["count"],
        1 + "assistant\nend".len(),
        "not the end of <|im_end|>: {tokens}"
    );
    for (more, param) in [
        (json!({"add_generation_prompt": true}), "continue_final_message"),
        (
            json!({"messages": [{"role": "user", "content": "a"}]}),
            "continue_final_message",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": " "}]}),
            "continue_final_message",
        ),
        (json!({"continue_final_message": 1}), "continue_final_message"),
    ] {
        let answer = server.chat(merged(fields.clone(), more.clone())).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{more}"
        );
    }
}
