//! `reasoning_effort` and `thinking_token_budget`: how much a model may think before it answers.

use crate::http::error::ApiError;
use crate::openai::json::Object;
use crate::openai::shared::TOKENS_MAX;

type Result<T> = std::result::Result<T, ApiError>;

/// Names that [`Reasoning::read`] takes.
pub const NAMES: &[&str] = &["reasoning_effort", "thinking_token_budget"];

/// OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
}

impl Effort {
    const ALL: [(&'static str, Self); 6] = [
        ("none", Self::None),
        ("minimal", Self::Minimal),
        ("low", Self::Low),
        ("medium", Self::Medium),
        ("high", Self::High),
        ("xhigh", Self::XHigh),
    ];

    /// All the words.
    pub fn words() -> [&'static str; 6] {
        Self::ALL.map(|(word, _)| word)
    }

    /// Takes a field that is one of the words.
    pub fn read(object: &mut Object<'_>, name: &str) -> Result<Option<Self>> {
        let word = object.choice(name, &Self::words())?;
        let known = Self::ALL.iter().find(|(known, _)| Some(*known) == word);
        Ok(known.map(|(_, effort)| *effort))
    }

    /// The word.
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, effort)| *effort == self);
        found.map_or("", |(name, _)| name)
    }

    /// Tokens of thought, for a model whose template knows no effort; `None` for as many as it likes.
    pub fn budget(self) -> Option<usize> {
        match self {
            Self::Minimal => Some(256),
            Self::Low => Some(1024),
            Self::Medium => Some(4096),
            // Without reasoning there is nothing to limit.
            Self::None | Self::High | Self::XHigh => None,
        }
    }
}

/// What a client asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reasoning {
    pub effort: Option<Effort>,
    /// Tokens after which the reasoning is closed.
    pub budget: Option<usize>,
    /// Whether a model that can do without should not reason.
    pub off_if_possible: bool,
}

impl Reasoning {
    /// Takes both parameters.
    pub fn read(object: &mut Object<'_>) -> Result<Self> {
        Ok(Self {
            effort: Effort::read(object, "reasoning_effort")?,
            budget: object.count("thinking_token_budget", 0..=TOKENS_MAX)?,
            off_if_possible: false,
        })
    }
}
