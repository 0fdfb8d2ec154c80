//! An encoder's shape, read from `config.json` and checked once.

use rempart_kernels::op::Activation;
use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result, RopeConfig, RopeScaling};

const FILE: &str = "config.json";
/// Classes of a classifier, well above any published model's.
const LABELS_MAX: usize = 1 << 16;

/// Encoder families with a definition of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Bert,
    /// `RoBERTa`, XLM-R and `CamemBERT`.
    Roberta,
    ModernBert,
}

/// What a checkpoint was trained to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Hidden states.
    Body,
    /// Logits of this many classes.
    Classify(usize),
}

/// An encoder's shape. All sizes are checked before anything is allocated by them.
#[derive(Clone, Debug)]
pub(crate) struct EncoderConfig {
    pub(crate) family: Family,
    pub(crate) purpose: Purpose,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) norm_eps: f32,
    pub(crate) activation: Activation,
    /// Rows of the table of positions, or the longest sequence where there is no table.
    pub(crate) positions: usize,
    /// The first token's row in that table.
    pub(crate) first_position: usize,
    /// 0 where there is no table of these.
    pub(crate) token_types: usize,
    pub(crate) modern: ModernBertConfig,
    /// The class that a cross-encoder applies to its logits, by its Python name.
    pub(crate) score_activation: Option<String>,
}

/// What `ModernBERT`'s file says beyond the others'.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are the file's")]
pub(crate) struct ModernBertConfig {
    pub(crate) attention_bias: bool,
    pub(crate) mlp_bias: bool,
    pub(crate) norm_bias: bool,
    /// For each layer: tokens seen on either side; all where there is none.
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) rope_global: RopeConfig,
    pub(crate) rope_local: RopeConfig,
    pub(crate) classifier_mean: bool,
    pub(crate) classifier_bias: bool,
    pub(crate) classifier_activation: Activation,
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    layer_norm_eps: Option<f32>,
    norm_eps: Option<f32>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
    num_labels: Option<usize>,
    id2label: Option<serde_json::Map<String, Value>>,
    sentence_transformers: Option<SentenceTransformers>,
    sbert_ce_default_activation_function: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    norm_bias: Option<bool>,
    local_attention: Option<usize>,
    global_attn_every_n_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    global_rope_theta: Option<f32>,
    local_rope_theta: Option<f32>,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    classifier_pooling: Option<String>,
    classifier_bias: Option<bool>,
    classifier_activation: Option<String>,
}

#[derive(Deserialize)]
struct SentenceTransformers {
    activation_fn: Option<String>,
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::config(FILE, message))
}

impl EncoderConfig {
    /// Whether `config.json` names one of these families.
    pub(crate) fn is_encoder(config: &[u8]) -> bool {
        let value: Option<Value> = serde_json::from_slice(config).ok();
        let model_type = value.as_ref().and_then(|value| value.get("model_type")?.as_str());
        model_type.and_then(family).is_some()
    }

    /// # Errors
    /// When a field is missing, outside its limits, or asks for something this version cannot do.
    pub(crate) fn from_json(config: &[u8]) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(config).map_err(|e| Error::config(FILE, e.to_string()))?;
        let model_type = raw.model_type.as_deref().unwrap_or_default();
        let Some(family) = family(model_type) else {
            return Err(Error::UnsupportedEncoder(model_type.chars().take(64).collect()));
        };
        raw.into_config(family)?.validate()
    }

    /// Tokens of the longest sequence.
    pub(crate) fn tokens_max(&self) -> usize {
        self.positions.saturating_sub(self.first_position)
    }

    fn validate(self) -> Result<Self> {
        let limits = [
            ("vocab_size", self.vocab_size, 1 << 21),
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_hidden_layers", self.layers, 1 << 10),
            ("num_attention_heads", self.heads, 1 << 11),
            ("max_position_embeddings", self.positions, 1 << 20),
        ];
        for (name, value, limit) in limits {
            if value == 0 || value > limit {
                return refuse(format!("{name} is {value}; it must be 1 to {limit}"));
            }
        }
        if self.head_dim * self.heads != self.hidden_size {
            return refuse(format!(
                "hidden_size is {}; it must be a multiple of num_attention_heads, {}",
                self.hidden_size, self.heads
            ));
        }
        if self.family == Family::ModernBert && !self.head_dim.is_multiple_of(2) {
            return refuse(format!(
                "heads of {}; rotary embedding needs an even width",
                self.head_dim
            ));
        }
        if self.tokens_max() == 0 {
            return refuse(format!(
                "max_position_embeddings is {}, and the first token has position {}",
                self.positions, self.first_position
            ));
        }
        if self.token_types > 1 << 10 {
            return refuse(format!(
                "type_vocab_size is {}; it must be at most 1024",
                self.token_types
            ));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return refuse(format!(
                "the norms' epsilon is {}; it must lie between 0 and 1",
                self.norm_eps
            ));
        }
        for rope in [&self.modern.rope_global, &self.modern.rope_local] {
            rope.validate(FILE)?;
        }
        match self.purpose {
            Purpose::Classify(labels) if labels == 0 || labels > LABELS_MAX => {
                refuse(format!("{labels} labels; there must be 1 to {LABELS_MAX}"))
            }
            _ => Ok(self),
        }
    }
}

impl Raw {
    fn into_config(self, family: Family) -> Result<EncoderConfig> {
        self.refuse_unsupported()?;
        let modern = family == Family::ModernBert;
        let name = self.hidden_activation.as_deref().or(self.hidden_act.as_deref());
        let first_position = match family {
            // transformers counts positions from the padding token's id.
            Family::Roberta => self.pad_token_id.unwrap_or(1).saturating_add(1),
            Family::Bert | Family::ModernBert => 0,
        };
        let token_types = if modern {
            0
        } else {
            self.type_vocab_size.unwrap_or(2)
        };
        let norm_eps = if modern {
            self.norm_eps.unwrap_or(1e-5)
        } else {
            self.layer_norm_eps.unwrap_or(1e-12)
        };
        let score_activation = self
            .sentence_transformers
            .as_ref()
            .and_then(|st| st.activation_fn.clone());
        Ok(EncoderConfig {
            family,
            purpose: self.purpose()?,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            head_dim: self
                .hidden_size
                .checked_div(self.num_attention_heads)
                .unwrap_or(0),
            norm_eps,
            activation: activation(name.unwrap_or("gelu"))?,
            positions: self.max_position_embeddings,
            first_position,
            token_types,
            modern: self.modern()?,
            score_activation: score_activation.or(self.sbert_ce_default_activation_function),
        })
    }

    fn refuse_unsupported(&self) -> Result<()> {
        if let Some(kind) = self
            .position_embedding_type
            .as_deref()
            .filter(|kind| *kind != "absolute")
        {
            return refuse(format!("position_embedding_type '{kind}' is not supported"));
        }
        if self.is_decoder == Some(true) {
            return refuse("is_decoder is not supported for this model_type");
        }
        Ok(())
    }

    fn purpose(&self) -> Result<Purpose> {
        let Some(architecture) = self.architectures.first() else {
            return Ok(Purpose::Body);
        };
        if architecture.ends_with("ForSequenceClassification") {
            let named = self.id2label.as_ref().map(serde_json::Map::len);
            // transformers has two classes unless told otherwise.
            return Ok(Purpose::Classify(named.or(self.num_labels).unwrap_or(2)));
        }
        if architecture.ends_with("Model")
            || architecture.ends_with("ForMaskedLM")
            || architecture.ends_with("ForPreTraining")
        {
            return Ok(Purpose::Body);
        }
        refuse(format!(
            "architecture '{}' is not supported; known are …Model, …ForMaskedLM and …ForSequenceClassification",
            architecture.chars().take(64).collect::<String>()
        ))
    }

    fn modern(&self) -> Result<ModernBertConfig> {
        let rope = |kind: &str, own: Option<f32>, default: f32| -> Result<RopeConfig> {
            let parameters = self.rope_parameters.as_ref().and_then(|all| all.get(kind));
            let text = |name: &str| parameters.and_then(|p| p.get(name)?.as_str());
            if text("rope_type").is_some_and(|kind| kind != "default") || self.rope_scaling.is_some() {
                return refuse("rope scaling is not supported for this model_type");
            }
            let theta = parameters.and_then(|p| p.get("rope_theta")?.as_f64());
            Ok(RopeConfig {
                theta: theta.map(|theta| theta as f32).or(own).unwrap_or(default),
                scaling: RopeScaling::None,
            })
        };
        Ok(ModernBertConfig {
            attention_bias: self.attention_bias.unwrap_or(false),
            mlp_bias: self.mlp_bias.unwrap_or(false),
            norm_bias: self.norm_bias.unwrap_or(false),
            windows: self.windows()?,
            rope_global: rope("full_attention", self.global_rope_theta, 160_000.0)?,
            rope_local: rope("sliding_attention", self.local_rope_theta, 10_000.0)?,
            classifier_mean: match self.classifier_pooling.as_deref().unwrap_or("cls") {
                "cls" => false,
                "mean" => true,
                other => return refuse(format!("classifier_pooling '{other}' is not supported")),
            },
            classifier_bias: self.classifier_bias.unwrap_or(false),
            classifier_activation: activation(self.classifier_activation.as_deref().unwrap_or("gelu"))?,
        })
    }

    fn windows(&self) -> Result<Vec<Option<usize>>> {
        let layers = self.num_hidden_layers.min(1 << 10);
        let side = self.local_attention.unwrap_or(128) / 2;
        let Some(types) = &self.layer_types else {
            let every = self.global_attn_every_n_layers.unwrap_or(3).max(1);
            return Ok((0..layers)
                .map(|layer| (layer % every != 0).then_some(side))
                .collect());
        };
        if types.len() != layers {
            return refuse(format!("layer_types names {} layers of {layers}", types.len()));
        }
        let window = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(None),
            "sliding_attention" => Ok(Some(side)),
            other => refuse(format!("layer_types: '{other}' is not supported")),
        };
        types.iter().map(window).collect()
    }
}

fn family(model_type: &str) -> Option<Family> {
    match model_type {
        "bert" => Some(Family::Bert),
        "roberta" | "xlm-roberta" | "camembert" => Some(Family::Roberta),
        "modernbert" => Some(Family::ModernBert),
        _ => None,
    }
}

fn activation(name: &str) -> Result<Activation> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => refuse(format!("activation '{other}' is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(fields: &Value) -> Result<EncoderConfig> {
        let mut config = json!({
            "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 48,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64,
        });
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        EncoderConfig::from_json(config.to_string().as_bytes())
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let cases = [
            (json!({"model_type": "t5"}), "t5"),
            (json!({"hidden_size": 0}), "hidden_size is 0"),
            (json!({"hidden_size": 1_u64 << 60}), "hidden_size"),
            (
                json!({"num_attention_heads": 5}),
                "multiple of num_attention_heads",
            ),
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (json!({"hidden_act": "mish"}), "activation 'mish'"),
            (json!({"position_embedding_type": "relative_key"}), "relative_key"),
            (
                json!({"architectures": ["BertForTokenClassification"]}),
                "BertForTokenClassification",
            ),
            (
                json!({"architectures": ["BertForSequenceClassification"], "id2label": {}}),
                "0 labels",
            ),
            (
                json!({"model_type": "roberta", "pad_token_id": u64::MAX}),
                "max_position_embeddings",
            ),
            (
                json!({"model_type": "modernbert", "layer_types": ["full_attention"]}),
                "1 layers of 2",
            ),
            (
                json!({"model_type": "modernbert", "global_rope_theta": 0.0}),
                "rope_theta",
            ),
            (json!({"layer_norm_eps": 2.0}), "epsilon"),
        ];
        for (fields, expected) in cases {
            let error = read(&fields).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn roberta_loses_the_positions_before_its_first() {
        let config =
            read(&json!({"model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1})).unwrap();
        assert_eq!((config.tokens_max(), config.first_position), (62, 2));
    }

    #[test]
    fn modernbert_alternates_and_numbers_of_labels_come_from_their_names() {
        let config = read(&json!({
            "model_type": "modernbert", "num_hidden_layers": 4, "local_attention": 10,
            "architectures": ["ModernBertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"},
        }))
        .unwrap();
        assert_eq!(config.modern.windows, [None, Some(5), Some(5), None]);
        assert_eq!(config.purpose, Purpose::Classify(3));
    }
}
