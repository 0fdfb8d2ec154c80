//! Text to tokens and back: tokenizers, the streaming detokenizer, stop strings, chat templates, and the parts of
//! answers. No input or output.
//!
//! Two kinds of text never mix here: [`Segment::Markup`] comes from the model's own template and may name control
//! tokens, [`Segment::Text`] comes from a client and never yields one, however it is spelt.
#![forbid(unsafe_code)]

mod answer;
mod detokenizer;
mod error;
mod infill;
mod markup;
mod stop;
mod template;
mod tokenizer;
mod vocab;

pub use answer::{
    ArgumentsForm, CallSyntax, Callable, Dialect, EffortArgument, Part, Reader, ReasoningMarkers, ToolSupport,
};
pub use detokenizer::Detokenizer;
pub use error::Error;
pub use infill::Infill;
pub use markup::Markup;
pub use stop::{StopMatcher, StopOutcome};
pub use template::{ChatTemplate, OwnedSegment, RenderInput, SpecialTokens};
pub use tokenizer::{Encoded, KNOWN_PRE_TOKENIZERS, Limit, Tokenizer};
pub use vocab::GgufVocab;

/// A piece of a prompt, by who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Written by a client: special tokens spelt in it are ordinary characters.
    Text(&'a str),
    /// Written by the model's template or the operator: special tokens are parsed.
    Markup(&'a str),
}

impl<'a> Segment<'a> {
    /// The characters, whoever wrote them.
    pub fn as_str(&self) -> &'a str {
        match self {
            Self::Text(text) | Self::Markup(text) => text,
        }
    }
}
