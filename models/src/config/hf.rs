//! `config.json` and `generation_config.json` as Hugging Face transformers writes them (versions 4 and 5).

use serde::Deserialize;
use serde_json::Value;

use super::{Architecture, ModelConfig, RopeConfig, RopeScaling};
use crate::{Error, Result};

const FILE: &str = "config.json";
/// Gemma 3: every sixth layer sees the whole context when the file does not say otherwise.
const GEMMA3_PATTERN: usize = 6;

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f32,
    #[serde(default = "default_theta")]
    rope_theta: f32,
    rope_local_base_freq: Option<f32>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f32>,
    max_position_embeddings: usize,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    sliding_window_pattern: Option<usize>,
    query_pre_attn_scalar: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    eos_token_id: Option<Value>,
}

fn default_theta() -> f32 {
    10_000.0
}

impl ModelConfig {
    /// Reads `config.json` and, where there is one, `generation_config.json` (for its end tokens).
    ///
    /// # Errors
    /// When a field is missing, outside its limits, or asks for something this version cannot do.
    pub fn from_json(config: &[u8], generation: Option<&[u8]>) -> Result<Self> {
        let value: Value = serde_json::from_slice(config).map_err(|e| Error::config(FILE, e.to_string()))?;
        let model_type = value
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let architecture = architecture(model_type)?;
        let raw: Raw = serde_json::from_value(value).map_err(|e| Error::config(FILE, e.to_string()))?;
        refuse_unsupported(&raw, architecture)?;
        let generation_eos = match generation {
            Some(bytes) => {
                let file = "generation_config.json";
                let value: Value =
                    serde_json::from_slice(bytes).map_err(|e| Error::config(file, e.to_string()))?;
                token_ids(value.get("eos_token_id"), file)?
            }
            None => Vec::new(),
        };
        let eos_tokens = if generation_eos.is_empty() {
            token_ids(raw.eos_token_id.as_ref(), FILE)?
        } else {
            generation_eos
        };
        raw.into_config(architecture, eos_tokens)?.validate(FILE)
    }
}

impl Raw {
    fn into_config(self, architecture: Architecture, eos_tokens: Vec<u32>) -> Result<ModelConfig> {
        let heads = self.num_attention_heads;
        let head_dim = match self.head_dim {
            Some(dim) => dim,
            None if heads > 0 => self.hidden_size / heads,
            None => 0,
        };
        let (rope, rope_local) = self.ropes(architecture)?;
        let scale_base = match architecture {
            Architecture::Gemma3 => self.query_pre_attn_scalar.unwrap_or(256.0),
            _ => head_dim as f32,
        };
        Ok(ModelConfig {
            architecture,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            norm_eps: self.rms_norm_eps,
            attention_scale: scale_base.powf(-0.5),
            // Qwen2's file has no such field: its q, k and v always have a bias.
            attention_bias: self.attention_bias.unwrap_or(architecture == Architecture::Qwen2),
            rope,
            rope_local,
            windows: self.windows(architecture)?,
            // transformers ties Gemma's head unless told otherwise.
            tied_head: self
                .tie_word_embeddings
                .unwrap_or(architecture == Architecture::Gemma3),
            context_length: self.max_position_embeddings,
            eos_tokens,
        })
    }

    /// The window of each layer: by `layer_types` where given, else by the family's older fields.
    fn windows(&self, architecture: Architecture) -> Result<Vec<Option<usize>>> {
        let layers = self.num_hidden_layers.min(1 << 10);
        if let Some(types) = &self.layer_types {
            if types.len() != self.num_hidden_layers {
                return Err(Error::config(
                    FILE,
                    format!(
                        "layer_types names {} layers of {}",
                        types.len(),
                        self.num_hidden_layers
                    ),
                ));
            }
            return types.iter().map(|kind| self.window_of(kind)).collect();
        }
        let sliding = |layer: usize| match architecture {
            Architecture::Llama => true,
            Architecture::Qwen2 | Architecture::Qwen3 => {
                self.use_sliding_window.unwrap_or(false) && layer >= self.max_window_layers.unwrap_or(0)
            }
            Architecture::Gemma3 => {
                !(layer + 1).is_multiple_of(self.sliding_window_pattern.unwrap_or(GEMMA3_PATTERN).max(1))
            }
        };
        Ok((0..layers)
            .map(|layer| self.sliding_window.filter(|_| sliding(layer)))
            .collect())
    }

    fn window_of(&self, kind: &str) -> Result<Option<usize>> {
        match kind {
            "full_attention" => Ok(None),
            "sliding_attention" => self.sliding_window.map(Some).ok_or_else(|| {
                Error::config(
                    FILE,
                    "layer_types names sliding_attention but sliding_window is missing",
                )
            }),
            other => Err(Error::config(
                FILE,
                format!("layer_types: '{other}' is not supported"),
            )),
        }
    }

    /// The rotary settings of whole-context and of sliding layers; transformers 5 keeps both in `rope_parameters`.
    fn ropes(&self, architecture: Architecture) -> Result<(RopeConfig, Option<RopeConfig>)> {
        let parameters = self.rope_parameters.as_ref();
        let of = |kind: &str| parameters.and_then(|p| p.get(kind)).filter(|v| v.is_object());
        let full = of("full_attention").or(parameters).or(self.rope_scaling.as_ref());
        let rope = RopeConfig {
            theta: theta(full, self.rope_theta),
            scaling: scaling(full)?,
        };
        let local = if architecture == Architecture::Gemma3 {
            let local = of("sliding_attention");
            let default = self.rope_local_base_freq.unwrap_or(default_theta());
            Some(RopeConfig {
                theta: theta(local, default),
                scaling: scaling(local)?,
            })
        } else {
            None
        };
        Ok((rope, local))
    }
}

fn theta(parameters: Option<&Value>, default: f32) -> f32 {
    parameters
        .and_then(|p| p.get("rope_theta"))
        .and_then(Value::as_f64)
        .map_or(default, |theta| theta as f32)
}

fn scaling(parameters: Option<&Value>) -> Result<RopeScaling> {
    let Some(parameters) = parameters.filter(|p| p.is_object()) else {
        return Ok(RopeScaling::None);
    };
    let kind = parameters
        .get("rope_type")
        .or_else(|| parameters.get("type"))
        .and_then(Value::as_str);
    let number = |name: &str| {
        parameters
            .get(name)
            .and_then(Value::as_f64)
            .map(|v| v as f32)
            .ok_or_else(|| Error::config(FILE, format!("rope scaling needs the number {name}")))
    };
    match kind {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: number("factor")?,
        }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: parameters
                .get("original_max_position_embeddings")
                .and_then(Value::as_u64)
                .and_then(|v| usize::try_from(v).ok())
                .ok_or_else(|| Error::config(FILE, "rope scaling needs original_max_position_embeddings"))?,
        }),
        Some(other) => Err(Error::config(
            FILE,
            format!("rope scaling '{other}' is not supported"),
        )),
    }
}

fn architecture(model_type: &str) -> Result<Architecture> {
    match model_type {
        "llama" | "mistral" => Ok(Architecture::Llama),
        "qwen2" => Ok(Architecture::Qwen2),
        "qwen3" => Ok(Architecture::Qwen3),
        "gemma3_text" => Ok(Architecture::Gemma3),
        other => Err(Error::UnsupportedArchitecture(other.to_owned())),
    }
}

/// Refuses what would change the result and is not implemented, instead of computing something else.
fn refuse_unsupported(raw: &Raw, architecture: Architecture) -> Result<()> {
    let activation = raw.hidden_activation.as_deref().or(raw.hidden_act.as_deref());
    let expected: &[&str] = match architecture {
        Architecture::Gemma3 => &["gelu_pytorch_tanh"],
        _ => &["silu"],
    };
    if activation.is_some_and(|name| !expected.contains(&name)) {
        let name = activation.unwrap_or_default();
        return Err(Error::config(
            FILE,
            format!("activation '{name}' is not supported; expected {expected:?}"),
        ));
    }
    let unsupported = [
        ("attn_logit_softcapping", raw.attn_logit_softcapping.is_some()),
        ("final_logit_softcapping", raw.final_logit_softcapping.is_some()),
        ("mlp_bias", raw.mlp_bias == Some(true)),
        (
            "partial_rotary_factor",
            raw.partial_rotary_factor
                .is_some_and(|f| (f - 1.0).abs() > f32::EPSILON),
        ),
        (
            "attention_bias",
            raw.attention_bias == Some(true) && architecture != Architecture::Qwen2,
        ),
    ];
    match unsupported.into_iter().find(|(_, set)| *set) {
        Some((name, _)) => {
            let model_type = raw.model_type.as_deref().unwrap_or_default();
            Err(Error::config(
                FILE,
                format!("{name} is not supported for model_type {model_type}"),
            ))
        }
        None => Ok(()),
    }
}

/// One id or a list of ids.
fn token_ids(value: Option<&Value>, file: &str) -> Result<Vec<u32>> {
    let wrong = || Error::config(file, "eos_token_id must be a token id or a list of token ids");
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(wrong)
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(single) => Ok(vec![id(single)?]),
    }
}
