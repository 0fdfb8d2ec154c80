//! Messages and their blocks.

use serde_json::value::RawValue;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};
use crate::openai::messages::Message;
use crate::openai::tools::PastCall;

type Result<T> = std::result::Result<T, ApiError>;

/// Told in front of a result that its tool calls an error.
const ERROR: &str = "Error: ";

/// The system prompt, if there is one: a text or blocks of text.
pub(super) fn system(raw: Option<&RawValue>, limits: &RequestLimits) -> Result<Option<Message>> {
    let text = raw.map(|raw| text(raw, "system", limits)).transpose()?;
    Ok(text
        .filter(|text| !text.is_empty())
        .map(|text| Message::plain("system", text)))
}

/// The messages, of which one may become several: results of tools are messages of their own.
pub(super) fn messages(raw: &RawValue, limits: &RequestLimits) -> Result<Vec<Message>> {
    let items = json::array(raw, "messages", limits.messages_max)?;
    if items.is_empty() {
        let message = "`messages` must hold at least one message";
        return Err(ApiError::invalid("messages", "empty_array", message));
    }
    let mut messages = Vec::with_capacity(items.len());
    for (at, raw) in items.iter().enumerate() {
        let mut object = Object::from_raw(raw, &format!("messages[{at}]"))?;
        let role = object.require_choice("role", &["user", "assistant", "system"])?;
        let path = object.path("content");
        let content = object.require("content")?;
        object.finish(&["role", "content"], &[])?;
        match role {
            "assistant" => messages.push(assistant(content, &path, limits)?),
            "user" => user(content, &path, limits, &mut messages)?,
            _ => messages.push(Message::plain("system", text(content, &path, limits)?)),
        }
    }
    Ok(messages)
}

/// A string, or blocks of text, joined by line feeds.
fn text(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<String> {
    if raw.get().starts_with('"') {
        return json::typed(raw, path, "a string or an array of blocks");
    }
    let texts: Vec<String> = blocks(raw, path, limits)?
        .into_iter()
        .map(|(block, kind)| {
            if kind == "text" {
                text_of(block, "text")
            } else {
                Err(unknown(&block))
            }
        })
        .collect::<Result<_>>()?;
    Ok(texts.join("\n"))
}

/// Blocks with their types.
fn blocks<'a>(raw: &'a RawValue, path: &str, limits: &RequestLimits) -> Result<Vec<(Object<'a>, String)>> {
    if !raw.get().starts_with('[') {
        let message = format!("`{path}` must be a string or an array of blocks");
        return Err(ApiError::invalid(path, "invalid_type", message));
    }
    let items = json::array(raw, path, limits.content_parts_max)?;
    if items.is_empty() {
        let message = format!("`{path}` must hold at least one block");
        return Err(ApiError::invalid(path, "empty_array", message));
    }
    let block = |(at, raw): (usize, &&'a RawValue)| {
        let mut block = Object::from_raw(raw, &format!("{path}[{at}]"))?;
        let kind = json::typed(block.require("type")?, &block.path("type"), "a string")?;
        // Prompts are cached without being marked.
        block.take("cache_control");
        Ok((block, kind))
    };
    items.iter().enumerate().map(block).collect()
}

fn text_of(mut block: Object<'_>, name: &str) -> Result<String> {
    let text = json::typed(block.require(name)?, &block.path(name), "a string")?;
    block.take("citations");
    block.finish(&["type", name], &[])?;
    Ok(text)
}

fn unknown(block: &Object<'_>) -> ApiError {
    let path = block.path("type");
    let message = format!("`{path}`: blocks of this type are not supported by this server");
    ApiError::invalid(path, "unsupported_parameter", message)
}

fn user(raw: &RawValue, path: &str, limits: &RequestLimits, messages: &mut Vec<Message>) -> Result<()> {
    if raw.get().starts_with('"') {
        messages.push(Message::plain("user", text(raw, path, limits)?));
        return Ok(());
    }
    let mut texts: Vec<String> = Vec::new();
    for (block, kind) in blocks(raw, path, limits)? {
        match kind.as_str() {
            "text" => texts.push(text_of(block, "text")?),
            "tool_result" => {
                if !texts.is_empty() {
                    messages.push(Message::plain("user", std::mem::take(&mut texts).join("\n")));
                }
                messages.push(tool_result(block, limits)?);
            }
            _ => return Err(unknown(&block)),
        }
    }
    if !texts.is_empty() {
        messages.push(Message::plain("user", texts.join("\n")));
    }
    Ok(())
}

fn tool_result(mut block: Object<'_>, limits: &RequestLimits) -> Result<Message> {
    let path = block.path("tool_use_id");
    let id = json::typed(block.require("tool_use_id")?, &path, "a string")?;
    let failed = block.boolean("is_error")?.unwrap_or(false);
    let path = block.path("content");
    let content = block
        .take("content")
        .map(|raw| text(raw, &path, limits))
        .transpose()?;
    block.finish(&["type", "tool_use_id", "content", "is_error"], &[])?;
    let content = content.unwrap_or_default();
    Ok(Message {
        call_id: Some(id),
        ..Message::plain(
            "tool",
            if failed {
                format!("{ERROR}{content}")
            } else {
                content
            },
        )
    })
}

fn assistant(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Message> {
    if raw.get().starts_with('"') {
        return Ok(Message::plain("assistant", text(raw, path, limits)?));
    }
    let mut message = Message::plain("assistant", String::new());
    let (mut texts, mut thoughts) = (Vec::new(), Vec::new());
    for (mut block, kind) in blocks(raw, path, limits)? {
        match kind.as_str() {
            "text" => texts.push(text_of(block, "text")?),
            "thinking" => {
                block.string("signature")?;
                thoughts.push(text_of(block, "thinking")?);
            }
            // What only its maker can read is nothing to a model here.
            "redacted_thinking" => {}
            "tool_use" => message.calls.push(tool_use(block)?),
            _ => return Err(unknown(&block)),
        }
    }
    message.content = texts.join("\n");
    message.reasoning = (!thoughts.is_empty()).then(|| thoughts.join("\n"));
    Ok(message)
}

fn tool_use(mut block: Object<'_>) -> Result<PastCall> {
    let path = block.path("input");
    let id = json::typed(block.require("id")?, &block.path("id"), "a string")?;
    let name = json::typed(block.require("name")?, &block.path("name"), "a string")?;
    let input = block.require("input")?;
    let (name_path, arguments) = (block.path("name"), input.get().to_owned());
    block.take("caller");
    block.finish(&["type", "id", "name", "input"], &[])?;
    PastCall::new(id, (name, &name_path), (arguments, &path))
}
