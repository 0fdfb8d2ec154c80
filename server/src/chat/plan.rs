//! What an answer may be made of: how its parts are read back, and what it is held to.

use rempart_text::{Callable, Dialect, EffortArgument, ReasoningMarkers};
use serde_json::{Map, Value, json};

use super::template::{Chat, ThinkingTokens};
use crate::http::error::ApiError;
use crate::openai::format::{AskedFormat, CallFormat, OutputFormat};
use crate::openai::reasoning::{Effort, Reasoning};
use crate::openai::tools::Tools;

type Result<T> = std::result::Result<T, ApiError>;

/// How the parts of an answer are told apart; by default all of it is content.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub reasoning: Option<ReasoningMarkers>,
    /// Whether the prompt ends in a span of reasoning.
    pub begun: bool,
    pub calls: Option<Callable>,
    /// Control tokens that the above are made of.
    pub shown: Vec<u32>,
    /// Whether identifiers of calls must be short.
    pub short_ids: bool,
}

impl Reading {
    /// Of an answer to a prompt, where functions may be called or not. `formatted`: answers without calls have a format.
    pub fn new(chat: &Chat, prompt: &str, tools: Option<&Tools>, formatted: bool) -> Self {
        let dialect = &chat.dialect;
        let mut shown = chat.reasoning_tokens.clone();
        if tools.is_some() {
            shown.extend(&chat.call_tokens);
        }
        Self {
            reasoning: dialect.reasoning,
            begun: dialect.reasoning.is_some_and(|markers| markers.begun_by(prompt)),
            calls: tools.map(|tools| Callable {
                syntax: dialect.calls.clone(),
                names: tools.called().map(|function| function.name.clone()).collect(),
                required: tools.required,
                // JSON that was asked for is no call.
                bare: !formatted || dialect.calls.trigger().is_none(),
            }),
            shown,
            short_ids: dialect.short_ids,
        }
    }
}

/// How reasoning in front of a format goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thinking {
    pub tokens: ThinkingTokens,
    pub begun: bool,
    /// Tokens after which it is closed.
    pub budget: Option<usize>,
}

impl Thinking {
    /// What holds reasoning to its limits, if anything must: a budget, or a format that begins behind it.
    pub fn plan(
        chat: &Chat,
        reading: &Reading,
        budget: Option<Budget>,
        format: Option<&AskedFormat>,
    ) -> Result<Option<Self>> {
        let refuse = |param: &str| {
            let message = format!(
                "`{param}` can't be combined with this model's reasoning: its vocabulary has no single token that ends it"
            );
            Err(ApiError::invalid(param, "unsupported_parameter", message))
        };
        if let Some(tokens) = chat.thinking {
            let wanted = budget.is_some() || format.is_some();
            return Ok(wanted.then_some(Self {
                tokens,
                begun: reading.begun,
                budget: budget.map(|(tokens, _)| tokens),
            }));
        }
        // Where calls may come anywhere, reasoning is text like any other.
        let anywhere = |format: &OutputFormat| matches!(format, OutputFormat::Calls(calls) if !calls.required && calls.content.is_none());
        match (budget, format) {
            (Some((_, param)), _) => refuse(param),
            (None, Some(asked)) if reading.begun && !anywhere(&asked.format) => refuse(asked.param),
            _ => Ok(None),
        }
    }
}

/// Tokens of reasoning, and the parameter that limits them so.
pub type Budget = (usize, &'static str);

/// Arguments for the template, and a budget, for what a client asked for.
pub fn reasoning(asked: Reasoning, chat: &Chat) -> Result<(Map<String, Value>, Option<Budget>)> {
    const EFFORT: &str = "reasoning_effort";
    let mut arguments = Map::new();
    let mut budget = asked.budget.map(|tokens| (tokens, "thinking_token_budget"));
    if budget.is_some() && chat.dialect.reasoning.is_none() {
        let message = "`thinking_token_budget` has no effect: this model does not reason before it answers";
        return Err(ApiError::invalid(
            "thinking_token_budget",
            "unsupported_parameter",
            message,
        ));
    }
    let Some(effort) = asked.effort else {
        if let (true, EffortArgument::Switch(switch)) = (asked.off_if_possible, chat.dialect.effort) {
            arguments.insert(switch.to_owned(), false.into());
        }
        return Ok((arguments, budget));
    };
    let reasons = chat.dialect.reasoning.is_some();
    match chat.dialect.effort {
        EffortArgument::Effort => {
            arguments.insert(EFFORT.to_owned(), effort.name().into());
            return Ok((arguments, budget));
        }
        EffortArgument::Switch(switch) => {
            arguments.insert(switch.to_owned(), (effort != Effort::None).into());
        }
        EffortArgument::Nothing if reasons && effort != Effort::None => {}
        EffortArgument::Nothing => {
            let message = if reasons {
                "`reasoning_effort`: this model always reasons"
            } else {
                "`reasoning_effort` has no effect: this model does not reason before it answers"
            };
            return Err(ApiError::invalid(EFFORT, "unsupported_parameter", message));
        }
    }
    if effort != Effort::None && reasons {
        budget = budget.or(effort.budget().map(|tokens| (tokens, EFFORT)));
    }
    Ok((arguments, budget))
}

/// The format of answers that may call functions, and otherwise follow `content`.
pub fn calls(tools: &Tools, dialect: &Dialect, content: Option<&OutputFormat>) -> AskedFormat {
    let format = |schema: &dyn Fn(&Value) -> String| {
        OutputFormat::Calls(Box::new(CallFormat {
            syntax: dialect.calls.clone(),
            functions: tools
                .called()
                .map(|function| (function.name.clone(), schema(&function.parameters)))
                .collect(),
            required: tools.required,
            parallel: tools.parallel,
            content: content.cloned(),
        }))
    };
    // Where nobody asked for more, a schema that can't be followed must not stop a conversation.
    let lenient = !tools.required && content.is_none() && tools.called().all(|function| !function.strict);
    AskedFormat {
        format: format(&|schema| schema.to_string()),
        param: "tools",
        fallback: lenient.then(|| format(&|_| json!({"type": "object"}).to_string())),
    }
}
