//! Our logits against candle-transformers' own models, on tiny random checkpoints of each architecture: alone, in
//! chunks, and in ragged batches over shuffled blocks.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma3, llama, mistral, qwen2, qwen3};
use rempart_models::LoadOptions;
use serde_json::{Value, json};
use support::{Driver, Rng, Tensors, difference, load, random_tensors, write_checkpoint};

/// Logits are of order 1 to 10; both sides compute in f32, in different orders.
const TOLERANCE: f32 = 2e-3;
const PROMPT: usize = 21;

fn shape(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 128,
        "tie_word_embeddings": false, "hidden_act": "silu", "eos_token_id": 2,
    })
}

fn with(mut config: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

/// Logits after the last of `tokens`.
type Oracle = Box<dyn FnMut(&[u32]) -> Vec<f32>>;

fn input(tokens: &[u32]) -> Tensor {
    Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

fn flat(logits: &Tensor) -> Vec<f32> {
    logits
        .flatten_all()
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn builder(tensors: &Tensors) -> VarBuilder<'static> {
    VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu)
}

fn check(config: &Value, tensors: &Tensors, mut oracle: Oracle) {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), config, tensors);
    let loaded = load(dir.path(), &LoadOptions::default());
    let mut rng = Rng(7);
    let prompts: Vec<Vec<u32>> = [PROMPT, 9, 1]
        .iter()
        .map(|&len| (0..len).map(|_| rng.below(97) as u32).collect())
        .collect();
    let expected: Vec<Vec<Vec<f32>>> = prompts
        .iter()
        .map(|prompt| (1..=prompt.len()).map(|len| oracle(&prompt[..len])).collect())
        .collect();

    let mut driver = Driver::new(&loaded, &mut rng);
    let mut alone = driver.sequence(&prompts[0]);
    let logits = driver.step(&mut [(&mut alone, PROMPT)]);
    for (position, (ours, theirs)) in logits.iter().zip(&expected[0]).enumerate() {
        let error = difference(ours, theirs);
        assert!(error < TOLERANCE, "whole prompt, position {position}: {error}");
    }

    let mut sequences: Vec<_> = prompts.iter().map(|prompt| driver.sequence(prompt)).collect();
    while sequences.iter().any(|s| s.computed < s.tokens.len()) {
        let mut batch = Vec::new();
        let mut wanted = Vec::new();
        for (index, sequence) in sequences.iter_mut().enumerate() {
            let left = sequence.tokens.len() - sequence.computed;
            if left > 0 {
                let chunk = 1 + rng.below(left.min(6));
                wanted.extend((sequence.computed..sequence.computed + chunk).map(|p| (index, p)));
                batch.push((sequence, chunk));
            }
        }
        for (ours, (index, position)) in driver.step(&mut batch).iter().zip(wanted) {
            let error = difference(ours, &expected[index][position]);
            assert!(
                error < TOLERANCE,
                "ragged batch, sequence {index}, position {position}: {error}"
            );
        }
    }
}

fn llama_oracle(config: &Value, tensors: &Tensors) -> Oracle {
    let mut fields = config.clone();
    fields.as_object_mut().unwrap().remove("head_dim");
    let raw: llama::LlamaConfig = serde_json::from_value(fields).unwrap();
    let config = raw.into_config(false);
    let model = llama::Llama::load(builder(tensors), &config).unwrap();
    Box::new(move |tokens| {
        let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        flat(&model.forward(&input(tokens), 0, &mut cache).unwrap())
    })
}

#[test]
fn llama_equals_candle() {
    let config = shape("llama");
    let tensors = random_tensors(&config, 1);
    check(&config, &tensors, llama_oracle(&config, &tensors));
}

#[test]
fn llama_with_a_tied_head_and_scaled_rope_equals_candle() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    let config = with(
        shape("llama"),
        &json!({"tie_word_embeddings": true, "rope_scaling": scaling}),
    );
    let tensors = random_tensors(&config, 2);
    check(&config, &tensors, llama_oracle(&config, &tensors));
}

#[test]
fn mistral_with_a_sliding_window_equals_candle() {
    let config = with(shape("mistral"), &json!({"sliding_window": 6}));
    let tensors = random_tensors(&config, 3);
    // candle's mask lets a token see `sliding_window` tokens before itself; transformers counts the token itself.
    let theirs = with(config.clone(), &json!({"sliding_window": 5}));
    let theirs: mistral::Config = serde_json::from_value(theirs).unwrap();
    let mut model = mistral::Model::new(&theirs, builder(&tensors)).unwrap();
    let oracle = Box::new(move |tokens: &[u32]| {
        model.clear_kv_cache();
        flat(&model.forward(&input(tokens), 0).unwrap())
    });
    check(&config, &tensors, oracle);
}

#[test]
fn qwen2_equals_candle() {
    let config = with(
        shape("qwen2"),
        &json!({"sliding_window": 64, "max_window_layers": 3, "use_sliding_window": false,
               "tie_word_embeddings": true}),
    );
    let tensors = random_tensors(&config, 4);
    let theirs: qwen2::Config = serde_json::from_value(config.clone()).unwrap();
    let mut model = qwen2::ModelForCausalLM::new(&theirs, builder(&tensors)).unwrap();
    let oracle = Box::new(move |tokens: &[u32]| {
        model.clear_kv_cache();
        flat(&model.forward(&input(tokens), 0).unwrap())
    });
    check(&config, &tensors, oracle);
}

#[test]
fn qwen3_equals_candle() {
    let config = with(
        shape("qwen3"),
        &json!({"head_dim": 16, "attention_bias": false, "sliding_window": null, "max_window_layers": 3,
               "use_sliding_window": false}),
    );
    let tensors = random_tensors(&config, 5);
    let theirs: qwen3::Config = serde_json::from_value(config.clone()).unwrap();
    let mut model = qwen3::ModelForCausalLM::new(&theirs, builder(&tensors)).unwrap();
    let oracle = Box::new(move |tokens: &[u32]| {
        model.clear_kv_cache();
        flat(&model.forward(&input(tokens), 0).unwrap())
    });
    check(&config, &tensors, oracle);
}

#[test]
fn gemma3_with_sliding_layers_equals_candle() {
    let config = with(
        shape("gemma3_text"),
        &json!({"head_dim": 16, "num_hidden_layers": 7, "tie_word_embeddings": true,
               "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1_000_000.0,
               "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 16, "sliding_window": 6,
               "sliding_window_pattern": 6, "attention_bias": false, "final_logit_softcapping": null,
               "attn_logit_softcapping": null}),
    );
    let tensors = random_tensors(&config, 6);
    // candle scales by the head's width whatever `query_pre_attn_scalar` says, so both are 16 here.
    // Its rotating cache refuses a prompt longer than the window, and counts the window as we do when fed one by one.
    let theirs: gemma3::Config = serde_json::from_value(config.clone()).unwrap();
    let mut model = gemma3::Model::new(false, &theirs, builder(&tensors)).unwrap();
    let oracle = Box::new(move |tokens: &[u32]| {
        model.clear_kv_cache();
        let one_by_one = tokens
            .iter()
            .enumerate()
            .map(|(at, &token)| model.forward(&input(&[token]), at).unwrap());
        flat(&one_by_one.last().unwrap())
    });
    check(&config, &tensors, oracle);
}
