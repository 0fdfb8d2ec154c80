//! `/v1/messages`: its requests, its answers and its errors.

use super::parts::{function_name, parameters};
use super::schema::{
    AnySchema, Fields, any_object, any_of, array, boolean, count, integer, list, named, number, or_null,
    string, text, told, word,
};
use super::words::Section;
use crate::anthropic::{EFFORTS, TEMPERATURE, THINKING_TOKENS_MIN, WITHOUT_EFFECT};
use crate::config::RequestLimits;
use crate::openai::shared::{Sampling, TOKENS_MAX, TOP_K, TOP_P};

/// The components, by their names.
pub(super) fn all(limits: &RequestLimits) -> Vec<(&'static str, AnySchema)> {
    vec![
        ("MessagesRequest", request(limits, true)),
        ("CountTokensRequest", request(limits, false)),
        ("MessagesInput", message(limits)),
        ("TextBlocks", text_blocks(limits)),
        ("Message", answer()),
        (
            "InputTokens",
            Fields::open().required("input_tokens", tokens()).build(),
        ),
        ("AnthropicError", error()),
    ]
}

fn request(limits: &RequestLimits, generates: bool) -> AnySchema {
    let unsaid = Sampling::default();
    let fields = Fields::of(Section::of("/v1/messages"))
        .required("model", string())
        .required(
            "messages",
            array(named("MessagesInput"), &(1..=limits.messages_max)),
        )
        .optional("system", named("TextBlocks"))
        .optional(
            "stop_sequences",
            any_of([
                text(1..=limits.stop_bytes_max),
                array(text(1..=limits.stop_bytes_max), &(0..=limits.stops_max)),
            ]),
        )
        .defaults("stream", boolean(), false)
        .defaults("temperature", number(&TEMPERATURE), unsaid.temperature)
        .defaults("top_p", number(&TOP_P), unsaid.top_p)
        .optional("top_k", integer(&TOP_K))
        .optional("output_config", output_config())
        .optional("thinking", thinking())
        .optional("tools", array(tool(), &(0..=limits.tools_max)))
        .optional("tool_choice", tool_choice())
        .without_effect(WITHOUT_EFFECT);
    let max_tokens = count(1..=TOKENS_MAX);
    if generates {
        fields.required("max_tokens", max_tokens).build()
    } else {
        fields.optional("max_tokens", max_tokens).build()
    }
}

/// A block of a type, which may be marked for a cache that needs no marks.
fn block(kind: &str) -> Fields {
    Fields::new()
        .required("type", word(&[kind]))
        .without_effect(&["cache_control"])
}

fn text_block() -> AnySchema {
    block("text")
        .required("text", string())
        .without_effect(&["citations"])
        .build()
}

fn text_blocks(limits: &RequestLimits) -> AnySchema {
    any_of([string(), array(text_block(), &(1..=limits.content_parts_max))])
}

fn message(limits: &RequestLimits) -> AnySchema {
    let content = |block: AnySchema| any_of([string(), array(block, &(1..=limits.content_parts_max))]);
    let result = block("tool_result")
        .required("tool_use_id", string())
        .optional("content", named("TextBlocks"))
        .optional("is_error", boolean());
    let user = Fields::new()
        .required("role", word(&["user"]))
        .required("content", content(any_of([text_block(), result.build()])));
    let thinking = block("thinking")
        .required("thinking", string())
        .optional("signature", string())
        .without_effect(&["citations"]);
    let redacted = Fields::open().required("type", word(&["redacted_thinking"]));
    let call = block("tool_use")
        .required("id", string())
        .required("name", function_name())
        .required("input", any_object())
        .without_effect(&["caller"]);
    let blocks = any_of([text_block(), thinking.build(), redacted.build(), call.build()]);
    let assistant = Fields::new()
        .required("role", word(&["assistant"]))
        .required("content", content(blocks));
    let system = Fields::new()
        .required("role", word(&["system"]))
        .required("content", named("TextBlocks"));
    any_of([user.build(), assistant.build(), system.build()])
}

fn output_config() -> AnySchema {
    let format = Fields::new()
        .required("type", word(&["json_schema"]))
        .required("schema", told(any_object(), "A JSON schema.", None));
    Fields::new()
        .optional("effort", word(EFFORTS))
        .optional("format", format.build())
        .build()
}

fn thinking() -> AnySchema {
    let of = |kinds: &[&str]| {
        Fields::new()
            .required("type", word(kinds))
            .optional("display", word(&["full", "omitted"]))
    };
    let enabled = of(&["enabled"]).required("budget_tokens", count(THINKING_TOKENS_MIN..=TOKENS_MAX));
    any_of([enabled.build(), of(&["adaptive", "disabled"]).build()])
}

fn tool() -> AnySchema {
    Fields::new()
        .optional("type", word(&["custom"]))
        .required("name", function_name())
        .optional("description", string())
        .defaults("strict", boolean(), false)
        .required("input_schema", parameters())
        .without_effect(&["cache_control", "eager_input_streaming"])
        .build()
}

fn tool_choice() -> AnySchema {
    let of = |kinds: &[&str]| {
        Fields::new()
            .required("type", word(kinds))
            .defaults("disable_parallel_tool_use", boolean(), false)
    };
    let named = of(&["tool"]).required("name", string());
    any_of([of(&["auto", "any", "none"]).build(), named.build()])
}

fn tokens() -> AnySchema {
    count(0..=usize::MAX >> 1)
}

fn answer() -> AnySchema {
    let text = Fields::open()
        .required("type", word(&["text"]))
        .required("text", string());
    let thinking = Fields::open()
        .required("type", word(&["thinking"]))
        .required("thinking", string())
        .required("signature", string());
    let call = Fields::open()
        .required("type", word(&["tool_use"]))
        .required("id", string())
        .required("name", string())
        .required("input", any_object());
    let usage = Fields::open()
        .required("input_tokens", tokens())
        .required("cache_creation_input_tokens", tokens())
        .required("cache_read_input_tokens", tokens())
        .required("output_tokens", tokens());
    let reasons = ["end_turn", "max_tokens", "stop_sequence", "tool_use"];
    Fields::open()
        .required("id", string())
        .required("type", word(&["message"]))
        .required("role", word(&["assistant"]))
        .required("model", string())
        .required(
            "content",
            list(any_of([text.build(), thinking.build(), call.build()])),
        )
        .required("stop_reason", or_null(word(&reasons)))
        .required("stop_sequence", or_null(string()))
        .required("usage", usage.build())
        .build()
}

/// Anthropic's envelope around an error that is also one of OpenAI's.
fn error() -> AnySchema {
    let error = Fields::open()
        .required("type", string())
        .required("message", string())
        .required("param", or_null(string()))
        .required("code", super::code());
    Fields::open()
        .required("type", word(&["error"]))
        .required("error", error.build())
        .build()
}
