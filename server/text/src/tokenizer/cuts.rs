//! Where a text can be cut so that its parts have the tokens of the whole: before a blank that follows a letter, a
//! digit or a punctuation mark, if nothing in the tokenizer looks across such a place. A long text is then tokenized
//! part by part, and the work on one that is too long ends early.

use std::ops::Range;

use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::added::{Added, Span};
use super::gguf::{LLAMA3_WORDS, QWEN2_WORDS};

/// A part has at least so many bytes.
pub(super) const PART_BYTES: usize = 64 << 10;

/// Whether these steps keep to themselves what is on either side of such a place. What is not known to is taken not to.
pub(super) fn allowed(
    normalizer: Option<&NormalizerWrapper>,
    pre_tokenizer: Option<&PreTokenizerWrapper>,
    added: &[Added],
) -> bool {
    // Composition never joins a blank to what precedes it.
    matches!(normalizer, None | Some(NormalizerWrapper::NFC(_)))
        && pre_tokenizer.is_some_and(|step| is_known(step) && splits_words(step))
        && !added.iter().any(|token| token.normalized && !token.is_control())
}

/// Whether no piece that the step makes depends on what is beyond such a place.
fn is_known(step: &PreTokenizerWrapper) -> bool {
    match step {
        PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Digits(_) => true,
        PreTokenizerWrapper::Split(split) => {
            let known = [LLAMA3_WORDS, QWEN2_WORDS];
            let words =
                matches!(&split.pattern, SplitPattern::Regex(regex) if known.contains(&regex.as_str()));
            words && split.behavior == SplitDelimiterBehavior::Isolated && !split.invert
        }
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().all(is_known),
        _ => false,
    }
}

/// Whether the step begins a new word at each such place: in no pattern of these can a blank follow anything else.
fn splits_words(step: &PreTokenizerWrapper) -> bool {
    match step {
        PreTokenizerWrapper::ByteLevel(step) => step.use_regex,
        PreTokenizerWrapper::Split(_) => true,
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().any(splits_words),
        _ => false,
    }
}

/// Cuts the first part off a range; all of it if it has no place to cut.
pub(super) fn part(text: &str, range: Range<usize>) -> Range<usize> {
    let bytes = text.as_bytes();
    let place = |at: &usize| {
        let before = bytes[at - 1];
        bytes[*at] == b' ' && (before.is_ascii_alphanumeric() || before.is_ascii_punctuation())
    };
    let end = (range.start + PART_BYTES..range.end).find(place);
    range.start..end.unwrap_or(range.end)
}

/// The same spans, those without a token cut into parts.
pub(super) fn cut(text: &str, spans: Vec<Span>) -> impl Iterator<Item = Span> {
    spans.into_iter().flat_map(move |span| {
        let mut rest = span.range;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let range = match span.token {
                Some(_) => rest.clone(),
                None => part(text, rest.clone()),
            };
            rest.start = range.end;
            let token = span.token;
            Some(Span { range, token })
        })
    })
}
