//! Tools and the choice among them.

use serde_json::value::RawValue;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};
use crate::openai::tools::{Choice, Function, Tools, functions, parameters};

type Result<T> = std::result::Result<T, ApiError>;

/// Takes `tools` and `tool_choice`; `None` where nothing may be called.
pub(super) fn read(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Option<Tools>> {
    let functions = object
        .take("tools")
        .map(|raw| functions(raw, limits, "name", tool))
        .transpose()?;
    let choice = object.take("tool_choice").map(tool_choice).transpose()?;
    let (choice, parallel) = choice.unwrap_or((Choice::Auto, true));
    Tools::new(functions.unwrap_or_default(), choice, parallel)
}

fn tool(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Function> {
    let mut tool = Object::from_raw(raw, path)?;
    // Tools that Anthropic runs itself have types of their own.
    tool.choice("type", &["custom"])?;
    // Prompts are cached without marks, and arguments always stream as they are written.
    for name in ["cache_control", "eager_input_streaming"] {
        tool.take(name);
    }
    let name = json::typed(tool.require("name")?, &tool.path("name"), "a string")?;
    let read = Function {
        name,
        description: tool.string("description")?,
        strict: tool.boolean("strict")?.unwrap_or(false),
        parameters: parameters(tool.require("input_schema")?, &tool.path("input_schema"), limits)?,
    };
    tool.finish(
        &["type", "name", "description", "strict", "input_schema"],
        &["allowed_callers", "defer_loading", "input_examples"],
    )?;
    Ok(read)
}

fn tool_choice(raw: &RawValue) -> Result<(Choice, bool)> {
    let mut object = Object::from_raw(raw, "tool_choice")?;
    let kind = object.require_choice("type", &["auto", "any", "tool", "none"])?;
    let parallel = !object.boolean("disable_parallel_tool_use")?.unwrap_or(false);
    let choice = match kind {
        "auto" => Choice::Auto,
        "any" => Choice::Required,
        "none" => Choice::None,
        _ => Choice::Named(json::typed(
            object.require("name")?,
            "tool_choice.name",
            "a string",
        )?),
    };
    object.finish(&["type", "name", "disable_parallel_tool_use"], &[])?;
    Ok((choice, parallel))
}
