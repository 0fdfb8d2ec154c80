//! Embeddings and ranking.

use serde_json::{Value, json};

use crate::support::{Answer, TestServer, merged};

async fn embed(server: &TestServer, fields: Value) -> Answer {
    server
        .post("/v1/embeddings", merged(json!({"model": "embedder"}), fields))
        .await
}

fn vectors(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("embedder"))
    );
    let data = answer["data"].as_array().unwrap();
    assert!(
        data.iter()
            .enumerate()
            .all(|(at, item)| item["index"] == at && item["object"] == "embedding")
    );
    data.iter().map(|item| item["embedding"].clone()).collect()
}

#[tokio::test]
async fn inputs_of_every_kind_are_embedded() {
    let server = TestServer::start(&[]).await;
    let (abba, dd) = (json!([2.0, 2.0, 0.0, 0.0]), json!([0.0, 0.0, 0.0, 2.0]));
    for (input, expected) in [
        (json!("abba"), json!([abba])),
        (json!(["abba", "dd"]), json!([abba, dd])),
        (json!([100, 100]), json!([dd])),
        (json!([[97, 98, 98, 97], [100, 100]]), json!([abba, dd])),
        (json!(["abba", [100, 100]]), json!([abba, dd])),
    ] {
        assert_eq!(
            vectors(&embed(&server, json!({"input": input})).await),
            expected,
            "{input}"
        );
    }
    let answer = embed(&server, json!({"input": ["abba", "dd"], "user": "me"})).await;
    let usage: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(usage["usage"], json!({"prompt_tokens": 6, "total_tokens": 6}));
}

/// More of them than the connection's own thread writes.
#[tokio::test]
async fn many_vectors_come_in_order() {
    let server = TestServer::start(&[]).await;
    let inputs: Vec<&str> = ["abba", "dd"].into_iter().cycle().take(1101).collect();
    let (abba, dd) = (json!([2.0, 2.0, 0.0, 0.0]), json!([0.0, 0.0, 0.0, 2.0]));
    let expected: Vec<&Value> = [&abba, &dd].into_iter().cycle().take(inputs.len()).collect();
    let answer = embed(&server, json!({"input": inputs})).await;
    assert_eq!(vectors(&answer), json!(expected));
}

#[tokio::test]
async fn vectors_come_as_bytes_and_shorter_if_asked_for() {
    let server = TestServer::start(&[]).await;
    // f32, least significant byte first: 2, 2, 0, 0.
    let answer = embed(&server, json!({"input": "abba", "encoding_format": "base64"})).await;
    assert_eq!(vectors(&answer), json!(["AAAAQAAAAEAAAAAAAAAAAA=="]));
    let answer = vectors(&embed(&server, json!({"input": "aab", "dimensions": 1})).await);
    assert_eq!(answer, json!([[1.0]]), "of length 1 again");
    let whole = vectors(&embed(&server, json!({"input": "aab", "dimensions": 4})).await);
    assert_eq!(whole, json!([[2.0, 1.0, 0.0, 0.0]]));
}

#[tokio::test]
async fn what_is_too_long_is_cut_only_on_demand() {
    let server = TestServer::start(&[]).await;
    let long = "a".repeat(70);
    for (input, param) in [
        (json!(long), "input"),
        (json!(["a", long]), "input[1]"),
        (json!([vec![97; 70]]), "input"),
    ] {
        let answer = embed(&server, json!({"input": input})).await;
        let error = answer.json()["error"].clone();
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("context_length_exceeded"), &json!(param))
        );
    }
    for (truncate, left) in [(-1, 64.0), (100, 64.0), (5, 5.0)] {
        let answer = embed(
            &server,
            json!({"input": [long, vec![97; 70]], "truncate_prompt_tokens": truncate}),
        )
        .await;
        assert_eq!(
            vectors(&answer),
            json!([[left, 0.0, 0.0, 0.0], [left, 0.0, 0.0, 0.0]])
        );
    }
}

#[tokio::test]
async fn documents_are_put_in_order() {
    let server = TestServer::start(&[]).await;
    let documents = json!(["xyz", "aab", {"text": "ccb"}, "aaa"]);
    let scores = [3.0, 3.0, 1.0, 0.0];
    {
        let body = json!({"model": "ranker", "query": "ab", "documents": documents});
        for path in ["/v1/rerank", "/rerank", "/v2/rerank"] {
            let answer = server.post(path, body.clone()).await.json();
            let results = answer["results"].as_array().unwrap();
            let indices: Vec<&Value> = results.iter().map(|result| &result["index"]).collect();
            assert_eq!(indices, [1, 3, 2, 0]);
            let told: Vec<f64> = results
                .iter()
                .map(|result| result["relevance_score"].as_f64().unwrap())
                .collect();
            assert_eq!(told, scores);
            let document = &results[2]["document"]["text"];
            assert_eq!(
                document,
                &if path == "/v2/rerank" {
                    Value::Null
                } else {
                    json!("ccb")
                }
            );
        }
        let two = server
            .post(
                "/v1/rerank",
                merged(body, json!({"top_n": 2, "return_documents": false})),
            )
            .await
            .json();
        assert_eq!(two["results"].as_array().unwrap().len(), 2);
        assert_eq!(two["results"][0]["document"], Value::Null);
    }
    // A model that embeds ranks by the cosine.
    let body = json!({"model": "embedder", "query": "ab", "documents": ["cc", "aabb", "ac"], "max_tokens_per_doc": 4});
    let answer = server.post("/v1/rerank", body).await.json();
    let order: Vec<(&Value, f64)> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| (&result["index"], result["relevance_score"].as_f64().unwrap()))
        .collect();
    assert_eq!(
        order
            .iter()
            .map(|(index, _)| (*index).clone())
            .collect::<Vec<_>>(),
        [1, 2, 0]
    );
    assert!((order[0].1 - 1.0).abs() < 1e-6 && (order[1].1 - 0.5).abs() < 1e-6 && order[2].1.abs() < 1e-6);
}

#[tokio::test]
async fn pairs_are_scored() {
    let server = TestServer::start(&[]).await;
    for (fields, scores) in [
        (
            json!({"text_1": "ab", "text_2": ["aab", "xyz"]}),
            json!([3.0, 0.0]),
        ),
        (
            json!({"text_1": ["ab", "x"], "text_2": ["aab", "xyz"]}),
            json!([3.0, 1.0]),
        ),
        (json!({"queries": "ab", "documents": "a"}), json!([1.0])),
    ] {
        let answer = server
            .post("/v1/score", merged(json!({"model": "ranker"}), fields))
            .await
            .json();
        let told: Value = answer["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["score"].clone())
            .collect();
        assert_eq!(told, scores);
    }
}

#[tokio::test]
async fn bad_requests_are_named() {
    let server = TestServer::start(&[]).await;
    for (fields, param) in [
        (json!({}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ["a", ""]}), "input[1]"),
        (json!({"input": [[]]}), "input[0]"),
        (json!({"input": 7}), "input"),
        (json!({"input": [1.5]}), "input[0]"),
        (json!({"input": [300]}), "input"),
        (json!({"input": "a", "dimensions": 5}), "dimensions"),
        (json!({"input": "a", "encoding_format": "hex"}), "encoding_format"),
        (
            json!({"input": "a", "truncate_prompt_tokens": 0}),
            "truncate_prompt_tokens",
        ),
        (json!({"input": "a", "model": "ranker"}), "model"),
        (json!({"input": "a", "model": "test-model"}), "model"),
        (json!({"input": "a", "frob": 1}), "frob"),
    ] {
        let answer = embed(&server, fields.clone()).await;
        assert_eq!(answer.status, 400, "{fields}");
        assert_eq!(
            answer.json()["error"]["param"],
            param,
            "{fields}: {}",
            answer.body
        );
    }
    assert_eq!(
        embed(&server, json!({"input": "a", "model": "nobody"}))
            .await
            .status,
        404
    );
    for (fields, param) in [
        (json!({"query": "a"}), "documents"),
        (json!({"query": "a", "documents": []}), "documents"),
        (json!({"query": "a", "documents": [1]}), "documents[0]"),
        (
            json!({"query": "a", "documents": ["x".repeat(70)]}),
            "documents[0]",
        ),
        (json!({"query": "a", "documents": ["x"], "top_n": -1}), "top_n"),
    ] {
        let answer = server
            .post("/v1/rerank", merged(json!({"model": "ranker"}), fields.clone()))
            .await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{fields}"
        );
    }
    let uneven = json!({"model": "ranker", "text_1": ["a", "b"], "text_2": ["a", "b", "c"]});
    assert_eq!(
        server.post("/v1/score", uneven).await.json()["error"]["param"],
        "text_1"
    );
    let few = TestServer::start(&["--inputs-max", "2"]).await;
    assert_eq!(
        embed(&few, json!({"input": ["a", "b", "c"]})).await.json()["error"]["code"],
        "array_above_max_length"
    );
}

/// A score of nothing would mean nothing; `/v1/embeddings` refuses it, too.
#[tokio::test]
async fn empty_texts_are_refused() {
    let server = TestServer::start(&[]).await;
    for (path, fields, param) in [
        ("/v1/rerank", json!({"query": "", "documents": ["a"]}), "query"),
        (
            "/v1/rerank",
            json!({"query": "a", "documents": ["a", ""]}),
            "documents[1]",
        ),
        (
            "/v1/rerank",
            json!({"query": "a", "documents": [{"text": ""}]}),
            "documents[0]",
        ),
        ("/v1/score", json!({"text_1": "", "text_2": "a"}), "text_1"),
        (
            "/v1/score",
            json!({"queries": "a", "documents": ["a", ""]}),
            "documents[1]",
        ),
    ] {
        for model in ["ranker", "embedder"] {
            let answer = server
                .post(path, merged(json!({"model": model}), fields.clone()))
                .await;
            let error = &answer.json()["error"];
            assert_eq!(
                (answer.status.as_u16(), &error["code"], &error["param"]),
                (400, &json!("empty_string"), &json!(param)),
                "{fields}"
            );
        }
    }
}

#[tokio::test]
async fn whoever_asks_an_encoder_for_text_is_told_what_it_does() {
    let server = TestServer::start(&[]).await;
    let messages = json!([{"role": "user", "content": "a"}]);
    for (path, fields) in [
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/responses", json!({"input": "a"})),
        ("/v1/responses/input_tokens", json!({"input": "a"})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 5})),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
        ("/tokenize", json!({"prompt": "a"})),
        ("/detokenize", json!({"tokens": [97]})),
    ] {
        for (model, usage) in [("embedder", "/v1/embeddings"), ("ranker", "/v1/rerank")] {
            let answer = server
                .post(path, merged(fields.clone(), json!({"model": model})))
                .await;
            let error = &answer.json()["error"];
            assert_eq!(
                (answer.status.as_u16(), &error["code"], &error["param"]),
                (400, &json!("model_not_supported"), &json!("model")),
                "{path} {model}"
            );
            assert!(error["message"].as_str().unwrap().contains(usage), "{error}");
        }
    }
}
