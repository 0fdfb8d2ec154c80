//! What the requests of several endpoints have in common: messages, functions, formats.

use super::schema::{
    AnySchema, Fields, any_object, any_of, array, boolean, count, json, list, named, only, pattern, string,
    text, told, word,
};
use crate::config::RequestLimits;
use crate::openai::format::TYPES;
use crate::openai::messages::ROLES;
use crate::openai::prediction;
use crate::openai::tools::{ALLOWED_MODES, NAME_BYTES_MAX};

/// The components, by their names.
pub(super) fn all(limits: &RequestLimits) -> Vec<(&'static str, AnySchema)> {
    vec![
        ("ChatMessage", chat_message(limits)),
        ("ContentParts", content(limits)),
        ("Prediction", prediction()),
        ("ResponseFormat", response_format()),
        ("StreamOptions", stream_options()),
        ("StructuredOutputs", structured_outputs(limits)),
        ("Tool", tool()),
        ("ToolChoice", tool_choice(limits)),
    ]
}

/// A string, or parts of one.
fn content(limits: &RequestLimits) -> AnySchema {
    let part = Fields::new()
        .required("type", word(&["text"]))
        .required("text", string())
        .build();
    any_of([string(), array(part, &(0..=limits.content_parts_max))])
}

/// What SDKs send back of an answer; it says nothing to a model.
const ECHOED: &[&str] = &["annotations", "parsed", "refusal"];

fn chat_message(limits: &RequestLimits) -> AnySchema {
    let others: Vec<&str> = ROLES
        .iter()
        .filter(|role| !["assistant", "tool"].contains(role))
        .copied()
        .collect();
    let plain = Fields::new()
        .required("role", word(&others))
        .required("content", named("ContentParts"))
        .optional("name", string())
        .without_effect(ECHOED);
    let assistant = Fields::new()
        .required("role", word(&["assistant"]))
        .optional("content", named("ContentParts"))
        .optional("name", string())
        .optional("reasoning_content", string())
        .optional(
            "reasoning",
            told(string(), "Another name of `reasoning_content`.", None),
        )
        .optional("tool_calls", array(past_call(), &(0..=limits.tools_max)))
        .without_effect(ECHOED);
    let tool = Fields::new()
        .required("role", word(&["tool"]))
        .required("content", named("ContentParts"))
        .required("tool_call_id", string())
        .optional("name", string())
        .without_effect(ECHOED);
    any_of([plain.build(), assistant.build(), tool.build()])
}

pub(super) fn function_name() -> AnySchema {
    pattern(format!("^[A-Za-z0-9_.-]{{1,{NAME_BYTES_MAX}}}$"))
}

/// A JSON object as text; empty for none.
pub(super) fn arguments() -> AnySchema {
    any_of([json(any_object()), word(&[""])])
}

fn past_call() -> AnySchema {
    let function = Fields::new()
        .required("name", function_name())
        .optional("arguments", arguments())
        .without_effect(&["parsed_arguments"]);
    Fields::new()
        .required("id", string())
        .optional("type", word(&["function"]))
        .optional("index", count(0..=usize::from(u16::MAX)))
        .required("function", function.build())
        .build()
}

/// The JSON schema of a function's arguments.
pub(super) fn parameters() -> AnySchema {
    let schema = Fields::open().property("type", word(&["object"])).build();
    told(schema, "A JSON schema of an object.", None)
}

fn tool() -> AnySchema {
    let function = Fields::new()
        .required("name", function_name())
        .optional("description", string())
        .defaults("strict", boolean(), false)
        .optional("parameters", parameters());
    Fields::new()
        .required("type", word(&["function"]))
        .required("function", function.build())
        .build()
}

fn tool_choice(limits: &RequestLimits) -> AnySchema {
    let named_function = || {
        Fields::new()
            .required("type", word(&["function"]))
            .required("function", Fields::new().required("name", string()).build())
            .build()
    };
    let allowed = Fields::new()
        .required("mode", word(ALLOWED_MODES))
        .required("tools", array(named_function(), &(1..=limits.tools_max)));
    let allowed = Fields::new()
        .required("type", word(&["allowed_tools"]))
        .required("allowed_tools", allowed.build());
    any_of([choice_word(), named_function(), allowed.build()])
}

/// The words of `tool_choice`.
pub(super) fn choice_word() -> AnySchema {
    word(&["none", "auto", "required"])
}

/// A format by its type; `schema` has the fields of a schema, which stand in the format itself or in `json_schema`.
fn response_format() -> AnySchema {
    let named_schema = named_schema(Fields::new()).build();
    let with_schema = Fields::new()
        .required("type", word(&["json_schema"]))
        .required("json_schema", named_schema);
    any_of([plain_format(), with_schema.build()])
}

/// The formats that need no schema.
pub(super) fn plain_format() -> AnySchema {
    let plain: Vec<&str> = TYPES
        .iter()
        .filter(|kind| **kind != "json_schema")
        .copied()
        .collect();
    Fields::new().required("type", word(&plain)).build()
}

/// The fields of a schema with a name.
pub(super) fn named_schema(fields: Fields) -> Fields {
    fields
        .required("name", string())
        .optional("description", string())
        .optional("strict", boolean())
        .required("schema", told(any_object(), "A JSON schema.", None))
}

fn structured_outputs(limits: &RequestLimits) -> AnySchema {
    let source = || text(1..=limits.format_bytes_max);
    Fields::new()
        .optional("json", any_of([any_object(), source()]))
        .optional("json_object", boolean())
        .optional("regex", source())
        .optional("grammar", told(source(), "A grammar in Lark's notation.", None))
        .optional("choice", array(source(), &(1..=limits.format_choices_max)))
        .build()
}

fn prediction() -> AnySchema {
    Fields::new()
        .required("type", word(prediction::TYPES))
        .required("content", named("ContentParts"))
        .build()
}

fn stream_options() -> AnySchema {
    Fields::new()
        .defaults("include_usage", boolean(), false)
        .defaults("continuous_usage_stats", boolean(), false)
        .optional("include_obfuscation", only(false))
        .build()
}

/// What a response's items may have beside what they say.
pub(super) fn items_echoed() -> Fields {
    Fields::new().without_effect(&["id", "status", "created_by", "phase"])
}

/// A list of words from a list, any number of times.
pub(super) fn words(all: &[&str]) -> AnySchema {
    list(word(all))
}
