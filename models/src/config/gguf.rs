//! The shape as GGUF metadata holds it (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

use super::{Architecture, ModelConfig, RopeConfig, RopeScaling};
use crate::{
    Error, Result,
    weights::{Checkpoint, gguf::Metadata},
};

const FILE: &str = "GGUF metadata";
/// Gemma 3's converter writes neither: every sixth layer sees the whole context; sliding ones rotate by this base.
const GEMMA3_PATTERN: usize = 6;
const GEMMA3_27B_LAYERS: usize = 62;
const GEMMA3_LOCAL_THETA: f32 = 10_000.0;
/// Texts by which converters' vocabularies are known to end a turn; the metadata names one end token only.
const END_OF_TURN: [&str; 5] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<|endoftext|>",
];

impl ModelConfig {
    /// Reads the shape of the family that `general.architecture` names.
    ///
    /// # Errors
    /// When a key is missing, outside its limits, or asks for something this version cannot do.
    pub fn from_gguf(checkpoint: &Checkpoint) -> Result<Self> {
        let metadata = checkpoint
            .metadata()
            .ok_or_else(|| Error::config(FILE, "the checkpoint has none"))?;
        let name = metadata.get_str("general.architecture")?;
        let architecture = match name {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            "gemma3" => Architecture::Gemma3,
            other => return Err(Error::UnsupportedArchitecture(other.to_owned())),
        };
        Keys { metadata, name }
            .config(architecture, checkpoint)?
            .validate(FILE)
    }
}

struct Keys<'a> {
    metadata: &'a Metadata,
    name: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn size(&self, key: &str) -> Result<usize> {
        Ok(self.metadata.get_u32(&self.key(key))? as usize)
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        Ok(self
            .metadata
            .find::<u32>(&self.key(key))?
            .map(|size| size as usize))
    }

    fn optional_float(&self, key: &str) -> Result<Option<f32>> {
        Ok(self.metadata.find(&self.key(key))?)
    }

    fn config(&self, architecture: Architecture, checkpoint: &Checkpoint) -> Result<ModelConfig> {
        let heads = self.size("attention.head_count")?;
        let hidden_size = self.size("embedding_length")?;
        let layers = self.size("block_count")?;
        let head_dim = match self.optional_size("attention.key_length")? {
            Some(dim) => dim,
            None if heads > 0 => hidden_size / heads,
            None => 0,
        };
        self.refuse_unsupported(head_dim)?;
        let theta = self.optional_float("rope.freq_base")?.unwrap_or(10_000.0);
        let rope_local = (architecture == Architecture::Gemma3).then(|| -> Result<_> {
            let theta = self
                .optional_float("rope.freq_base_swa")?
                .unwrap_or(GEMMA3_LOCAL_THETA);
            Ok(RopeConfig {
                theta,
                scaling: RopeScaling::None,
            })
        });
        // Gemma 3 27B, alone of its family, scales by the width per head; its file does not say so.
        let scale_base = match architecture {
            Architecture::Gemma3 if layers == GEMMA3_27B_LAYERS && heads > 0 => hidden_size / heads,
            _ => head_dim,
        };
        Ok(ModelConfig {
            architecture,
            vocab_size: self.metadata.get_strings("tokenizer.ggml.tokens")?.len(),
            hidden_size,
            intermediate_size: self.size("feed_forward_length")?,
            layers,
            heads,
            kv_heads: self.optional_size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            norm_eps: self
                .metadata
                .get_f32(&self.key("attention.layer_norm_rms_epsilon"))?,
            attention_scale: (scale_base as f32).powf(-0.5),
            attention_bias: architecture == Architecture::Qwen2,
            rope: RopeConfig {
                theta,
                scaling: self.scaling()?,
            },
            rope_local: rope_local.transpose()?,
            windows: self.windows(architecture, layers)?,
            tied_head: !checkpoint.contains("lm_head.weight"),
            context_length: self.size("context_length")?,
            eos_tokens: self.end_tokens()?,
        })
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let key = self.key("rope.scaling.type");
        match self.metadata.find(&key)?.unwrap_or("none") {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: self.metadata.get_f32(&self.key("rope.scaling.factor"))?,
            }),
            other => Err(Error::config(FILE, format!("{key} '{other}' is not supported"))),
        }
    }

    fn windows(&self, architecture: Architecture, layers: usize) -> Result<Vec<Option<usize>>> {
        let window = self
            .optional_size("attention.sliding_window")?
            .filter(|&window| window > 0);
        let sliding = |layer: usize| match architecture {
            Architecture::Gemma3 => !(layer + 1).is_multiple_of(GEMMA3_PATTERN),
            _ => true,
        };
        Ok((0..layers.min(1 << 10))
            .map(|layer| window.filter(|_| sliding(layer)))
            .collect())
    }

    fn end_tokens(&self) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            tokens.extend(self.metadata.find::<u32>(key)?);
        }
        for (id, text) in self
            .metadata
            .get_strings("tokenizer.ggml.tokens")?
            .iter()
            .enumerate()
        {
            if END_OF_TURN.contains(&text.as_str()) {
                tokens.push(id as u32);
            }
        }
        tokens.sort_unstable();
        tokens.dedup();
        Ok(tokens)
    }

    /// Refuses what would change the result and is not implemented, instead of computing something else.
    fn refuse_unsupported(&self, head_dim: usize) -> Result<()> {
        let rotated = self.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
        let values = self.optional_size("attention.value_length")?.unwrap_or(head_dim);
        for (key, found) in [
            ("rope.dimension_count", rotated),
            ("attention.value_length", values),
        ] {
            if found != head_dim {
                let message = format!(
                    "{} is {found}; only the head width, {head_dim}, is supported",
                    self.key(key)
                );
                return Err(Error::config(FILE, message));
            }
        }
        for key in [
            "expert_count",
            "final_logit_softcapping",
            "attn_logit_softcapping",
        ] {
            if self.optional_float(key)?.is_some_and(|value| value != 0.0) {
                return Err(Error::config(FILE, format!("{} is not supported", self.key(key))));
            }
        }
        Ok(())
    }
}
