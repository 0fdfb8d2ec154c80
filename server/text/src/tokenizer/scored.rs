//! SentencePiece BPE from scores: of all neighbours whose union is a token, the best score merges first.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use super::cuts;
use super::pieces::byte_token;
use super::pipeline::check;
use crate::{Error, GgufVocab};

const NORMAL: i32 = 1;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;
/// What SentencePiece writes for a blank.
const BLANK: &str = "▁";

/// A vocabulary with a score for each token.
pub(super) struct Scored {
    tokens: HashMap<Box<str>, (u32, f32)>,
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    space_prefix: bool,
    /// Whether a text may be taken in parts: no token goes across a border between words.
    cuttable: bool,
}

/// A run of characters that is one token so far; neighbours by index, an absorbed symbol has length 0.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    previous: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

/// Two neighbours that would make a token. `len` tells whether either has changed since.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Merge {
    /// The heap's greatest is the best score, leftmost among equals.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

impl Scored {
    /// `types` has one entry for each token.
    pub(super) fn new(vocab: &GgufVocab, types: &[i32], space_prefix: bool) -> Result<Self, Error> {
        let scores = vocab.scores.as_deref().unwrap_or_default();
        if scores.len() != vocab.tokens.len() {
            let (scores, tokens) = (scores.len(), vocab.tokens.len());
            return Err(Error::Load(format!("{scores} scores for {tokens} tokens")));
        }
        let mut tokens: HashMap<Box<str>, (u32, f32)> = HashMap::with_capacity(vocab.tokens.len());
        let mut bytes = vec![None; 256];
        for (index, token) in vocab.tokens.iter().enumerate() {
            let id = super::check_id(u32::try_from(index).unwrap_or(u32::MAX), "a token")? as u32;
            match types[index] {
                // Runs of blanks that are defined tokens go before every other merge, the longest first.
                USER_DEFINED if !token.is_empty() && token.trim_matches(' ').is_empty() => {
                    tokens
                        .entry(token.replace(' ', BLANK).into())
                        .or_insert((id, token.len() as f32));
                }
                NORMAL | USER_DEFINED if !token.is_empty() => {
                    tokens.entry(token.as_str().into()).or_insert((id, scores[index]));
                }
                BYTE => {
                    if let Some(byte) = byte_token(token) {
                        bytes[usize::from(byte)].get_or_insert(id);
                    }
                }
                _ => {}
            }
        }
        let within_a_word = |token: &str| !token.trim_start_matches(BLANK).contains(BLANK);
        Ok(Self {
            cuttable: tokens.keys().all(|token| within_a_word(token)),
            tokens,
            bytes,
            unknown: vocab.unknown,
            space_prefix,
        })
    }

    /// The most bytes of a text, before blanks are respelt, that one token can stand for; `None` if a run of unknown
    /// characters may become one token.
    pub(super) fn token_bytes_max(&self) -> Option<usize> {
        let spells_all = self.bytes.iter().all(Option::is_some);
        let own = |token: &str| token.len() - (BLANK.len() - 1) * token.matches(BLANK).count();
        (spells_all || self.unknown.is_none()).then(|| {
            let longest = self.tokens.keys().map(|token| own(token)).max();
            longest.unwrap_or(1).max(1)
        })
    }

    /// Appends the ids of a range of the text, which has no added tokens, unless they become too many.
    pub(super) fn encode(
        &self,
        text: &str,
        range: Range<usize>,
        tokens_max: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let mut rest = range.clone();
        while !rest.is_empty() {
            let part = if self.cuttable {
                cuts::part(text, rest.clone())
            } else {
                rest.clone()
            };
            rest.start = part.end;
            let prefix = self.space_prefix && part.start == range.start;
            self.encode_part(&text[part], prefix, ids)?;
            check(ids.len(), tokens_max)?;
        }
        Ok(())
    }

    fn encode_part(&self, text: &str, prefix: bool, ids: &mut Vec<u32>) -> Result<(), Error> {
        let blanks = text.replace(' ', BLANK);
        let text = if prefix {
            format!("{BLANK}{blanks}")
        } else {
            blanks
        };
        let symbols = self.merge(&text);
        let mut index = 0;
        while let Some(symbol) = symbols.get(index) {
            self.push(&text[symbol.start..symbol.start + symbol.len], ids)?;
            index = symbol.next;
        }
        Ok(())
    }

    /// The symbols after all merges, linked from index 0.
    fn merge(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                len: character.len_utf8(),
                previous: index.checked_sub(1).unwrap_or(NONE),
                next: index + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut merges = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.propose(text, &symbols, right - 1, right, &mut merges);
        }
        while let Some(merge) = merges.pop() {
            let (left, right) = (symbols[merge.left], symbols[merge.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
                continue;
            }
            symbols[merge.left].len = merge.len;
            symbols[merge.left].next = right.next;
            symbols[merge.right].len = 0;
            if right.next != NONE {
                symbols[right.next].previous = merge.left;
                self.propose(text, &symbols, merge.left, right.next, &mut merges);
            }
            if left.previous != NONE {
                self.propose(text, &symbols, left.previous, merge.left, &mut merges);
            }
        }
        symbols
    }

    fn propose(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        merges: &mut BinaryHeap<Merge>,
    ) {
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        if let Some((_, score)) = self.tokens.get(&text[start..start + len]) {
            merges.push(Merge {
                score: *score,
                left,
                right,
                len,
            });
        }
    }

    fn push(&self, piece: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        if let Some((id, _)) = self.tokens.get(piece) {
            ids.push(*id);
            return Ok(());
        }
        let bytes: Option<Vec<u32>> = piece.bytes().map(|byte| self.bytes[usize::from(byte)]).collect();
        match (bytes, self.unknown) {
            (Some(bytes), _) => ids.extend(bytes),
            // Neighbouring unknown characters are one unknown token.
            (None, Some(unknown)) if ids.last() == Some(&unknown) => {}
            (None, Some(unknown)) => ids.push(unknown),
            (None, None) => {
                return Err(Error::Encode(
                    "a character has no token and there is no unknown token".into(),
                ));
            }
        }
        Ok(())
    }
}
