//! `/v1/chat/completions` on the wire.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};
use crate::openai::logprobs::PromptLogprobs;
use crate::openai::messages::{self, Message};
use crate::openai::prediction;
use crate::openai::prompted::Prompted;
use crate::openai::reasoning::{self, Reasoning};
use crate::openai::shared::{self, ChunkUsage, Common, TOKENS_MAX, TOP_LOGPROBS_MAX, Usage};
use crate::openai::tools::{self, Tools};

type Result<T> = std::result::Result<T, ApiError>;

const OWN: &[&str] = &[
    "add_generation_prompt",
    "chat_template_kwargs",
    "continue_final_message",
    "echo",
    "logprobs",
    "max_completion_tokens",
    "messages",
    "modalities",
    "prediction",
    "return_token_ids",
    "top_logprobs",
];

/// Arguments of a chat template that a client may set; all are switches. Anything else could reach what the template
/// computes with.
pub const TEMPLATE_SWITCHES: &[&str] = &["enable_thinking", "thinking"];

/// A chat request within its limits.
pub struct ChatRequest {
    pub common: Common,
    pub conversation: Conversation,
    /// `Some(k)`: the chosen token and the `k` most likely.
    pub logprobs: Option<u32>,
    /// Whether the answer carries the tokens beside their text.
    pub return_token_ids: bool,
    /// Whether the answer begins with the message that it goes on with.
    pub echo: bool,
    /// What the client expects to be answered.
    pub prediction: Option<String>,
}

/// What a chat template makes a prompt of.
pub struct Conversation {
    pub messages: Vec<Message>,
    pub add_generation_prompt: bool,
    /// The answer goes on with the last message, which is the assistant's and has content.
    pub continue_final_message: bool,
    pub template_kwargs: Map<String, Value>,
    pub tools: Option<Tools>,
    pub reasoning: Reasoning,
}

impl Prompted for ChatRequest {
    fn prompt(&self) -> Option<String> {
        let mut messages = self.conversation.messages.iter().rev();
        let last = messages.find(|message| message.role == "user");
        last.map(|message| message.content.clone())
    }
}

impl ChatRequest {
    /// All names that a request may have or that are refused by name; docs/api.md tells what becomes of each.
    pub fn names() -> Vec<&'static str> {
        [Self::known().as_slice(), shared::UNSUPPORTED].concat()
    }

    fn known() -> Vec<&'static str> {
        [
            OWN,
            tools::NAMES,
            reasoning::NAMES,
            shared::COMMON,
            shared::METADATA,
        ]
        .concat()
    }

    /// Reads a request body.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self> {
        let mut object = Object::from_body(body, limits.json_depth_max)?;
        refuse_modalities(&mut object)?;
        let max_completion_tokens = object.count("max_completion_tokens", 1..=TOKENS_MAX)?;
        let mut common = Common::read(&mut object, limits, 1)?;
        common.max_tokens = max_completion_tokens.or(common.max_tokens);
        let request = Self {
            common,
            conversation: Conversation::read(&mut object, limits)?,
            logprobs: logprobs(&mut object)?,
            return_token_ids: object.boolean("return_token_ids")?.unwrap_or(false),
            echo: object.boolean("echo")?.unwrap_or(false),
            prediction: prediction::read(&mut object, limits)?,
        };
        if request.echo && !request.conversation.continue_final_message {
            let message = "`echo` is only allowed with `continue_final_message`: it repeats that message";
            return Err(ApiError::invalid("echo", "invalid_value", message));
        }
        object.finish(&Self::known(), shared::UNSUPPORTED)?;
        Ok(request)
    }
}

impl Conversation {
    /// Takes the fields that make up the prompt.
    pub fn read(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Self> {
        let messages = messages::read(object.require("messages")?, limits)?;
        let tools = Tools::read(object, limits)?;
        let continues = object.boolean("continue_final_message")?.unwrap_or(false);
        let generation_prompt = object.boolean("add_generation_prompt")?;
        if continues {
            check_continues(&messages, generation_prompt, tools.is_some())?;
        }
        Ok(Self {
            messages,
            add_generation_prompt: generation_prompt.unwrap_or(!continues),
            continue_final_message: continues,
            template_kwargs: template_kwargs(object)?,
            tools,
            reasoning: Reasoning::read(object)?,
        })
    }

    /// Bytes of text that the client sent.
    pub fn content_bytes(&self) -> usize {
        self.messages.iter().map(Message::bytes).sum()
    }

    /// The messages as a chat template sees them, with `mark` behind the content of the last.
    pub fn template_messages(&self, mark: &str) -> Vec<Value> {
        let mark_of = |at| if at + 1 == self.messages.len() { mark } else { "" };
        let messages = self.messages.iter().enumerate();
        messages
            .map(|(at, message)| message.template_message(mark_of(at)))
            .collect()
    }
}

fn check_continues(messages: &[Message], generation_prompt: Option<bool>, tools: bool) -> Result<()> {
    const PARAM: &str = "continue_final_message";
    if generation_prompt == Some(true) {
        let message = "`continue_final_message` can't be combined with `add_generation_prompt`";
        return Err(ApiError::invalid(PARAM, "invalid_value", message));
    }
    if tools {
        let message = "`continue_final_message` can't be combined with `tools`";
        return Err(ApiError::invalid(PARAM, "invalid_value", message));
    }
    let continues = |message: &Message| message.role == "assistant" && !message.content.trim().is_empty();
    if messages.last().is_some_and(continues) {
        return Ok(());
    }
    let message = "`continue_final_message` needs a last message of the role \"assistant\" that has content";
    Err(ApiError::invalid(PARAM, "invalid_value", message))
}

fn refuse_modalities(object: &mut Object<'_>) -> Result<()> {
    let Some(raw) = object.take("modalities") else {
        return Ok(());
    };
    let asked: Vec<String> = json::typed(raw, "modalities", "an array of strings")?;
    if asked.iter().all(|name| name == "text") {
        Ok(())
    } else {
        Err(ApiError::unsupported("modalities"))
    }
}

fn logprobs(object: &mut Object<'_>) -> Result<Option<u32>> {
    let wanted = object.boolean("logprobs")?.unwrap_or(false);
    let top = object.count("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    if top.is_some_and(|top| top > 0) && !wanted {
        let message = "`top_logprobs` is only allowed when `logprobs` is true";
        return Err(ApiError::invalid("top_logprobs", "invalid_value", message));
    }
    Ok(wanted.then(|| top.unwrap_or(0) as u32))
}

fn template_kwargs(object: &mut Object<'_>) -> Result<Map<String, Value>> {
    let Some(raw) = object.take("chat_template_kwargs") else {
        return Ok(Map::new());
    };
    let mut switches = Object::from_raw(raw, "chat_template_kwargs")?;
    let mut kwargs = Map::new();
    for name in TEMPLATE_SWITCHES {
        if let Some(value) = switches.boolean(name)? {
            kwargs.insert((*name).to_owned(), Value::Bool(value));
        }
    }
    switches.finish(TEMPLATE_SWITCHES, &[])?;
    Ok(kwargs)
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub struct ChatCompletion {
    pub id: String,
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
    pub system_fingerprint: &'static str,
    /// With `return_token_ids`: the prompt as the chat template made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

#[derive(Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AssistantMessage,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: &'static str,
    /// With `return_token_ids`: the tokens of the choice, a stop token included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Serialize, ToSchema)]
pub struct AssistantMessage {
    pub role: &'static str,
    /// `null` where there is nothing but calls.
    pub content: Option<String>,
    #[schema(value_type = Option<String>)]
    pub refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call that the model made.
#[derive(Serialize, ToSchema)]
pub struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: CalledFunction,
}

#[derive(Serialize, ToSchema)]
pub struct CalledFunction {
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// The token likelihoods of a choice, or of one chunk of it.
#[derive(Serialize, Default, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<ChatLogprob>,
    #[schema(value_type = Option<String>)]
    pub refusal: Option<()>,
}

#[derive(Serialize, ToSchema)]
pub struct ChatLogprob {
    #[serde(flatten)]
    pub token: TokenLogprob,
    pub top_logprobs: Vec<TokenLogprob>,
}

/// One token as text, its natural log likelihood and its bytes, which may be part of a character.
#[derive(Serialize, ToSchema)]
pub struct TokenLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// One event of a stream.
#[derive(Serialize, ToSchema)]
pub struct ChatChunk<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: i64,
    pub model: &'a str,
    pub choices: Vec<ChatChunkChoice>,
    pub system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "ChunkUsage::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: ChunkUsage,
    /// With `return_token_ids`: the prompt, with the first chunk of each choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize, ToSchema)]
pub struct ChatChunkChoice {
    pub index: usize,
    pub delta: Delta,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    /// With `return_token_ids`: the tokens of this chunk, where it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Serialize, Default, ToSchema)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<[ToolCallDelta; 1]>,
}

/// The beginning of a call, or more of its arguments.
#[derive(Serialize, ToSchema)]
pub struct ToolCallDelta {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: CalledFunctionDelta,
}

#[derive(Serialize, ToSchema)]
pub struct CalledFunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}
