//! GGUF files of random checkpoints.

use std::{fs::File, path::Path};

use candle_core::{
    Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use serde_json::Value;

use crate::support::Tensors;

/// GGUF's name for a tensor of the families tested here.
fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("model.layers.", "blk."),
        ("self_attn.q_proj.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("self_attn.o_proj.", "attn_output."),
        ("self_attn.q_norm.", "attn_q_norm."),
        ("self_attn.k_norm.", "attn_k_norm."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
        ("pre_feedforward_layernorm.", "ffn_norm."),
        ("post_feedforward_layernorm.", "post_ffw_norm."),
        ("input_layernorm.", "attn_norm."),
    ];
    let mut out = name.to_owned();
    if name.contains("post_attention_layernorm") {
        let gemma = name.contains("gemma.");
        out = out.replace(
            "post_attention_layernorm",
            if gemma { "post_attention_norm" } else { "ffn_norm" },
        );
    }
    for (from, to) in pairs {
        out = out.replace(from, to);
    }
    out.replace("gemma.", "")
}

/// Rows of a head reordered as GGUF's converter does for llama: rotary pairs side by side.
fn permute(tensor: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = tensor.dims2().unwrap();
    let half = rows / heads / 2;
    let split = tensor.reshape((heads, 2, half, columns)).unwrap();
    split
        .transpose(1, 2)
        .unwrap()
        .contiguous()
        .unwrap()
        .reshape((rows, columns))
        .unwrap()
}

/// Writes the tensors of a decoder as its GGUF converter would, matrices in `dtype`.
pub(crate) fn write_gguf(path: &Path, config: &Value, tensors: &Tensors, dtype: GgmlDType) {
    let (arch, gemma) = match config["model_type"].as_str().unwrap() {
        "gemma3_text" => ("gemma3", true),
        other => (other, false),
    };
    let heads = |name: &str| config[name].as_u64().unwrap() as usize;
    let quantised: Vec<(String, QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let tensor = match (arch, name) {
                ("llama", name) if name.contains("q_proj") => permute(tensor, heads("num_attention_heads")),
                ("llama", name) if name.contains("k_proj") => permute(tensor, heads("num_key_value_heads")),
                ("gemma3", name) if name.contains("norm") => (tensor + 1.0).unwrap(),
                _ => tensor.clone(),
            };
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
            let marked = if gemma {
                format!("gemma.{name}")
            } else {
                name.clone()
            };
            (gguf_name(&marked), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let number = |name: &str| gguf_file::Value::U32(config[name].as_u64().unwrap() as u32);
    let float = |name: &str| gguf_file::Value::F32(config[name].as_f64().unwrap() as f32);
    let key = |name: &str| format!("{arch}.{name}");
    let tokens = (0..config["vocab_size"].as_u64().unwrap())
        .map(|i| gguf_file::Value::String(format!("t{i}")))
        .collect();
    let mut metadata = vec![
        (
            "general.architecture".to_owned(),
            gguf_file::Value::String(arch.to_owned()),
        ),
        (
            "tokenizer.ggml.tokens".to_owned(),
            gguf_file::Value::Array(tokens),
        ),
        (key("block_count"), number("num_hidden_layers")),
        (key("context_length"), number("max_position_embeddings")),
        (key("embedding_length"), number("hidden_size")),
        (key("feed_forward_length"), number("intermediate_size")),
        (key("attention.head_count"), number("num_attention_heads")),
        (key("attention.head_count_kv"), number("num_key_value_heads")),
        (key("attention.key_length"), number("head_dim")),
        (key("attention.value_length"), number("head_dim")),
        (key("attention.layer_norm_rms_epsilon"), float("rms_norm_eps")),
        (key("rope.freq_base"), float("rope_theta")),
    ];
    if matches!(arch, "llama" | "gemma3") {
        metadata.push((key("attention.sliding_window"), number("sliding_window")));
    }
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    let tensors: Vec<_> = quantised
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}
