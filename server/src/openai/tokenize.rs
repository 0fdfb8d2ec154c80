//! `/tokenize` and `/detokenize` on the wire, as vLLM has them.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::chat::Conversation;
use crate::openai::json::{self, Object};
use crate::openai::reasoning;
use crate::openai::shared;
use crate::openai::tools;

type Result<T> = std::result::Result<T, ApiError>;

/// What is to be tokenized.
pub enum Source {
    Prompt(String),
    Chat(Conversation),
}

pub struct TokenizeRequest {
    pub model: Option<String>,
    pub source: Source,
    pub add_special_tokens: Option<bool>,
    pub return_token_strs: bool,
}

impl TokenizeRequest {
    const OWN: &[&str] = &[
        "add_generation_prompt",
        "add_special_tokens",
        "chat_template_kwargs",
        "continue_final_message",
        "messages",
        "model",
        "prompt",
        "return_token_strs",
    ];
    const UNSUPPORTED: &[&str] = &["chat_template", "mm_processor_kwargs"];

    /// All names that a request may have or that are refused by name; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        [Self::known().as_slice(), Self::UNSUPPORTED].concat()
    }

    fn known() -> Vec<&'static str> {
        [Self::OWN, tools::NAMES, reasoning::NAMES].concat()
    }

    /// Reads a request body.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        let model = object.string("model")?;
        let add_special_tokens = object.boolean("add_special_tokens")?;
        let return_token_strs = object.boolean("return_token_strs")?.unwrap_or(false);
        let source = match object.string("prompt")? {
            Some(prompt) => Source::Prompt(prompt),
            None if object.has("messages") => Source::Chat(Conversation::read(&mut object, limits)?),
            None => return Err(one_source("missing_required_parameter")),
        };
        if matches!(source, Source::Prompt(_)) && object.has("messages") {
            return Err(one_source("invalid_value"));
        }
        if matches!(source, Source::Chat(_)) && add_special_tokens == Some(true) {
            let message =
                "`add_special_tokens` can't be true with `messages`: chat templates bring their own";
            return Err(ApiError::invalid("add_special_tokens", "invalid_value", message));
        }
        object.finish(&Self::known(), Self::UNSUPPORTED)?;
        Ok(Self {
            model,
            source,
            add_special_tokens,
            return_token_strs,
        })
    }
}

fn one_source(code: &'static str) -> ApiError {
    let message = "send exactly one of `prompt` and `messages`";
    ApiError::invalid("prompt", code, message)
}

#[derive(Serialize, ToSchema)]
pub struct Tokenized {
    pub count: usize,
    pub max_model_len: usize,
    pub tokens: Vec<u32>,
    pub token_strs: Option<Vec<String>>,
}

pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    const KNOWN: &[&str] = &["model", "tokens"];

    /// All names that a request may have; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        Self::KNOWN.to_vec()
    }

    /// Reads a request body.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        let model = object.string("model")?;
        let items =
            json::typed::<Vec<&RawValue>>(object.require("tokens")?, "tokens", "an array of token numbers")?;
        let token = |(at, raw): (usize, &&RawValue)| shared::token_id(raw, &format!("tokens[{at}]"));
        let tokens = items.iter().enumerate().map(token).collect::<Result<_>>()?;
        object.finish(Self::KNOWN, &[])?;
        Ok(Self { model, tokens })
    }
}

#[derive(Serialize, ToSchema)]
pub struct Detokenized {
    pub prompt: String,
}
