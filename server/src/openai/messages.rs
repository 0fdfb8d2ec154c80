//! The messages of a conversation on the wire.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};
use crate::openai::tools::PastCall;

type Result<T> = std::result::Result<T, ApiError>;

/// Who may speak.
pub const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// One message; its content is plain text, the parts of a list joined by line feeds.
#[derive(Clone)]
pub struct Message {
    pub role: &'static str,
    pub name: Option<String>,
    pub content: String,
    /// What an assistant thought before it answered.
    pub reasoning: Option<String>,
    /// What an assistant called.
    pub calls: Vec<PastCall>,
    /// The call whose result a tool's message is.
    pub call_id: Option<String>,
}

impl Message {
    /// One that only says something.
    pub fn plain(role: &'static str, content: String) -> Self {
        Self {
            role,
            name: None,
            content,
            reasoning: None,
            calls: Vec::new(),
            call_id: None,
        }
    }

    /// Bytes of text that the client sent.
    pub fn bytes(&self) -> usize {
        let calls = self
            .calls
            .iter()
            .map(|call| call.name.len() + call.arguments.len());
        let reasoning = self.reasoning.as_ref().map_or(0, String::len);
        self.content.len() + reasoning + calls.sum::<usize>()
    }

    /// As chat templates know it, with `mark` behind its content.
    pub fn template_message(&self, mark: &str) -> Value {
        let mut fields = Map::new();
        fields.insert("role".to_owned(), self.role.into());
        fields.insert("content".to_owned(), format!("{}{mark}", self.content).into());
        for (key, text) in [
            ("name", &self.name),
            ("reasoning_content", &self.reasoning),
            ("tool_call_id", &self.call_id),
        ] {
            if let Some(text) = text {
                fields.insert(key.to_owned(), text.as_str().into());
            }
        }
        if !self.calls.is_empty() {
            let calls = self.calls.iter().map(PastCall::template_call).collect();
            fields.insert("tool_calls".to_owned(), calls);
        }
        Value::Object(fields)
    }
}

/// The messages of a conversation, at least one.
pub fn read(raw: &RawValue, limits: &RequestLimits) -> Result<Vec<Message>> {
    let items = json::array(raw, "messages", limits.messages_max)?;
    if items.is_empty() {
        let message = "`messages` must hold at least one message";
        return Err(ApiError::invalid("messages", "empty_array", message));
    }
    items
        .iter()
        .enumerate()
        .map(|(at, raw)| message(raw, &format!("messages[{at}]"), limits))
        .collect()
}

fn message(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Message> {
    const KNOWN: &[&str] = &["role", "content", "name", "annotations", "parsed", "refusal"];
    const UNSUPPORTED: &[&str] = &["audio", "function_call", "prefix"];
    // What OpenAI's SDKs send back when a client returns an answer to the history.
    const ECHOED: &[&str] = &["annotations", "parsed", "refusal"];
    let mut object = Object::from_raw(raw, path)?;
    let role = object.require_choice("role", &[ROLES, &["function"]].concat())?;
    let role = match role {
        "function" => return Err(ApiError::unsupported(object.path("role"))),
        // The newer name for the same thing; chat templates know only the older one.
        "developer" => "system",
        other => other,
    };
    let name = object.string("name")?;
    for field in ECHOED {
        object.take(field);
    }
    let content_path = object.path("content");
    let content = object.take("content");
    let mut message = Message {
        name,
        ..Message::plain(role, String::new())
    };
    match role {
        "assistant" => assistant_fields(&mut object, &mut message, limits)?,
        "tool" => {
            let path = object.path("tool_call_id");
            message.call_id = Some(json::typed(object.require("tool_call_id")?, &path, "a string")?);
        }
        _ => {}
    }
    message.content = match content {
        Some(raw) => content_text(raw, &content_path, limits)?,
        None if role == "assistant" => String::new(),
        None => return Err(object.missing("content")),
    };
    let own: &[&str] = match role {
        "assistant" => &["reasoning_content", "tool_calls"],
        "tool" => &["tool_call_id"],
        _ => &[],
    };
    object.finish(&[KNOWN, own].concat(), UNSUPPORTED)?;
    Ok(message)
}

/// What only an assistant's message has.
fn assistant_fields(object: &mut Object<'_>, message: &mut Message, limits: &RequestLimits) -> Result<()> {
    if let Some(raw) = object.take("tool_calls") {
        message.calls = PastCall::read(raw, &object.path("tool_calls"), limits)?;
    }
    // Two names for the same: the first is that of answers here, the second that of some other servers.
    let (reasoning, other) = (object.string("reasoning_content")?, object.string("reasoning")?);
    message.reasoning = reasoning.or(other);
    Ok(())
}

/// A text, or the texts of parts, a line each.
pub fn content_text(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<String> {
    if raw.get().starts_with('"') {
        return json::typed(raw, path, "a string or an array of text parts");
    }
    if !raw.get().starts_with('[') {
        let message = format!("`{path}` must be a string or an array of text parts");
        return Err(ApiError::invalid(path, "invalid_type", message));
    }
    let parts = json::array(raw, path, limits.content_parts_max)?;
    let texts: Result<Vec<String>> = parts
        .iter()
        .enumerate()
        .map(|(at, raw)| part_text(raw, &format!("{path}[{at}]")))
        .collect();
    Ok(texts?.join("\n"))
}

fn part_text(raw: &RawValue, path: &str) -> Result<String> {
    let mut part = Object::from_raw(raw, path)?;
    let kind = part.string("type")?;
    match kind.as_deref() {
        Some("text") => {
            let text = json::typed(part.require("text")?, &part.path("text"), "a string")?;
            part.finish(&["type", "text"], &["cache_control"])?;
            Ok(text)
        }
        Some("image_url" | "input_audio" | "audio_url" | "video_url" | "file" | "refusal") => {
            let path = part.path("type");
            let message = format!("`{path}`: only text parts are supported by this server");
            Err(ApiError::invalid(path, "unsupported_parameter", message))
        }
        _ => {
            let path = part.path("type");
            let message = format!("`{path}` must be \"text\"");
            Err(ApiError::invalid(path, "invalid_value", message))
        }
    }
}
