//! Texts and pairs with what is around them, token for token and type for type what transformers gives with the tokenizers
//! of encoders (`scripts/fixtures/text_encoders.py`).
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use rempart_text::{Encoded, Error, GgufVocab, Limit, Tokenizer};
use serde_json::{Value, json};

fn minilm() -> Vec<u8> {
    common::model_file(
        "all-MiniLM-L6-v2/tokenizer.json",
        "scripts/models.py fetch minilm",
    )
}

fn unigram() -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::read(folder.join("unigram.json")).unwrap()
}

fn encode(tokenizer: &Tokenizer, texts: &[&str], limit: Limit) -> Result<Encoded, Error> {
    match texts {
        [text] => tokenizer.encode_text(text, limit),
        [first, second] => tokenizer.encode_pair(first, second, limit),
        _ => panic!("one text or two"),
    }
}

fn compare(bytes: &[u8], fixture: &str) {
    let tokenizer = Tokenizer::from_json(bytes).unwrap();
    let strings = common::lines("strings.jsonl");
    let numbers = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    for line in common::lines(&format!("encoders_{fixture}.jsonl")) {
        let texts: Vec<&str> = numbers(&line["texts"])
            .iter()
            .map(|&i| strings[i as usize].as_str().unwrap())
            .collect();
        let expected = |ids: &str, types: &str| Encoded {
            ids: numbers(&line[ids]),
            type_ids: numbers(&line[types]),
        };
        let whole = expected("ids", "types");
        let len = whole.ids.len();
        assert_eq!(
            encode(&tokenizer, &texts, Limit::Refuse(len)).unwrap(),
            whole,
            "{texts:?}"
        );
        match encode(&tokenizer, &texts, Limit::Refuse(len - 1)) {
            Err(Error::TooLong { at_least }) => assert_eq!(at_least, len),
            other => panic!("{texts:?}: {other:?}"),
        }
        if let Some(max) = line["max"].as_u64() {
            let cut = encode(&tokenizer, &texts, Limit::Truncate(max as usize)).unwrap();
            assert_eq!(cut, expected("cut_ids", "cut_types"), "{max} tokens of {texts:?}");
        }
    }
}

#[test]
fn bert() {
    compare(&minilm(), "minilm");
}

#[test]
fn xlm_roberta_with_a_small_vocabulary() {
    compare(&unigram(), "unigram");
}

#[test]
fn texts_never_yield_what_stands_around_them() {
    for (bytes, specials) in [
        (minilm(), "[CLS][SEP] [PAD] [MASK]"),
        (unigram(), "<s></s> <pad> <mask>"),
    ] {
        let tokenizer = Tokenizer::from_json(&bytes).unwrap();
        let encoded = tokenizer
            .encode_text(specials, Limit::Refuse(usize::MAX))
            .unwrap();
        let inner = &encoded.ids[1..encoded.ids.len() - 1];
        assert!(
            inner.len() > 4
                && !inner
                    .iter()
                    .any(|id| tokenizer.is_control(*id) && Some(*id) != unknown(&tokenizer))
        );
    }
}

fn unknown(tokenizer: &Tokenizer) -> Option<u32> {
    let text = tokenizer.special_tokens().unknown?;
    (0..tokenizer.vocab_size() as u32)
        .find(|id| tokenizer.token_text(*id).is_some_and(|own| own.trim() == text))
}

#[test]
fn limits_below_what_stands_around_a_text_are_too_low() {
    let tokenizer = Tokenizer::from_json(&minilm()).unwrap();
    for limit in [Limit::Refuse(1), Limit::Truncate(1)] {
        let error = tokenizer.encode_text("a", limit).unwrap_err();
        assert!(matches!(error, Error::TooLong { at_least: 2 }), "{error:?}");
    }
    let empty = tokenizer.encode_pair("a", "b", Limit::Truncate(3)).unwrap();
    assert_eq!((empty.ids, empty.type_ids), (vec![101, 102, 102], vec![0, 0, 1]));
}

/// The file with another post-processor.
fn processed(processor: &Value) -> Result<Tokenizer, Error> {
    let mut json: Value = serde_json::from_slice(&unigram()).unwrap();
    json["post_processor"] = processor.clone();
    Tokenizer::from_json(json.to_string().as_bytes())
}

#[test]
fn post_processors_that_ask_for_too_much_are_refused() {
    let special = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let template = |single: Vec<Value>, pair: Vec<Value>, id: u32| {
        let tokens = json!({"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}});
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
    };
    let both = || vec![text("A"), text("B")];
    let mut many = vec![special.clone(); 100];
    many.push(text("A"));
    let error = processed(&template(many, both(), 0)).unwrap_err().to_string();
    assert!(error.contains("adds 100 tokens"), "{error}");
    let mut outside = both();
    outside.push(special);
    let error = processed(&template(vec![text("A")], outside, 1 << 20))
        .unwrap_err()
        .to_string();
    assert!(error.contains("not in the vocabulary"), "{error}");
    // Turned around: texts alone are none the worse for it.
    let turned = processed(&template(vec![text("A")], vec![text("B"), text("A")], 0)).unwrap();
    assert!(turned.encode_text("a", Limit::Refuse(9)).is_ok());
    assert!(matches!(
        turned.encode_pair("a", "b", Limit::Refuse(9)),
        Err(Error::Unsupported(_))
    ));
}

#[test]
fn gguf_metadata_say_nothing_of_pairs() {
    let vocab = GgufVocab {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "▁", "a"].map(String::from).to_vec(),
        scores: Some(vec![0.0; 4]),
        token_types: Some(vec![2, 3, 1, 1]),
        bos: Some(1),
        unknown: Some(0),
        ..GgufVocab::default()
    };
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    let encoded = tokenizer.encode_text("a", Limit::Refuse(9)).unwrap();
    assert_eq!((encoded.ids, encoded.type_ids), (vec![1, 2, 3], vec![0; 3]));
    assert!(matches!(
        tokenizer.encode_pair("a", "a", Limit::Refuse(9)),
        Err(Error::Unsupported(_))
    ));
}

/// A million bytes of any kind are cut to a few tokens, in time that grows no faster than they do.
#[test]
fn long_texts_are_cut_in_linear_time() {
    for bytes in [minilm(), unigram()] {
        let tokenizer = Tokenizer::from_json(&bytes).unwrap();
        for piece in ["a", "ab ", "é", "e\u{301}", "中", "\u{fffd}", "\u{200b}", "[CLS]"] {
            let seconds = |len: usize| {
                let text = piece.repeat(len / piece.len());
                let start = std::time::Instant::now();
                let encoded = tokenizer.encode_text(&text, Limit::Truncate(16)).unwrap();
                assert!(encoded.ids.len() <= 16);
                start.elapsed().as_secs_f64()
            };
            // The machine may stop in one of them: the shortest time is the text's own.
            let short = (0..3).map(|_| seconds(100_000)).fold(f64::INFINITY, f64::min);
            let longer: Vec<f64> = (0..3)
                .map(|_| seconds(1_000_000))
                .take_while(|long| *long >= 60.0 * short.max(0.01))
                .collect();
            assert!(longer.len() < 3, "{piece:?}: {short} s, then {longer:?} s");
        }
    }
}
