//! `/v1/completions` on the wire.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};
use crate::openai::logprobs::PromptLogprobs;
use crate::openai::prompted::{Prompted, joined};
use crate::openai::shared::{self, ChunkUsage, Common, TOP_LOGPROBS_MAX, Usage};

type Result<T> = std::result::Result<T, ApiError>;

const OWN: &[&str] = &[
    "add_special_tokens",
    "echo",
    "logprobs",
    "prompt",
    "return_token_ids",
    "suffix",
];

/// Parameters of chats only.
const UNSUPPORTED: &[&str] = &["prediction"];

/// What OpenAI takes when `max_tokens` is not given.
pub const MAX_TOKENS_DEFAULT: usize = 16;

/// A completion request within its limits.
pub struct CompletionRequest {
    pub common: Common,
    pub prompts: Vec<Prompt>,
    /// What comes after the gap that is filled in.
    pub suffix: Option<String>,
    /// `None`: [`MAX_TOKENS_DEFAULT`], or what the context leaves if that is less.
    pub max_tokens: Option<usize>,
    pub echo: bool,
    /// `Some(k)`: the chosen token and the `k` most likely.
    pub logprobs: Option<u32>,
    /// Whether the answer carries the tokens beside their text.
    pub return_token_ids: bool,
    pub add_special_tokens: bool,
}

pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompted for CompletionRequest {
    fn prompt(&self) -> Option<String> {
        joined(self.prompts.iter().filter_map(|prompt| match prompt {
            Prompt::Text(text) => Some(text.as_str()),
            Prompt::Tokens(_) => None,
        }))
    }
}

impl CompletionRequest {
    /// All names that a request may have or that are refused by name; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        [
            OWN,
            shared::COMMON,
            shared::METADATA,
            shared::UNSUPPORTED,
            UNSUPPORTED,
        ]
        .concat()
    }

    /// Reads a request body.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        let mut common = Common::read(&mut object, limits, 0)?;
        let request = Self {
            prompts: prompts(object.require("prompt")?, limits)?,
            suffix: object.string("suffix")?,
            max_tokens: common.max_tokens.take(),
            echo: object.boolean("echo")?.unwrap_or(false),
            logprobs: object.count("logprobs", 0..=TOP_LOGPROBS_MAX)?.map(|k| k as u32),
            return_token_ids: object.boolean("return_token_ids")?.unwrap_or(false),
            add_special_tokens: object.boolean("add_special_tokens")?.unwrap_or(true),
            common,
        };
        let scores = request.echo || request.common.prompt_logprobs.is_some();
        if request.max_tokens == Some(0) && !scores {
            let message = "`max_tokens` may be 0 only with `echo` or `prompt_logprobs`, to score a prompt";
            return Err(ApiError::invalid("max_tokens", "out_of_range", message));
        }
        if request.suffix.is_some() && request.echo {
            let message = "`suffix` can't be combined with `echo`";
            return Err(ApiError::invalid("suffix", "invalid_value", message));
        }
        object.finish(
            &[OWN, shared::COMMON, shared::METADATA].concat(),
            &[shared::UNSUPPORTED, UNSUPPORTED].concat(),
        )?;
        if request.prompts.len() * request.common.n > limits.prompts_max {
            let message = format!(
                "{} prompts with n = {} ask for more than the limit of {} choices",
                request.prompts.len(),
                request.common.n,
                limits.prompts_max
            );
            return Err(ApiError::invalid("n", "out_of_range", message));
        }
        Ok(request)
    }
}

const PROMPT: &str = "a string, an array of strings, an array of token numbers, or an array of such arrays";

/// What the first element is decides which of the four forms is meant.
fn prompts(raw: &RawValue, limits: &RequestLimits) -> Result<Vec<Prompt>> {
    if raw.get().starts_with('"') {
        return Ok(vec![Prompt::Text(json::typed(raw, "prompt", PROMPT)?)]);
    }
    let first = raw
        .get()
        .strip_prefix('[')
        .map(str::trim_start)
        .and_then(|rest| rest.chars().next());
    match first {
        Some('"') => {
            let items = json::array(raw, "prompt", limits.prompts_max)?;
            let text =
                |(at, raw): (usize, &&RawValue)| json::typed(raw, &format!("prompt[{at}]"), "a string");
            items
                .iter()
                .enumerate()
                .map(text)
                .map(|text| text.map(Prompt::Text))
                .collect()
        }
        Some('[') => {
            let items = json::array(raw, "prompt", limits.prompts_max)?;
            let list = |(at, raw): (usize, &&RawValue)| token_list(raw, &format!("prompt[{at}]"));
            items.iter().enumerate().map(list).collect()
        }
        Some('-' | '0'..='9') => Ok(vec![token_list(raw, "prompt")?]),
        Some(']') => Err(ApiError::invalid(
            "prompt",
            "empty_array",
            "`prompt` must not be empty",
        )),
        _ => Err(ApiError::invalid(
            "prompt",
            "invalid_type",
            format!("`prompt` must be {PROMPT}"),
        )),
    }
}

fn token_list(raw: &RawValue, path: &str) -> Result<Prompt> {
    let items: Vec<&RawValue> = json::typed(raw, path, "an array of token numbers")?;
    let token = |(at, raw): (usize, &&RawValue)| shared::token_id(raw, &format!("{path}[{at}]"));
    items
        .iter()
        .enumerate()
        .map(token)
        .collect::<Result<_>>()
        .map(Prompt::Tokens)
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub struct Completion {
    pub id: String,
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub choices: Vec<CompletionChoice>,
    pub usage: Usage,
    pub system_fingerprint: &'static str,
}

/// One choice of an answer, or of one event of a stream.
#[derive(Serialize, ToSchema)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<&'static str>,
    /// With `return_token_ids`: the prompt, in a stream with the choice's first event alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// With `return_token_ids`: the tokens of this part, a stop token included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// Token likelihoods in the older, columnar form. The first token of an echoed prompt has none.
#[derive(Serialize, Default, ToSchema)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<Option<f32>>,
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// In characters from the beginning of the choice's text.
    pub text_offset: Vec<usize>,
}

/// One event of a stream.
#[derive(Serialize, ToSchema)]
pub struct CompletionChunk<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: i64,
    pub model: &'a str,
    pub choices: Vec<CompletionChoice>,
    pub system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "ChunkUsage::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: ChunkUsage,
}
