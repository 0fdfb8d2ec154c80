//! A model's way to chat: its template, and how that has answers written.

use rempart_text::{ChatTemplate, Dialect, Markup, Tokenizer};

/// What turns conversations into prompts and answers into their parts.
pub struct Chat {
    pub template: ChatTemplate,
    pub dialect: Dialect,
    /// The tokens that begin and end reasoning, where each marker is one.
    pub thinking: Option<ThinkingTokens>,
    /// Control tokens that calls, and reasoning, are written with.
    pub call_tokens: Vec<u32>,
    pub reasoning_tokens: Vec<u32>,
}

/// The markers of reasoning as tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinkingTokens {
    pub open: u32,
    pub close: u32,
}

impl Chat {
    /// Asks the template how it speaks. `ends` are the tokens that end an answer.
    pub fn new(template: ChatTemplate, tokenizer: &Tokenizer, ends: &[u32]) -> Self {
        let spellings: Vec<String> = ends.iter().filter_map(|end| tokenizer.token_text(*end)).collect();
        let dialect = Dialect::of(&template, &spellings);
        let thinking = dialect.reasoning.and_then(|markers| {
            Some(ThinkingTokens {
                open: tokenizer.single_token(markers.open)?,
                close: tokenizer.single_token(markers.close)?,
            })
        });
        let calls = &dialect.calls;
        let between = calls.between.as_deref().unwrap_or_default();
        let markers = dialect
            .reasoning
            .map_or(["", ""], |markers| [markers.open, markers.close]);
        Self {
            call_tokens: control_tokens(tokenizer, &[&calls.begin, &calls.middle, between, &calls.end]),
            reasoning_tokens: control_tokens(tokenizer, &markers),
            template,
            dialect,
            thinking,
        }
    }
}

fn control_tokens(tokenizer: &Tokenizer, texts: &[&str]) -> Vec<u32> {
    let pieces = texts.iter().flat_map(|text| tokenizer.markup(text));
    pieces
        .filter_map(|piece| match piece {
            Markup::Control(token) => Some(token),
            Markup::Text(_) => None,
        })
        .collect()
}
