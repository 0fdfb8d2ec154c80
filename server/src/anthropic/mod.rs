//! The wire of Anthropic's Messages API: its requests become those of chat, and its answers are made of the same parts.
//! <https://docs.anthropic.com/en/api/messages>

mod content;
mod tools;

use serde_json::Map;
use serde_json::value::RawValue;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::chat::{ChatRequest, Conversation};
use crate::openai::format::{self, AskedFormat};
use crate::openai::json::{self, Object};
use crate::openai::messages::Message;
use crate::openai::prompted::Prompted;
use crate::openai::reasoning::{Effort, Reasoning};
use crate::openai::shared::{self, Common, Sampling, StreamOptions, TOKENS_MAX};

type Result<T> = std::result::Result<T, ApiError>;

/// The least that `thinking.budget_tokens` may be, as with Anthropic.
pub const THINKING_TOKENS_MIN: usize = 1024;
/// Anthropic's range, half of OpenAI's.
pub const TEMPERATURE: std::ops::RangeInclusive<f64> = 0.0..=1.0;

/// Parameters that change nothing in an answer.
pub const WITHOUT_EFFECT: &[&str] = &["cache_control", "metadata", "service_tier"];
pub const EFFORTS: &[&str] = &["low", "medium", "high", "xhigh", "max"];
const KNOWN: &[&str] = &[
    "max_tokens",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
];
const UNSUPPORTED: &[&str] = &["container", "context_management", "mcp_servers", "speed"];

/// A request of `/v1/messages` or `/v1/messages/count_tokens` within its limits.
pub struct MessagesRequest {
    pub chat: ChatRequest,
    /// Whether reasoning is told.
    pub thinking: bool,
}

impl Prompted for MessagesRequest {
    fn prompt(&self) -> Option<String> {
        self.chat.prompt()
    }
}

impl MessagesRequest {
    /// All names that a request may have or that are refused by name; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        [KNOWN, UNSUPPORTED].concat()
    }

    /// Reads a request body. To count tokens no `max_tokens` is needed.
    pub fn parse(body: &[u8], limits: &RequestLimits, generates: bool) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        let mut common = Common::new(json::typed(object.require("model")?, "model", "a string")?);
        // Neither changes an answer; the cache of prompts needs no marks.
        for name in WITHOUT_EFFECT {
            object.take(name);
        }
        common.max_tokens = object.count("max_tokens", 1..=TOKENS_MAX)?;
        if generates && common.max_tokens.is_none() {
            return Err(object.missing("max_tokens"));
        }
        common.sampling = sampling(&mut object)?;
        common.stop = shared::stop_strings(object.take("stop_sequences"), "stop_sequences", limits)?;
        let stream = object.boolean("stream")?.unwrap_or(false);
        common.stream = stream.then(StreamOptions::default);
        let output = output_config(&mut object, limits)?;
        common.format = output.format;
        let (thinking, reasoning) = reasoning(&mut object, output.effort, common.max_tokens)?;
        let mut messages: Vec<Message> = content::system(object.take("system"), limits)?
            .into_iter()
            .collect();
        messages.extend(content::messages(object.require("messages")?, limits)?);
        let tools = tools::read(&mut object, limits)?;
        object.finish(KNOWN, UNSUPPORTED)?;
        // An answer goes on with what the assistant said last.
        let continues = messages.last().is_some_and(|last| last.role == "assistant");
        if continues && tools.is_some() {
            let message = "the last of `messages` can't be the assistant's where there are `tools`";
            return Err(ApiError::invalid("messages", "invalid_value", message));
        }
        let conversation = Conversation {
            messages,
            add_generation_prompt: !continues,
            continue_final_message: continues,
            template_kwargs: Map::new(),
            tools,
            reasoning,
        };
        let chat = ChatRequest {
            common,
            conversation,
            logprobs: None,
            return_token_ids: false,
            echo: false,
            prediction: None,
        };
        Ok(Self { chat, thinking })
    }
}

fn sampling(object: &mut Object<'_>) -> Result<Sampling> {
    let mut sampling = Sampling::default();
    if let Some(temperature) = object.number("temperature", &TEMPERATURE)? {
        sampling.temperature = temperature as f32;
    }
    if let Some(top_p) = object.number("top_p", &shared::TOP_P)? {
        sampling.top_p = top_p as f32;
    }
    if let Some(top_k) = object.integer("top_k", &shared::TOP_K)? {
        sampling.top_k = u32::try_from(top_k).unwrap_or(0);
    }
    Ok(sampling)
}

/// What `output_config` says.
#[derive(Default)]
struct Output {
    format: Option<AskedFormat>,
    effort: Option<Effort>,
}

fn output_config(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Output> {
    let Some(raw) = object.take("output_config") else {
        return Ok(Output::default());
    };
    let mut config = Object::from_raw(raw, "output_config")?;
    let effort = config.choice("effort", EFFORTS)?;
    let format = config
        .take("format")
        .map(|raw| output_format(raw, limits))
        .transpose()?;
    config.finish(&["effort", "format"], &[])?;
    let effort = effort.map(|word| match word {
        "low" => Effort::Low,
        "medium" => Effort::Medium,
        "high" => Effort::High,
        _ => Effort::XHigh,
    });
    Ok(Output { format, effort })
}

fn output_format(raw: &RawValue, limits: &RequestLimits) -> Result<AskedFormat> {
    let mut object = Object::from_raw(raw, "output_config.format")?;
    object.require_choice("type", &["json_schema"])?;
    let format = format::schema(object.require("schema")?, &object.path("schema"), limits)?;
    object.finish(&["type", "schema"], &[])?;
    Ok(AskedFormat {
        format,
        param: "output_config",
        fallback: None,
    })
}

/// Whether reasoning is told, and how much of it there may be. Who does not ask for it gets none, where a model can do
/// without.
fn reasoning(
    object: &mut Object<'_>,
    effort: Option<Effort>,
    max_tokens: Option<usize>,
) -> Result<(bool, Reasoning)> {
    let off = Reasoning {
        off_if_possible: true,
        ..Reasoning::default()
    };
    let Some(raw) = object.take("thinking") else {
        if effort.is_none() {
            return Ok((false, off));
        }
        let (param, message) = ("output_config.effort", "`output_config.effort` needs `thinking`");
        return Err(ApiError::invalid(param, "invalid_value", message));
    };
    let mut thinking = Object::from_raw(raw, "thinking")?;
    let kind = thinking.require_choice("type", &["enabled", "disabled", "adaptive"])?;
    // Reasoning is told whole or not at all.
    let told = thinking.choice("display", &["full", "omitted"])? != Some("omitted");
    let budget = thinking.count("budget_tokens", THINKING_TOKENS_MIN..=TOKENS_MAX)?;
    let path = thinking.path("budget_tokens");
    match (kind, budget) {
        ("enabled", None) => return Err(thinking.missing("budget_tokens")),
        ("adaptive" | "disabled", Some(_)) => {
            let message = format!("`{path}` needs `thinking.type` \"enabled\"");
            return Err(ApiError::invalid(path, "invalid_value", message));
        }
        _ => {}
    }
    thinking.finish(&["type", "budget_tokens", "display"], &[])?;
    if budget.is_some_and(|budget| max_tokens.is_some_and(|max| budget >= max)) {
        let message = format!("`{path}` must be less than `max_tokens`");
        return Err(ApiError::invalid(path, "out_of_range", message));
    }
    if kind == "disabled" {
        return Ok((false, off));
    }
    let reasoning = Reasoning {
        effort: Some(effort.unwrap_or(Effort::High)),
        budget,
        off_if_possible: false,
    };
    Ok((told, reasoning))
}
