//! Tiny random checkpoints and a cache driver, for tests that compare whole models.

use std::{collections::HashMap, path::Path};

use candle_core::{Device, Tensor};
use rempart_models::{
    AttentionRow, ForwardInput, KvCache, KvDtype, LoadOptions, Model, ModelFiles, parallel::Shard,
};
use serde_json::Value;

pub(crate) type Tensors = HashMap<String, Tensor>;

/// `SplitMix64`: the tests' own reproducible randomness.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Roughly normal, unit variance.
    pub(crate) fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12)
            .map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64)
            .sum();
        (sum - 6.0) as f32
    }
}

/// Every tensor of a decoder as Hugging Face names it, random.
pub(crate) fn random_tensors(config: &Value, seed: u64) -> Tensors {
    let mut rng = Rng(seed);
    let size = |name: &str| usize::try_from(config[name].as_u64().unwrap()).unwrap();
    let (hidden, inner, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let (heads, kv_heads, dim) = (
        size("num_attention_heads"),
        size("num_key_value_heads"),
        size("head_dim"),
    );
    let family = config["model_type"].as_str().unwrap();
    let mut tensors = Tensors::new();
    let mut put = |name: String, shape: &[usize], mean: f32, scale: f32| {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| mean + scale * rng.normal())
            .collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    };
    let norm_mean = if family == "gemma3_text" { 0.0 } else { 1.0 };
    put("model.embed_tokens.weight".into(), &[vocab, hidden], 0.0, 0.5);
    put("model.norm.weight".into(), &[hidden], norm_mean, 0.1);
    if config["tie_word_embeddings"] == Value::Bool(false) {
        put("lm_head.weight".into(), &[vocab, hidden], 0.0, 0.2);
    }
    for layer in 0..size("num_hidden_layers") {
        let mut linear = |name: &str, out: usize, inputs: usize| {
            put(
                format!("model.layers.{layer}.{name}.weight"),
                &[out, inputs],
                0.0,
                0.3,
            );
        };
        linear("self_attn.q_proj", heads * dim, hidden);
        linear("self_attn.k_proj", kv_heads * dim, hidden);
        linear("self_attn.v_proj", kv_heads * dim, hidden);
        linear("self_attn.o_proj", hidden, heads * dim);
        linear("mlp.gate_proj", inner, hidden);
        linear("mlp.up_proj", inner, hidden);
        linear("mlp.down_proj", hidden, inner);
        let mut vector = |name: &str, len: usize, mean: f32| {
            put(format!("model.layers.{layer}.{name}"), &[len], mean, 0.1);
        };
        if family == "qwen2" {
            vector("self_attn.q_proj.bias", heads * dim, 0.0);
            vector("self_attn.k_proj.bias", kv_heads * dim, 0.0);
            vector("self_attn.v_proj.bias", kv_heads * dim, 0.0);
        }
        if family == "qwen3" || family == "gemma3_text" {
            vector("self_attn.q_norm.weight", dim, norm_mean);
            vector("self_attn.k_norm.weight", dim, norm_mean);
        }
        vector("input_layernorm.weight", hidden, norm_mean);
        vector("post_attention_layernorm.weight", hidden, norm_mean);
        if family == "gemma3_text" {
            vector("pre_feedforward_layernorm.weight", hidden, norm_mean);
            vector("post_feedforward_layernorm.weight", hidden, norm_mean);
        }
    }
    tensors
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn write_checkpoint(dir: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(dir.join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
    candle_core::safetensors::save(tensors, dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("tokenizer.json"), b"{}").unwrap();
}

pub(crate) const BLOCK_SIZE: usize = 16;
const BLOCKS: usize = 64;

/// A sequence with its blocks, fed by chunks.
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) computed: usize,
    pub(crate) block_table: Vec<u32>,
}

/// A model with the files it came from.
pub(crate) struct LoadedModel {
    pub(crate) files: ModelFiles,
    pub(crate) model: Box<dyn Model>,
    /// Which part of it was loaded.
    shard: Shard,
}

pub(crate) fn load(path: &Path, options: &LoadOptions<'_>) -> LoadedModel {
    let files = ModelFiles::open(path).unwrap();
    let model = files.load(options).unwrap();
    let shard = options.collective.shard();
    LoadedModel { files, model, shard }
}

/// Runs ragged batches against one cache and returns every token's logits.
pub(crate) struct Driver<'a> {
    pub(crate) loaded: &'a LoadedModel,
    pub(crate) kv: KvCache,
    free: Vec<u32>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(loaded: &'a LoadedModel, rng: &mut Rng) -> Self {
        let config = loaded.files.config.part(loaded.shard).unwrap();
        let kv = KvCache::new(&config, BLOCKS, BLOCK_SIZE, KvDtype::F32, &Device::Cpu).unwrap();
        let mut free: Vec<u32> = (0..BLOCKS as u32).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, rng.below(i + 1));
        }
        Self { loaded, kv, free }
    }

    pub(crate) fn sequence(&mut self, tokens: &[u32]) -> Sequence {
        let blocks = tokens.len().div_ceil(BLOCK_SIZE);
        let block_table = (0..blocks).map(|_| self.free.pop().unwrap()).collect();
        Sequence {
            tokens: tokens.to_vec(),
            computed: 0,
            block_table,
        }
    }

    /// One step: the next `chunk` tokens of each sequence. Logits `[tokens of the step][vocab]`, in order.
    pub(crate) fn step(&self, sequences: &mut [(&mut Sequence, usize)]) -> Vec<Vec<f32>> {
        let (mut tokens, mut positions, mut slots, mut rows) = (vec![], vec![], vec![], vec![]);
        for (sequence, chunk) in sequences.iter_mut() {
            let start = tokens.len();
            for position in sequence.computed..sequence.computed + *chunk {
                tokens.push(sequence.tokens[position]);
                positions.push(position as u32);
                let block = sequence.block_table[position / BLOCK_SIZE];
                slots.push(block * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
            }
            sequence.computed += *chunk;
            rows.push(AttentionRow {
                tokens: start..tokens.len(),
                context_len: sequence.computed,
                block_table: sequence.block_table.clone(),
            });
        }
        let logits: Vec<u32> = (0..tokens.len() as u32).collect();
        let input = ForwardInput {
            tokens: &tokens,
            positions: &positions,
            slots: &slots,
            rows: &rows,
            logits: &logits,
        };
        self.loaded
            .model
            .forward(&input, &self.kv)
            .unwrap()
            .to_vec2()
            .unwrap()
    }
}

/// Largest absolute difference.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
