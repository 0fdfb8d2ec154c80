//! `response_format` and `structured_outputs`: the form that an answer must have.

use rempart_text::CallSyntax;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};

type Result<T> = std::result::Result<T, ApiError>;

/// What every answer must be, from its first character to its last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputFormat {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema admits, as the client wrote it.
    JsonSchema(String),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// Text of a grammar in Lark's notation.
    Lark(String),
    /// Calls of functions, and what may stand beside them.
    Calls(Box<CallFormat>),
}

/// Answers that may call functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallFormat {
    pub syntax: CallSyntax,
    /// Names with the schemas of their arguments.
    pub functions: Vec<(String, String)>,
    /// Whether an answer must be calls.
    pub required: bool,
    /// Whether it may have several.
    pub parallel: bool,
    /// What an answer without calls must be.
    pub content: Option<OutputFormat>,
}

/// A format, and the parameter that asked for it.
#[derive(Clone, Debug)]
pub struct AskedFormat {
    pub format: OutputFormat,
    pub param: &'static str,
    /// What is followed where `format` can't be.
    pub fallback: Option<OutputFormat>,
}

/// Names that [`read`] takes.
pub const NAMES: &[&str] = &["response_format", "structured_outputs"];

/// Types of formats.
pub const TYPES: &[&str] = &["text", "json_object", "json_schema"];

/// Takes both parameters, of which one at most may ask for anything.
pub fn read(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Option<AskedFormat>> {
    let response = object
        .take("response_format")
        .map(|raw| response_format(raw, limits));
    let structured = object
        .take("structured_outputs")
        .map(|raw| structured_outputs(raw, limits));
    match (response.transpose()?.flatten(), structured.transpose()?.flatten()) {
        (Some(_), Some(_)) => {
            let message = "`structured_outputs` can't be combined with `response_format`";
            Err(ApiError::invalid("structured_outputs", "invalid_value", message))
        }
        (response, structured) => Ok(response.or(structured)),
    }
}

fn response_format(raw: &RawValue, limits: &RequestLimits) -> Result<Option<AskedFormat>> {
    let mut object = Object::from_raw(raw, "response_format")?;
    let kind = object.require_choice("type", TYPES)?;
    let format = if kind == "json_schema" {
        let schema = object.require("json_schema")?;
        Some(OutputFormat::JsonSchema(named_schema(schema, limits)?))
    } else {
        (kind == "json_object").then_some(OutputFormat::JsonObject)
    };
    if object.has("json_schema") {
        let message = "`response_format.json_schema` needs the type \"json_schema\"";
        let param = "response_format.json_schema";
        return Err(ApiError::invalid(param, "invalid_value", message));
    }
    object.finish(&["type", "json_schema"], &[])?;
    Ok(format.map(|format| AskedFormat {
        format,
        param: "response_format",
        fallback: None,
    }))
}

/// A schema with its name. Whether it is strict makes no difference: every answer follows it.
fn named_schema(raw: &RawValue, limits: &RequestLimits) -> Result<String> {
    const PATH: &str = "response_format.json_schema";
    let mut object = Object::from_raw(raw, PATH)?;
    let _name: String = json::typed(object.require("name")?, &object.path("name"), "a string")?;
    object.string("description")?;
    object.boolean("strict")?;
    let schema = object.require("schema")?;
    let schema = schema_text(schema, &object.path("schema"), limits)?;
    object.finish(&["name", "description", "strict", "schema"], &[])?;
    Ok(schema)
}

/// The format of a schema found at `path`.
pub fn schema(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<OutputFormat> {
    Ok(OutputFormat::JsonSchema(schema_text(raw, path, limits)?))
}

fn schema_text(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<String> {
    if !raw.get().starts_with('{') {
        let message = format!("`{path}` must be an object");
        return Err(ApiError::invalid(path, "invalid_type", message));
    }
    within(raw.get(), path, limits)?;
    Ok(raw.get().to_owned())
}

fn within(text: &str, path: &str, limits: &RequestLimits) -> Result<()> {
    let (bytes, limit) = (text.len(), limits.format_bytes_max);
    if (1..=limit).contains(&bytes) {
        return Ok(());
    }
    let message = format!("`{path}` has {bytes} bytes, but must have between 1 and {limit}");
    Err(ApiError::invalid(path, "out_of_range", message))
}

/// vLLM's names.
fn structured_outputs(raw: &RawValue, limits: &RequestLimits) -> Result<Option<AskedFormat>> {
    const KINDS: &[&str] = &["json", "json_object", "regex", "choice", "grammar"];
    const UNSUPPORTED: &[&str] = &[
        "disable_additional_properties",
        "disable_any_whitespace",
        "disable_fallback",
        "structural_tag",
        "whitespace_pattern",
    ];
    let mut object = Object::from_raw(raw, "structured_outputs")?;
    let mut formats = Vec::new();
    if let Some(raw) = object.take("json") {
        let path = object.path("json");
        let schema = if raw.get().starts_with('"') {
            let text: String = json::typed(raw, &path, "a schema or its text")?;
            within(&text, &path, limits)?;
            json::check_depth(text.as_bytes(), limits.json_depth_max)?;
            text
        } else {
            schema_text(raw, &path, limits)?
        };
        formats.push(OutputFormat::JsonSchema(schema));
    }
    if object.boolean("json_object")? == Some(true) {
        formats.push(OutputFormat::JsonObject);
    }
    for (name, format) in [
        ("regex", OutputFormat::Regex as fn(String) -> OutputFormat),
        ("grammar", OutputFormat::Lark),
    ] {
        if let Some(text) = object.string(name)? {
            within(&text, &object.path(name), limits)?;
            formats.push(format(text));
        }
    }
    if let Some(raw) = object.take("choice") {
        formats.push(OutputFormat::Choice(choices(
            raw,
            &object.path("choice"),
            limits,
        )?));
    }
    object.finish(KINDS, UNSUPPORTED)?;
    if formats.len() > 1 {
        let message = format!("`structured_outputs` must have only one of {}", KINDS.join(", "));
        return Err(ApiError::invalid("structured_outputs", "invalid_value", message));
    }
    Ok(formats.pop().map(|format| AskedFormat {
        format,
        param: "structured_outputs",
        fallback: None,
    }))
}

fn choices(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Vec<String>> {
    let items = json::array(raw, path, limits.format_choices_max)?;
    if items.is_empty() {
        let message = format!("`{path}` must hold at least one string");
        return Err(ApiError::invalid(path, "empty_array", message));
    }
    let choice = |(at, raw): (usize, &&RawValue)| {
        let path = format!("{path}[{at}]");
        let text: String = json::typed(raw, &path, "a string")?;
        within(&text, &path, limits)?;
        Ok(text)
    };
    let choices: Vec<String> = items.iter().enumerate().map(choice).collect::<Result<_>>()?;
    let (bytes, limit) = (
        choices.iter().map(String::len).sum::<usize>(),
        limits.format_bytes_max,
    );
    if bytes > limit {
        let message = format!("`{path}` has {bytes} bytes, but the limit is {limit}");
        return Err(ApiError::invalid(path, "out_of_range", message));
    }
    Ok(choices)
}
