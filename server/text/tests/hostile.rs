//! Broken and hostile vocabularies: refused or used, never a panic, a hang or a great allocation.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use rempart_text::{Error, GgufVocab, KNOWN_PRE_TOKENIZERS, Segment, Tokenizer};
use serde_json::{Value, json};

fn texts(items: &[&str]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn bpe() -> GgufVocab {
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: texts(&["a", "b", "ab", "<|end|>"]),
        merges: Some(texts(&["a b"])),
        token_types: Some(vec![1, 1, 1, 3]),
        eos: Some(3),
        ..GgufVocab::default()
    }
}

fn scored() -> GgufVocab {
    GgufVocab {
        model: "llama".into(),
        tokens: texts(&["<unk>", "<s>", "</s>", "a", "b", "ab", "▁"]),
        scores: Some(vec![0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -3.0]),
        token_types: Some(vec![2, 3, 3, 1, 1, 1, 1]),
        unknown: Some(0),
        bos: Some(1),
        eos: Some(2),
        ..GgufVocab::default()
    }
}

#[test]
fn small_vocabularies_work() {
    let tokenizer = Tokenizer::from_gguf(&bpe()).unwrap();
    assert_eq!(
        tokenizer.encode(&[Segment::Markup("abba<|end|>")], true).unwrap(),
        [2, 1, 0, 3]
    );
    let tokenizer = Tokenizer::from_gguf(&scored()).unwrap();
    assert_eq!(
        tokenizer.encode(&[Segment::Text("ab?!")], true).unwrap(),
        [1, 6, 5, 0]
    );
}

#[test]
fn broken_metadata_are_refused() {
    let broken = [
        GgufVocab {
            tokens: Vec::new(),
            ..bpe()
        },
        GgufVocab {
            merges: None,
            ..bpe()
        },
        GgufVocab {
            merges: Some(texts(&["a x"])),
            ..bpe()
        },
        GgufVocab {
            merges: Some(texts(&["b a"])),
            ..bpe()
        },
        GgufVocab {
            merges: Some(texts(&["ab"])),
            ..bpe()
        },
        GgufVocab {
            merges: Some(texts(&[""])),
            ..bpe()
        },
        GgufVocab {
            token_types: Some(vec![1]),
            ..bpe()
        },
        GgufVocab {
            eos: Some(4),
            ..bpe()
        },
        GgufVocab {
            bos: Some(u32::MAX),
            ..bpe()
        },
        GgufVocab {
            tokens: vec!["a".into(); (1 << 21) + 1],
            ..bpe()
        },
        GgufVocab {
            scores: None,
            ..scored()
        },
        GgufVocab {
            scores: Some(vec![0.0]),
            ..scored()
        },
        GgufVocab {
            unknown: Some(99),
            ..scored()
        },
    ];
    for vocab in broken {
        assert!(matches!(Tokenizer::from_gguf(&vocab), Err(Error::Load(_))));
    }
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    for (model, pre) in [("rwkv", "gpt-2"), ("", "gpt-2"), ("gpt2", "tekken"), ("gpt2", "")] {
        let vocab = GgufVocab {
            model: model.into(),
            pre: Some(pre.into()),
            ..bpe()
        };
        let error = Tokenizer::from_gguf(&vocab).unwrap_err().to_string();
        assert!(error.contains("known"), "{error}");
        if model == "gpt2" {
            assert!(
                KNOWN_PRE_TOKENIZERS.iter().all(|name| error.contains(name)),
                "{error}"
            );
        }
    }
}

#[test]
fn odd_metadata_are_survived() {
    let odd = [
        GgufVocab {
            tokens: texts(&["a", "a", "aa", ""]),
            merges: Some(texts(&["a a"])),
            ..bpe()
        },
        GgufVocab {
            token_types: Some(vec![9, -1, i32::MAX, i32::MIN]),
            ..bpe()
        },
        GgufVocab {
            token_types: Some(vec![3, 4, 1, 3]),
            merges: Some(texts(&["b ab"])),
            tokens: texts(&["x", "b", "ab", "bab"]),
            eos: None,
            ..bpe()
        },
        GgufVocab {
            scores: Some(vec![f32::NAN; 7]),
            ..scored()
        },
        GgufVocab {
            scores: Some(vec![f32::INFINITY; 7]),
            add_bos: Some(true),
            add_eos: Some(true),
            ..scored()
        },
        GgufVocab {
            unknown: None,
            bos: None,
            eos: None,
            token_types: None,
            ..scored()
        },
        GgufVocab {
            tokens: texts(&["", "", "", "", "", "", ""]),
            ..scored()
        },
    ];
    for vocab in odd {
        let Ok(tokenizer) = Tokenizer::from_gguf(&vocab) else {
            continue;
        };
        for text in ["", "a", "ab ba", "<s>", "\0\u{10ffff} ▁", &"ab ".repeat(2000)] {
            let _ = tokenizer.encode(&[Segment::Text(text), Segment::Markup(text)], true);
        }
        let ids: Vec<u32> = (0..tokenizer.vocab_size() as u32).collect();
        tokenizer.decode(&ids, false).unwrap();
        assert!(tokenizer.decode(&[u32::MAX], false).is_err());
    }
}

fn file(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut file = json!({
        "version": "1.0",
        "added_tokens": [{"id": 3, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    });
    change(&mut file);
    serde_json::to_vec(&file).unwrap()
}

fn hostile_files() -> Vec<Vec<u8>> {
    let set =
        |pointer: &'static str, value: Value| file(move |file| *file.pointer_mut(pointer).unwrap() = value);
    vec![
        Vec::new(),
        b"{}".to_vec(),
        b"\xff\xfe".to_vec(),
        "[".repeat(100_000).into_bytes(),
        set("/model", json!(null)),
        set("/model/vocab", json!({})),
        set("/model/vocab", json!({"a": 4_294_967_295_u32, "b": 1, "ab": 2})),
        set(
            "/model/vocab",
            json!({"a": 18_446_744_073_709_551_615_u64, "b": 1, "ab": 2}),
        ),
        set("/model/vocab", json!({"a": 1, "b": 1, "ab": 1})),
        set("/model/merges", json!(["a x"])),
        set("/model/merges", json!(["b a"])),
        set("/model/merges", json!(["ab ab"])),
        set("/added_tokens/0/id", json!(4_294_967_295_u32)),
        set("/added_tokens/0/content", json!("")),
        set(
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(".repeat(4000)}, "behavior": "Isolated", "invert": false}),
        ),
        set(
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "a".repeat(5000)}, "behavior": "Isolated", "invert": false}),
        ),
        set(
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "((a{1000}){1000}){1000}"}, "behavior": "Isolated", "invert": false}),
        ),
        set(
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(a+)+(?!x)$"}, "behavior": "Isolated", "invert": false}),
        ),
        set(
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": false}),
        ),
        set(
            "/normalizer",
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(4000)}),
        ),
        set(
            "/normalizer",
            json!({"type": "Sequence", "normalizers": vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}); 40]}),
        ),
        set(
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ),
        set(
            "/decoder",
            json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}),
        ),
        set(
            "/post_processor",
            json!({"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}),
        ),
        set(
            "/post_processor",
            json!({"type": "BertProcessing", "sep": ["x", 4_000_000], "cls": ["y", 7]}),
        ),
    ]
}

#[test]
fn hostile_files_are_refused_or_bounded() {
    assert!(Tokenizer::from_json(&file(|_| {})).is_ok());
    let mut files = hostile_files();
    let good = file(|_| {});
    files.extend((0..good.len()).step_by(7).map(|end| good[..end].to_vec()));
    for bytes in files {
        let Ok(tokenizer) = Tokenizer::from_json(&bytes) else {
            continue;
        };
        assert!(tokenizer.vocab_size() <= 1 << 21);
        for text in ["", "ab", "<|end|>", &"a".repeat(3000), &"ab ".repeat(500)] {
            let ids = tokenizer
                .encode(&[Segment::Text(text)], false)
                .unwrap_or_default();
            assert!(ids.iter().all(|id| !tokenizer.is_control(*id)));
            tokenizer.decode(&ids, false).unwrap();
        }
    }
}

/// A control token that the model can spell by a merge or as a whole word stays out of a client's reach.
#[test]
fn a_model_that_spells_a_control_token_is_taken_apart() {
    for ignore_merges in [false, true] {
        let bytes = file(|file| {
            file["added_tokens"][0]["id"] = json!(2);
            file["added_tokens"][0]["content"] = json!("ab");
            file["model"]["ignore_merges"] = json!(ignore_merges);
        });
        let tokenizer = Tokenizer::from_json(&bytes).unwrap();
        assert!(tokenizer.is_control(2));
        assert_eq!(tokenizer.encode(&[Segment::Text("ab")], false).unwrap(), [0, 1]);
        assert_eq!(tokenizer.encode(&[Segment::Markup("ab")], false).unwrap(), [2]);
        let parts = [Segment::Markup("a"), Segment::Text("b")];
        assert_eq!(tokenizer.encode(&parts, false).unwrap(), [0, 1]);
    }
}
