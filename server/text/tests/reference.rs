//! Token for token what the reference tokenizers give, for 2,033 strings (`scripts/fixtures/text_tokens.py`).
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use rempart_text::{Segment, Tokenizer};
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

/// `text` says for which strings the client's side is compared too.
fn compare(tokenizer: &Tokenizer, fixture: &str, text: impl Fn(&str) -> bool) {
    let strings = common::lines("strings.jsonl");
    let expected = common::lines(&format!("ids_{fixture}.jsonl"));
    assert_eq!(strings.len(), expected.len());
    assert!(strings.len() >= 2000);
    let mut wrong = Vec::new();
    for (string, expected) in strings.iter().zip(&expected) {
        let string = string.as_str().unwrap();
        let markup = ids(&expected["markup"]);
        let found = tokenizer.encode(&[Segment::Markup(string)], false).unwrap();
        if found != markup {
            wrong.push(format!(
                "markup {string:?}\n  expected {markup:?}\n     found {found:?}"
            ));
        }
        if !text(string) {
            continue;
        }
        let plain = expected.get("text").map_or(markup, ids);
        let found = tokenizer.encode(&[Segment::Text(string)], false).unwrap();
        if found != plain {
            wrong.push(format!(
                "text {string:?}\n  expected {plain:?}\n     found {found:?}"
            ));
        }
        assert!(
            found.iter().all(|id| !tokenizer.is_control(*id)),
            "a control token from {string:?}"
        );
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
}

#[test]
fn smollm2_from_gguf() {
    compare(&common::tokenizer("smollm2.gguf"), "smollm2", |_| true);
}

#[test]
fn gemma3_from_json() {
    compare(&common::tokenizer("gemma3.json"), "gemma3", |_| true);
}

#[test]
fn gemma3_from_gguf() {
    // The GGUF file marks more tokens as control tokens (<unused0>, <mask>) than the tokenizer.json does.
    let alike = |text: &str| !text.contains("<unused0>") && !text.contains("<mask>");
    compare(&common::tokenizer("gemma3.gguf"), "gemma3", alike);
}

#[test]
fn llama2_from_json() {
    compare(&common::tokenizer("llama2.json"), "llama2", |_| true);
}

#[test]
fn llama2_from_gguf_scores() {
    compare(&common::tokenizer("llama2.gguf"), "llama2", |_| true);
}

#[test]
fn llama3_from_json() {
    compare(&common::tokenizer("llama3_1.json"), "llama3_1", |_| true);
}

#[test]
fn llama3_from_gguf() {
    compare(&common::tokenizer("llama3_1.gguf"), "llama3_1", |_| true);
}

#[test]
fn qwen3_from_json() {
    compare(&common::tokenizer("qwen3.json"), "qwen3", |_| true);
}

#[test]
fn qwen2_from_gguf() {
    // Qwen 3 has the vocabulary and the steps of Qwen 2.5, and two more added tokens.
    let tokenizer = common::tokenizer("qwen2.5.gguf");
    let strings = common::lines("strings.jsonl");
    let expected = common::lines("ids_qwen3.jsonl");
    for (string, expected) in strings.iter().zip(&expected) {
        let string = string.as_str().unwrap();
        if string.contains("think>") {
            continue;
        }
        let markup = ids(&expected["markup"]);
        assert_eq!(
            tokenizer.encode(&[Segment::Markup(string)], false).unwrap(),
            markup,
            "{string:?}"
        );
        let plain = expected.get("text").map_or(markup, ids);
        assert_eq!(
            tokenizer.encode(&[Segment::Text(string)], false).unwrap(),
            plain,
            "{string:?}"
        );
    }
}
