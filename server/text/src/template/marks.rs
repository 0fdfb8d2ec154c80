//! Private-use characters in place of those characters of a client that could be part of a control token.

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};
use serde_json::{Map, Value};

use super::OwnedSegment;
use crate::Error;

/// Supplementary private-use characters: assigned to nobody, and not whitespace, letters or digits to anyone.
const PRIVATE: Range<u32> = 0xF_0000..0xF_FFFE;
/// Different characters in the control tokens of a vocabulary; a few dozen in practice.
const ALPHABET_MAX: usize = 8192;
/// Roles that templates write into a control token (`<|user|>`); any other role is a string like the rest.
const ROLES: [&str; 11] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
    "ipython",
    "model",
    "observation",
    "context",
    "environment",
];
/// Values of `type` that templates compare with.
const TYPES: [&str; 17] = [
    "text",
    "function",
    "object",
    "array",
    "string",
    "number",
    "integer",
    "boolean",
    "null",
    "image",
    "image_url",
    "input_text",
    "output_text",
    "refusal",
    "audio",
    "video",
    "file",
];

/// How much is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Every character that a control token begins or ends with, and strings that are the inside of one.
    EveryBorder,
    /// Only the first and last characters of whole control tokens.
    WholeSpellings,
}

/// The spellings of the control tokens.
#[derive(Clone, Debug)]
pub(super) struct Spellings {
    found: Option<AhoCorasick>,
    /// All characters of the spellings, ascending: a mark is an index into it.
    alphabet: Vec<char>,
    /// Whether a spelling begins or ends with the character of this index.
    border: Vec<bool>,
    /// All spellings, one after the other, each after a newline.
    joined: String,
    /// Private-use characters in the template itself.
    taken: Vec<u32>,
}

impl Spellings {
    pub(super) fn new(control: &[String], source: &str) -> Result<Self, Error> {
        let control: Vec<&str> = control
            .iter()
            .map(String::as_str)
            .filter(|token| !token.is_empty())
            .collect();
        let mut alphabet: Vec<char> = control.iter().flat_map(|token| token.chars()).collect();
        alphabet.sort_unstable();
        alphabet.dedup();
        if alphabet.len() > ALPHABET_MAX {
            return Err(Error::Template(format!(
                "control tokens of over {ALPHABET_MAX} characters"
            )));
        }
        let mut border = vec![false; alphabet.len()];
        for token in &control {
            for character in token.chars().next().into_iter().chain(token.chars().next_back()) {
                if let Ok(index) = alphabet.binary_search(&character) {
                    border[index] = true;
                }
            }
        }
        let found = (!control.is_empty())
            .then(|| {
                AhoCorasickBuilder::new()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(&control)
            })
            .transpose()
            .map_err(|error| Error::Template(format!("control tokens: {error}")))?;
        let joined = control
            .iter()
            .fold(String::new(), |joined, token| joined + "\n" + token);
        let mut taken = Vec::new();
        take(source, &mut taken);
        Ok(Self {
            found,
            alphabet,
            border,
            joined,
            taken,
        })
    }

    /// The control tokens in a text, in order, as pattern numbers.
    pub(super) fn found(&self, text: &str) -> Vec<usize> {
        let matches = self.found.iter().flat_map(|found| found.find_iter(text));
        matches.map(|found| found.pattern().as_usize()).collect()
    }

    /// Marks that occur neither in `values` nor in the template.
    pub(super) fn marks(&self, values: &[&Value]) -> Result<Marks<'_>, Error> {
        let mut taken = self.taken.clone();
        for value in values {
            take_all(value, &mut taken);
        }
        taken.push(PRIVATE.end);
        taken.sort_unstable();
        let mut base = PRIVATE.start;
        for used in taken {
            if used - base >= self.alphabet.len() as u32 {
                return Ok(Marks {
                    spellings: self,
                    base,
                });
            }
            base = used + 1;
        }
        Err(Error::Input(
            "the messages use too many private-use characters".to_owned(),
        ))
    }
}

fn take(text: &str, taken: &mut Vec<u32>) {
    taken.extend(text.chars().map(u32::from).filter(|code| PRIVATE.contains(code)));
}

fn take_all(value: &Value, taken: &mut Vec<u32>) {
    match value {
        Value::String(text) => take(text, taken),
        Value::Array(items) => items.iter().for_each(|item| take_all(item, taken)),
        Value::Object(fields) => fields.iter().for_each(|(name, field)| {
            take(name, taken);
            take_all(field, taken);
        }),
        _ => {}
    }
}

/// One choice of private-use characters: `base` plus an index into the alphabet.
pub(super) struct Marks<'a> {
    spellings: &'a Spellings,
    base: u32,
}

impl Marks<'_> {
    /// Messages: known roles stay as they are.
    pub(super) fn messages(&self, messages: &Value, care: Care, any: &mut bool) -> Value {
        let Value::Array(messages) = messages else {
            return self.value(messages, care, any);
        };
        let mark = |message: &Value| match message {
            Value::Object(fields) => self.fields(fields, care, any, |name, value| {
                name == "role" && is(value, &ROLES)
            }),
            other => self.value(other, care, any),
        };
        Value::Array(messages.iter().map(mark).collect())
    }

    /// Template arguments: their names are the template's.
    pub(super) fn arguments(&self, arguments: &Value, care: Care, any: &mut bool) -> Value {
        let Value::Object(fields) = arguments else {
            return self.value(arguments, care, any);
        };
        let marked = fields
            .iter()
            .map(|(name, value)| (name.clone(), self.value(value, care, any)));
        Value::Object(marked.collect())
    }

    /// A copy with marks in every string and every name.
    pub(super) fn value(&self, value: &Value, care: Care, any: &mut bool) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text, care, any)),
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.value(item, care, any)).collect())
            }
            Value::Object(fields) => self.fields(fields, care, any, |_, _| false),
            other => other.clone(),
        }
    }

    fn fields(
        &self,
        fields: &Map<String, Value>,
        care: Care,
        any: &mut bool,
        known: impl Fn(&str, &Value) -> bool,
    ) -> Value {
        let mut marked = Map::new();
        for (name, value) in fields {
            let as_is = known(name, value) || (name == "type" && is(value, &TYPES));
            let value = if as_is {
                value.clone()
            } else {
                self.value(value, care, any)
            };
            // Names are looked up by the template: only whole spellings and borders in them are marked, not insides.
            marked.insert(self.borders(name, care, any), value);
        }
        Value::Object(marked)
    }

    fn text(&self, text: &str, care: Care, any: &mut bool) -> String {
        let marked = self.borders(text, care, any);
        let inside = text.trim();
        if care != Care::EveryBorder || inside.is_empty() || !self.spellings.joined.contains(inside) {
            return marked;
        }
        // The inside of a control token, which the template may complete: its first character is enough.
        *any = true;
        let start = text
            .chars()
            .take_while(|character| character.is_whitespace())
            .count();
        let mark = |(index, character)| {
            if index == start {
                self.mark(character).unwrap_or(character)
            } else {
                character
            }
        };
        marked.chars().enumerate().map(mark).collect()
    }

    fn borders(&self, text: &str, care: Care, any: &mut bool) -> String {
        match care {
            Care::EveryBorder => {
                let border = |character: char| {
                    let index = self.spellings.alphabet.binary_search(&character).ok();
                    index
                        .filter(|index| self.spellings.border[*index])
                        .and_then(|_| self.mark(character))
                };
                text.chars()
                    .map(|character| match border(character) {
                        Some(mark) => {
                            *any = true;
                            mark
                        }
                        None => character,
                    })
                    .collect()
            }
            Care::WholeSpellings => {
                let Some(found) = &self.spellings.found else {
                    return text.to_owned();
                };
                let mut marked = String::with_capacity(text.len());
                let mut done = 0;
                for found in found.find_iter(text) {
                    *any = true;
                    marked.push_str(&text[done..found.start()]);
                    self.ends(&text[found.range()], &mut marked);
                    done = found.end();
                }
                marked + &text[done..]
            }
        }
    }

    /// A spelling with its first and last character marked: another spelling that overlaps it holds one of them.
    fn ends(&self, spelling: &str, marked: &mut String) {
        let last = spelling.chars().count() - 1;
        for (index, character) in spelling.chars().enumerate() {
            let mark = if index == 0 || index == last {
                self.mark(character)
            } else {
                None
            };
            marked.push(mark.unwrap_or(character));
        }
    }

    fn mark(&self, character: char) -> Option<char> {
        let index = self.spellings.alphabet.binary_search(&character).ok()?;
        char::from_u32(self.base + index as u32)
    }

    /// What a character stood for, if it is a mark.
    fn unmarked(&self, character: char) -> Option<char> {
        let index = u32::from(character).checked_sub(self.base)?;
        self.spellings.alphabet.get(index as usize).copied()
    }

    /// The text without marks.
    pub(super) fn unmark(&self, text: &str) -> String {
        text.chars()
            .map(|character| self.unmarked(character).unwrap_or(character))
            .collect()
    }

    /// Marked characters as text, all others as markup.
    pub(super) fn segments(&self, text: &str) -> Vec<OwnedSegment> {
        let mut segments = Vec::new();
        for character in text.chars() {
            match (self.unmarked(character), segments.last_mut()) {
                (Some(original), Some(OwnedSegment::Text(text))) => text.push(original),
                (Some(original), _) => segments.push(OwnedSegment::Text(original.into())),
                (None, Some(OwnedSegment::Markup(text))) => text.push(character),
                (None, _) => segments.push(OwnedSegment::Markup(character.into())),
            }
        }
        segments
    }
}

fn is(value: &Value, known: &[&str]) -> bool {
    value.as_str().is_some_and(|value| known.contains(&value))
}
