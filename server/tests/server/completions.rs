//! `/v1/completions`.

use serde_json::json;

use super::support::{SCRIPT, TestServer};

#[tokio::test]
async fn a_whole_answer() {
    let server = TestServer::start(&[]).await;
    let answer = server.complete(json!({"temperature": 0})).await;
    insta::assert_json_snapshot!(answer.json());
}

#[tokio::test]
async fn a_stream() {
    let server = TestServer::start(&[]).await;
    let options = json!({"include_usage": true});
    let fields = json!({"temperature": 0, "max_tokens": 9, "stream": true, "stream_options": options});
    insta::assert_json_snapshot!(server.complete(fields).await.events());
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let server = TestServer::start(&[]).await;
    let expected = "Say:Hello, ";
    for prompt in [
        json!("Say:"),
        json!(["Say:"]),
        json!([83, 97, 121, 58]),
        json!([[83, 97, 121, 58]]),
    ] {
        let fields = json!({"temperature": 0, "max_tokens": 7, "echo": true, "prompt": prompt});
        let answer = server.complete(fields).await.json();
        assert_eq!(answer["choices"][0]["text"], expected);
        assert_eq!(answer["usage"]["prompt_tokens"], 4);
    }
    let fields = json!({"temperature": 0, "max_tokens": 5, "n": 2, "echo": true, "prompt": ["a", [98]]});
    assert_eq!(
        server.complete(fields).await.status,
        400,
        "one form for all prompts"
    );
    let fields = json!({"temperature": 0, "max_tokens": 5, "n": 2, "echo": true, "prompt": ["a", "b"]});
    for streamed in [false, true] {
        let fields = super::support::merged(fields.clone(), json!({"stream": streamed}));
        let answer = server.complete(fields).await;
        let text = |index: usize| {
            if streamed {
                return answer.streamed(index);
            }
            answer.json()["choices"][index]["text"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let texts: Vec<String> = (0..4).map(text).collect();
        assert_eq!(texts, ["aHello", "aHello", "bHello", "bHello"]);
    }
}

#[tokio::test]
async fn the_default_of_max_tokens_is_what_the_context_leaves() {
    let server = TestServer::start(&[]).await;
    for (prompt, made) in [(250, 6), (255, 1), (240, 16), (10, 16)] {
        let answer = server
            .complete(json!({"prompt": "x".repeat(prompt), "ignore_eos": true}))
            .await;
        assert_eq!(
            answer.json()["usage"]["completion_tokens"],
            made,
            "{prompt}: {}",
            answer.body
        );
    }
    let none = server.complete(json!({"prompt": "x".repeat(256)})).await;
    assert_eq!(none.status, 400);
    let asked = server
        .complete(json!({"prompt": "x".repeat(250), "max_tokens": 16}))
        .await;
    assert_eq!(asked.json()["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn prompts_that_can_never_wait_together_are_told_the_limit() {
    let server = TestServer::start(&["--queue-requests-max", "3", "--queue-tokens-max", "100"]).await;
    for (fields, limit) in [
        (json!({"prompt": ["a", "b", "c", "d"]}), "--queue-requests-max"),
        (
            json!({"prompt": ["x".repeat(50), "y".repeat(51)]}),
            "--queue-tokens-max",
        ),
        (
            json!({"prompt": ["x".repeat(98), "y"], "n": 2}),
            "--queue-tokens-max",
        ),
    ] {
        let answer = server.complete(fields).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], "request_too_large");
        assert!(error["message"].as_str().unwrap().contains(limit), "{error}");
    }
    for fields in [
        json!({"prompt": ["a", "b", "c"]}),
        json!({"prompt": ["x".repeat(50), "y".repeat(50)]}),
        // An empty queue takes any one request.
        json!({"prompt": "x".repeat(200)}),
    ] {
        assert_eq!(server.complete(fields).await.status, 200);
    }
}

#[tokio::test]
async fn echoed_prompts_are_scored() {
    let server = TestServer::start(&[]).await;
    let fields = json!({"temperature": 0, "max_tokens": 2, "echo": true, "logprobs": 1, "prompt": "aé"});
    insta::assert_json_snapshot!(server.complete(fields).await.json()["choices"][0]);
    let fields = json!({"max_tokens": 0, "echo": true, "logprobs": 0, "prompt": "ab"});
    let answer = server.complete(fields).await.json();
    assert_eq!(answer["choices"][0]["text"], "ab");
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn cached_tokens_are_told() {
    let server = TestServer::start(&[]).await;
    let prompt = "x".repeat(100);
    for cached in [0, 96] {
        let answer = server
            .complete(json!({"max_tokens": 1, "prompt": prompt}))
            .await
            .json();
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], cached);
    }
}

#[tokio::test]
async fn text_that_spells_a_special_token_stays_text() {
    let server = TestServer::start(&[]).await;
    let answer = server
        .post("/tokenize", json!({"prompt": "<|im_end|>"}))
        .await
        .json();
    assert_eq!(answer["count"], "<|im_end|>".len());
    let answer = server
        .complete(json!({"prompt": "<|im_end|>", "max_tokens": 200, "temperature": 0}))
        .await;
    assert_eq!(answer.json()["choices"][0]["text"], SCRIPT);
}

#[tokio::test]
async fn a_prompt_is_cut_only_on_demand() {
    let server = TestServer::start(&[]).await;
    let long = "x".repeat(300);
    assert_eq!(server.complete(json!({"prompt": long})).await.status, 400);
    for (truncate, max_tokens, left) in [(-1, 6, 250), (10, 6, 10), (1000, 6, 300)] {
        let fields = json!({"prompt": long, "truncate_prompt_tokens": truncate, "max_tokens": max_tokens});
        let answer = server.complete(fields).await;
        if left > 250 {
            assert_eq!(answer.status, 400, "what is left is still too long");
        } else {
            assert_eq!(answer.json()["usage"]["prompt_tokens"], left);
        }
    }
    let chat = json!({"messages": [{"role": "user", "content": long}], "truncate_prompt_tokens": 20});
    assert_eq!(server.chat(chat).await.json()["usage"]["prompt_tokens"], 20);
}

#[tokio::test]
async fn a_model_without_the_tokens_fills_nothing_in() {
    let server = TestServer::start(&[]).await;
    let answer = server.complete(json!({"suffix": "x"})).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["param"]),
        (400, &json!("suffix"))
    );
}
