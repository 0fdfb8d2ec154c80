//! What a model expects around a text or a pair of texts: special tokens, and every token's type.

use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Token};

use crate::Error;

/// Special tokens around texts; published files have four.
const SPECIALS_MAX: usize = 64;

/// A text or a pair with what is around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// The type of each: 0 for the first text and 1 for the second, where the model tells them apart.
    pub type_ids: Vec<u32>,
}

/// What to do with texts that have more tokens than this, special tokens included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Refuse them.
    Refuse(usize),
    /// Cut their ends off: of a pair the longer one's, until both are as long.
    Truncate(usize),
}

impl Limit {
    pub(super) fn tokens_max(self) -> usize {
        match self {
            Self::Refuse(max) | Self::Truncate(max) => max,
        }
    }
}

/// The order of texts and special tokens.
#[derive(Clone, Debug)]
pub(super) struct Around(Vec<Part>);

#[derive(Clone, Copy, Debug)]
enum Part {
    Special { id: u32, type_id: u32 },
    Text { number: usize, type_id: u32 },
}

impl Around {
    /// Nothing around a text but these tokens.
    pub(super) fn single(prefix: &[u32], suffix: &[u32]) -> Self {
        let special = |id: &u32| Part::Special { id: *id, type_id: 0 };
        let text = Part::Text {
            number: 0,
            type_id: 0,
        };
        Self(
            prefix
                .iter()
                .map(special)
                .chain([text])
                .chain(suffix.iter().map(special))
                .collect(),
        )
    }

    /// What a post-processor does to as many texts: seen by giving it so many. None where it does not keep each text
    /// once and in its place.
    pub(super) fn seen(
        processor: Option<&PostProcessorWrapper>,
        texts: usize,
    ) -> Result<Option<Self>, Error> {
        // No vocabulary has these.
        let id = |number: usize| u32::MAX - number as u32;
        let text = |number: usize| {
            let token = Token::new(id(number), "x".to_owned(), (0, 1));
            Encoding::from_tokens(vec![token], number as u32)
        };
        let mut parts = Vec::new();
        if let Some(processor) = processor {
            let pair = (texts > 1).then(|| text(1));
            let encoding = processor
                .process(text(0), pair, true)
                .map_err(|error| Error::Load(format!("post-processor: {error}")))?;
            for (&found, &type_id) in encoding.get_ids().iter().zip(encoding.get_type_ids()) {
                let number = (0..texts).find(|&number| id(number) == found);
                parts.push(match number {
                    Some(number) => Part::Text { number, type_id },
                    None => Part::Special { id: found, type_id },
                });
            }
        } else {
            parts.extend((0..texts).map(|number| Part::Text {
                number,
                type_id: number as u32,
            }));
        }
        let around = Self(parts);
        if around.specials() > SPECIALS_MAX {
            let message = format!(
                "the post-processor adds {} tokens, the limit is {SPECIALS_MAX}",
                around.specials()
            );
            return Err(Error::Load(message));
        }
        let order = around.0.iter().filter_map(|part| match part {
            Part::Text { number, .. } => Some(*number),
            Part::Special { .. } => None,
        });
        Ok(order.eq(0..texts).then_some(around))
    }

    /// Special tokens.
    pub(super) fn specials(&self) -> usize {
        self.ids().count()
    }

    /// The ids of special tokens.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().filter_map(|part| match part {
            Part::Special { id, .. } => Some(*id),
            Part::Text { .. } => None,
        })
    }

    /// Puts texts into their places.
    pub(super) fn join(&self, texts: &[Vec<u32>]) -> Encoded {
        let mut encoded = Encoded::default();
        for part in &self.0 {
            let (ids, type_id) = match part {
                Part::Special { id, type_id } => (std::slice::from_ref(id), *type_id),
                Part::Text { number, type_id } => (texts[*number].as_slice(), *type_id),
            };
            encoded.ids.extend_from_slice(ids);
            encoded.type_ids.resize(encoded.ids.len(), type_id);
        }
        encoded
    }
}

/// Shortens texts to `max` tokens together as the `tokenizers` crate does when it cuts the longest first.
pub(super) fn truncate(texts: &mut [Vec<u32>], max: usize) {
    match texts {
        [one] => one.truncate(max),
        [first, second] if first.len() + second.len() > max => {
            let (half, shorter) = (max / 2, first.len().min(second.len()));
            if shorter <= half {
                let longer = if first.len() > second.len() { first } else { second };
                longer.truncate(max - shorter);
            } else if first.len() > second.len() {
                first.truncate(max - half);
                second.truncate(half);
            } else {
                first.truncate(half);
                second.truncate(max - half);
            }
        }
        _ => {}
    }
}
