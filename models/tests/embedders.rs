//! Decoders that embed against sentence-transformers' own vectors, on tiny random checkpoints (scripts/fixtures/embedders.py).
//! That hidden states and vectors are those of transformers, alone and in any batch, is in encoders.rs.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use rempart_models::{
    Embedder, EncoderBatch, EncoderOptions, KvDtype, LoadedEncoder, ModelFiles, Pooling, Task, load_encoder,
};
use serde_json::{Value, json};

/// Least cosine between our vector of a text and theirs.
const COSINE_MIN: f32 = 0.9999;
/// Likewise with keys and values in bf16.
const COSINE_MIN_BF16: f32 = 0.999;
const NAMES: [&str; 4] = ["qwen3", "qwen2", "llama", "gemma3"];
const MIB: u64 = 1 << 20;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/encoders")
        .join(format!("{name}-embedder"))
}

fn gguf() -> PathBuf {
    folder("qwen3").with_extension("gguf")
}

struct Expected {
    tokens: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
}

fn expected(name: &str) -> Expected {
    let bytes = std::fs::read(folder(name).join("expected.json")).unwrap();
    let mut value: Value = serde_json::from_slice(&bytes).unwrap();
    Expected {
        tokens: serde_json::from_value(value["tokens"].take()).unwrap(),
        vectors: serde_json::from_value(value["vectors"].take()).unwrap(),
    }
}

fn load(path: &Path, kv_dtype: KvDtype) -> LoadedEncoder {
    let options = EncoderOptions {
        kv_dtype,
        ..EncoderOptions::default()
    };
    load_encoder(path, &options).unwrap()
}

fn embed(model: &LoadedEncoder, texts: &[&[u32]]) -> Vec<Vec<f32>> {
    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    let batch = EncoderBatch {
        tokens: &texts.concat(),
        token_types: &[],
        lengths: &lengths,
    };
    model.embed(&batch).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The least cosine of all texts, embedded together and each alone.
fn least_cosine(model: &LoadedEncoder, expected: &Expected) -> f32 {
    let texts: Vec<&[u32]> = expected.tokens.iter().map(Vec::as_slice).collect();
    let together = embed(model, &texts);
    let mut least = 1.0_f32;
    for (i, vector) in together.iter().enumerate() {
        assert_eq!(
            &embed(model, &texts[i..=i])[0],
            vector,
            "text {i} alone and among all"
        );
        least = least.min(cosine(vector, &expected.vectors[i]));
    }
    least
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    for name in NAMES {
        for (kv_dtype, min) in [(KvDtype::F32, COSINE_MIN), (KvDtype::Bf16, COSINE_MIN_BF16)] {
            let least = least_cosine(&load(&folder(name), kv_dtype), &expected(name));
            println!("{name} {kv_dtype:?}: {least}");
            assert!(least >= min, "{name} {kv_dtype:?}: a cosine of {least}");
        }
    }
}

#[test]
fn a_gguf_file_gives_what_its_safetensors_give() {
    let model = load(&gguf(), KvDtype::F32);
    let least = least_cosine(&model, &expected("qwen3"));
    assert!(least >= COSINE_MIN, "a cosine of {least}");
    assert_eq!(model.task, load(&folder("qwen3"), KvDtype::F32).task);
}

/// As llama.cpp numbers them.
#[test]
fn a_gguf_file_numbers_its_pooling() {
    let key = b"qwen3.pooling_type";
    let mut bytes = std::fs::read(gguf()).unwrap();
    // Behind the key are the value's type and the value.
    let at = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len() + 4;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut with = |number: u8| {
        bytes[at] = number;
        std::fs::write(&path, &bytes).unwrap();
        load_encoder(&path, &EncoderOptions::default())
    };
    for (number, expected) in [(1, Pooling::Mean), (2, Pooling::Cls), (3, Pooling::Last)] {
        let task = with(number).unwrap().task;
        assert!(
            matches!(task, Task::Embed { pooling, .. } if pooling == expected),
            "{number}: {task:?}"
        );
    }
    for (number, told) in [(0, "embeds"), (4, "pooling_type 4"), (99, "pooling_type 99")] {
        let error = with(number).err().unwrap().to_string();
        assert!(error.contains(told), "{number}: {error}");
    }
}

/// Many texts of one token take a block of keys and values each, and a long one is between them.
#[test]
fn as_many_texts_as_there_are() {
    let (model, expected) = (load(&folder("qwen3"), KvDtype::F32), expected("qwen3"));
    let (short, long) = (&expected.tokens[0][..1], expected.tokens[4].as_slice());
    let mut texts = vec![short; 3000];
    texts.insert(700, long);
    let vectors = embed(&model, &texts);
    let alone = embed(&model, &[short, long]);
    for (i, vector) in vectors.iter().enumerate() {
        assert_eq!(vector, &alone[usize::from(i == 700)], "text {i}");
    }
}

#[test]
fn files_say_whether_a_decoder_embeds() {
    let last = |dimensions, normalize| Task::Embed {
        pooling: Pooling::Last,
        normalize,
        dimensions,
    };
    assert_eq!(load(&folder("qwen3"), KvDtype::F32).task, last(32, true));
    assert_eq!(load(&folder("qwen2"), KvDtype::F32).task, last(32, false));
    let mean = Task::Embed {
        pooling: Pooling::Mean,
        normalize: false,
        dimensions: 16,
    };
    assert_eq!(load(&folder("llama"), KvDtype::F32).task, mean);
    let embeds = |path: &Path| ModelFiles::open(path).unwrap().embeds().unwrap();
    assert!(embeds(&folder("qwen3")) && embeds(&gguf()));
    assert!(!LoadedEncoder::is_one(&folder("qwen3")));
    // Less than the configuration's 2048 positions.
    assert_eq!(load(&folder("qwen3"), KvDtype::F32).tokens_max, 1800);
    assert_eq!(load(&gguf(), KvDtype::F32).tokens_max, 2048);
}

#[test]
fn a_folder_without_modules_generates() {
    let dir = copied("qwen2");
    std::fs::remove_file(dir.path().join("modules.json")).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    assert!(!files.embeds().unwrap());
    assert!(files.load(&rempart_models::LoadOptions::default()).is_ok());
    let error = load_encoder(dir.path(), &EncoderOptions::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains("modules.json"), "{error}");
    // Modules without one that pools are not for embeddings either.
    std::fs::write(
        dir.path().join("modules.json"),
        r#"[{"type": "a.Transformer", "path": ""}]"#,
    )
    .unwrap();
    assert!(!ModelFiles::open(dir.path()).unwrap().embeds().unwrap());
}

/// Its head is neither needed nor read.
#[test]
fn an_embedder_leaves_the_head_where_it_is() {
    let files = || ModelFiles::open(&folder("qwen2")).unwrap();
    let (embeds, generates) = (files(), files());
    assert!(embeds.checkpoint.contains("lm_head.weight"));
    generates.load(&rempart_models::LoadOptions::default()).unwrap();
    assert_eq!(generates.checkpoint.leftovers().count(), 0);
    let head: Vec<String> = {
        let embedder = Embedder::new(embeds).unwrap();
        embedder.load(&EncoderOptions::default()).unwrap();
        embedder
            .files()
            .checkpoint
            .leftovers()
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(head, ["lm_head.weight"]);
}

#[test]
fn the_plan_counts_keys_and_values() {
    let embedder = |name| Embedder::new(ModelFiles::open(&folder(name)).unwrap()).unwrap();
    let qwen3 = embedder("qwen3");
    assert_eq!(qwen3.tokens_max(), 1800);
    let plan = |tokens, kv_dtype| qwen3.plan(64 << 30, tokens, kv_dtype).unwrap();
    // Three layers of two heads of 16, keys and values, in 4 bytes.
    let slot_bytes = 3 * 2 * 16 * 2 * 4;
    let whole = plan(1_000_000, KvDtype::F32);
    assert_eq!(whole.kv, 1_000_000 * slot_bytes);
    assert_eq!(plan(1_000_000, KvDtype::Bf16).kv, whole.kv / 2);
    assert!(plan(1, KvDtype::F32).kv >= 256 * slot_bytes, "a step's texts");
    let error = qwen3.plan(MIB, 1_000_000, KvDtype::F32).unwrap_err();
    assert!(error.to_string().contains("of 1 MiB"), "{error}");
    // A limit below the files' is kept.
    let options = EncoderOptions {
        tokens_max: Some(100),
        ..EncoderOptions::default()
    };
    let model = qwen3.load(&options).unwrap();
    assert_eq!(model.tokens_max, 100);
    let batch = EncoderBatch {
        tokens: &[5; 101],
        token_types: &[],
        lengths: &[101],
    };
    assert!(
        model
            .embed(&batch)
            .unwrap_err()
            .to_string()
            .contains("must be 1 to 100")
    );
}

fn copied(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&folder(name), dir.path());
    dir
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

/// What loading says of a folder with one field of one of its files changed; `1/path` is a field of a list's second entry.
fn refused(file: &str, field: &str, value: Value, expected: &str) {
    let dir = copied("qwen3");
    let path = dir.path().join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    match field.split_once('/') {
        Some((at, field)) => json[at.parse::<usize>().unwrap()][field] = value,
        None => json[field] = value,
    }
    std::fs::write(&path, json.to_string()).unwrap();
    let error = match load_encoder(dir.path(), &EncoderOptions::default()) {
        Ok(_) => "loaded".into(),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(expected), "{file}, {field}: {error}");
}

#[test]
fn folders_that_lie_are_refused_by_name() {
    let modules = |field, value, expected| refused("modules.json", field, json!(value), expected);
    modules("1/path", "../1_Pooling", "within the model's");
    modules("1/path", "2_Nowhere", "the file is missing");
    modules("1/type", "evil.LSTM", "modules.json");
    modules("2/type", "evil.LSTM", "module 'LSTM'");
    modules("0/type", "a.Normalize", "not supported in its place");
    let pooling = |field, value, expected| refused("1_Pooling/config.json", field, value, expected);
    pooling("word_embedding_dimension", json!(1024), "the model has 32");
    pooling("pooling_mode_mean_tokens", json!(true), "mean, lasttoken");
    pooling("pooling_mode_lasttoken", json!(false), "pooling by ''");
    let config = |field, value, expected| refused("config.json", field, value, expected);
    config("is_causal", json!(false), "both sides");
    config("use_bidirectional_attention", json!(true), "both sides");
    config(
        "auto_map",
        json!({"AutoModel": "modeling.Evil"}),
        "code that comes with",
    );
    config(
        "architectures",
        json!(["Qwen3ForSequenceClassification"]),
        "ForSequenceClassification",
    );
    config("layer_types", json!(["full_attention"]), "1 layers of 3");
    config("vocab_size", json!(259), "embed_tokens");
    config("model_type", json!("t5"), "t5");
    refused(
        "sentence_bert_config.json",
        "max_seq_length",
        json!(0),
        "max_seq_length is 0",
    );
}

#[test]
fn a_list_of_modules_that_is_none_is_refused() {
    let dir = copied("qwen3");
    for text in ["{}", "[", "[{\"path\": \"\"}]", "[1]"] {
        std::fs::write(dir.path().join("modules.json"), text).unwrap();
        let error = load_encoder(dir.path(), &EncoderOptions::default())
            .err()
            .unwrap();
        assert!(error.to_string().contains("modules.json"), "{text}: {error}");
    }
}
