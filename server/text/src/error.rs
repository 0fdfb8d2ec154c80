//! What can go wrong. No message holds text of a prompt or of an answer.

/// Why a tokenizer, a template or a text was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tokenizer's file or metadata contradicts itself or is too big.
    #[error("tokenizer refused: {0}")]
    Load(String),
    /// The file is well formed but asks for something that this crate does not do.
    #[error("tokenizer not supported: {0}")]
    Unsupported(String),
    /// A token id outside the vocabulary.
    #[error("token id {id} is not in the vocabulary of {size} tokens")]
    UnknownToken { id: u32, size: usize },
    /// The tokenizer failed on a text: its vocabulary cannot spell it.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    /// The text has more tokens than were asked for; it was not tokenised to its end.
    #[error("the text has at least {at_least} tokens")]
    TooLong { at_least: usize },
    /// The chat template is not valid.
    #[error("chat template refused: {0}")]
    Template(String),
    /// The chat template failed on these messages; the words never quote them.
    #[error("chat template failed on line {line}: {what}")]
    Render { line: usize, what: String },
    /// The chat template called `raise_exception`; kept only where the words are the template's own.
    #[error("the chat template refuses these messages: {0}")]
    Raised(String),
    /// A field of the messages, tools or template arguments that must not be passed on.
    #[error("{0}")]
    Input(String),
    /// A stop string that would match everywhere.
    #[error("a stop string is empty")]
    EmptyStop,
}
