//! `/v1/rerank` as Jina and Cohere have it, and `/v1/score` as vLLM has it, on the wire.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::embeddings::EncoderUsage;
use crate::openai::json::{self, Object};
use crate::openai::prompted::{Prompted, joined};
use crate::openai::shared::{TOKENS_MAX, Truncate};

type Result<T> = std::result::Result<T, ApiError>;

/// The most that `top_n` may ask for.
pub const TOP_N_MAX: usize = u16::MAX as usize;

/// A query and what is to be put in order for it.
pub struct RerankRequest {
    pub model: String,
    pub query: String,
    pub documents: Vec<String>,
    /// The most results.
    pub top_n: Option<usize>,
    pub return_documents: bool,
    pub truncate: Option<Truncate>,
    /// Tokens that each document is cut to.
    pub document_tokens_max: Option<usize>,
}

impl Prompted for RerankRequest {
    fn prompt(&self) -> Option<String> {
        Some(self.query.clone())
    }
}

impl RerankRequest {
    const KNOWN: &[&str] = &[
        "documents",
        "max_tokens_per_doc",
        "model",
        "query",
        "return_documents",
        "top_n",
        "truncate_prompt_tokens",
        "user",
    ];
    const UNSUPPORTED: &[&str] = &["instruction", "priority", "rank_fields"];

    /// All names that a request may have or that are refused by name; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        [Self::KNOWN, Self::UNSUPPORTED].concat()
    }

    /// Reads a request body. `returns_documents` is what happens unless the client says.
    pub fn parse(body: &[u8], limits: &RequestLimits, returns_documents: bool) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        object.take("user");
        let request = Self {
            model: json::typed(object.require("model")?, "model", "a string")?,
            query: text(object.require("query")?, "query")?,
            documents: texts(object.require("documents")?, "documents", limits)?,
            // 0 is vLLM's word for all.
            top_n: object.count("top_n", 0..=TOP_N_MAX)?.filter(|top| *top > 0),
            return_documents: object.boolean("return_documents")?.unwrap_or(returns_documents),
            document_tokens_max: object.count("max_tokens_per_doc", 1..=TOKENS_MAX)?,
            truncate: Truncate::read(&mut object)?,
        };
        object.finish(Self::KNOWN, Self::UNSUPPORTED)?;
        Ok(request)
    }
}

/// Pairs of texts.
pub struct ScoreRequest {
    pub model: String,
    first: Vec<String>,
    second: Vec<String>,
    /// What the client calls them.
    pub names: [&'static str; 2],
    pub truncate: Option<Truncate>,
}

impl Prompted for ScoreRequest {
    fn prompt(&self) -> Option<String> {
        joined(self.first.iter().map(String::as_str))
    }
}

impl ScoreRequest {
    const KNOWN: &[&str] = &[
        "documents",
        "model",
        "queries",
        "text_1",
        "text_2",
        "truncate_prompt_tokens",
        "user",
    ];
    const UNSUPPORTED: &[&str] = &["instruction", "priority"];

    /// All names that a request may have or that are refused by name; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        [Self::KNOWN, Self::UNSUPPORTED].concat()
    }

    /// Reads a request body: one first text for all second ones, or as many.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        object.take("user");
        let model = json::typed(object.require("model")?, "model", "a string")?;
        let (first_name, first) = either(&mut object, ["text_1", "queries"], limits)?;
        let (second_name, second) = either(&mut object, ["text_2", "documents"], limits)?;
        let truncate = Truncate::read(&mut object)?;
        object.finish(Self::KNOWN, Self::UNSUPPORTED)?;
        if first.len() != 1 && first.len() != second.len() {
            let message = format!(
                "`{first_name}` has {} texts, but must have one, or as many as `{second_name}`, {}",
                first.len(),
                second.len()
            );
            return Err(ApiError::invalid(first_name, "invalid_value", message));
        }
        Ok(Self {
            model,
            first,
            second,
            names: [first_name, second_name],
            truncate,
        })
    }

    /// The pairs, which share the first text if there is only one.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        let first = self.first.iter().cycle().map(String::as_str);
        first.zip(self.second.iter().map(String::as_str)).collect()
    }
}

/// Texts under one of two names.
fn either(
    object: &mut Object<'_>,
    [name, other]: [&'static str; 2],
    limits: &RequestLimits,
) -> Result<(&'static str, Vec<String>)> {
    match (object.take(name), object.take(other)) {
        (Some(_), Some(_)) => {
            let message = format!("`{other}` is another name of `{name}`: send one of them");
            Err(ApiError::invalid(other, "invalid_value", message))
        }
        (Some(raw), None) => Ok((name, texts(raw, name, limits)?)),
        (None, Some(raw)) => Ok((other, texts(raw, other, limits)?)),
        (None, None) => Err(object.missing(name)),
    }
}

/// A text or several, each a string or an object with a `text`.
fn texts(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Vec<String>> {
    if !raw.get().starts_with('[') {
        return Ok(vec![text(raw, path)?]);
    }
    let items = json::array(raw, path, limits.inputs_max)?;
    if items.is_empty() {
        let message = format!("`{path}` must hold at least one text");
        return Err(ApiError::invalid(path, "empty_array", message));
    }
    let item = |(at, raw): (usize, &&RawValue)| text(raw, &format!("{path}[{at}]"));
    items.iter().enumerate().map(item).collect()
}

/// A text that says something: the score of an empty one would mean nothing.
fn text(raw: &RawValue, path: &str) -> Result<String> {
    let text: String = if raw.get().starts_with('{') {
        let mut object = Object::from_raw(raw, path)?;
        let text = json::typed(object.require("text")?, &object.path("text"), "a string")?;
        object.finish(&["text"], &[])?;
        text
    } else {
        json::typed(raw, path, "a string")?
    };
    if text.is_empty() {
        let message = format!("`{path}` must not be empty");
        return Err(ApiError::invalid(path, "empty_string", message));
    }
    Ok(text)
}

#[derive(Serialize, ToSchema)]
pub struct Reranked {
    pub id: String,
    pub model: String,
    pub results: Vec<RankedDocument>,
    pub usage: EncoderUsage,
}

#[derive(Serialize, ToSchema)]
pub struct RankedDocument {
    /// Its place in the request.
    pub index: usize,
    pub relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentText>,
}

#[derive(Serialize, ToSchema)]
pub struct DocumentText {
    pub text: String,
}

#[derive(Serialize, ToSchema)]
pub struct Scores {
    pub id: String,
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub data: Vec<Score>,
    pub usage: EncoderUsage,
}

#[derive(Serialize, ToSchema)]
pub struct Score {
    pub index: usize,
    pub object: &'static str,
    pub score: f32,
}
