//! Text between added tokens to ids.

use std::cell::Cell;

use tokenizers::tokenizer::normalizer::Range as Part;
use tokenizers::{
    Model, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Token,
};

use super::added::{Added, AddedTokens, Span};
use super::scored::Scored;
use super::{bound, cuts};
use crate::Error;

/// What turns text without added tokens into ids.
pub(super) enum Pipeline {
    /// The parts of a `tokenizers` tokenizer.
    Crate(Box<CratePipeline>),
    /// SentencePiece by scores.
    Scored(Scored),
}

pub(super) struct CratePipeline {
    /// Whether a text may be taken in parts.
    cuttable: bool,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) model: ModelWrapper,
}

type CrateResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Pipeline {
    /// The ids of a text that is split into added tokens and the rest. More than `tokens_max` are an error, often
    /// before all were made.
    pub(super) fn encode(
        &self,
        text: &str,
        spans: Vec<Span>,
        added: &AddedTokens,
        tokens_max: usize,
    ) -> Result<Vec<u32>, Error> {
        let ids = match self {
            Self::Crate(parts) => parts.encode(text, spans, added, tokens_max)?,
            Self::Scored(scored) => {
                let mut ids = Vec::new();
                for span in spans {
                    match span.token {
                        Some(id) => ids.push(id),
                        None => scored.encode(text, span.range, tokens_max, &mut ids)?,
                    }
                    check(ids.len(), tokens_max)?;
                }
                ids
            }
        };
        check(ids.len(), tokens_max)?;
        Ok(ids)
    }

    /// The most bytes of a client's text that one token can stand for, by the model's own tokens, of which the crate has
    /// only a copy to give, the added tokens and `normalize`, which gives the spelling under which one of them is found.
    pub(super) fn token_bytes_max<'a>(
        &self,
        tokens: impl Iterator<Item = &'a str> + Clone,
        added: &[Added],
        normalize: impl Fn(&str) -> String,
    ) -> Option<usize> {
        match self {
            Self::Crate(parts) => bound::token_bytes_max(parts, tokens, added, normalize),
            Self::Scored(scored) => {
                let added = bound::added_bytes_max(added, |token| token.content.len())?;
                Some(scored.token_bytes_max()?.max(added))
            }
        }
    }
}

impl CratePipeline {
    pub(super) fn new(
        normalizer: Option<NormalizerWrapper>,
        pre_tokenizer: Option<PreTokenizerWrapper>,
        model: ModelWrapper,
        added: &[Added],
    ) -> Self {
        Self {
            cuttable: cuts::allowed(normalizer.as_ref(), pre_tokenizer.as_ref(), added),
            normalizer,
            pre_tokenizer,
            model,
        }
    }

    fn encode(
        &self,
        text: &str,
        spans: Vec<Span>,
        added: &AddedTokens,
        tokens_max: usize,
    ) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        if !self.cuttable {
            self.encode_part(text, &spans, added, tokens_max, &mut ids)?;
            return Ok(ids);
        }
        let (mut part, mut start, mut end) = (Vec::new(), 0, 0);
        for span in cuts::cut(text, spans) {
            end = span.range.end;
            let range = span.range.start - start..end - start;
            part.push(Span { range, ..span });
            if end - start >= cuts::PART_BYTES {
                self.encode_part(&text[start..end], &part, added, tokens_max, &mut ids)?;
                part.clear();
                start = end;
            }
        }
        self.encode_part(&text[start..end], &part, added, tokens_max, &mut ids)?;
        Ok(ids)
    }

    fn encode_part(
        &self,
        text: &str,
        spans: &[Span],
        added: &AddedTokens,
        tokens_max: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let known = spans.iter().filter(|span| span.token.is_some()).count();
        let count = Cell::new(ids.len() + known);
        check(count.get(), tokens_max)?;
        let pieces = self
            .pieces(text, spans, added, |more| {
                count.update(|count| count + more);
                check(count.get(), tokens_max)
            })
            .map_err(|error| match error.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(_) => failed("a word"),
            })?;
        for (_, _, tokens) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            ids.extend(tokens.iter().flatten().map(|token| token.id));
        }
        Ok(())
    }

    /// The steps of the crate's own `encode`, with our spans in place of its search for added tokens. `count` is told
    /// how many tokens each word has, and may end the work.
    fn pieces(
        &self,
        text: &str,
        spans: &[Span],
        added: &AddedTokens,
        count: impl Fn(usize) -> Result<(), Error>,
    ) -> CrateResult<PreTokenizedString> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, whole| slices(&whole, spans))?;
        if let Some(normalizer) = &self.normalizer {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        pieces.split(|_, piece| match added.split_normalized(piece.get()) {
            Some(spans) => slices(&piece, &spans),
            None => Ok(vec![(piece, None)]),
        })?;
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| {
            let tokens = self.tokenize(piece.get(), added)?;
            count(tokens.len())?;
            Ok(tokens)
        })?;
        Ok(pieces)
    }

    /// A model may spell a control token by ordinary means (a merge, a whole word): then the word is taken apart.
    fn tokenize(&self, word: &str, added: &AddedTokens) -> CrateResult<Vec<Token>> {
        let tokens = self.model.tokenize(word)?;
        if !tokens.iter().any(|token| added.is_forbidden(token.id)) {
            return Ok(tokens);
        }
        let mut apart = Vec::new();
        for (start, character) in word.char_indices() {
            let tokens = self.model.tokenize(&word[start..start + character.len_utf8()])?;
            if tokens.iter().any(|token| added.is_forbidden(token.id)) {
                return Err("a single character is a control token".into());
            }
            apart.extend(tokens);
        }
        Ok(apart)
    }
}

/// Cuts a piece at the spans, which are in its normalized text.
fn slices(
    piece: &NormalizedString,
    spans: &[Span],
) -> CrateResult<Vec<(NormalizedString, Option<Vec<Token>>)>> {
    spans
        .iter()
        .map(|span| {
            let slice = piece
                .slice(Part::Normalized(span.range.clone()))
                .ok_or("a span is out of its text")?;
            let tokens = span
                .token
                .map(|id| vec![Token::new(id, String::new(), (0, slice.len()))]);
            Ok((slice, tokens))
        })
        .collect()
}

pub(super) fn check(tokens: usize, tokens_max: usize) -> Result<(), Error> {
    if tokens > tokens_max {
        return Err(Error::TooLong { at_least: tokens });
    }
    Ok(())
}

fn failed(what: &str) -> Error {
    Error::Encode(format!("the vocabulary cannot spell {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GgufVocab, Segment, Tokenizer};

    fn vocab(pre: &str) -> GgufVocab {
        let merges = ["a b", "Ġ a", "Ġa b", "b Ġ", "Ġ Ġ", "1 2"];
        let alphabet = (0x21..0x144).filter_map(char::from_u32).map(String::from);
        let merged = merges.iter().map(|merge| merge.replace(' ', ""));
        let tokens: Vec<String> = alphabet.chain(merged).collect();
        GgufVocab {
            model: "gpt2".into(),
            pre: Some(pre.into()),
            tokens,
            merges: Some(merges.iter().map(ToString::to_string).collect()),
            ..GgufVocab::default()
        }
    }

    #[test]
    fn a_text_in_parts_has_the_tokens_of_the_whole() {
        let text = "ab ab  ba\n\n ab12 12ab! é ab's ".repeat(10_000);
        for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
            let tokenizer = Tokenizer::from_gguf(&vocab(pre)).unwrap();
            let Pipeline::Crate(parts) = &tokenizer.0.pipeline else {
                panic!("not of the crate");
            };
            assert!(parts.cuttable, "{pre}");
            let whole = CratePipeline {
                cuttable: false,
                normalizer: parts.normalizer.clone(),
                pre_tokenizer: parts.pre_tokenizer.clone(),
                model: parts.model.clone(),
            };
            let spans = tokenizer.0.added.split(&text, &[]);
            let whole = whole
                .encode(&text, spans, &tokenizer.0.added, usize::MAX)
                .unwrap();
            assert!(
                tokenizer.encode(&[Segment::Text(&text)], false).unwrap() == whole,
                "{pre}"
            );
        }
    }

    #[test]
    fn a_token_across_words_forbids_parts() {
        let tokens = ["<unk>", "a", "▁", "▁a", "▁▁", "a▁"];
        let vocab = |tokens: &[&str]| GgufVocab {
            model: "llama".into(),
            tokens: tokens.iter().map(ToString::to_string).collect(),
            scores: Some((0..tokens.len()).map(|at| -(at as f32)).collect()),
            token_types: Some((0..tokens.len()).map(|at| if at == 0 { 2 } else { 1 }).collect()),
            unknown: Some(0),
            ..GgufVocab::default()
        };
        let text = "a a aa  a a".repeat(20_000);
        let encode = |tokens: &[&str], text: &str| {
            let tokenizer = Tokenizer::from_gguf(&vocab(tokens)).unwrap();
            tokenizer.encode(&[Segment::Text(text)], false).unwrap()
        };
        // Joined across words: the tokens differ from those without such a token, far into the text as well.
        assert!(encode(&tokens, &text).contains(&5));
        // Without such a token a text that is cut grows by as many tokens as one that is too short to be cut.
        let count = |times| encode(&tokens[..5], &"a a aa  a a".repeat(times)).len();
        assert_eq!(count(20_002) - count(10_002), 10 * (count(1_002) - count(2)));
    }
}
