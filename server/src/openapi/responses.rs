//! `/v1/responses`: its requests and its answers.

use super::parts::{
    arguments, choice_word, function_name, items_echoed, named_schema, parameters, plain_format, words,
};
use super::schema::{
    AnySchema, Fields, any_object, any_of, anything, array, boolean, count, list, map, named, null, number,
    only, or_null, string, text, told, word,
};
use super::words::Section;
use crate::config::RequestLimits;
use crate::openai::reasoning::Effort;
use crate::openai::responses::{
    ENCRYPTED, LOGPROBS, METADATA_NAME_MAX, METADATA_PAIRS_MAX, METADATA_VALUE_MAX, VERBOSITIES,
    WITHOUT_EFFECT,
};
use crate::openai::shared::{Sampling, TEMPERATURE, TOKENS_MAX, TOP_LOGPROBS_MAX, TOP_P};
use crate::openai::tools::ALLOWED_MODES;

/// The components, by their names.
pub(super) fn all(limits: &RequestLimits) -> Vec<(&'static str, AnySchema)> {
    vec![
        ("ResponsesRequest", request(limits)),
        ("ResponsesInput", item(limits)),
        ("Response", answer()),
        ("ResponseItems", items()),
        ("ResponseDeleted", deleted()),
        ("ResponseInputTokens", input_tokens()),
    ]
}

fn request(limits: &RequestLimits) -> AnySchema {
    let unsaid = Sampling::default();
    let input = any_of([
        text(0..=limits.prompt_bytes_max),
        array(named("ResponsesInput"), &(1..=limits.messages_max)),
    ]);
    let without_effect: Vec<&str> = WITHOUT_EFFECT
        .iter()
        .filter(|name| **name != "user")
        .copied()
        .collect();
    Fields::of(Section::of("/v1/responses"))
        .required("model", string())
        .required("input", input)
        .optional("instructions", string())
        .optional("max_output_tokens", count(1..=TOKENS_MAX))
        .optional("metadata", metadata())
        .optional("include", words(&[LOGPROBS, ENCRYPTED]))
        .optional("top_logprobs", count(0..=TOP_LOGPROBS_MAX))
        .defaults("temperature", number(&TEMPERATURE), unsaid.temperature)
        .defaults("top_p", number(&TOP_P), unsaid.top_p)
        .optional("text", text_config())
        .optional("reasoning", reasoning())
        .optional("tools", array(tool(), &(0..=limits.tools_max)))
        .optional("tool_choice", tool_choice(limits))
        .defaults("parallel_tool_calls", boolean(), true)
        .optional("previous_response_id", string())
        .optional("store", boolean())
        .defaults("stream", boolean(), false)
        .optional(
            "stream_options",
            Fields::new().optional("include_obfuscation", only(false)).build(),
        )
        .defaults("truncation", word(&["disabled"]), "disabled")
        .optional(
            "background",
            told(only(false), "Answers are made while the client waits.", None),
        )
        .optional(
            "user",
            told(string(), "Without effect, and repeated in the answer.", None),
        )
        .without_effect(&without_effect)
        .build()
}

fn metadata() -> AnySchema {
    let what = format!("Names of up to {METADATA_NAME_MAX} characters.");
    told(
        map(text(0..=METADATA_VALUE_MAX), Some(METADATA_PAIRS_MAX)),
        &what,
        None,
    )
}

fn text_config() -> AnySchema {
    let schema = named_schema(Fields::new().required("type", word(&["json_schema"]))).build();
    Fields::new()
        .optional("format", any_of([plain_format(), schema]))
        .optional("verbosity", word(VERBOSITIES))
        .build()
}

fn reasoning() -> AnySchema {
    let what = "Of models that reason before they answer.";
    let fields = Fields::new()
        .optional("effort", word(&Effort::words()))
        .optional("summary", word(&["auto"]))
        .optional("generate_summary", word(&["auto"]));
    told(fields.build(), what, None)
}

fn tool() -> AnySchema {
    Fields::new()
        .required("type", word(&["function"]))
        .required("name", function_name())
        .optional("description", string())
        .defaults("strict", boolean(), false)
        .optional("parameters", parameters())
        .build()
}

fn tool_choice(limits: &RequestLimits) -> AnySchema {
    let function = || {
        Fields::new()
            .required("type", word(&["function"]))
            .required("name", string())
            .build()
    };
    let allowed = Fields::new()
        .required("type", word(&["allowed_tools"]))
        .required("mode", word(ALLOWED_MODES))
        .required("tools", array(function(), &(1..=limits.tools_max)));
    any_of([choice_word(), function(), allowed.build()])
}

/// One item of an input.
fn item(limits: &RequestLimits) -> AnySchema {
    let part = Fields::new()
        .required(
            "type",
            word(&["input_text", "output_text", "reasoning_text", "text"]),
        )
        .required("text", string())
        .without_effect(&["annotations", "logprobs"])
        .build();
    let content = || any_of([string(), array(part.clone(), &(0..=limits.content_parts_max))]);
    let message = items_echoed()
        .optional("type", word(&["message"]))
        .required("role", word(&["user", "assistant", "system", "developer"]))
        .required("content", content());
    let call = items_echoed()
        .required("type", word(&["function_call"]))
        .required("call_id", string())
        .required("name", function_name())
        .optional("arguments", arguments());
    let output = items_echoed()
        .required("type", word(&["function_call_output"]))
        .required("call_id", string())
        .required("output", content());
    let reasoning = items_echoed()
        .required("type", word(&["reasoning"]))
        .optional("content", content())
        .without_effect(&["summary", "encrypted_content"]);
    any_of([message.build(), call.build(), output.build(), reasoning.build()])
}

fn tokens() -> AnySchema {
    count(0..=usize::MAX >> 1)
}

/// An item of an answer.
fn output_item() -> AnySchema {
    let item = |kind: &str| {
        Fields::open()
            .required("id", string())
            .required("type", word(&[kind]))
            .required("status", word(&["completed", "incomplete"]))
    };
    let part = |kind: &str| {
        Fields::open()
            .required("type", word(&[kind]))
            .required("text", string())
    };
    let output_text = part("output_text")
        .required("annotations", list(anything()))
        .required("logprobs", list(named("ChatLogprob")));
    let message = item("message")
        .required("role", word(&["assistant"]))
        .required("content", list(output_text.build()));
    let reasoning = item("reasoning")
        .required("summary", list(anything()))
        .required("content", list(part("reasoning_text").build()));
    let call = item("function_call")
        .required("call_id", string())
        .required("name", string())
        .required("arguments", string());
    any_of([message.build(), reasoning.build(), call.build()])
}

fn answer() -> AnySchema {
    let input_details = Fields::open().required("cached_tokens", tokens());
    let output_details = Fields::open().required("reasoning_tokens", tokens());
    let usage = Fields::open()
        .required("input_tokens", tokens())
        .required("input_tokens_details", input_details.build())
        .required("output_tokens", tokens())
        .required("output_tokens_details", output_details.build())
        .required("total_tokens", tokens());
    let incomplete = Fields::open().required("reason", word(&["max_output_tokens"]));
    let echoed = |fields: Fields| {
        let repeated = told(anything(), "As the request had it, or what stands for it.", None);
        let names = [
            "text",
            "tool_choice",
            "tools",
            "reasoning",
            "metadata",
            "truncation",
        ];
        names
            .iter()
            .fold(fields, |fields, name| fields.required(name, repeated.clone()))
    };
    let fields = Fields::open()
        .required("id", string())
        .required("object", word(&["response"]))
        .required("created_at", tokens())
        .required("completed_at", or_null(tokens()))
        .required("status", word(&["in_progress", "completed", "incomplete"]))
        .required("background", only(false))
        .required("error", null())
        .required("incomplete_details", or_null(incomplete.build()))
        .required("model", string())
        .required("service_tier", string())
        .required("output", list(output_item()))
        .required("store", boolean())
        .required("usage", or_null(usage.build()))
        .required("instructions", or_null(string()))
        .required("max_output_tokens", or_null(tokens()))
        .required("parallel_tool_calls", boolean())
        .required("previous_response_id", or_null(string()))
        .required("temperature", number(&TEMPERATURE))
        .required("top_logprobs", count(0..=TOP_LOGPROBS_MAX))
        .required("top_p", number(&TOP_P))
        .required("user", or_null(string()));
    echoed(fields).build()
}

/// What was sent up to an answer, as items.
fn items() -> AnySchema {
    Fields::open()
        .required("object", word(&["list"]))
        .required("data", list(any_object()))
        .required("first_id", or_null(string()))
        .required("last_id", or_null(string()))
        .required("has_more", only(false))
        .build()
}

fn deleted() -> AnySchema {
    Fields::open()
        .required("id", string())
        .required("object", word(&["response"]))
        .required("deleted", boolean())
        .build()
}

fn input_tokens() -> AnySchema {
    Fields::open()
        .required("object", word(&["response.input_tokens"]))
        .required("input_tokens", tokens())
        .build()
}
