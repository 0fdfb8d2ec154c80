//! From a client's texts to tokens, and back, within their limits.

use rempart_text::Segment;

use super::Result;
use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::model::Model;
use crate::openai::completions::{CompletionRequest, Prompt};
use crate::openai::shared::{Common, Truncate};

/// A prompt of up to so many contexts is counted exactly when it is refused.
const COUNTED_CONTEXTS: usize = 2;

/// Tokenizes plain text; what looks like a special token in it stays text.
pub fn text_tokens(
    text: &str,
    add_special: bool,
    model: &Model,
    limits: &RequestLimits,
    tokens_max: usize,
) -> Result<Vec<u32>> {
    check_bytes("prompt", text.len(), limits)?;
    encode("prompt", &[Segment::Text(text)], add_special, model, tokens_max)
}

/// Tokens of what a client expects, no more than any answer can have.
pub(super) fn prediction(text: &str, model: &Model, limits: &RequestLimits) -> Result<Vec<u32>> {
    const PARAM: &str = "prediction.content";
    check_bytes(PARAM, text.len(), limits)?;
    let limit = model.context_length;
    let encoded = model
        .tokenizer
        .encode_within(&[Segment::Text(text)], false, limit);
    encoded.map_err(|error| {
        if matches!(error, rempart_text::Error::TooLong { .. }) {
            let message = format!("`{PARAM}` has more tokens than this model's context of {limit}");
            return ApiError::invalid(PARAM, "context_length_exceeded", message);
        }
        tracing::error!("the tokenizer failed");
        ApiError::internal()
    })
}

pub(super) fn encode(
    param: &str,
    segments: &[Segment<'_>],
    add_special: bool,
    model: &Model,
    tokens_max: usize,
) -> Result<Vec<u32>> {
    let encoded = model.tokenizer.encode_within(segments, add_special, tokens_max);
    encoded.map_err(|error| {
        if let rempart_text::Error::TooLong { at_least } = error {
            return ApiError::context_exceeded_at_least(param, model.context_length, at_least);
        }
        tracing::error!("the tokenizer failed");
        ApiError::internal()
    })
}

/// How many tokens of a prompt are counted: beyond its limit, so that a client learns by how much it must shorten, and
/// not without end, because it may have sent a book.
pub(super) fn counted_max(model: &Model, common: &Common) -> usize {
    match common.truncate {
        None => model.context_length.saturating_mul(COUNTED_CONTEXTS),
        // All of it, as its end is what stays.
        Some(_) => usize::MAX,
    }
}

/// Cuts the beginning of a prompt off, if a client asks for that: down to what it says, or to what leaves room for the
/// answer.
pub(super) fn shorten(
    mut prompt: Vec<u32>,
    truncate: Option<Truncate>,
    max_tokens: Option<usize>,
    model: &Model,
) -> Vec<u32> {
    let room = model
        .context_length
        .saturating_sub(max_tokens.unwrap_or(1).max(1));
    let kept = match truncate {
        None => return prompt,
        Some(Truncate::Model) => room.max(1),
        Some(Truncate::Tokens(tokens)) => tokens,
    };
    prompt.drain(..prompt.len().saturating_sub(kept));
    prompt
}

/// The prompt by which a model fills in what comes between `before` and `suffix`.
pub(super) fn infill(
    before: &[u32],
    suffix: &str,
    model: &Model,
    limits: &RequestLimits,
) -> Result<Vec<u32>> {
    let Some(tokens) = &model.infill else {
        let message = "`suffix` is not supported by this model: it has no tokens for filling in";
        return Err(ApiError::invalid("suffix", "unsupported_parameter", message));
    };
    check_bytes("suffix", suffix.len(), limits)?;
    let after = encode("suffix", &[Segment::Text(suffix)], false, model, usize::MAX)?;
    Ok([
        &[tokens.prefix],
        before,
        &[tokens.suffix],
        &after[..],
        &[tokens.middle],
    ]
    .concat())
}

/// Refuses more text than a prompt may have.
pub fn check_bytes(param: &str, bytes: usize, limits: &RequestLimits) -> Result<()> {
    let limit = limits.prompt_bytes_max;
    if bytes <= limit {
        return Ok(());
    }
    let message = format!("`{param}` has {bytes} bytes of text, but the limit is {limit}");
    Err(ApiError::invalid(param, "string_above_max_length", message))
}

pub(super) fn prompt_tokens(
    prompt: &Prompt,
    request: &CompletionRequest,
    model: &Model,
    limits: &RequestLimits,
) -> Result<Vec<u32>> {
    // What begins a text would stand in the middle of it.
    let add_special = request.add_special_tokens && request.suffix.is_none();
    let counted = counted_max(model, &request.common);
    let tokens = match prompt {
        Prompt::Text(text) => text_tokens(text, add_special, model, limits, counted)?,
        Prompt::Tokens(tokens) => tokens.clone(),
    };
    if tokens.is_empty() && request.suffix.is_none() {
        return Err(ApiError::invalid(
            "prompt",
            "empty_prompt",
            "`prompt` has no tokens",
        ));
    }
    check_vocabulary("prompt", &tokens, model)?;
    Ok(tokens)
}

pub(super) fn echo(prompt: &Prompt, tokens: &[u32], common: &Common, model: &Model) -> Result<String> {
    match prompt {
        Prompt::Text(text) => Ok(text.clone()),
        Prompt::Tokens(_) => decode(tokens, common.skip_special_tokens, model),
    }
}

/// The text of tokens.
pub fn decode(tokens: &[u32], skip_special: bool, model: &Model) -> Result<String> {
    // Numbers of a padded output layer mean nothing.
    let size = model.tokenizer.vocab_size();
    let known: Vec<u32> = tokens
        .iter()
        .copied()
        .filter(|token| (*token as usize) < size)
        .collect();
    model.tokenizer.decode(&known, skip_special).map_err(|_| {
        tracing::error!("the tokenizer failed to decode");
        ApiError::internal()
    })
}

/// Refuses token numbers that the model does not have.
pub fn check_vocabulary(param: &str, tokens: &[u32], model: &Model) -> Result<()> {
    if tokens.iter().all(|token| (*token as usize) < model.vocab_size) {
        return Ok(());
    }
    let message = format!(
        "`{param}` holds a token number outside 0 to {}",
        model.vocab_size - 1
    );
    Err(ApiError::invalid(param, "out_of_range", message))
}
