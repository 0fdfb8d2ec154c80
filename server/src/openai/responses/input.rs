//! `input`: a text, or the items of a conversation.

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};
use crate::openai::messages::Message;
use crate::openai::tools::PastCall;

type Result<T> = std::result::Result<T, ApiError>;

/// Fields of items that answers have and that say nothing to a model.
const ECHOED: &[&str] = &["id", "status", "created_by", "phase"];

/// What a client sent.
#[derive(Default)]
pub(super) struct Input {
    pub(super) messages: Vec<Message>,
    pub(super) items: Vec<Box<RawValue>>,
    /// Reasoning that belongs to the assistant's next message.
    reasoning: Option<String>,
}

pub(super) fn read(raw: &RawValue, limits: &RequestLimits) -> Result<Input> {
    let mut input = Input::default();
    if raw.get().starts_with('"') {
        let text: String = json::typed(raw, "input", "a string or an array of items")?;
        let part = json!({"type": "input_text", "text": text});
        let item = json!({"id": item_id(), "type": "message", "role": "user", "content": [part]});
        input.items.extend(to_raw_value(&item).ok());
        input.messages.push(Message::plain("user", text));
        return Ok(input);
    }
    let items = json::array(raw, "input", limits.messages_max)?;
    if items.is_empty() {
        let message = "`input` must hold at least one item";
        return Err(ApiError::invalid("input", "empty_array", message));
    }
    for (at, raw) in items.iter().enumerate() {
        let mut item = Object::from_raw(raw, &format!("input[{at}]"))?;
        input.items.push(with_id(&item, raw)?);
        for name in ECHOED {
            item.take(name);
        }
        let kind = item.string("type")?;
        match kind.as_deref().unwrap_or("message") {
            "message" => input.message(item, limits)?,
            "function_call" => input.call(item)?,
            "function_call_output" => input.output(item, limits)?,
            "reasoning" => input.reasoning(item, limits)?,
            _ => {
                let path = item.path("type");
                let message = format!("`{path}`: items of this type are not supported by this server");
                return Err(ApiError::invalid(path, "unsupported_parameter", message));
            }
        }
    }
    if let Some(reasoning) = input.reasoning.take() {
        input.messages.push(Message {
            reasoning: Some(reasoning),
            ..Message::plain("assistant", String::new())
        });
    }
    Ok(input)
}

/// An item as it was sent, with an identifier if it came without.
fn with_id(item: &Object<'_>, raw: &RawValue) -> Result<Box<RawValue>> {
    if item.has("id") {
        return Ok(raw.to_owned());
    }
    let path = item.path("id");
    let mut told: Map<String, Value> = json::typed(
        raw,
        path.trim_end_matches(".id"),
        "an object whose numbers are within those of 64 bits",
    )?;
    told.insert("id".to_owned(), item_id());
    to_raw_value(&told).map_err(|_| ApiError::internal())
}

fn item_id() -> Value {
    format!("item_{}", uuid::Uuid::new_v4().simple()).into()
}

impl Input {
    fn message(&mut self, mut item: Object<'_>, limits: &RequestLimits) -> Result<()> {
        let role = item.require_choice("role", &["user", "assistant", "system", "developer"])?;
        let role = if role == "developer" { "system" } else { role };
        let path = item.path("content");
        let content = text(item.require("content")?, &path, limits)?;
        item.finish(&["type", "role", "content"], &[])?;
        let mut message = Message::plain(role, content);
        if role == "assistant" {
            message.reasoning = self.reasoning.take();
        }
        self.messages.push(message);
        Ok(())
    }

    /// A call belongs to what the assistant said in front of it.
    fn call(&mut self, mut item: Object<'_>) -> Result<()> {
        let id = json::typed(item.require("call_id")?, &item.path("call_id"), "a string")?;
        let name = json::typed(item.require("name")?, &item.path("name"), "a string")?;
        let arguments = item.string("arguments")?.unwrap_or_default();
        let (name_path, path) = (item.path("name"), item.path("arguments"));
        item.finish(&["type", "call_id", "name", "arguments"], &["namespace"])?;
        let call = PastCall::new(id, (name, &name_path), (arguments, &path))?;
        if self.messages.last().is_none_or(|last| last.role != "assistant") {
            self.messages.push(Message::plain("assistant", String::new()));
        }
        let reasoning = self.reasoning.take();
        if let Some(last) = self.messages.last_mut() {
            last.calls.push(call);
            join(&mut last.reasoning, reasoning);
        }
        Ok(())
    }

    fn output(&mut self, mut item: Object<'_>, limits: &RequestLimits) -> Result<()> {
        let id = json::typed(item.require("call_id")?, &item.path("call_id"), "a string")?;
        let path = item.path("output");
        let output = text(item.require("output")?, &path, limits)?;
        item.finish(&["type", "call_id", "output"], &[])?;
        self.messages.push(Message {
            call_id: Some(id),
            ..Message::plain("tool", output)
        });
        Ok(())
    }

    fn reasoning(&mut self, mut item: Object<'_>, limits: &RequestLimits) -> Result<()> {
        let path = item.path("content");
        let content = item
            .take("content")
            .map(|raw| text(raw, &path, limits))
            .transpose()?;
        // Of reasoning that another server summed up or encrypted, nothing can be made here.
        for name in ["summary", "encrypted_content"] {
            item.take(name);
        }
        item.finish(&["type", "content", "summary"], &[])?;
        join(&mut self.reasoning, content.filter(|text| !text.is_empty()));
        Ok(())
    }
}

/// Adds more text behind a text.
fn join(text: &mut Option<String>, more: Option<String>) {
    if let Some(more) = more {
        let text = text.get_or_insert_default();
        text.push_str(if text.is_empty() { "" } else { "\n" });
        text.push_str(&more);
    }
}

/// A string, or parts of text, joined by line feeds.
fn text(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<String> {
    if raw.get().starts_with('"') {
        return json::typed(raw, path, "a string or an array of parts");
    }
    let parts = json::array(raw, path, limits.content_parts_max)?;
    let text = |(at, raw): (usize, &&RawValue)| {
        let mut part = Object::from_raw(raw, &format!("{path}[{at}]"))?;
        let kind = part.string("type")?;
        let known = ["input_text", "output_text", "reasoning_text", "text"];
        if !kind.as_deref().is_some_and(|kind| known.contains(&kind)) {
            let path = part.path("type");
            let message = format!("`{path}`: only parts of text are supported by this server");
            return Err(ApiError::invalid(path, "unsupported_parameter", message));
        }
        for name in ["annotations", "logprobs"] {
            part.take(name);
        }
        let text = json::typed(part.require("text")?, &part.path("text"), "a string")?;
        part.finish(&["type", "text"], &[])?;
        Ok(text)
    };
    let texts: Vec<String> = parts.iter().enumerate().map(text).collect::<Result<_>>()?;
    Ok(texts.join("\n"))
}
