//! An encoder as the HTTP side sees it: texts in; vectors, or scores of pairs, out.

use rempart_models::Task;
use rempart_text::{Encoded, Limit, Segment, Tokenizer};

use crate::chat::check_bytes;
use crate::config::RequestLimits;
use crate::encoder_thread::EncoderHandle;
use crate::http::error::ApiError;
use crate::openai::embeddings::Input;
use crate::openai::shared::Truncate;
use crate::registry::Kind;

type Result<T> = std::result::Result<T, ApiError>;

/// Bytes of text that are looked at first for each token of a limit: more than tokens have on average.
const CLIPPED_TOKEN_BYTES: usize = 16;

/// A loaded encoder and the thread that runs it. After loading nothing in it changes.
pub struct EncoderModel {
    /// What clients ask for.
    pub name: String,
    pub tokenizer: Tokenizer,
    pub task: Task,
    /// Tokens of a text, those around it included.
    pub tokens_max: usize,
    pub vocab_size: usize,
    /// Unix time in seconds.
    pub created: i64,
    pub engine: EncoderHandle,
}

impl EncoderModel {
    /// What it is for.
    pub fn kind(&self) -> Kind {
        Kind::of(self.task)
    }

    /// Elements of its vectors; refused for a model that gives scores.
    pub fn dimensions(&self) -> Result<usize> {
        match self.task {
            Task::Embed { dimensions, .. } => Ok(dimensions),
            Task::Rank { .. } => {
                let message = "this model scores pairs of texts: use /v1/rerank or /v1/score";
                Err(ApiError::invalid("model", "model_not_supported", message))
            }
        }
    }

    /// Makes tokens of a text found at `path`.
    pub fn encode(
        &self,
        input: &Input,
        path: &str,
        truncate: Option<Truncate>,
        limits: &RequestLimits,
    ) -> Result<Encoded> {
        let limit = self.limit(truncate);
        match input {
            Input::Text(text) => {
                check_bytes(path, text.len(), limits)?;
                let text = self.clip(text, limit)?;
                Self::encoded(self.tokenizer.encode_text(text, limit), path, limit)
            }
            Input::Tokens(tokens) => {
                if tokens.iter().any(|token| *token as usize >= self.vocab_size) {
                    let message = format!(
                        "`{path}` holds a token number outside 0 to {}",
                        self.vocab_size - 1
                    );
                    return Err(ApiError::invalid(path, "out_of_range", message));
                }
                let mut ids = tokens.clone();
                match limit {
                    Limit::Truncate(max) => ids.truncate(max),
                    Limit::Refuse(max) if ids.len() > max => {
                        return Err(ApiError::input_too_long(path, max, ids.len()));
                    }
                    Limit::Refuse(_) => {}
                }
                let type_ids = vec![0; ids.len()];
                Ok(Encoded { ids, type_ids })
            }
        }
    }

    /// Makes tokens of a pair, the second text found at `path`.
    pub fn encode_pair(&self, pair: (&str, &str), path: &str, truncate: Option<Truncate>) -> Result<Encoded> {
        let limit = self.limit(truncate);
        let pair = (self.clip(pair.0, limit)?, self.clip(pair.1, limit)?);
        Self::encoded(self.tokenizer.encode_pair(pair.0, pair.1, limit), path, limit)
    }

    /// A text cut to so many tokens, without those around it.
    pub fn cut(&self, text: &str, tokens_max: usize) -> Result<String> {
        let text = self.clip(text, Limit::Truncate(tokens_max))?;
        let tokens = self.tokens(text)?;
        if tokens.len() <= tokens_max {
            return Ok(text.to_owned());
        }
        self.tokenizer.decode(&tokens[..tokens_max], true).map_err(failed)
    }

    /// The beginning of a text, if that alone has more tokens than a limit: the rest then need not be read.
    fn clip<'a>(&self, text: &'a str, limit: Limit) -> Result<&'a str> {
        let (Limit::Refuse(max) | Limit::Truncate(max)) = limit;
        let mut bytes = max.saturating_mul(CLIPPED_TOKEN_BYTES);
        while bytes < text.len() {
            let begin = &text[..text.floor_char_boundary(bytes)];
            // Words are tokenized by themselves, so it must end where one does.
            let begin = begin
                .rfind(char::is_whitespace)
                .map_or(begin, |end| &begin[..end]);
            if self.tokens(begin)?.len() > max {
                return Ok(begin);
            }
            bytes = bytes.saturating_mul(2);
        }
        Ok(text)
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer
            .encode(&[Segment::Text(text)], false)
            .map_err(failed)
    }

    fn limit(&self, truncate: Option<Truncate>) -> Limit {
        match truncate {
            None => Limit::Refuse(self.tokens_max),
            Some(Truncate::Model) => Limit::Truncate(self.tokens_max),
            Some(Truncate::Tokens(tokens)) => Limit::Truncate(tokens.min(self.tokens_max)),
        }
    }

    fn encoded(
        encoded: std::result::Result<Encoded, rempart_text::Error>,
        path: &str,
        limit: Limit,
    ) -> Result<Encoded> {
        match (encoded, limit) {
            (Ok(encoded), _) if encoded.ids.is_empty() => {
                let message = format!("`{path}` has no tokens");
                Err(ApiError::invalid(path, "empty_string", message))
            }
            (Ok(encoded), _) => Ok(encoded),
            (Err(rempart_text::Error::TooLong { .. }), Limit::Truncate(_)) => {
                let name = "truncate_prompt_tokens";
                let message = format!("`{name}` leaves no room beside the tokens around a text");
                Err(ApiError::invalid(name, "out_of_range", message))
            }
            (Err(rempart_text::Error::TooLong { at_least }), Limit::Refuse(max)) => {
                Err(ApiError::input_too_long(path, max, at_least))
            }
            (Err(rempart_text::Error::Unsupported(_)), _) => {
                let message = "this model's tokenizer does not say how pairs of texts are put together";
                Err(ApiError::invalid("model", "model_not_supported", message))
            }
            (Err(error), _) => Err(failed(error)),
        }
    }
}

fn failed(_quotes_the_text: rempart_text::Error) -> ApiError {
    tracing::error!("the tokenizer of an encoder failed");
    ApiError::internal()
}

/// The cosine of the angle between two vectors; 0 where one has no direction.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum::<f64>()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        (dot(a, b) / lengths) as f32
    } else {
        0.0
    }
}

/// Gives a vector the length 1, unless it has none.
pub fn normalize(vector: &mut [f32]) {
    let length = vector
        .iter()
        .map(|x| f64::from(*x) * f64::from(*x))
        .sum::<f64>()
        .sqrt();
    if length > 0.0 {
        for x in vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions() {
        assert!((cosine(&[1.0, 0.0], &[2.0, 0.0]) - 1.0).abs() < 1e-6);
        assert!(cosine(&[1.0, 0.0], &[0.0, 3.0]).abs() < 1e-6);
        assert!(cosine(&[0.0, 0.0], &[0.0, 3.0]).abs() < 1e-6);
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6);
        normalize(&mut [0.0]);
    }
}
