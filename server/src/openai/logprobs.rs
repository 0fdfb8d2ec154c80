//! Likelihoods on the wire, and `prompt_logprobs`: how likely the model thought the prompt, as vLLM answers it.

use std::collections::BTreeMap;

use rempart_engine::Logprobs;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::openai::json::Object;
use crate::openai::shared::TOP_LOGPROBS_MAX;

/// JSON has no minus infinity; OpenAI writes this for what a model rules out.
const LOGPROB_MIN: f32 = -9999.0;

/// A likelihood that JSON can hold.
pub fn finite(logprob: f32) -> f32 {
    // Written so that NaN, too, becomes the lowest value.
    if logprob > LOGPROB_MIN {
        logprob
    } else {
        LOGPROB_MIN
    }
}

/// For each token of the prompt its own likelihood and those of the likeliest in its place, by token number; `null` for the
/// first, which nothing is before.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PromptLogprobs(Vec<Option<BTreeMap<String, PromptLogprob>>>);

/// A token in some place of a prompt.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PromptLogprob {
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// 1 for the likeliest token, and so on.
    pub rank: u32,
    pub decoded_token: String,
}

/// Takes `prompt_logprobs`: how many alternatives are told for each token.
///
/// # Errors
/// 400 beyond the limit, and with `stream`, whose events have no place for them.
pub fn read(object: &mut Object<'_>, streamed: bool) -> Result<Option<u32>, ApiError> {
    const NAME: &str = "prompt_logprobs";
    let count = object.count(NAME, 0..=TOP_LOGPROBS_MAX)?;
    if count.is_some() && streamed {
        let message = format!("`{NAME}` can't be combined with `stream`");
        return Err(ApiError::invalid(NAME, "invalid_value", message));
    }
    Ok(count.map(|count| count as u32))
}

/// What the engine said of a prompt, on the wire: up to `top` alternatives, with the `text` of each token.
pub fn told(
    prompt: &[u32],
    scores: &[Option<Logprobs>],
    top: u32,
    text: impl Fn(u32) -> String,
) -> PromptLogprobs {
    let one = |token: u32, logprob: f32, rank: u32| {
        let (logprob, decoded_token) = (finite(logprob), text(token));
        let told = PromptLogprob {
            logprob,
            rank,
            decoded_token,
        };
        (token.to_string(), told)
    };
    let place = |(token, score): (&u32, &Option<Logprobs>)| {
        let score = score.as_ref()?;
        let best = score.top.iter().zip(1..=top);
        let best = best.map(|(other, rank)| one(other.token, other.logprob, rank));
        let own = [one(*token, score.chosen, score.rank)];
        Some(best.chain(own).collect())
    };
    PromptLogprobs(prompt.iter().zip(scores).map(place).collect())
}
