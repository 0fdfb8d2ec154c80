//! Markup, such as that around calls, by what a vocabulary makes of it.

use crate::{Segment, Tokenizer};

/// A piece of markup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Markup {
    Text(String),
    /// A control token, which no text yields.
    Control(u32),
}

impl Tokenizer {
    /// Splits a text of a template's into control tokens and what is between them.
    pub fn markup(&self, text: &str) -> Vec<Markup> {
        let mut spellings = self.special_tokens().control;
        spellings.retain(|spelling| !spelling.is_empty() && text.contains(spelling.as_str()));
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let found = spellings
                .iter()
                .filter_map(|spelling| Some((rest.find(spelling.as_str())?, spelling)));
            // The first; of those that begin together, the longest.
            let next = found.min_by_key(|(at, spelling)| (*at, usize::MAX - spelling.len()));
            let Some((at, id)) =
                next.and_then(|(at, spelling)| Some((at..at + spelling.len(), self.control(spelling)?)))
            else {
                pieces.push(Markup::Text(rest.to_owned()));
                break;
            };
            if at.start > 0 {
                pieces.push(Markup::Text(rest[..at.start].to_owned()));
            }
            pieces.push(Markup::Control(id));
            rest = &rest[at.end..];
        }
        pieces
    }

    /// The one token that a marker is, if it is one.
    pub fn single_token(&self, marker: &str) -> Option<u32> {
        let tokens = self.encode(&[Segment::Markup(marker)], false).ok()?;
        let mut spelt = tokens.into_iter().filter(|token| {
            // A tokenizer may put a blank in front.
            self.token_bytes(*token)
                .is_some_and(|bytes| !bytes.trim_ascii().is_empty())
        });
        let only = spelt.next()?;
        (spelt.next().is_none() && self.token_bytes(only) == Some(marker.as_bytes())).then_some(only)
    }

    fn control(&self, spelling: &str) -> Option<u32> {
        let tokens = self.encode(&[Segment::Markup(spelling)], false).ok()?;
        tokens.into_iter().find(|token| self.is_control(*token))
    }
}
