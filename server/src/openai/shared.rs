//! What the two main endpoints have in common: parameters, usage and stream options.

use std::ops::RangeInclusive;

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::format::{self, AskedFormat};
use crate::openai::json::{self, Object};
use crate::openai::logprobs;

type Result<T> = std::result::Result<T, ApiError>;

pub const TEMPERATURE: RangeInclusive<f64> = 0.0..=2.0;
pub const TOP_P: RangeInclusive<f64> = 0.0..=1.0;
pub const MIN_P: RangeInclusive<f64> = 0.0..=1.0;
/// -1 and 0 both mean off.
pub const TOP_K: RangeInclusive<i64> = -1..=1_000_000;
/// Below this the logits of seen tokens would grow without bound.
pub const REPETITION_PENALTY: RangeInclusive<f64> = 0.01..=10.0;
pub const PRESENCE_PENALTY: RangeInclusive<f64> = -2.0..=2.0;
pub const FREQUENCY_PENALTY: RangeInclusive<f64> = -2.0..=2.0;
pub const LOGIT_BIAS: RangeInclusive<f64> = -100.0..=100.0;
pub const TOP_LOGPROBS_MAX: usize = 20;
/// What `max_tokens` may ask for on any model; the model's context is checked when the prompt's length is known.
pub const TOKENS_MAX: usize = 1 << 24;
/// What may wait longest.
pub const PRIORITY_MAX: i64 = 1000;
/// Token numbers on the wire; the model's vocabulary is checked later.
pub const TOKEN: RangeInclusive<i64> = 0..=(u32::MAX as i64);

/// Parameters that change nothing in an answer: taken, and checked for nothing but their size.
pub const METADATA: &[&str] = &[
    "metadata",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
];

/// Parameters of other servers that would change the answer and are not implemented: refused by name.
pub const UNSUPPORTED: &[&str] = &[
    "allowed_token_ids",
    "audio",
    "bad_words",
    "cache_salt",
    "chat_template",
    "documents",
    "dry_multiplier",
    "function_call",
    "functions",
    "grammar",
    "guided_choice",
    "guided_decoding_backend",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "kv_transfer_params",
    "length_penalty",
    "logits_processors",
    "mirostat",
    "mm_processor_kwargs",
    "prompt_embeds",
    "reasoning",
    "request_id",
    "return_tokens_as_token_ids",
    "thinking",
    "top_n_sigma",
    "truncation_side",
    "typical_p",
    "use_beam_search",
    "vllm_xargs",
    "web_search_options",
];

/// Names that `Common::read` takes.
pub const COMMON: &[&str] = &[
    "best_of",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "max_tokens",
    "min_p",
    "min_tokens",
    "model",
    "n",
    "presence_penalty",
    "priority",
    "prompt_logprobs",
    "repetition_penalty",
    "response_format",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_p",
    "truncate_prompt_tokens",
];

/// The parameters of a generation, each within its own limits. What depends on the model is checked in `chat`.
pub struct Common {
    pub model: String,
    pub sampling: Sampling,
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub include_stop: bool,
    pub skip_special_tokens: bool,
    pub n: usize,
    /// Cuts a prompt's beginning off.
    pub truncate: Option<Truncate>,
    /// What every choice must be.
    pub format: Option<AskedFormat>,
    /// `Some(k)`: likelihoods of the prompt's tokens and of the `k` most likely in their places.
    pub prompt_logprobs: Option<u32>,
    /// Lower is served first.
    pub priority: i32,
    /// `Some` when the answer is to be streamed.
    pub stream: Option<StreamOptions>,
}

/// How the next token is chosen.
pub struct Sampling {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: u32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
}

/// What a stream tells beside the text.
#[derive(Clone, Copy, Default)]
pub struct StreamOptions {
    pub include_usage: bool,
    pub continuous_usage: bool,
}

impl StreamOptions {
    /// What a chunk says of the usage so far.
    pub fn chunk_usage(self, usage: Usage) -> ChunkUsage {
        if self.continuous_usage {
            ChunkUsage::Told(usage)
        } else if self.include_usage {
            ChunkUsage::Later
        } else {
            ChunkUsage::Absent
        }
    }
}

impl Common {
    /// Of a request that asks for nothing special.
    pub fn new(model: String) -> Self {
        Self {
            model,
            sampling: Sampling::default(),
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            include_stop: false,
            skip_special_tokens: true,
            n: 1,
            truncate: None,
            format: None,
            prompt_logprobs: None,
            priority: 0,
            stream: None,
        }
    }

    /// Takes the shared parameters. `tokens_min` is the least that `max_tokens` may be.
    pub fn read(object: &mut Object<'_>, limits: &RequestLimits, tokens_min: usize) -> Result<Self> {
        for name in METADATA {
            object.take(name);
        }
        refuse_best_of(object)?;
        let model = json::typed(object.require("model")?, "model", "a string")?;
        let sampling = Sampling::read(object, limits)?;
        let streamed = object.boolean("stream")?.unwrap_or(false);
        let options = stream_options(object)?;
        if options.is_some() && !streamed {
            let message = "`stream_options` is only allowed when `stream` is true";
            return Err(ApiError::invalid("stream_options", "invalid_value", message));
        }
        let max_tokens = object.count("max_tokens", tokens_min..=TOKENS_MAX)?;
        let min_tokens = object.count("min_tokens", 0..=TOKENS_MAX)?.unwrap_or(0);
        Ok(Self {
            model,
            sampling,
            max_tokens,
            min_tokens,
            stop: stop_strings(object.take("stop"), "stop", limits)?,
            stop_token_ids: stop_token_ids(object, limits)?,
            ignore_eos: object.boolean("ignore_eos")?.unwrap_or(false),
            include_stop: object.boolean("include_stop_str_in_output")?.unwrap_or(false),
            skip_special_tokens: object.boolean("skip_special_tokens")?.unwrap_or(true),
            format: format::read(object, limits)?,
            truncate: Truncate::read(object)?,
            prompt_logprobs: logprobs::read(object, streamed)?,
            priority: priority(object, limits)?,
            n: object.count("n", 1..=limits.choices_max)?.unwrap_or(1),
            stream: streamed.then(|| options.unwrap_or_default()),
        })
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl Sampling {
    fn read(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Self> {
        let unsaid = Self::default();
        let mut real = |name: &str, range: &RangeInclusive<f64>, default: f32| -> Result<f32> {
            Ok(object.number(name, range)?.map_or(default, |value| value as f32))
        };
        let temperature = real("temperature", &TEMPERATURE, unsaid.temperature)?;
        let top_p = real("top_p", &TOP_P, unsaid.top_p)?;
        let min_p = real("min_p", &MIN_P, unsaid.min_p)?;
        let repetition_penalty = real(
            "repetition_penalty",
            &REPETITION_PENALTY,
            unsaid.repetition_penalty,
        )?;
        let presence_penalty = real("presence_penalty", &PRESENCE_PENALTY, unsaid.presence_penalty)?;
        let frequency_penalty = real("frequency_penalty", &FREQUENCY_PENALTY, unsaid.frequency_penalty)?;
        let top_k = object.integer("top_k", &TOP_K)?.unwrap_or(0);
        let seed = object.integer("seed", &(i64::MIN..=i64::MAX))?;
        Ok(Self {
            temperature,
            top_p,
            top_k: u32::try_from(top_k).unwrap_or(0),
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias: logit_bias(object, limits)?,
            seed: seed.map(i64::cast_unsigned),
        })
    }
}

fn stream_options(object: &mut Object<'_>) -> Result<Option<StreamOptions>> {
    let Some(raw) = object.take("stream_options") else {
        return Ok(None);
    };
    let mut options = Object::from_raw(raw, "stream_options")?;
    let read = StreamOptions {
        include_usage: options.boolean("include_usage")?.unwrap_or(false),
        continuous_usage: options.boolean("continuous_usage_stats")?.unwrap_or(false),
    };
    // Padding against traffic analysis is a promise we do not make, so only its absence may be asked for.
    if options.boolean("include_obfuscation")? == Some(true) {
        return Err(ApiError::unsupported("stream_options.include_obfuscation"));
    }
    options.finish(
        &["include_usage", "continuous_usage_stats", "include_obfuscation"],
        &[],
    )?;
    Ok(Some(read))
}

/// A stop string or several, found at `name`, at most as many and as long as the limits say.
pub fn stop_strings(raw: Option<&RawValue>, name: &str, limits: &RequestLimits) -> Result<Vec<String>> {
    let Some(raw) = raw else {
        return Ok(Vec::new());
    };
    let single = raw.get().starts_with('"');
    let stops: Vec<String> = if single {
        vec![json::typed(raw, name, "a string or an array of strings")?]
    } else {
        json::array(raw, name, limits.stops_max)?;
        json::typed(raw, name, "a string or an array of strings")?
    };
    for (at, stop) in stops.iter().enumerate() {
        if stop.is_empty() || stop.len() > limits.stop_bytes_max {
            let path = if single {
                name.to_owned()
            } else {
                format!("{name}[{at}]")
            };
            let message = format!("`{path}` must have between 1 and {} bytes", limits.stop_bytes_max);
            return Err(ApiError::invalid(path, "out_of_range", message));
        }
    }
    Ok(stops)
}

/// Tokens that a prompt or a text is cut to, where a client asks for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// What the model takes.
    Model,
    Tokens(usize),
}

impl Truncate {
    /// Takes `truncate_prompt_tokens`.
    pub fn read(object: &mut Object<'_>) -> Result<Option<Self>> {
        const NAME: &str = "truncate_prompt_tokens";
        let most = i64::try_from(TOKENS_MAX).unwrap_or(i64::MAX);
        Ok(match object.integer(NAME, &(-1..=most))? {
            None => None,
            Some(-1) => Some(Self::Model),
            Some(0) => {
                let message = format!("`{NAME}` must be -1, for what the model takes, or at least 1");
                return Err(ApiError::invalid(NAME, "out_of_range", message));
            }
            Some(tokens) => Some(Self::Tokens(usize::try_from(tokens).unwrap_or(usize::MAX))),
        })
    }
}

fn stop_token_ids(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Vec<u32>> {
    let Some(raw) = object.take("stop_token_ids") else {
        return Ok(Vec::new());
    };
    let items = json::array(raw, "stop_token_ids", limits.stop_tokens_max)?;
    let token = |(at, raw): (usize, &&RawValue)| token_id(raw, &format!("stop_token_ids[{at}]"));
    items.iter().enumerate().map(token).collect()
}

/// A token number.
pub fn token_id(raw: &RawValue, path: &str) -> Result<u32> {
    let value = json::integer(raw, path, &TOKEN)?;
    Ok(u32::try_from(value).expect("TOKEN is the range of u32"))
}

fn logit_bias(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Vec<(u32, f32)>> {
    let Some(raw) = object.take("logit_bias") else {
        return Ok(Vec::new());
    };
    let entries = Object::from_raw(raw, "logit_bias")?.into_entries();
    if entries.len() > limits.logit_bias_max {
        let message = format!(
            "`logit_bias` has {} entries, but the limit is {}",
            entries.len(),
            limits.logit_bias_max
        );
        return Err(ApiError::invalid(
            "logit_bias",
            "object_above_max_length",
            message,
        ));
    }
    let mut biases = Vec::with_capacity(entries.len());
    for (key, raw) in entries {
        let canonical = |token: &u32| token.to_string() == key;
        let Some(token) = key.parse::<u32>().ok().filter(canonical) else {
            let message = "the keys of `logit_bias` must be token numbers, such as \"50256\"";
            return Err(ApiError::invalid("logit_bias", "invalid_value", message));
        };
        let bias = json::number(raw, &format!("logit_bias.{token}"), &LOGIT_BIAS)?;
        biases.push((token, bias as f32));
    }
    biases.sort_unstable_by_key(|(token, _)| *token);
    Ok(biases)
}

fn refuse_best_of(object: &mut Object<'_>) -> Result<()> {
    match object.take("best_of") {
        Some(_) => Err(ApiError::unsupported("best_of")),
        None => Ok(()),
    }
}

/// Who goes first is the operator's choice; anyone may let others go first.
fn priority(object: &mut Object<'_>, limits: &RequestLimits) -> Result<i32> {
    let range = i64::from(limits.priority_min)..=PRIORITY_MAX;
    let priority = object.integer("priority", &range)?.unwrap_or(0);
    Ok(i32::try_from(priority).expect("the range is within i32"))
}

/// `system_fingerprint`: which build answered.
pub const FINGERPRINT: &str = concat!("rempart-", env!("CARGO_PKG_VERSION"));

/// How many tokens a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
    pub completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    pub cached_tokens: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct CompletionTokensDetails {
    pub reasoning_tokens: usize,
    /// Tokens of a `prediction` that came true and saved time, and those that did not; neither adds to `completion_tokens`.
    pub accepted_prediction_tokens: usize,
    pub rejected_prediction_tokens: usize,
}

/// What a chunk of a stream says of the usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkUsage {
    /// The client did not ask.
    Absent,
    /// It asked, and the last chunk will tell.
    Later,
    Told(Usage),
}

impl ChunkUsage {
    pub fn is_absent(&self) -> bool {
        *self == Self::Absent
    }
}

impl Serialize for ChunkUsage {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Later => serializer.serialize_none(),
            Self::Told(usage) => usage.serialize(serializer),
        }
    }
}

impl Usage {
    /// Of tokens of all prompts and all choices.
    pub fn new(
        prompt_tokens: usize,
        completion_tokens: usize,
        cached_tokens: usize,
        completion_tokens_details: CompletionTokensDetails,
    ) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details,
        }
    }
}
