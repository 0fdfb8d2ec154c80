//! One tokenizer, from a `tokenizer.json` or from GGUF metadata.
//!
//! The `tokenizers` crate does what the file describes (normalizer, pre-tokenizer, model). Three parts are our own:
//! the search for added tokens, because only it knows which characters a client wrote; the SentencePiece merge by
//! scores, because GGUF stores no merges for it; and decoding, because a stream needs the bytes of each token.

mod added;
mod around;
mod bound;
mod cuts;
mod gguf;
mod json;
mod pieces;
mod pipeline;
mod scored;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub use around::{Encoded, Limit};
pub use gguf::KNOWN_PRE_TOKENIZERS;

use crate::detokenizer::Lead;
use crate::{Detokenizer, Error, GgufVocab, Segment, SpecialTokens};
use added::AddedTokens;
use around::Around;
use pieces::Pieces;
use pipeline::Pipeline;

/// Ids must lie below this: bounds every table that is indexed by id, whatever a file claims.
const VOCAB_MAX: usize = 1 << 21;

/// Spellings of the tokens that end a turn in the formats in use, where the vocabulary has them as control tokens.
const END_SPELLINGS: [&str; 10] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<turn|>",
    "<|return|>",
    "</s>",
];

/// A tokenizer; clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    pipeline: Pipeline,
    added: AddedTokens,
    pieces: Pieces,
    /// The most bytes of a client's text that one token can stand for; `None` if nothing bounds it.
    token_bytes_max: Option<usize>,
    /// What `add_special` puts before and after the text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// What is around a text alone, and around a pair where the file says.
    alone: Around,
    pair: Option<Around>,
    roles: Roles,
}

/// The ids that a tokenizer names for a purpose.
#[derive(Clone, Copy, Debug, Default)]
struct Roles {
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of the `tokenizers` format. Its truncation and padding are ignored.
    ///
    /// # Errors
    /// [`Error::Load`] if it contradicts itself, is over a limit or makes the reader panic; [`Error::Unsupported`] if
    /// its decoder cannot be streamed.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        guard("the file makes its reader panic", || json::load(bytes))
    }

    /// Rebuilds a tokenizer from GGUF metadata.
    ///
    /// # Errors
    /// [`Error::Load`] if the metadata contradict each other; [`Error::Unsupported`] for a model or pre-tokenizer
    /// that is not known, naming those that are.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, Error> {
        guard("the metadata make their reader panic", || gguf::load(vocab))
    }

    /// Tokenises segments as one text, so that words may join across a border. With `add_special` the tokens that the
    /// model expects around a text (bos, eos) are added, unless the markup already begins or ends with them.
    ///
    /// The caller bounds the bytes: time is near linear in them, with a regular expression from the model's file.
    ///
    /// # Errors
    /// [`Error::Encode`] if the vocabulary cannot spell the text.
    pub fn encode(&self, segments: &[Segment<'_>], add_special: bool) -> Result<Vec<u32>, Error> {
        self.encode_within(segments, add_special, usize::MAX)
    }

    /// As [`Tokenizer::encode`], but gives up as soon as it is certain that there are more than `tokens_max`: from the
    /// length of the text alone where the vocabulary allows that, or else when so many were counted.
    ///
    /// # Errors
    /// [`Error::TooLong`] with a number that the text has at least; otherwise as [`Tokenizer::encode`].
    pub fn encode_within(
        &self,
        segments: &[Segment<'_>],
        add_special: bool,
        tokens_max: usize,
    ) -> Result<Vec<u32>, Error> {
        let at_least = self.tokens_min(segments);
        if at_least > tokens_max {
            return Err(Error::TooLong { at_least });
        }
        let (text, foreign) = join(segments);
        let spans = self.0.added.split(&text, &foreign);
        let mut ids = catch_unwind(AssertUnwindSafe(|| {
            self.0.pipeline.encode(&text, spans, &self.0.added, tokens_max)
        }))
        .map_err(|_| Error::Encode("the tokenizer panicked".to_owned()))??;
        if !add_special {
            return Ok(ids);
        }
        if !ids.starts_with(&self.0.prefix) {
            ids.splice(0..0, self.0.prefix.iter().copied());
        }
        if !ids.ends_with(&self.0.suffix) {
            ids.extend_from_slice(&self.0.suffix);
        }
        Ok(ids)
    }

    /// A client's text with what the model expects around it and the types of all tokens: what encoders take.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`]; more tokens than the limit are an error unless it cuts them off.
    pub fn encode_text(&self, text: &str, limit: Limit) -> Result<Encoded, Error> {
        self.encode_around(&self.0.alone, &[text], limit)
    }

    /// A pair of clients' texts, such as a question and a passage, likewise.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_text`]; [`Error::Unsupported`] if the tokenizer does not say how pairs are put together.
    pub fn encode_pair(&self, first: &str, second: &str, limit: Limit) -> Result<Encoded, Error> {
        let around = self.0.pair.as_ref();
        let around =
            around.ok_or_else(|| Error::Unsupported("it does not say what is around a pair".to_owned()))?;
        self.encode_around(around, &[first, second], limit)
    }

    fn encode_around(&self, around: &Around, texts: &[&str], limit: Limit) -> Result<Encoded, Error> {
        let specials = around.specials();
        let Some(max) = limit.tokens_max().checked_sub(specials) else {
            return Err(Error::TooLong { at_least: specials });
        };
        let (mut encoded, mut count) = (Vec::new(), 0);
        for text in texts {
            let left = match limit {
                Limit::Refuse(_) => max - count,
                Limit::Truncate(_) => usize::MAX,
            };
            let all = |at_least: usize| at_least.saturating_add(count + specials);
            let ids =
                self.encode_within(&[Segment::Text(text)], false, left)
                    .map_err(|error| match error {
                        Error::TooLong { at_least } => Error::TooLong {
                            at_least: all(at_least),
                        },
                        other => other,
                    })?;
            count += ids.len();
            encoded.push(ids);
        }
        around::truncate(&mut encoded, max);
        Ok(around.join(&encoded))
    }

    /// The fewest tokens that the segments can have, by the length of what clients wrote in them.
    fn tokens_min(&self, segments: &[Segment<'_>]) -> usize {
        let own = segments
            .iter()
            .filter(|segment| matches!(segment, Segment::Text(_)));
        let bytes: usize = own.map(|segment| segment.as_str().len()).sum();
        self.0.token_bytes_max.map_or(0, |max| bytes.div_ceil(max))
    }

    /// The text of ids that begin a text. Invalid UTF-8 becomes replacement characters, one for each maximal invalid
    /// sequence. `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// [`Error::UnknownToken`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        let mut detokenizer = Detokenizer::new(self, skip_special);
        let mut text = String::new();
        for id in ids {
            text.push_str(&detokenizer.push(*id)?);
        }
        text.push_str(&detokenizer.finish());
        Ok(text)
    }

    /// The bytes that a token stands for inside a text; not always valid UTF-8.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.pieces.bytes(id)
    }

    /// The bytes of a token as text, invalid sequences replaced: what `logprobs` shows.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.token_bytes(id)
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.0.pieces.len()
    }

    /// Whether decoding with `skip_special` leaves the token out.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.added.is_special(id)
    }

    /// Whether the token is one that text of a client must never yield: special, or spelt `<|…|>`.
    pub fn is_control(&self, id: u32) -> bool {
        self.0.added.is_control(id)
    }

    /// The id that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.0.roles.bos
    }

    /// The id that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.0.roles.eos
    }

    /// The ids that end an answer: eos and the control tokens that end a turn in the formats in use. Ascending.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut ends: Vec<u32> = END_SPELLINGS
            .iter()
            .filter_map(|spelling| self.0.added.control_id(spelling))
            .chain(self.eos())
            .collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// What a chat template must know of the vocabulary.
    pub fn special_tokens(&self) -> SpecialTokens {
        let spelling = |id: Option<u32>| self.0.added.control_spelling(id?);
        let Roles {
            bos,
            eos,
            unknown,
            padding,
        } = self.0.roles;
        SpecialTokens {
            bos: spelling(bos),
            eos: spelling(eos),
            unknown: spelling(unknown),
            padding: spelling(padding),
            control: self.0.added.control_spellings(),
        }
    }

    pub(crate) fn lead(&self) -> Lead {
        self.0.pieces.lead()
    }
}

/// The whole text, and the byte ranges of it that a client wrote.
fn join(segments: &[Segment<'_>]) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(segments.iter().map(|segment| segment.as_str().len()).sum());
    let mut foreign: Vec<Range<usize>> = Vec::new();
    for segment in segments {
        let start = text.len();
        text.push_str(segment.as_str());
        if matches!(segment, Segment::Text(part) if !part.is_empty()) {
            foreign.push(start..text.len());
        }
    }
    (text, foreign)
}

/// Runs a loader of files from strangers; its panics become errors.
fn guard(what: &str, load: impl FnOnce() -> Result<Inner, Error>) -> Result<Tokenizer, Error> {
    let inner = catch_unwind(AssertUnwindSafe(load)).map_err(|_| Error::Load(what.to_owned()))??;
    Ok(Tokenizer(Arc::new(inner)))
}

/// Where an id of a file is out of bounds, says so.
fn check_id(id: u32, what: &str) -> Result<usize, Error> {
    let index = id as usize;
    if index < VOCAB_MAX {
        return Ok(index);
    }
    Err(Error::Load(format!(
        "{what} has the id {id}, the limit is {VOCAB_MAX}"
    )))
}
