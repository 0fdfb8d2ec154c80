//! A model's shape, read from `config.json` or GGUF metadata and checked once.

mod gguf;
mod hf;

use crate::{Error, Result, parallel::Shard};

/// Model families with a definition of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3.x, SmolLM2, Mistral.
    Llama,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
    /// Gemma 3, text.
    Gemma3,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by `factor` (position interpolation, arXiv:2306.15595).
    Linear {
        /// Divisor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above original / this are divided.
        low_freq_factor: f32,
        /// Wavelengths below original / this are kept.
        high_freq_factor: f32,
        /// Context length before the extension, tokens.
        original_context: usize,
    },
}

/// Rotary position embedding (`RoFormer`, arXiv:2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric progression of wavelengths.
    pub theta: f32,
    /// Stretching beyond the trained context.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Angular frequencies `[head_dim / 2]`, radians per position.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| 1.0 / self.theta.powf((2 * i) as f32 / head_dim as f32))
            .map(|freq| self.scaling.apply(freq))
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, freq: f32) -> f32 {
        match *self {
            Self::None => freq,
            Self::Linear { factor } => freq / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let original = original_context as f32;
                let wavelength = 2.0 * std::f32::consts::PI / freq;
                if wavelength < original / high_freq_factor {
                    freq
                } else if wavelength > original / low_freq_factor {
                    freq / factor
                } else {
                    let smooth =
                        (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * freq / factor + smooth * freq
                }
            }
        }
    }
}

/// A model's shape. All sizes are checked before anything is allocated by them.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square before the root.
    pub norm_eps: f32,
    /// Factor on query · key.
    pub attention_scale: f32,
    /// Whether q, k and v projections have a bias.
    pub attention_bias: bool,
    /// Rotary embedding of layers that see the whole context.
    pub rope: RopeConfig,
    /// Rotary embedding of sliding layers, where it differs (Gemma 3).
    pub rope_local: Option<RopeConfig>,
    /// Sliding window of each layer in tokens, the token itself included; `None` sees the whole context.
    pub windows: Vec<Option<usize>>,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// Longest sequence the model was made for, tokens.
    pub context_length: usize,
    /// Tokens that end a generation.
    pub eos_tokens: Vec<u32>,
}

/// Upper limits on what a file may claim, well above any published model.
const LIMITS: [(&str, usize); 7] = [
    ("vocab_size", 1 << 21),
    ("hidden_size", 1 << 17),
    ("intermediate_size", 1 << 19),
    ("num_hidden_layers", 1 << 10),
    ("num_attention_heads", 1 << 11),
    ("head_dim", 1 << 10),
    ("max_position_embeddings", 1 << 27),
];

impl ModelConfig {
    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The model as one rank computes it: with its heads alone.
    ///
    /// # Errors
    /// There are fewer heads than ranks.
    pub fn part(&self, shard: Shard) -> Result<Self> {
        let heads = shard.heads(self)?;
        Ok(Self {
            heads: heads.query.len(),
            kv_heads: heads.kv.len(),
            ..self.clone()
        })
    }

    /// Checks every size against its limit and against each other.
    ///
    /// # Errors
    /// Names the field, its value and the limit.
    pub(crate) fn validate(self, file: &str) -> Result<Self> {
        let values = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.head_dim,
            self.context_length,
        ];
        for ((name, limit), value) in LIMITS.into_iter().zip(values) {
            if value == 0 || value > limit {
                return Err(Error::config(
                    file,
                    format!("{name} is {value}; it must be 1 to {limit}"),
                ));
            }
        }
        let fail = |message: String| Err(Error::config(file, message));
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return fail(format!(
                "num_key_value_heads is {}; it must divide num_attention_heads, {}",
                self.kv_heads, self.heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "head_dim is {}; rotary embedding needs an even width",
                self.head_dim
            ));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return fail(format!(
                "rms_norm_eps is {}; it must lie between 0 and 1",
                self.norm_eps
            ));
        }
        if !(self.attention_scale.is_finite() && self.attention_scale > 0.0) {
            return fail(format!(
                "the attention scale is {}; it must be positive",
                self.attention_scale
            ));
        }
        if self.windows.iter().flatten().any(|&window| window == 0) {
            return fail("sliding_window is 0; it must be at least 1".into());
        }
        for rope in [Some(&self.rope), self.rope_local.as_ref()].into_iter().flatten() {
            rope.validate(file)?;
        }
        Ok(self)
    }
}

impl RopeConfig {
    pub(crate) fn validate(&self, file: &str) -> Result<()> {
        if !(self.theta.is_finite() && self.theta >= 1.0) {
            return Err(Error::config(
                file,
                format!("rope_theta is {}; it must be at least 1", self.theta),
            ));
        }
        let sound = match self.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => factor.is_finite() && factor > 0.0,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                factor.is_finite()
                    && factor > 0.0
                    && low_freq_factor > 0.0
                    && high_freq_factor.is_finite()
                    && high_freq_factor > low_freq_factor
                    && original_context > 0
            }
        };
        if !sound {
            return Err(Error::config(
                file,
                format!("rope_scaling {:?} is not usable", self.scaling),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tiny() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 1000,
            hidden_size: 64,
            intermediate_size: 128,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            norm_eps: 1e-5,
            attention_scale: 0.25,
            attention_bias: false,
            rope: RopeConfig {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            },
            rope_local: None,
            windows: vec![None; 2],
            tied_head: true,
            context_length: 2048,
            eos_tokens: vec![2],
        }
    }

    #[test]
    fn sizes_outside_their_limits_are_named() {
        let cases: [(ModelConfig, &str); 6] = [
            (
                ModelConfig {
                    vocab_size: 0,
                    ..tiny()
                },
                "vocab_size is 0",
            ),
            (
                ModelConfig {
                    hidden_size: usize::MAX,
                    ..tiny()
                },
                "hidden_size",
            ),
            (
                ModelConfig {
                    kv_heads: 3,
                    ..tiny()
                },
                "num_key_value_heads is 3",
            ),
            (
                ModelConfig {
                    head_dim: 15,
                    ..tiny()
                },
                "head_dim is 15",
            ),
            (
                ModelConfig {
                    norm_eps: f32::NAN,
                    ..tiny()
                },
                "rms_norm_eps",
            ),
            (
                ModelConfig {
                    windows: vec![Some(0)],
                    ..tiny()
                },
                "sliding_window is 0",
            ),
        ];
        for (config, expected) in cases {
            let error = config.validate("config.json").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn llama3_scaling_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let plain = RopeConfig {
            theta: 500_000.0,
            scaling: RopeScaling::None,
        }
        .inv_freq(128);
        let scaled = RopeConfig {
            theta: 500_000.0,
            scaling,
        }
        .inv_freq(128);
        assert_eq!(plain[0].to_bits(), scaled[0].to_bits());
        assert_eq!((plain[63] / 8.0).to_bits(), scaled[63].to_bits());
    }
}
