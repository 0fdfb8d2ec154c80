//! `/v1/responses` on the wire: its requests become those of chat.
//! <https://platform.openai.com/docs/api-reference/responses>

mod input;
mod tools;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::chat::{ChatRequest, Conversation};
use crate::openai::format::{self, AskedFormat, OutputFormat};
use crate::openai::json::{self, Object};
use crate::openai::messages::Message;
use crate::openai::prompted::Prompted;
use crate::openai::reasoning::{Effort, Reasoning};
use crate::openai::shared::{self, Common, StreamOptions, TOKENS_MAX, TOP_LOGPROBS_MAX};

type Result<T> = std::result::Result<T, ApiError>;

const KNOWN: &[&str] = &[
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "metadata",
    "model",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
];
const UNSUPPORTED: &[&str] = &[
    "background",
    "conversation",
    "context_management",
    "max_tool_calls",
    "prompt",
];
/// Parameters that change nothing in an answer.
pub const WITHOUT_EFFECT: &[&str] = &[
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
];
/// What `include` may ask for.
pub const LOGPROBS: &str = "message.output_text.logprobs";
/// Reasoning is told as it is, so nobody needs it encrypted.
pub const ENCRYPTED: &str = "reasoning.encrypted_content";

/// How many words an answer should have, which changes nothing here.
pub const VERBOSITIES: &[&str] = &["low", "medium", "high"];
/// Limits of `metadata`, which are OpenAI's because answers repeat it.
pub const METADATA_PAIRS_MAX: usize = 16;
pub const METADATA_NAME_MAX: usize = 64;
pub const METADATA_VALUE_MAX: usize = 512;

/// A request within its limits.
pub struct ResponsesRequest {
    pub chat: ChatRequest,
    /// Whether the answer may be kept, if the client says.
    pub store: Option<bool>,
    /// The messages without instructions, which hold for one answer only.
    pub messages: Vec<Message>,
    /// What the client sent as items.
    pub items: Vec<Box<RawValue>>,
    /// What answers repeat of the request.
    pub echo: Echo,
}

impl Prompted for ResponsesRequest {
    fn prompt(&self) -> Option<String> {
        self.chat.prompt()
    }
}

impl ResponsesRequest {
    /// All names that a request may have or that are refused by name; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        [KNOWN, WITHOUT_EFFECT, UNSUPPORTED].concat()
    }

    /// Reads a request body. `earlier` finds the messages and items of the answer that it goes on from.
    pub fn parse(
        body: &[u8],
        limits: &RequestLimits,
        earlier: impl FnOnce(&str) -> Option<(Vec<Message>, Vec<Box<RawValue>>)>,
    ) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        let echo = Echo::read(&object);
        take_without_effect(&mut object)?;
        let common = common(&mut object, limits)?;
        let logprobs = logprobs(&mut object)?;
        let reasoning = reasoning(&mut object)?;
        let instructions = object.string("instructions")?;
        let tools = tools::read(&mut object, limits)?;
        let previous = object.string("previous_response_id")?;
        let store = object.boolean("store")?;
        let (mut messages, mut items) = match &previous {
            Some(id) => {
                earlier(id).ok_or_else(|| ApiError::response_not_found(Some("previous_response_id")))?
            }
            None => (Vec::new(), Vec::new()),
        };
        let input = input::read(object.require("input")?, limits)?;
        object.finish(KNOWN, UNSUPPORTED)?;
        messages.extend(input.messages);
        items.extend(input.items);
        if messages.is_empty() {
            let message = "`input` has no message";
            return Err(ApiError::invalid("input", "empty_array", message));
        }
        let system = instructions.map(|text| Message::plain("system", text));
        let conversation = Conversation {
            messages: system.into_iter().chain(messages.iter().cloned()).collect(),
            add_generation_prompt: true,
            continue_final_message: false,
            template_kwargs: Map::new(),
            tools,
            reasoning,
        };
        if conversation.messages.len() > limits.messages_max {
            let (count, limit) = (conversation.messages.len(), limits.messages_max);
            let message = format!("the conversation has {count} messages, but the limit is {limit}");
            return Err(ApiError::invalid("input", "array_above_max_length", message));
        }
        let chat = ChatRequest {
            common,
            conversation,
            logprobs,
            return_token_ids: false,
            echo: false,
            prediction: None,
        };
        Ok(Self {
            chat,
            store,
            messages,
            items,
            echo,
        })
    }
}

/// Takes what changes nothing, and refuses what would and is not implemented.
fn take_without_effect(object: &mut Object<'_>) -> Result<()> {
    object.string("user")?;
    for name in WITHOUT_EFFECT {
        object.take(name);
    }
    check_metadata(object)?;
    // Said to be off, these change nothing.
    if object.boolean("background")? == Some(true) {
        return Err(ApiError::unsupported("background"));
    }
    // An input that is too long is refused, and never cut.
    match object.choice("truncation", &["disabled", "auto"])? {
        Some("auto") => Err(ApiError::unsupported("truncation")),
        _ => Ok(()),
    }
}

fn common(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Common> {
    let mut common = Common::new(json::typed(object.require("model")?, "model", "a string")?);
    if let Some(temperature) = object.number("temperature", &shared::TEMPERATURE)? {
        common.sampling.temperature = temperature as f32;
    }
    if let Some(top_p) = object.number("top_p", &shared::TOP_P)? {
        common.sampling.top_p = top_p as f32;
    }
    common.max_tokens = object.count("max_output_tokens", 1..=TOKENS_MAX)?;
    common.format = text(object, limits)?;
    let stream = object.boolean("stream")?.unwrap_or(false);
    common.stream = stream.then(StreamOptions::default);
    if let Some(raw) = object.take("stream_options") {
        let mut options = Object::from_raw(raw, "stream_options")?;
        if options.boolean("include_obfuscation")? == Some(true) {
            return Err(ApiError::unsupported("stream_options.include_obfuscation"));
        }
        options.finish(&["include_obfuscation"], &[])?;
    }
    Ok(common)
}

fn text(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Option<AskedFormat>> {
    let Some(raw) = object.take("text") else {
        return Ok(None);
    };
    let mut text = Object::from_raw(raw, "text")?;
    text.choice("verbosity", VERBOSITIES)?;
    let format = text
        .take("format")
        .map(|raw| text_format(raw, limits))
        .transpose()?;
    text.finish(&["format", "verbosity"], &[])?;
    Ok(format.flatten().map(|format| AskedFormat {
        format,
        param: "text",
        fallback: None,
    }))
}

fn text_format(raw: &RawValue, limits: &RequestLimits) -> Result<Option<OutputFormat>> {
    let mut object = Object::from_raw(raw, "text.format")?;
    let kind = object.require_choice("type", format::TYPES)?;
    let mut format = (kind == "json_object").then_some(OutputFormat::JsonObject);
    let mut known = vec!["type"];
    if kind == "json_schema" {
        let _name: String = json::typed(object.require("name")?, &object.path("name"), "a string")?;
        object.string("description")?;
        object.boolean("strict")?;
        let path = object.path("schema");
        format = Some(format::schema(object.require("schema")?, &path, limits)?);
        known.extend(["name", "description", "strict", "schema"]);
    }
    object.finish(&known, &[])?;
    Ok(format)
}

fn logprobs(object: &mut Object<'_>) -> Result<Option<u32>> {
    let top = object.count("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    let mut wanted = false;
    if let Some(raw) = object.take("include") {
        let asked: Vec<String> = json::typed(raw, "include", "an array of strings")?;
        for name in &asked {
            match name.as_str() {
                LOGPROBS => wanted = true,
                ENCRYPTED => {}
                _ => return Err(ApiError::unsupported("include")),
            }
        }
    }
    if top.is_some_and(|top| top > 0) && !wanted {
        let message = format!("`top_logprobs` needs {LOGPROBS:?} in `include`");
        return Err(ApiError::invalid("top_logprobs", "invalid_value", message));
    }
    Ok(wanted.then(|| top.unwrap_or(0) as u32))
}

fn reasoning(object: &mut Object<'_>) -> Result<Reasoning> {
    let Some(raw) = object.take("reasoning") else {
        return Ok(Reasoning::default());
    };
    let mut fields = Object::from_raw(raw, "reasoning")?;
    let effort = Effort::read(&mut fields, "effort")?;
    // All of the reasoning is told: who leaves the choice to the server gets that instead of a summary.
    for name in ["summary", "generate_summary"] {
        if fields
            .choice(name, &["auto", "concise", "detailed"])?
            .is_some_and(|kind| kind != "auto")
        {
            return Err(ApiError::unsupported(fields.path(name)));
        }
    }
    fields.finish(&["effort", "summary", "generate_summary"], &[])?;
    Ok(Reasoning {
        effort,
        ..Reasoning::default()
    })
}

/// What answers repeat of a request, as it was sent.
pub struct Echo(Vec<(&'static str, Box<RawValue>)>);

impl Echo {
    fn read(object: &Object<'_>) -> Self {
        let sent = |(name, _): &Echoed| Some((*name, object.get(name)?.to_owned()));
        Self(DEFAULTS.iter().filter_map(sent).collect())
    }

    /// The fields, with the defaults of what was not sent.
    pub fn fields(&self) -> Map<String, Value> {
        let field = |(name, default): &Echoed| {
            let sent = self.0.iter().find(|(sent, _)| sent == name);
            let value = sent.and_then(|(_, raw)| serde_json::from_str(raw.get()).ok());
            ((*name).to_owned(), value.unwrap_or_else(default))
        };
        DEFAULTS.iter().map(field).collect()
    }
}

/// A name, and what stands for it where it was not sent.
type Echoed = (&'static str, fn() -> Value);

const DEFAULTS: [Echoed; 14] = [
    ("instructions", || Value::Null),
    ("max_output_tokens", || Value::Null),
    ("metadata", || json!({})),
    ("parallel_tool_calls", || json!(true)),
    ("previous_response_id", || Value::Null),
    ("reasoning", || json!({"effort": null, "summary": null})),
    ("temperature", || json!(1.0)),
    ("text", || json!({"format": {"type": "text"}})),
    ("tool_choice", || json!("auto")),
    ("tools", || json!([])),
    ("top_logprobs", || json!(0)),
    ("top_p", || json!(1.0)),
    ("truncation", || json!("disabled")),
    ("user", || Value::Null),
];

fn check_metadata(object: &mut Object<'_>) -> Result<()> {
    let Some(raw) = object.take("metadata") else {
        return Ok(());
    };
    let pairs = Object::from_raw(raw, "metadata")?.into_entries();
    let mut fits = pairs.len() <= METADATA_PAIRS_MAX;
    for (name, raw) in pairs {
        let value: String = json::typed(raw, "metadata", "an object of strings")?;
        fits &= name.chars().count() <= METADATA_NAME_MAX && value.chars().count() <= METADATA_VALUE_MAX;
    }
    if fits {
        return Ok(());
    }
    let message = format!(
        "`metadata` may have {METADATA_PAIRS_MAX} names of {METADATA_NAME_MAX} characters with values of \
         {METADATA_VALUE_MAX} characters"
    );
    Err(ApiError::invalid("metadata", "out_of_range", message))
}
