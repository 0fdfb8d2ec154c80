//! Encoders against transformers' own numbers on tiny random checkpoints (scripts/fixtures/encoders.py): alone, and in
//! batches of all lengths.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use rempart_models::{EncoderBatch, EncoderOptions, LoadedEncoder, Pooling, Precision, Task, load_encoder};
use serde_json::{Value, json};

const NAMES: [&str; 11] = [
    "bert",
    "bert-tanh",
    "bert-classifier",
    "roberta",
    "xlm-roberta-classifier",
    "modernbert",
    "modernbert-classifier",
    "qwen3-embedder",
    "qwen2-embedder",
    "llama-embedder",
    "gemma3-embedder",
];

/// Values are of order 1; both sides compute in f32, in different orders.
const TOLERANCE: f32 = 2e-4;
/// Random weights of this size lose two digits of bf16's three.
const TOLERANCE_BF16: f32 = 0.25;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/encoders")
        .join(name)
}

struct Fixture {
    tokens: Vec<Vec<u32>>,
    types: Vec<Vec<u32>>,
    values: Value,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(folder(name).join("expected.json")).unwrap();
        let mut values: Value = serde_json::from_slice(&bytes).unwrap();
        let mut take = |name: &str| serde_json::from_value(values[name].take()).unwrap();
        Self {
            tokens: take("tokens"),
            types: take("token_types"),
            values,
        }
    }

    fn rows(&self, field: &str) -> Vec<Vec<f32>> {
        serde_json::from_value(self.values[field].clone()).unwrap()
    }
}

/// Calls `work` with the batch of some sequences.
fn with_batch<R>(fixture: &Fixture, which: &[usize], work: impl FnOnce(&EncoderBatch<'_>) -> R) -> R {
    let of = |all: &[Vec<u32>]| which.iter().flat_map(|&i| all[i].clone()).collect::<Vec<_>>();
    let lengths: Vec<usize> = which.iter().map(|&i| fixture.tokens[i].len()).collect();
    work(&EncoderBatch {
        tokens: &of(&fixture.tokens),
        token_types: &of(&fixture.types),
        lengths: &lengths,
    })
}

fn load(name: &str, precision: Precision) -> LoadedEncoder {
    let options = EncoderOptions {
        precision,
        ..EncoderOptions::default()
    };
    load_encoder(&folder(name), &options).unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What the model gives for a batch: hidden states of each sequence, then its results.
fn run(model: &LoadedEncoder, batch: &EncoderBatch<'_>) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let hidden: Vec<f32> = model
        .forward(batch)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    let mut rows = hidden.chunks(model.hidden_size());
    let hidden = batch
        .lengths
        .iter()
        .map(|&len| rows.by_ref().take(len).flatten().copied().collect());
    let results = match model.task {
        Task::Embed { .. } => model.embed(batch),
        Task::Rank { .. } => model.score(batch),
    };
    (hidden.collect(), results.unwrap())
}

fn check(name: &str, precision: Precision, tolerance: f32) {
    let (model, fixture) = (load(name, precision), Fixture::read(name));
    let (hidden, scores) = (fixture.rows("hidden"), fixture.rows("scores"));
    let vectors = fixture.rows("vectors");
    let expected = if scores.is_empty() { vectors } else { scores };
    let all: Vec<usize> = (0..fixture.tokens.len()).collect();
    for order in [all.clone(), all.iter().rev().copied().collect(), vec![3, 3, 0, 3]] {
        let batched = with_batch(&fixture, &order, |batch| run(&model, batch));
        for (place, &i) in order.iter().enumerate() {
            let alone = with_batch(&fixture, &[i], |batch| run(&model, batch));
            assert_eq!(
                alone.0[0], batched.0[place],
                "{name} {i}: hidden states alone and in a batch"
            );
            assert_eq!(
                alone.1[0], batched.1[place],
                "{name} {i}: results alone and in a batch"
            );
            if let Some(hidden) = hidden.get(i) {
                let error = difference(&alone.0[0], hidden);
                assert!(error < tolerance, "{name} {i}: hidden states off by {error}");
            }
            if let Some(expected) = expected.get(i) {
                let error = difference(&alone.1[0], expected);
                assert!(error < tolerance, "{name} {i}: results off by {error}");
            }
        }
    }
}

#[test]
fn encoders_equal_transformers() {
    for name in NAMES {
        check(name, Precision::F32, TOLERANCE);
    }
}

#[test]
fn encoders_in_bf16_are_near_transformers() {
    for name in NAMES {
        check(name, Precision::Bf16, TOLERANCE_BF16);
    }
}

#[test]
fn tasks_are_what_the_files_say() {
    let embed = |pooling, normalize, dimensions| Task::Embed {
        pooling,
        normalize,
        dimensions,
    };
    let task = |name| load(name, Precision::F32).task;
    assert_eq!(task("bert"), embed(Pooling::Mean, true, 24));
    // Without files that say anything.
    assert_eq!(task("bert-tanh"), embed(Pooling::Mean, true, 24));
    assert_eq!(task("roberta"), embed(Pooling::Cls, false, 16));
    assert_eq!(task("modernbert"), embed(Pooling::Max, false, 24));
    assert!(matches!(task("bert-classifier"), Task::Rank { labels: 1, .. }));
    assert!(matches!(
        task("xlm-roberta-classifier"),
        Task::Rank { labels: 3, .. }
    ));
    assert_eq!(load("bert", Precision::F32).tokens_max, 34);
    assert_eq!(load("xlm-roberta-classifier", Precision::F32).tokens_max, 38);
    assert!(LoadedEncoder::is_one(&folder("bert")));
    assert!(!LoadedEncoder::is_one(Path::new(env!("CARGO_MANIFEST_DIR"))));
}

/// Tokenizers tell the parts of a pair apart for models that do not, too.
#[test]
fn types_mean_nothing_where_there_is_no_table() {
    let model = load("modernbert", Precision::F32);
    let embed = |token_types: &[u32]| {
        let batch = EncoderBatch {
            tokens: &[5, 6, 7],
            token_types,
            lengths: &[3],
        };
        model.embed(&batch).unwrap()
    };
    assert_eq!(embed(&[0, 0, 1]), embed(&[]));
}

/// A thread of its own runs each model.
#[test]
fn a_loaded_encoder_moves_to_its_thread() {
    fn moves<T: Send>() {}
    moves::<LoadedEncoder>();
}

#[test]
fn batches_that_cannot_be_are_refused() {
    let model = load("bert", Precision::F32);
    let refused = |tokens: &[u32], token_types: &[u32], lengths: &[usize]| {
        let batch = EncoderBatch {
            tokens,
            token_types,
            lengths,
        };
        model.embed(&batch).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&[5, 6], &[], &[1]).contains("do not add up"));
    assert!(refused(&[5, 6], &[], &[usize::MAX, 3]).contains("do not add up"));
    assert!(refused(&[5, 6], &[0], &[2]).contains("1 token types"));
    assert!(refused(&[5, 6], &[], &[2, 0]).contains("sequence 1 has 0 tokens"));
    assert!(refused(&[5; 35], &[], &[35]).contains("must be 1 to 34"));
    assert!(refused(&[5, 6], &[0, 2], &[2]).contains("token type 2"));
    assert!(refused(&[40], &[], &[1]).contains("40"));
    let nothing = model.embed(&EncoderBatch::default()).unwrap();
    assert!(nothing.is_empty());
    let batch = EncoderBatch {
        tokens: &[5],
        token_types: &[],
        lengths: &[1],
    };
    assert!(model.score(&batch).is_err());
}

/// Copies a fixture and changes one of its JSON files; what loading says of it.
fn altered(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> String {
    let dir = tempfile::tempdir().unwrap();
    copy(&folder(name), dir.path());
    let path = dir.path().join(file);
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
    match load_encoder(dir.path(), &EncoderOptions::default()) {
        Ok(_) => "loaded".into(),
        Err(error) => error.to_string(),
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn refused(name: &str, file: &str, (field, value): (&str, Value), expected: &str) {
    let error = altered(name, file, |json| {
        // `1/path` is a field of the second entry of a list.
        match field.split_once('/') {
            Some((at, field)) => json[at.parse::<usize>().unwrap()][field] = value,
            None => json[field] = value,
        }
    });
    assert!(error.contains(expected), "{file}, {field}: {error}");
}

#[test]
fn configurations_that_lie_are_refused_by_name() {
    let config = |name, field, value, expected| refused(name, "config.json", (field, value), expected);
    let classifier = json!(["BertForSequenceClassification"]);
    config("bert-tanh", "hidden_size", json!(48), "shape");
    config("bert", "vocab_size", json!(41), "word_embeddings");
    config("bert", "num_hidden_layers", json!(3), "layer.2");
    config(
        "bert",
        "max_position_embeddings",
        json!(1000),
        "position_embeddings",
    );
    config("bert", "architectures", classifier, "classifier");
    config(
        "bert-classifier",
        "id2label",
        json!({"0": "a", "1": "b"}),
        "classifier",
    );
    let python = json!({"activation_fn": "os.system"});
    config("bert-classifier", "sentence_transformers", python, "os.system");
}

#[test]
fn modules_that_lie_are_refused_by_name() {
    let modules = |field, value, expected| refused("bert", "modules.json", (field, json!(value)), expected);
    modules("1/path", "../1_Pooling", "within the model's");
    modules("1/path", "/etc", "within the model's");
    modules("1/type", "evil.LSTM", "module 'LSTM'");
    let pooling = |field, value, expected| refused("bert", "1_Pooling/config.json", (field, value), expected);
    pooling("pooling_mode", json!(["cls", "mean"]), "cls, mean");
    pooling("word_embedding_dimension", json!(7), "the model has 24");
    let none = ("max_seq_length", json!(0));
    refused("bert", "sentence_bert_config.json", none, "max_seq_length");
    let many = ("in_features", json!(1_u64 << 40));
    refused("roberta", "2_Dense/config.json", many, "features");
}
