//! The requests of `/v1/chat/completions` and `/v1/completions`, and of `/tokenize` and `/detokenize`.

use super::parts::words;
use super::schema::{
    AnySchema, Fields, any_of, array, boolean, count, integer, list, map, named, number, only, string, text,
    token, told, word,
};
use super::words::Section;
use crate::config::RequestLimits;
use crate::openai::chat::TEMPLATE_SWITCHES;
use crate::openai::completions::MAX_TOKENS_DEFAULT;
use crate::openai::reasoning::Effort;
use crate::openai::shared::{
    FREQUENCY_PENALTY, LOGIT_BIAS, METADATA, MIN_P, PRESENCE_PENALTY, PRIORITY_MAX, REPETITION_PENALTY,
    Sampling, TEMPERATURE, TOKENS_MAX, TOP_K, TOP_LOGPROBS_MAX, TOP_P,
};

/// What both endpoints take.
fn common(fields: Fields, limits: &RequestLimits, tokens_min: usize) -> Fields {
    let stops = any_of([
        text(1..=limits.stop_bytes_max),
        array(text(1..=limits.stop_bytes_max), &(0..=limits.stops_max)),
    ]);
    let max_tokens = count(tokens_min..=TOKENS_MAX);
    sampling(fields, limits)
        .required("model", string())
        .optional("max_tokens", max_tokens)
        .defaults("min_tokens", count(0..=TOKENS_MAX), 0)
        .optional("stop", stops)
        .optional("stop_token_ids", array(token(), &(0..=limits.stop_tokens_max)))
        .defaults("ignore_eos", boolean(), false)
        .defaults("include_stop_str_in_output", boolean(), false)
        .defaults("skip_special_tokens", boolean(), true)
        .defaults("n", count(1..=limits.choices_max), 1)
        .optional("truncate_prompt_tokens", truncate())
        .optional("prompt_logprobs", count(0..=TOP_LOGPROBS_MAX))
        .defaults(
            "priority",
            integer(&(i64::from(limits.priority_min)..=PRIORITY_MAX)),
            0,
        )
        .optional("response_format", named("ResponseFormat"))
        .optional("structured_outputs", named("StructuredOutputs"))
        .defaults("stream", boolean(), false)
        .optional("stream_options", named("StreamOptions"))
        .defaults("return_token_ids", boolean(), false)
        .without_effect(METADATA)
}

fn sampling(fields: Fields, limits: &RequestLimits) -> Fields {
    let unsaid = Sampling::default();
    fields
        .defaults("temperature", number(&TEMPERATURE), unsaid.temperature)
        .defaults("top_p", number(&TOP_P), unsaid.top_p)
        .defaults("top_k", integer(&TOP_K), unsaid.top_k)
        .defaults("min_p", number(&MIN_P), unsaid.min_p)
        .defaults(
            "repetition_penalty",
            number(&REPETITION_PENALTY),
            unsaid.repetition_penalty,
        )
        .defaults(
            "presence_penalty",
            number(&PRESENCE_PENALTY),
            unsaid.presence_penalty,
        )
        .defaults(
            "frequency_penalty",
            number(&FREQUENCY_PENALTY),
            unsaid.frequency_penalty,
        )
        .optional(
            "logit_bias",
            map(number(&LOGIT_BIAS), Some(limits.logit_bias_max)),
        )
        .optional("seed", integer(&(i64::MIN..=i64::MAX)))
}

/// -1 for what the model takes, or a number of tokens.
pub(super) fn truncate() -> AnySchema {
    any_of([integer(&(-1..=-1)), count(1..=TOKENS_MAX)])
}

fn conversation(fields: Fields, limits: &RequestLimits) -> Fields {
    let switches = TEMPLATE_SWITCHES.iter();
    let switches = switches.fold(Fields::new(), |fields, name| fields.optional(name, boolean()));
    let effort = told(
        word(&Effort::words()),
        "Of models that reason before they answer.",
        None,
    );
    let budget = "Of models that reason: tokens after which the reasoning is closed.";
    fields
        .optional("add_generation_prompt", boolean())
        .defaults("continue_final_message", boolean(), false)
        .optional("chat_template_kwargs", switches.build())
        .optional("tools", array(named("Tool"), &(0..=limits.tools_max)))
        .optional("tool_choice", named("ToolChoice"))
        .defaults("parallel_tool_calls", boolean(), true)
        .optional("reasoning_effort", effort)
        .optional("thinking_token_budget", told(count(0..=TOKENS_MAX), budget, None))
}

fn messages(limits: &RequestLimits) -> AnySchema {
    array(named("ChatMessage"), &(1..=limits.messages_max))
}

pub(super) fn chat(limits: &RequestLimits) -> AnySchema {
    let fields = common(Fields::of(Section::of("/v1/chat/completions")), limits, 1);
    conversation(fields, limits)
        .required("messages", messages(limits))
        .optional("max_completion_tokens", count(1..=TOKENS_MAX))
        .defaults("logprobs", boolean(), false)
        .optional("top_logprobs", count(0..=TOP_LOGPROBS_MAX))
        .optional("modalities", words(&["text"]))
        .defaults("echo", boolean(), false)
        .optional("prediction", named("Prediction"))
        .build()
}

pub(super) fn completion(limits: &RequestLimits) -> AnySchema {
    let tokens = || list(token());
    let prompts = 1..=limits.prompts_max;
    let prompt = any_of([
        text(0..=limits.prompt_bytes_max),
        array(text(0..=limits.prompt_bytes_max), &prompts),
        array(token(), &(1..=usize::MAX)),
        array(tokens(), &prompts),
    ]);
    let suffix = "Of models that have tokens for it: what comes after the gap that is filled in.";
    common(Fields::of(Section::of("/v1/completions")), limits, 0)
        .required("prompt", prompt)
        .defaults("max_tokens", count(0..=TOKENS_MAX), MAX_TOKENS_DEFAULT)
        .optional("suffix", told(string(), suffix, None))
        .defaults("echo", boolean(), false)
        .optional("logprobs", count(0..=TOP_LOGPROBS_MAX))
        .defaults("add_special_tokens", boolean(), true)
        .build()
}

pub(super) fn tokenize(limits: &RequestLimits) -> AnySchema {
    let either = || {
        Fields::of(Section::of("/tokenize"))
            .optional("model", string())
            .defaults("return_token_strs", boolean(), false)
    };
    let prompt = either()
        .required("prompt", text(0..=limits.prompt_bytes_max))
        .defaults("add_special_tokens", boolean(), true);
    let chat = conversation(either(), limits)
        .required("messages", messages(limits))
        .optional("add_special_tokens", only(false));
    any_of([prompt.build(), chat.build()])
}

pub(super) fn detokenize() -> AnySchema {
    Fields::of(Section::of("/detokenize"))
        .optional("model", string())
        .required("tokens", list(token()))
        .build()
}
