//! Text between added tokens to ids.

use tokenizers::tokenizer::normalizer::Range as Part;
use tokenizers::{
    Model, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Token,
};

use super::added::{AddedTokens, Span};
use super::scored::Scored;
use crate::Error;

/// What turns text without added tokens into ids.
pub(super) enum Pipeline {
    /// The parts of a `tokenizers` tokenizer.
    Crate(Box<CratePipeline>),
    /// SentencePiece by scores.
    Scored(Scored),
}

pub(super) struct CratePipeline {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) model: ModelWrapper,
}

type CrateResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Pipeline {
    /// The ids of a text that is split into added tokens and the rest.
    pub(super) fn encode(
        &self,
        text: &str,
        spans: Vec<Span>,
        added: &AddedTokens,
    ) -> Result<Vec<u32>, Error> {
        match self {
            Self::Crate(parts) => parts.encode(text, &spans, added),
            Self::Scored(scored) => {
                let mut ids = Vec::new();
                for span in spans {
                    match span.token {
                        Some(id) => ids.push(id),
                        None => scored.encode(&text[span.range], &mut ids)?,
                    }
                }
                Ok(ids)
            }
        }
    }
}

impl CratePipeline {
    fn encode(&self, text: &str, spans: &[Span], added: &AddedTokens) -> Result<Vec<u32>, Error> {
        let pieces = self.pieces(text, spans, added).map_err(|_| failed("a word"))?;
        let mut ids = Vec::new();
        for (_, _, tokens) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            ids.extend(tokens.iter().flatten().map(|token| token.id));
        }
        Ok(ids)
    }

    /// The steps of the crate's own `encode`, with our spans in place of its search for added tokens.
    fn pieces(&self, text: &str, spans: &[Span], added: &AddedTokens) -> CrateResult<PreTokenizedString> {
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
        pieces.tokenize(|piece| self.tokenize(piece.get(), added))?;
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

fn failed(what: &str) -> Error {
    Error::Encode(format!("the vocabulary cannot spell {what}"))
}
