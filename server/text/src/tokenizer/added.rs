//! Added tokens: strings that become one token before anything else looks at the text.

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, Input, MatchKind};

use crate::Error;

/// One added token as its file describes it.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the five flags of the file format")]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    /// Left out by decoding with `skip_special`.
    pub(super) special: bool,
    /// Matched in the normalized text rather than in the text as written.
    pub(super) normalized: bool,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
}

impl Added {
    pub(super) fn plain(id: u32, content: String, special: bool) -> Self {
        Self {
            id,
            content,
            special,
            normalized: false,
            single_word: false,
            lstrip: false,
            rstrip: false,
        }
    }

    /// Some files forget to mark `<|fim_prefix|>` or `<start_of_image>` as special: the spelling tells.
    pub(super) fn is_control(&self) -> bool {
        let spelt_like = |open, close| self.content.starts_with(open) && self.content.ends_with(close);
        let spellings = [
            ("<|", "|>"),
            ("<｜", "｜>"),
            ("<start_of_", ">"),
            ("<end_of_", ">"),
        ];
        self.special || spellings.iter().any(|(open, close)| spelt_like(open, close))
    }
}

/// A part of a text: an added token, or bytes for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) range: Range<usize>,
    pub(super) token: Option<u32>,
}

/// Finds added tokens, leftmost and longest first, and knows which ids are special and which are control tokens.
pub(super) struct AddedTokens {
    /// Matched in the text as written: all but the normalized ones. Control tokens are always here.
    raw: Option<Matcher>,
    /// Matched after normalization.
    normalized: Option<Matcher>,
    special: Bits,
    control: Bits,
    control_spellings: Vec<(u32, String)>,
    unknown: Option<u32>,
}

struct Matcher {
    automaton: AhoCorasick,
    /// By pattern number; `control` is kept beside it for speed.
    tokens: Vec<(Added, bool)>,
}

impl Matcher {
    /// `patterns` are what the automaton looks for, in the order of `tokens`.
    fn new(patterns: &[String], tokens: Vec<(Added, bool)>) -> Result<Option<Self>, Error> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            .build(patterns)
            .map_err(|error| Error::Load(format!("added tokens: {error}")))?;
        Ok(Some(Self { automaton, tokens }))
    }

    /// The spans cover `text` without gaps. No control token is found that touches a range of `foreign`.
    fn split(&self, text: &str, foreign: &[Range<usize>]) -> Vec<Span> {
        let mut spans = Vec::new();
        let (mut from, mut done) = (0, 0);
        while let Some(found) = self.automaton.find(Input::new(text).span(from..text.len())) {
            let (token, control) = &self.tokens[found.pattern().as_usize()];
            let range = found.range();
            if *control && overlaps(&range, foreign) {
                // Patterns are not empty: at least one character further.
                from = text.ceil_char_boundary(range.start + 1);
                continue;
            }
            if token.single_word && !stands_alone(text, &range) {
                from = range.end;
                continue;
            }
            let start = if token.lstrip {
                done + text[done..range.start].trim_end().len()
            } else {
                range.start
            };
            let rest = &text[range.end..];
            let end = if token.rstrip {
                text.len() - rest.trim_start().len()
            } else {
                range.end
            };
            if done < start {
                spans.push(Span {
                    range: done..start,
                    token: None,
                });
            }
            spans.push(Span {
                range: start..end,
                token: Some(token.id),
            });
            (from, done) = (end, end);
        }
        if done < text.len() {
            spans.push(Span {
                range: done..text.len(),
                token: None,
            });
        }
        spans
    }
}

impl AddedTokens {
    /// `normalize` gives the spelling under which a normalized token is found; `size` bounds the ids.
    pub(super) fn new(
        tokens: Vec<Added>,
        size: usize,
        unknown: Option<u32>,
        normalize: impl Fn(&str) -> String,
    ) -> Result<Self, Error> {
        let (mut special, mut control) = (Bits::new(size), Bits::new(size));
        let (mut raw, mut normalized) = (Vec::new(), Vec::new());
        let (mut raw_patterns, mut normalized_patterns) = (Vec::new(), Vec::new());
        let mut control_spellings = Vec::new();
        for token in tokens {
            if token.id as usize >= size {
                return Err(Error::Load(format!(
                    "added token {} is outside the vocabulary",
                    token.id
                )));
            }
            let is_control = token.is_control();
            if token.special {
                special.set(token.id);
            }
            if is_control {
                control.set(token.id);
            }
            if token.content.is_empty() {
                continue;
            }
            if is_control {
                control_spellings.push((token.id, token.content.clone()));
            }
            if token.normalized && !is_control {
                let pattern = normalize(&token.content);
                if !pattern.is_empty() {
                    normalized_patterns.push(pattern);
                    normalized.push((token, false));
                }
            } else {
                raw_patterns.push(token.content.clone());
                raw.push((token, is_control));
            }
        }
        Ok(Self {
            raw: Matcher::new(&raw_patterns, raw)?,
            normalized: Matcher::new(&normalized_patterns, normalized)?,
            special,
            control,
            control_spellings,
            unknown,
        })
    }

    /// The id of a control token.
    pub(super) fn control_id(&self, spelling: &str) -> Option<u32> {
        let mut known = self.control_spellings.iter();
        known.find(|(_, control)| control == spelling).map(|(id, _)| *id)
    }

    /// Splits a text as written; `foreign` are the ascending ranges in which no control token may be found.
    pub(super) fn split(&self, text: &str, foreign: &[Range<usize>]) -> Vec<Span> {
        match &self.raw {
            Some(matcher) => matcher.split(text, foreign),
            None => vec![Span {
                range: 0..text.len(),
                token: None,
            }],
        }
    }

    /// Splits a normalized text; control tokens are not looked for here.
    pub(super) fn split_normalized(&self, text: &str) -> Option<Vec<Span>> {
        self.normalized.as_ref().map(|matcher| matcher.split(text, &[]))
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id)
    }

    pub(super) fn is_control(&self, id: u32) -> bool {
        self.control.get(id)
    }

    /// Whether the model itself must not produce this id: the unknown token alone is harmless.
    pub(super) fn is_forbidden(&self, id: u32) -> bool {
        self.control.get(id) && self.unknown != Some(id)
    }

    pub(super) fn control_spellings(&self) -> Vec<String> {
        self.control_spellings
            .iter()
            .map(|(_, spelling)| spelling.clone())
            .collect()
    }

    pub(super) fn control_spelling(&self, id: u32) -> Option<String> {
        self.control_spellings
            .iter()
            .find(|(control, _)| *control == id)
            .map(|(_, spelling)| spelling.clone())
    }
}

fn overlaps(range: &Range<usize>, foreign: &[Range<usize>]) -> bool {
    let next = foreign.partition_point(|part| part.end <= range.start);
    foreign.get(next).is_some_and(|part| part.start < range.end)
}

fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let word = |character: char| character.is_alphanumeric() || character == '_';
    let before = text[..range.start].chars().next_back();
    let after = text[range.end..].chars().next();
    !before.is_some_and(word) && !after.is_some_and(word)
}

/// A set of ids.
struct Bits(Vec<u64>);

impl Bits {
    fn new(size: usize) -> Self {
        Self(vec![0; size.div_ceil(64)])
    }

    fn set(&mut self, id: u32) {
        self.0[id as usize / 64] |= 1 << (id % 64);
    }

    fn get(&self, id: u32) -> bool {
        self.0
            .get(id as usize / 64)
            .is_some_and(|word| word >> (id % 64) & 1 == 1)
    }
}
