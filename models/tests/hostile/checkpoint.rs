//! The view that models load from: paths, shapes, what was taken, what changed under it.

use std::path::{Path, PathBuf};

use rempart_models::weights::{Checkpoint, Error, Source};

use crate::writers::gguf::{GgufFile, Value};
use crate::writers::safetensors::encode;
use crate::{gguf_cases, safetensors_cases};

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn qwen2_file() -> Vec<u8> {
    GgufFile::new("qwen2")
        .key("qwen2.block_count", &Value::U16(1))
        .tensor(
            "blk.0.attn_q.weight",
            0,
            &[2, 3],
            &floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        )
        .tensor("blk.0.attn_q.bias", 0, &[2], &floats(&[0.5, -0.5]))
        .tensor("output_norm.weight", 1, &[2], &[0x00, 0x3c, 0x00, 0xc0])
        .encode()
}

#[test]
fn both_formats_look_the_same_to_a_model() {
    let directory = tempfile::tempdir().unwrap();
    let gguf = Checkpoint::open_gguf(&write(directory.path(), "model.gguf", &qwen2_file())).unwrap();
    let matrix = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let file = encode(&[
        ("model.layers.0.self_attn.q_proj.weight", "F32", &[2, 3], &matrix),
        (
            "model.layers.0.self_attn.q_proj.bias",
            "F32",
            &[2],
            &floats(&[0.5, -0.5]),
        ),
        ("model.norm.weight", "F16", &[2], &[0x00, 0x3c, 0x00, 0xc0]),
    ]);
    write(directory.path(), "model.safetensors", &file);
    let safetensors = Checkpoint::open_safetensors(directory.path()).unwrap();
    assert_eq!(
        (gguf.source(), safetensors.source()),
        (Source::Gguf, Source::Safetensors)
    );
    assert!(safetensors.metadata().is_none());
    assert_eq!(gguf.metadata().unwrap().get_u32("qwen2.block_count").unwrap(), 1);
    for checkpoint in [&gguf, &safetensors] {
        let root = checkpoint.weights();
        let query = root.at("model.layers").at(0).at("self_attn").at("q_proj");
        assert_eq!(query.to_string(), "model.layers.0.self_attn.q_proj");
        assert!(query.contains("bias") && !query.contains("scale"));
        assert_eq!(query.shape("weight"), Some([2, 3].as_slice()));
        assert_eq!(
            query.linear(2, 3).unwrap().dequantize(),
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        );
        assert_eq!(query.bias(2).unwrap().unwrap(), [0.5, -0.5]);
        assert_eq!(root.at("model.norm").vector(2).unwrap(), [1.0, -2.0]);
        assert_eq!(root.at("lm_head").optional_vector(2).unwrap(), None);
        assert_eq!((checkpoint.total_bytes(), checkpoint.taken_bytes()), (36, 36));
        checkpoint.refuse_leftovers(|_| false).unwrap();
        checkpoint.check_unchanged().unwrap();
    }
}

#[test]
fn a_wrong_shape_names_both_shapes_and_both_names() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open_gguf(&write(directory.path(), "model.gguf", &qwen2_file())).unwrap();
    let query = checkpoint.weights().at("model.layers.0.self_attn.q_proj");
    let error = query.linear(3, 2).unwrap_err();
    assert!(
        matches!(&error, Error::Shape { expected, found, .. } if *expected == [3, 2] && *found == [2, 3]),
        "{error}"
    );
    let message = error.to_string();
    for part in [
        "self_attn.q_proj.weight",
        "blk.0.attn_q.weight",
        "[3, 2]",
        "[2, 3]",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(matches!(query.vector(6).unwrap_err(), Error::Shape { .. }));
    assert!(matches!(query.bias(3).unwrap_err(), Error::Shape { .. }));
    let message = checkpoint
        .weights()
        .at("lm_head")
        .linear(2, 2)
        .unwrap_err()
        .to_string();
    assert!(message.contains("lm_head.weight is missing"), "{message}");
}

#[test]
fn tensors_that_no_layer_took_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open_gguf(&write(directory.path(), "model.gguf", &qwen2_file())).unwrap();
    checkpoint.weights().at("model.norm").vector(2).unwrap();
    let left: Vec<&str> = checkpoint.leftovers().collect();
    assert_eq!(
        left,
        [
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.self_attn.q_proj.weight"
        ]
    );
    assert_eq!(checkpoint.taken_bytes(), 4);
    let message = checkpoint
        .refuse_leftovers(|name| name.ends_with("bias"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("1 tensors") && message.contains("q_proj.weight"),
        "{message}"
    );
    checkpoint
        .refuse_leftovers(|name| name.contains("q_proj"))
        .unwrap();
}

#[test]
fn metadata_says_what_it_has_instead() {
    let directory = tempfile::tempdir().unwrap();
    let file = gguf_cases::valid()
        .key("x.large", &Value::U64(1 << 32))
        .key("x.nan", &Value::F32(f32::NAN))
        .encode();
    let checkpoint = Checkpoint::open_gguf(&write(directory.path(), "model.gguf", &file)).unwrap();
    let metadata = checkpoint.metadata().unwrap();
    assert_eq!(
        metadata.get_strings("tokenizer.ggml.tokens").unwrap(),
        ["<s>", "</s>", "a"]
    );
    assert_eq!(metadata.get_f32s("tokenizer.ggml.scores").unwrap(), [0.5, -1.0]);
    assert_eq!(metadata.find::<u32>("x.none").unwrap(), None);
    assert!(metadata.contains("x.large") && !metadata.contains("x.none"));
    let messages = [
        (metadata.get_u32("x.none").unwrap_err(), "x.none", "no such key"),
        (metadata.get_u32("x.large").unwrap_err(), "x.large", "4294967296"),
        (metadata.get_f32("x.nan").unwrap_err(), "x.nan", "finite"),
        (
            metadata.get_bool("x.large").unwrap_err(),
            "x.large",
            "a boolean is needed",
        ),
        (
            metadata.get_str("tokenizer.ggml.tokens").unwrap_err(),
            "tokenizer.ggml.tokens",
            "an array of 3",
        ),
        (
            metadata.get_i32s("tokenizer.ggml.tokens").unwrap_err(),
            "element 0",
            "'<s>'",
        ),
        (
            metadata.get_strings("x.large").unwrap_err(),
            "x.large",
            "an array is needed",
        ),
    ];
    for (error, key, reason) in messages {
        let message = error.to_string();
        assert!(message.contains(key) && message.contains(reason), "{message}");
    }
}

#[test]
fn several_files_are_one_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let map = r#"{"metadata":{"total_size":16},"weight_map":{"a.weight":"one.safetensors","b.weight":"two.safetensors"}}"#;
    write(directory.path(), "model.safetensors.index.json", map.as_bytes());
    write(
        directory.path(),
        "one.safetensors",
        &encode(&[("a.weight", "F32", &[2], &floats(&[1.0, 2.0]))]),
    );
    write(
        directory.path(),
        "two.safetensors",
        &encode(&[("b.weight", "F32", &[2], &floats(&[3.0, 4.0]))]),
    );
    let checkpoint = Checkpoint::open_safetensors(directory.path()).unwrap();
    assert_eq!(checkpoint.weights().at("a").vector(2).unwrap(), [1.0, 2.0]);
    assert_eq!(checkpoint.weights().at("b").vector(2).unwrap(), [3.0, 4.0]);
}

#[cfg(unix)]
#[test]
fn links_stay_in_the_directory_or_the_hub_cache() {
    let root = tempfile::tempdir().unwrap();
    let outside = write(root.path(), "outside.safetensors", &safetensors_cases::valid());
    let model = root.path().join("model");
    std::fs::create_dir(&model).unwrap();
    std::os::unix::fs::symlink(&outside, model.join("model.safetensors")).unwrap();
    let message = Checkpoint::open_safetensors(&model).unwrap_err().to_string();
    assert!(
        message.contains("symbolic link out of the directory"),
        "{message}"
    );

    let repository = root.path().join("models--org--name");
    let snapshot = repository.join("snapshots").join("0123abcd");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir(repository.join("blobs")).unwrap();
    write(&repository.join("blobs"), "cafe", &safetensors_cases::valid());
    std::os::unix::fs::symlink("../../blobs/cafe", snapshot.join("model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open_safetensors(&snapshot).unwrap().total_bytes(), 32);
}

#[test]
fn a_file_that_shrinks_or_changes_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "model.gguf", &qwen2_file());
    let checkpoint = Checkpoint::open_gguf(&path).unwrap();
    checkpoint.check_unchanged().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let message = checkpoint.check_unchanged().unwrap_err().to_string();
    assert!(message.contains("file content"), "{message}");
    file.set_len(100).unwrap();
    let message = checkpoint.check_unchanged().unwrap_err().to_string();
    assert!(
        message.contains("file length") && message.contains("100 bytes"),
        "{message}"
    );
}

#[test]
fn published_encoders_may_store_their_positions() {
    let directory = tempfile::tempdir().unwrap();
    let file = encode(&[
        ("embeddings.position_ids", "I64", &[1, 2], &[0; 16]),
        ("embeddings.LayerNorm.weight", "F32", &[2], &floats(&[1.0, 2.0])),
    ]);
    let path = write(directory.path(), "encoder.safetensors", &file);
    let checkpoint = Checkpoint::open_safetensors(&path).unwrap();
    assert_eq!(
        checkpoint.tensors().map(|(name, _)| name).collect::<Vec<_>>(),
        ["embeddings.LayerNorm.weight"]
    );
}
