//! What GGUF calls a tensor, and what Hugging Face calls it.

/// Tensors outside the layers, the same in every architecture.
const GLOBAL: &[(&str, &str)] = &[
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    // Llama 3's frequency divisors, which Hugging Face computes from the configuration instead of storing.
    ("rope_freqs.weight", "rope_freqs.weight"),
];

/// Parts of a layer that every architecture has.
const COMMON: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Layers with two norms.
const TWO_NORMS: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];

/// Layers that norm each head's queries and keys.
const HEAD_NORMS: &[(&str, &str)] = &[
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

/// Layers that also norm what attention and feed-forward give.
const FOUR_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Architectures, as `general.architecture` spells them, whose names are known.
pub(in super::super) const ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3", "gemma3"];

/// The Hugging Face name of the tensor that a GGUF file of `architecture` calls `name`.
///
/// `None` for tensors that the architecture does not have.
pub fn hugging_face_name(architecture: &str, name: &str) -> Option<String> {
    if let Some((_, renamed)) = GLOBAL.iter().find(|(gguf, _)| *gguf == name) {
        return ARCHITECTURES
            .contains(&architecture)
            .then(|| (*renamed).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, parameter) = rest.split_once('.')?;
    let canonical = layer
        .parse::<u32>()
        .is_ok_and(|number| number.to_string() == layer);
    if !canonical || !matches!(parameter, "weight" | "bias") {
        return None;
    }
    let tables = layer_tables(architecture)?;
    let (_, renamed) = tables.iter().copied().flatten().find(|(gguf, _)| *gguf == part)?;
    Some(format!("model.layers.{layer}.{renamed}.{parameter}"))
}

type Table = &'static [(&'static str, &'static str)];

fn layer_tables(architecture: &str) -> Option<&'static [Table]> {
    Some(match architecture {
        "llama" | "qwen2" => &[COMMON, TWO_NORMS],
        "qwen3" => &[COMMON, TWO_NORMS, HEAD_NORMS],
        "gemma3" => &[COMMON, FOUR_NORMS, HEAD_NORMS],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::hugging_face_name;

    /// Every name of the published files SmolLM2-135M, Qwen2.5-Coder-0.5B and Gemma 3 270M has one of these shapes.
    const REAL: &[(&str, &str, &str)] = &[
        ("llama", "token_embd.weight", "model.embed_tokens.weight"),
        ("llama", "output_norm.weight", "model.norm.weight"),
        (
            "llama",
            "blk.29.attn_norm.weight",
            "model.layers.29.input_layernorm.weight",
        ),
        (
            "llama",
            "blk.29.attn_q.weight",
            "model.layers.29.self_attn.q_proj.weight",
        ),
        (
            "llama",
            "blk.29.attn_k.weight",
            "model.layers.29.self_attn.k_proj.weight",
        ),
        (
            "llama",
            "blk.29.attn_v.weight",
            "model.layers.29.self_attn.v_proj.weight",
        ),
        (
            "llama",
            "blk.29.attn_output.weight",
            "model.layers.29.self_attn.o_proj.weight",
        ),
        (
            "llama",
            "blk.29.ffn_norm.weight",
            "model.layers.29.post_attention_layernorm.weight",
        ),
        (
            "llama",
            "blk.29.ffn_gate.weight",
            "model.layers.29.mlp.gate_proj.weight",
        ),
        (
            "llama",
            "blk.29.ffn_up.weight",
            "model.layers.29.mlp.up_proj.weight",
        ),
        (
            "llama",
            "blk.29.ffn_down.weight",
            "model.layers.29.mlp.down_proj.weight",
        ),
        ("llama", "rope_freqs.weight", "rope_freqs.weight"),
        ("qwen2", "output.weight", "lm_head.weight"),
        (
            "qwen2",
            "blk.0.attn_q.bias",
            "model.layers.0.self_attn.q_proj.bias",
        ),
        (
            "qwen2",
            "blk.0.attn_k.bias",
            "model.layers.0.self_attn.k_proj.bias",
        ),
        (
            "qwen2",
            "blk.0.attn_v.bias",
            "model.layers.0.self_attn.v_proj.bias",
        ),
        (
            "qwen2",
            "blk.0.ffn_norm.weight",
            "model.layers.0.post_attention_layernorm.weight",
        ),
        (
            "qwen3",
            "blk.7.attn_q_norm.weight",
            "model.layers.7.self_attn.q_norm.weight",
        ),
        (
            "qwen3",
            "blk.7.attn_k_norm.weight",
            "model.layers.7.self_attn.k_norm.weight",
        ),
        (
            "gemma3",
            "blk.7.attn_q_norm.weight",
            "model.layers.7.self_attn.q_norm.weight",
        ),
        (
            "gemma3",
            "blk.7.post_attention_norm.weight",
            "model.layers.7.post_attention_layernorm.weight",
        ),
        (
            "gemma3",
            "blk.7.ffn_norm.weight",
            "model.layers.7.pre_feedforward_layernorm.weight",
        ),
        (
            "gemma3",
            "blk.7.post_ffw_norm.weight",
            "model.layers.7.post_feedforward_layernorm.weight",
        ),
    ];

    #[test]
    fn real_names_are_known() {
        for (architecture, gguf, hugging_face) in REAL {
            assert_eq!(
                hugging_face_name(architecture, gguf).as_deref(),
                Some(*hugging_face),
                "{gguf}"
            );
        }
    }

    #[test]
    fn other_names_are_not() {
        for name in [
            "",
            "blk.",
            "blk.0",
            "blk.0.attn_q",
            "blk.00.attn_q.weight",
            "blk.+1.attn_q.weight",
            "attn_q.weight",
        ] {
            assert_eq!(hugging_face_name("llama", name), None, "{name}");
        }
        assert_eq!(hugging_face_name("llama", "blk.0.attn_q_norm.weight"), None);
        assert_eq!(hugging_face_name("llama", "blk.0.attn_q.scale"), None);
        assert_eq!(hugging_face_name("mamba", "token_embd.weight"), None);
    }
}
