//! `tools` and `tool_choice`, which are flatter here than in chat.

use serde_json::value::RawValue;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};
use crate::openai::tools::{ALLOWED_MODES, Choice, Function, Tools, functions, parameters};

type Result<T> = std::result::Result<T, ApiError>;

const CHOICE: &str = "tool_choice";

/// Takes the parameters; `None` where nothing may be called.
pub(super) fn read(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Option<Tools>> {
    let functions = object
        .take("tools")
        .map(|raw| functions(raw, limits, "name", tool))
        .transpose()?;
    let choice = object.take(CHOICE).map(|raw| choice(raw, limits)).transpose()?;
    let parallel = object.boolean("parallel_tool_calls")?.unwrap_or(true);
    Tools::new(
        functions.unwrap_or_default(),
        choice.unwrap_or(Choice::Auto),
        parallel,
    )
}

fn tool(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Function> {
    let mut tool = Object::from_raw(raw, path)?;
    // Tools that OpenAI runs itself have types of their own.
    tool.require_choice("type", &["function"])?;
    let read = Function {
        name: json::typed(tool.require("name")?, &tool.path("name"), "a string")?,
        description: tool.string("description")?,
        strict: tool.boolean("strict")?.unwrap_or(false),
        parameters: match tool.take("parameters") {
            Some(raw) => parameters(raw, &tool.path("parameters"), limits)?,
            None => serde_json::json!({"type": "object", "properties": {}}),
        },
    };
    tool.finish(
        &["type", "name", "description", "strict", "parameters"],
        &["defer_loading"],
    )?;
    Ok(read)
}

fn choice(raw: &RawValue, limits: &RequestLimits) -> Result<Choice> {
    if !raw.get().starts_with('{') {
        return Choice::word(raw);
    }
    let mut object = Object::from_raw(raw, CHOICE)?;
    let kind = object.require_choice("type", &["function", "allowed_tools"])?;
    if kind == "function" {
        let name = json::typed(object.require("name")?, &object.path("name"), "a string")?;
        object.finish(&["type", "name"], &[])?;
        return Ok(Choice::Named(name));
    }
    let mode = object.require_choice("mode", ALLOWED_MODES)?;
    let path = object.path("tools");
    let tools = json::array(object.require("tools")?, &path, limits.tools_max)?;
    object.finish(&["type", "mode", "tools"], &[])?;
    let name = |(at, raw): (usize, &&RawValue)| {
        let mut tool = Object::from_raw(raw, &format!("{path}[{at}]"))?;
        tool.require_choice("type", &["function"])?;
        let name = json::typed(tool.require("name")?, &tool.path("name"), "a string")?;
        tool.finish(&["type", "name"], &[])?;
        Ok(name)
    };
    let names = tools.iter().enumerate().map(name).collect::<Result<_>>()?;
    Ok(Choice::Allowed(names, mode == "required"))
}
