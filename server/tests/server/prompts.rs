//! What a request may say of its prompt and of its answer beyond the words: likelihoods, repetition, expectation, priority.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::support::{CONTEXT, SCRIPT, TestServer, chat_body, merged, post_request, read};

/// A request with one message.
fn asked(more: Value) -> Value {
    let fields = json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 60, "temperature": 0});
    merged(fields, more)
}

#[tokio::test]
async fn prompts_are_scored() {
    let server = TestServer::start(&[]).await;
    let fields = asked(json!({"prompt_logprobs": 2, "return_token_ids": true, "n": 2}));
    let answer = server.chat(fields).await.json();
    let (tokens, scores) = (&answer["prompt_token_ids"], &answer["prompt_logprobs"]);
    let (tokens, scores) = (tokens.as_array().unwrap(), scores.as_array().unwrap());
    assert_eq!((scores.len(), &scores[0]), (tokens.len(), &Value::Null));
    for (token, score) in tokens.iter().zip(scores).skip(1) {
        let own = &score[token.to_string()];
        let better = score.as_object().unwrap().values();
        let better = better.filter(|other| other["logprob"].as_f64() > own["logprob"].as_f64());
        assert!(own["rank"].as_u64().unwrap() > better.count() as u64, "{score}");
        assert!((2..=3).contains(&score.as_object().unwrap().len()), "{score}");
    }
    // The other endpoint says the same of the same tokens, and in the older form, too.
    let fields =
        json!({"prompt": tokens, "prompt_logprobs": 2, "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = server.complete(fields).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["prompt_logprobs"], json!(scores));
    let older = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    for (token, (old, score)) in tokens.iter().zip(older.iter().zip(scores)).skip(1) {
        assert_eq!(old, &score[token.to_string()]["logprob"]);
    }
    assert_eq!(
        choice["logprobs"]["top_logprobs"][1].as_object().unwrap().len(),
        1
    );
    let answer =
        server.complete(json!({"prompt": ["ab", "c"], "prompt_logprobs": 0, "max_tokens": 1, "n": 2}));
    let choices = answer.await.json()["choices"].clone();
    let told: Vec<usize> = choices
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["prompt_logprobs"].as_array().map_or(0, Vec::len))
        .collect();
    assert_eq!(told, [2, 0, 1, 0], "once for each prompt");
}

#[tokio::test]
async fn a_continued_message_may_be_repeated() {
    let server = TestServer::start(&[]).await;
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "Well: "}]);
    let fields =
        json!({"messages": messages, "continue_final_message": true, "echo": true, "temperature": 0, "n": 2});
    let answer = server.chat(fields.clone()).await.json();
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], format!("Well: {SCRIPT}"));
    }
    let events = server.chat(merged(fields, json!({"stream": true}))).await;
    for index in 0..2 {
        assert_eq!(events.streamed(index), format!("Well: {SCRIPT}"));
    }
    let answer = server.chat(asked(json!({"echo": true}))).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["param"]),
        (400, &json!("echo"))
    );
}

#[tokio::test]
async fn an_answer_may_be_predicted() {
    let server = TestServer::start(&["--speculative-tokens", "8"]).await;
    let usage = |answer: &Value| answer["usage"]["completion_tokens_details"].clone();
    let plain = server.chat(asked(json!({}))).await.json();
    assert_eq!(plain["choices"][0]["message"]["content"], SCRIPT);
    let mut accepted = Vec::new();
    for content in [
        json!(SCRIPT),
        json!([{"type": "text", "text": SCRIPT.replacen("One", "Two", 1)}]),
        json!("Something else altogether"),
        json!(""),
    ] {
        let prediction = json!({"prediction": {"type": "content", "content": content}});
        let answer = server.chat(asked(prediction)).await.json();
        assert_eq!(answer["choices"][0]["message"], plain["choices"][0]["message"]);
        assert_eq!(
            answer["usage"]["completion_tokens"],
            plain["usage"]["completion_tokens"]
        );
        let usage = usage(&answer);
        accepted.push(usage["accepted_prediction_tokens"].as_u64().unwrap());
    }
    // Each step confirms eight guesses and makes a token; a word that differs costs some.
    assert!(
        accepted[0] > 20 && (10..accepted[0]).contains(&accepted[1]),
        "{accepted:?}"
    );
    assert_eq!(accepted[2..], [0, 0], "{accepted:?}");
    // A stop string ends a choice before its engine says so; what came true before is counted all the same, for all choices.
    let prediction = json!({"type": "content", "content": SCRIPT});
    let fields = json!({"prediction": prediction, "stop": ["One"], "n": 2});
    let stopped = usage(&server.chat(asked(fields)).await.json());
    let count = stopped["accepted_prediction_tokens"].as_u64().unwrap();
    assert!(count > 15, "{stopped}");
    let off = TestServer::start(&["--speculative-tokens", "0"]).await;
    let prediction = json!({"prediction": {"type": "content", "content": SCRIPT}});
    let usage = usage(&off.chat(asked(prediction)).await.json());
    assert_eq!(usage["accepted_prediction_tokens"], 0, "and that is told");
    let long = json!({"prediction": {"type": "content", "content": "x".repeat(CONTEXT + 1)}});
    let refused = off.chat(asked(long)).await;
    assert_eq!(refused.json()["error"]["param"], "prediction.content");
}

#[tokio::test]
async fn a_lower_number_is_served_first() {
    let options = [
        "--sequences-max",
        "1",
        "--queue-requests-max",
        "4",
        "--itl-target-ms",
        "0",
    ];
    let server = TestServer::start(&options).await;
    server.controls.close();
    let send = |name: &'static str, priority: i32| {
        let fields = asked(json!({"priority": priority, "max_tokens": 1}));
        let request = post_request("/v1/chat/completions", chat_body(fields).to_string());
        let router = server.router.clone();
        async move { (name, read(&router, request).await.status.as_u16()) }
    };
    let mut all = JoinSet::new();
    all.spawn(send("running", 0));
    server.controls.held().await;
    for (name, priority) in [("later", 7), ("sooner", 3), ("last", 1000)] {
        all.spawn(send(name, priority));
    }
    // Until all are there, to be taken up when the step ends that is held. Its own request is counted with them until then.
    while server.engine.check_not_full(0).is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for name in ["running", "sooner", "later", "last"] {
        // One step makes an answer, and the next one is held until that is told.
        server.controls.step();
        assert_eq!(all.join_next().await.unwrap().unwrap(), (name, 200));
    }
}

#[tokio::test]
async fn likelihoods_of_a_prompt_have_a_limit() {
    let server = TestServer::start(&["--prompt-logprobs-max", "20"]).await;
    for (fields, status) in [
        (json!({"prompt": "x".repeat(10), "prompt_logprobs": 1}), 200),
        (json!({"prompt": "x".repeat(11), "prompt_logprobs": 1}), 400),
        (json!({"prompt": "x".repeat(11), "prompt_logprobs": 0}), 200),
        (
            json!({"prompt": "x".repeat(11), "echo": true, "logprobs": 1, "max_tokens": 0}),
            400,
        ),
    ] {
        assert_eq!(server.complete(fields.clone()).await.status, status, "{fields}");
    }
}

#[tokio::test]
async fn who_may_be_served_first_is_the_operators_choice() {
    let server = TestServer::start(&[]).await;
    assert_eq!(server.chat(asked(json!({"priority": 5}))).await.status, 200);
    assert_eq!(server.chat(asked(json!({"priority": -1}))).await.status, 400);
    let open = TestServer::start(&["--priority-min", "-1"]).await;
    assert_eq!(open.chat(asked(json!({"priority": -1}))).await.status, 200);
    let answer = open.chat(asked(json!({"priority": -2}))).await;
    assert!(answer.body.contains("between -1 and 1000"), "{}", answer.body);
}
