//! What limits a sequence's tokens to those of a language. The engine knows a language by two traits only: who implements
//! them knows the vocabulary's text, which the engine does not.

use std::fmt::Debug;
use std::sync::Arc;

use crate::request::Token;

/// A language, compiled once and shared by all sequences that must speak it.
pub trait Grammar: Debug + Send + Sync {
    /// The state in front of a sequence's first token of output.
    fn start(&self) -> Box<dyn Constraint>;
}

/// One sequence's place in a language.
pub trait Constraint: Debug + Send {
    /// The tokens that may come next, with those that end a text where it may end. None at all ends the sequence with
    /// [`Finish::Stuck`](crate::Finish::Stuck).
    fn allowed(&mut self) -> TokenMask;

    /// Goes on by a token that was allowed. With `force`, also by every token that is then the only one, until there is a
    /// choice again.
    fn advance(&mut self, token: Token, force: bool) -> Advance;
}

/// Where a token led.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// The tokens that had no alternative, in order; they need not be sampled.
    pub forced: Vec<Token>,
    pub then: Then,
}

/// What may come after a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    #[default]
    More,
    /// Nothing: the text is complete.
    Nothing,
    /// Its next place is too costly to find, or the token was none of the language: [`Finish::Stuck`](crate::Finish::Stuck).
    Failure,
}

/// A grammar in a request: equal to another if it is the same one.
#[derive(Clone, Debug)]
pub struct SharedGrammar(pub Arc<dyn Grammar>);

impl PartialEq for SharedGrammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Tokens of a word of a mask.
const WORD: usize = u32::BITS as usize;

/// A set of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask(Vec<u32>);

impl TokenMask {
    /// No token.
    pub fn none() -> Self {
        Self::default()
    }

    /// Of words in which bit `i` of word `w` stands for token `32 w + i`.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self(words)
    }

    /// Adds a token.
    pub fn allow(&mut self, token: Token) {
        let word = token as usize / WORD;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (token as usize % WORD);
    }

    /// Whether it holds a token.
    pub fn allows(&self, token: Token) -> bool {
        let word = self.0.get(token as usize / WORD);
        word.is_some_and(|word| word >> (token as usize % WORD) & 1 == 1)
    }

    /// Its words, as [`TokenMask::from_words`] takes them; tokens of missing ones it does not hold.
    pub fn words(&self) -> &[u32] {
        &self.0
    }

    /// Whether it holds none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Excludes the other tokens from logits `[vocab]`.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        let words = self.0.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(WORD).zip(words) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                _ => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

impl FromIterator<Token> for TokenMask {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        let mut mask = Self::none();
        for token in tokens {
            mask.allow(token);
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mask_does_not_hold_is_excluded() {
        for vocab in [1, 31, 32, 33, 100] {
            for tokens in [vec![], vec![0], vec![5, 31, 32, 64, 99], (0..100).collect()] {
                let mask: TokenMask = tokens.iter().copied().collect();
                let mut logits: Vec<f32> = (0..vocab).map(|i| i as f32).collect();
                mask.apply(&mut logits);
                for (token, logit) in (0..).zip(&logits) {
                    let allowed = tokens.contains(&token);
                    assert_eq!(mask.allows(token), allowed);
                    let expected = if allowed { token as f32 } else { f32::NEG_INFINITY };
                    assert_eq!(logit.to_bits(), expected.to_bits());
                }
            }
        }
    }
}
