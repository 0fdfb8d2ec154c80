//! From a row of logits to a token.

use crate::batch::{SampleKind, SampleRow};
use crate::request::Sampled;

/// Chooses (or scores) a token from one row of logits, which it may overwrite.
pub fn sample(logits: &mut [f32], row: &SampleRow<'_>) -> Sampled {
    if let SampleKind::Score(token) = row.kind {
        return Sampled { token, logprob: None };
    }
    let best =
        (0..logits.len()).reduce(|best, index| if logits[index] > logits[best] { index } else { best });
    best.map_or_else(Sampled::invalid, |index| Sampled {
        token: index as u32,
        logprob: None,
    })
}
