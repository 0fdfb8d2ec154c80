//! `/v1/embeddings` on the wire.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};
use crate::openai::prompted::{Prompted, joined};
use crate::openai::shared::{self, Truncate};

type Result<T> = std::result::Result<T, ApiError>;

const KNOWN: &[&str] = &[
    "dimensions",
    "encoding_format",
    "input",
    "model",
    "truncate_prompt_tokens",
    "user",
];
const UNSUPPORTED: &[&str] = &[
    "add_special_tokens",
    "embed_dtype",
    "endianness",
    "messages",
    "priority",
];

/// A request within its limits.
pub struct EmbeddingsRequest {
    pub model: String,
    pub inputs: Vec<Input>,
    /// Elements that vectors are cut to.
    pub dimensions: Option<usize>,
    pub base64: bool,
    pub truncate: Option<Truncate>,
}

/// A text, or tokens as they are.
pub enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// How vectors are written.
pub const ENCODINGS: &[&str] = &["float", "base64"];
/// The most elements that `dimensions` may ask for; the model's own number is checked later.
pub const DIMENSIONS_MAX: usize = 1 << 16;

impl Prompted for EmbeddingsRequest {
    fn prompt(&self) -> Option<String> {
        joined(self.inputs.iter().filter_map(|input| match input {
            Input::Text(text) => Some(text.as_str()),
            Input::Tokens(_) => None,
        }))
    }
}

impl EmbeddingsRequest {
    /// All names that a request may have or that are refused by name; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        [KNOWN, UNSUPPORTED].concat()
    }

    /// Reads a request body.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        object.take("user");
        let request = Self {
            model: json::typed(object.require("model")?, "model", "a string")?,
            dimensions: object.count("dimensions", 1..=DIMENSIONS_MAX)?,
            base64: object.choice("encoding_format", ENCODINGS)? == Some("base64"),
            truncate: Truncate::read(&mut object)?,
            inputs: inputs(object.require("input")?, limits)?,
        };
        object.finish(KNOWN, UNSUPPORTED)?;
        Ok(request)
    }
}

/// A string, tokens, or a list of either.
fn inputs(raw: &RawValue, limits: &RequestLimits) -> Result<Vec<Input>> {
    const PATH: &str = "input";
    if !raw.get().starts_with('[') {
        return Ok(vec![input(raw, PATH)?]);
    }
    let items: Vec<&RawValue> = json::typed(raw, PATH, "an array")?;
    if items.is_empty() {
        let message = "`input` must hold at least one text";
        return Err(ApiError::invalid(PATH, "empty_array", message));
    }
    if items[0]
        .get()
        .starts_with(|first: char| first == '-' || first.is_ascii_digit())
    {
        return Ok(vec![input(raw, PATH)?]);
    }
    let items = json::array(raw, PATH, limits.inputs_max)?;
    let item = |(at, raw): (usize, &&RawValue)| input(raw, &format!("{PATH}[{at}]"));
    items.iter().enumerate().map(item).collect()
}

fn input(raw: &RawValue, path: &str) -> Result<Input> {
    let input = if raw.get().starts_with('[') {
        let items: Vec<&RawValue> = json::typed(raw, path, "a string or an array of tokens")?;
        let token = |(at, raw): (usize, &&RawValue)| shared::token_id(raw, &format!("{path}[{at}]"));
        Input::Tokens(items.iter().enumerate().map(token).collect::<Result<_>>()?)
    } else {
        Input::Text(json::typed(raw, path, "a string or an array of tokens")?)
    };
    let empty = match &input {
        Input::Text(text) => text.is_empty(),
        Input::Tokens(tokens) => tokens.is_empty(),
    };
    if empty {
        let message = format!("`{path}` must not be empty");
        return Err(ApiError::invalid(path, "empty_string", message));
    }
    Ok(input)
}

#[derive(Serialize, ToSchema)]
pub struct Embeddings {
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: EncoderUsage,
}

#[derive(Serialize, ToSchema)]
pub struct Embedding {
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

/// Numbers, or their bytes: f32, the least significant first, in base64.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

/// Tokens of the inputs, those around a text included.
#[derive(Serialize, ToSchema)]
pub struct EncoderUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}
