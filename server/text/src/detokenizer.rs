//! Token ids to text as they come: whole characters only, and the pieces concatenate to the full decode.

use crate::{Error, Tokenizer};

/// Streaming decoder of one sequence. `push` costs time in the length of its token only.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Special tokens that are shown nevertheless.
    shown: Vec<u32>,
    lead: Lead,
    /// The bytes of a character that is not complete yet: at most three.
    pending: Vec<u8>,
}

/// The blanks that the tokenizer put before the text when it encoded, and that decoding drops again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    /// Nothing to drop (any more).
    Keep,
    /// Up to so many blanks at the start of the text.
    Blanks(usize),
    /// All blanks of the first token.
    FirstToken,
}

impl Lead {
    /// Cuts what is to be dropped off the front of a token's bytes.
    fn cut<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let blanks = bytes.iter().take_while(|byte| **byte == b' ').count();
        match *self {
            Self::Keep => bytes,
            Self::Blanks(left) => {
                let dropped = blanks.min(left);
                let more = dropped == bytes.len() && left > dropped;
                *self = if more {
                    Self::Blanks(left - dropped)
                } else {
                    Self::Keep
                };
                &bytes[dropped..]
            }
            Self::FirstToken => {
                *self = Self::Keep;
                &bytes[blanks..]
            }
        }
    }
}

impl Detokenizer {
    /// For ids that begin a text: `concat(push.., finish)` equals [`Tokenizer::decode`] of all the ids.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            skip_special,
            shown: Vec::new(),
            lead: tokenizer.lead(),
            pending: Vec::new(),
        }
    }

    /// For ids that continue a text, such as a completion of a prompt: a leading blank is the model's own and is kept.
    pub fn continuing(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self {
            lead: Lead::Keep,
            ..Self::new(tokenizer, skip_special)
        }
    }

    /// Shows these special tokens, whatever becomes of others.
    #[must_use]
    pub fn showing(self, shown: Vec<u32>) -> Self {
        Self { shown, ..self }
    }

    /// The text that `id` completes; may be empty.
    ///
    /// # Errors
    /// [`Error::UnknownToken`] if `id` is not in the vocabulary; the state is unchanged then.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        if id as usize >= self.tokenizer.vocab_size() {
            return Err(Error::UnknownToken {
                id,
                size: self.tokenizer.vocab_size(),
            });
        }
        if self.skip_special && self.tokenizer.is_special(id) && !self.shown.contains(&id) {
            return Ok(String::new());
        }
        // An id inside the vocabulary without a token (a hole, as padded vocabularies have) decodes to nothing.
        let Some(bytes) = self.tokenizer.token_bytes(id) else {
            return Ok(String::new());
        };
        let bytes = self.lead.cut(bytes);
        if self.pending.is_empty() {
            let (text, rest) = complete(bytes);
            self.pending.extend_from_slice(rest);
            return Ok(text);
        }
        let mut all = std::mem::take(&mut self.pending);
        all.extend_from_slice(bytes);
        let (text, rest) = complete(&all);
        self.pending.extend_from_slice(rest);
        Ok(text)
    }

    /// The ids ended: an incomplete character becomes one replacement character.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Splits bytes into text (invalid sequences replaced, as `String::from_utf8_lossy` does) and a trailing sequence that
/// more bytes could still complete.
fn complete(bytes: &[u8]) -> (String, &[u8]) {
    let mut cut = bytes.len();
    if let Some(last) = bytes.utf8_chunks().last() {
        let invalid = last.invalid();
        if !invalid.is_empty() && could_continue(invalid) {
            cut -= invalid.len();
        }
    }
    (String::from_utf8_lossy(&bytes[..cut]).into_owned(), &bytes[cut..])
}

/// Whether an invalid sequence at the very end is the start of a valid character.
fn could_continue(invalid: &[u8]) -> bool {
    matches!(std::str::from_utf8(invalid), Err(error) if error.error_len().is_none())
}
