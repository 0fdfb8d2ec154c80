//! docs/api.md tells the truth: every line of it is sent to a server.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Answer, SCRIPT, TestServer, merged};

/// One endpoint of the page.
pub(crate) struct Endpoint {
    pub(crate) path: String,
    /// Names, what is taken, what is refused, and what they do.
    pub(crate) rows: Vec<(String, Value, Value, String)>,
    pub(crate) without_effect: Vec<String>,
    pub(crate) refused: Vec<String>,
    /// All that stands there as code.
    pub(crate) names: BTreeSet<String>,
}

pub(crate) fn page() -> Vec<Endpoint> {
    let page = include_str!("../../../docs/api.md");
    page.split("\n## POST ").skip(1).map(endpoint).collect()
}

fn endpoint(section: &str) -> Endpoint {
    // The last is followed by what is no endpoint that takes a body.
    let section = section.split("\n## ").next().unwrap();
    let (path, text) = section.split_once('\n').unwrap();
    let value = |cell: &str| {
        let text = cell.trim().trim_matches('`');
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<&str> = line.trim_end_matches(" |").splitn(4, " | ").collect();
        let name = cells[0].trim_start_matches("| ").trim_matches('`');
        (
            name.to_owned(),
            value(cells[1]),
            value(cells[2]),
            cells[3].to_owned(),
        )
    });
    let list = |begin: &str| -> Vec<String> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(begin))
            .unwrap_or_default();
        line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    Endpoint {
        path: path.trim().to_owned(),
        rows: rows.collect(),
        without_effect: list("Without effect: "),
        refused: list("Refused by name: "),
        names: text.split('`').skip(1).step_by(2).map(str::to_owned).collect(),
    }
}

/// A body to which a parameter is added.
pub(crate) fn base(path: &str, name: &str) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    match path {
        "/v1/chat/completions" => json!({"model": "test-model", "messages": messages, "max_tokens": 40}),
        // No token at all is for prompts that are repeated.
        "/v1/completions" if name == "max_tokens" => {
            json!({"model": "test-model", "prompt": "Hi", "echo": true})
        }
        "/v1/completions" => json!({"model": "test-model", "prompt": "Hi", "max_tokens": 40}),
        "/v1/responses" => json!({"model": "test-model", "input": "Hi", "max_output_tokens": 40}),
        "/v1/messages" => json!({"model": "test-model", "messages": messages, "max_tokens": 40}),
        "/v1/embeddings" => json!({"model": "embedder", "input": "a"}),
        "/v1/rerank" => json!({"model": "ranker", "query": "a", "documents": ["a", "b"]}),
        "/v1/score" => json!({"model": "ranker", "text_1": "a", "text_2": "b"}),
        "/tokenize" if name == "prompt" => json!({"model": "test-model"}),
        "/tokenize" => json!({"model": "test-model", "messages": messages}),
        "/detokenize" => json!({"model": "test-model", "tokens": [72]}),
        other => panic!("{other} is new: add a body"),
    }
}

async fn send(server: &TestServer, path: &str, name: &str, value: &Value) -> Answer {
    server
        .post(path, merged(base(path, name), json!({name: value})))
        .await
}

fn param(answer: &Answer) -> String {
    answer.json()["error"]["param"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn every_example_is_taken_and_every_limit_holds() {
    let server = TestServer::saying(None, SCRIPT, &[]).await;
    let page = page();
    assert_eq!(page.len(), 9);
    for endpoint in &page {
        let path = &endpoint.path;
        assert!(endpoint.rows.len() > 1, "{path}");
        for (name, taken, refused, _) in &endpoint.rows {
            let answer = send(&server, path, name, taken).await;
            assert_eq!(answer.status, 200, "{path} {name} {taken}: {}", answer.body);
            let answer = send(&server, path, name, refused).await;
            assert_eq!(answer.status, 400, "{path} {name} {refused}");
            assert!(
                param(&answer).starts_with(name.as_str()),
                "{path} {name} {refused}: {}",
                answer.body
            );
        }
        for name in &endpoint.without_effect {
            let answer = send(&server, path, name, &json!("x")).await;
            assert_eq!(answer.status, 200, "{path} {name}: {}", answer.body);
        }
        for name in &endpoint.refused {
            let answer = send(&server, path, name, &json!(1)).await;
            assert_eq!(
                (answer.status.as_u16(), param(&answer)),
                (400, name.clone()),
                "{path}"
            );
            assert_eq!(
                answer.json()["error"]["code"],
                "unsupported_parameter",
                "{path} {name}"
            );
        }
        let answer = send(&server, path, "frobnicate", &json!(1)).await;
        assert_eq!(answer.json()["error"]["code"], "unknown_parameter", "{path}");
    }
}

/// Whatever the readers of requests know by name is on the page.
#[test]
fn no_parameter_is_missing() {
    use rempart::anthropic::MessagesRequest;
    use rempart::openai::chat::ChatRequest;
    use rempart::openai::completions::CompletionRequest;
    use rempart::openai::embeddings::EmbeddingsRequest;
    use rempart::openai::rank::{RerankRequest, ScoreRequest};
    use rempart::openai::responses::ResponsesRequest;
    use rempart::openai::tokenize::{DetokenizeRequest, TokenizeRequest};
    let text = include_str!("../../../docs/api.md");
    let known = [
        ("/v1/chat/completions", ChatRequest::names()),
        ("/v1/completions", CompletionRequest::names()),
        ("/v1/responses", ResponsesRequest::names()),
        ("/v1/messages", MessagesRequest::names()),
        ("/v1/embeddings", EmbeddingsRequest::names()),
        ("/v1/rerank", RerankRequest::names()),
        ("/v1/score", ScoreRequest::names()),
        ("/tokenize", TokenizeRequest::names()),
        ("/detokenize", DetokenizeRequest::names()),
    ];
    for (path, names) in known {
        let section = text
            .split("\n## POST ")
            .find(|section| section.starts_with(&format!("{path}\n")))
            .unwrap();
        let told: BTreeSet<&str> = section.split('`').skip(1).step_by(2).collect();
        let missing: Vec<&str> = names.into_iter().filter(|name| !told.contains(name)).collect();
        assert_eq!(missing, Vec::<&str>::new(), "{path}");
    }
}
