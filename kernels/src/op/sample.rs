//! A token for each row of logits on a card, where they are: to copy them to the host takes longer than to sample.

use candle_core::{Result, Tensor};

/// How a row's token is chosen, or which one is scored. What each number means, in which order, and what becomes of
/// nonsensical ones is said where the host does the same: `server/engine/src/sampling`.
#[derive(Debug, Clone, Copy)]
pub struct SamplingRow<'a> {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: u32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// Added to logits, in this order.
    pub logit_bias: &'a [(u32, f32)],
    /// Tokens for the repetition penalty.
    pub prompt: &'a [u32],
    /// Tokens for all penalties.
    pub output: &'a [u32],
    pub banned: &'a [u32],
    /// Bit `i` of word `w` stands for token `32 w + i`: the only ones that may be chosen, those of missing words not.
    pub allowed: Option<&'a [u32]>,
    /// The point of the draw in the sum of all weights, from 0 to below 1.
    pub uniform: f64,
    /// The token to score rather than to choose one.
    pub score: Option<u32>,
    /// With log-probabilities, and the list of so many best tokens.
    pub logprobs: Option<u32>,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// `None` where no token can be chosen.
    pub token: Option<u32>,
    /// Where they are asked for, and there is a token.
    pub logprobs: Option<TokenLogprobs>,
}

/// Natural logarithms of probabilities, by the logits as they came.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    pub chosen: f32,
    /// 1 for the best token; of equal ones the lowest is the best.
    pub rank: u32,
    /// The best tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// A token for each row of logits `[rows, vocab]`, which become scratch space, computed where they are. `None` where that
/// is the host's memory, or where a card's kernel has no room for what is asked: more than 2^20 tokens, or lists of more
/// than 128.
///
/// # Errors
/// The logits are not contiguous `f32` of as many rows, or the driver's.
pub fn sample(logits: &Tensor, rows: &[SamplingRow<'_>]) -> Result<Option<Vec<SampledToken>>> {
    #[cfg(feature = "cuda")]
    {
        let (storage, layout) = logits.storage_and_layout();
        if let candle_core::Storage::Cuda(storage) = &*storage {
            return crate::cuda::ops::sample((storage, layout), rows);
        }
    }
    let _ = (logits, rows);
    Ok(None)
}
