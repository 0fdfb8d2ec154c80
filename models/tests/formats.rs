//! One definition, many files: the same weights as GGUF in every tensor type, as single and as sharded safetensors in
//! each float type, give the same logits.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/gguf.rs"]
mod gguf;
mod support;

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use gguf::write_gguf;
use rempart_kernels::Activations;
use rempart_models::LoadOptions;
use serde_json::{Value, json};
use support::{Driver, LoadedModel, Rng, Tensors, difference, load, random_tensors, write_checkpoint};

/// Weights packed from GGUF meet rounded activations, safetensors' do not: as little rounding as there is.
fn exact() -> LoadOptions<'static> {
    LoadOptions {
        activations: Activations::Int16,
        ..LoadOptions::default()
    }
}

/// Both sides read the same dequantised values; only the order of rotary pairs differs.
const TOLERANCE: f32 = 1e-3;
/// Where weights have integer codes, activations are rounded to 16 bits in every product, the reference's are not. These
/// random models make 0.008 of it in logits of 9, and 256 times as much of 8 bits: rounding, not wrong weights. That
/// weights keep their bits is tested where they are packed.
const TOLERANCE_ROUNDED: f32 = 0.02;

fn config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64,
        "tie_word_embeddings": false, "sliding_window": 6, "layer_types": null,
        "use_sliding_window": false, "query_pre_attn_scalar": 64,
    })
}

fn logits(loaded: &LoadedModel) -> Vec<Vec<f32>> {
    let mut driver = Driver::new(loaded, &mut Rng(3));
    let tokens: Vec<u32> = (0..13).map(|i| (i * 29 + 5) % 64).collect();
    let mut sequence = driver.sequence(&tokens);
    driver.step(&mut [(&mut sequence, tokens.len())])
}

fn assert_same(ours: &LoadedModel, reference: &LoadedModel, what: &str) {
    assert_within(TOLERANCE, ours, reference, what);
}

fn assert_within(tolerance: f32, ours: &LoadedModel, reference: &LoadedModel, what: &str) {
    for (position, (a, b)) in logits(ours).iter().zip(&logits(reference)).enumerate() {
        let error = difference(a, b);
        assert!(error < tolerance, "{what}, position {position}: {error}");
    }
}

/// The values a file of `dtype` really holds.
fn rounded(tensors: &Tensors, dtype: GgmlDType) -> Tensors {
    let round = |tensor: &Tensor| {
        QTensor::quantize(tensor, dtype)
            .unwrap()
            .dequantize(&Device::Cpu)
            .unwrap()
    };
    tensors
        .iter()
        .map(|(name, tensor)| {
            // Blocks lie inside rows, so reordering rows does not change what they are rounded to.
            let tensor = if tensor.rank() == 1 {
                tensor.clone()
            } else {
                round(tensor)
            };
            (name.clone(), tensor)
        })
        .collect()
}

#[test]
fn every_gguf_type_equals_its_dequantised_safetensors() {
    let config = config("llama");
    let tensors = random_tensors(&config, 11);
    let types = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    for dtype in types {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.gguf");
        write_gguf(&file, &config, &tensors, dtype);
        write_checkpoint(dir.path(), &config, &rounded(&tensors, dtype));
        let from_gguf = load(&file, &exact());
        let from_safetensors = load(dir.path(), &exact());
        assert_eq!(
            from_gguf.files.checkpoint.leftovers().collect::<Vec<_>>(),
            Vec::<&str>::new()
        );
        let whole = !matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16);
        let tolerance = if whole { TOLERANCE_ROUNDED } else { TOLERANCE };
        assert_within(tolerance, &from_gguf, &from_safetensors, &format!("{dtype:?}"));
    }
}

#[test]
fn gguf_equals_safetensors_for_every_architecture() {
    for model_type in ["llama", "qwen2", "qwen3", "gemma3_text"] {
        let config = config(model_type);
        let mut tensors = random_tensors(&config, 12);
        if model_type == "gemma3_text" {
            tensors.remove("lm_head.weight");
        }
        let mut tied = config.clone();
        tied["tie_word_embeddings"] = json!(model_type == "gemma3_text");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.gguf");
        write_gguf(&file, &tied, &tensors, GgmlDType::F32);
        write_checkpoint(dir.path(), &tied, &tensors);
        let from_gguf = load(&file, &exact());
        let from_safetensors = load(dir.path(), &exact());
        assert_same(&from_gguf, &from_safetensors, model_type);
    }
}

#[test]
fn sharded_half_precision_equals_one_file() {
    let config = config("qwen3");
    for dtype in [DType::F16, DType::BF16] {
        let tensors: Tensors = random_tensors(&config, 13)
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()))
            .collect();
        let single = tempfile::tempdir().unwrap();
        write_checkpoint(single.path(), &config, &tensors);
        let sharded = tempfile::tempdir().unwrap();
        write_checkpoint(sharded.path(), &config, &Tensors::new());
        std::fs::remove_file(sharded.path().join("model.safetensors")).unwrap();
        let mut shards = [Tensors::new(), Tensors::new()];
        let mut index = serde_json::Map::new();
        for (at, (name, tensor)) in tensors.into_iter().enumerate() {
            index.insert(
                name.clone(),
                json!(format!("model-{}-of-2.safetensors", at % 2 + 1)),
            );
            shards[at % 2].insert(name, tensor);
        }
        for (at, shard) in shards.iter().enumerate() {
            let file = sharded.path().join(format!("model-{}-of-2.safetensors", at + 1));
            candle_core::safetensors::save(shard, file).unwrap();
        }
        let index = serde_json::to_vec(&json!({"weight_map": index})).unwrap();
        std::fs::write(sharded.path().join("model.safetensors.index.json"), index).unwrap();
        let one = load(single.path(), &LoadOptions::default());
        let many = load(sharded.path(), &LoadOptions::default());
        assert_eq!(logits(&one), logits(&many));
    }
}
