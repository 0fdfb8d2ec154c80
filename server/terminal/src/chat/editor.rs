//! The line that is typed: several lines where one asks for it, and what was typed before under the arrow keys.

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};

use super::commands::goes_on;

/// What was typed before is kept in memory alone: it may be confidential.
const HISTORY_MAX: usize = 1000;

/// What ended the typing.
#[derive(Debug)]
pub(super) enum Line {
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the terminal is gone.
    End,
}

pub(super) struct Prompt(Editor<Multiline, MemHistory>);

struct Multiline;

impl Validator for Multiline {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if goes_on(context.input()) {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Completer for Multiline {
    type Candidate = String;
}

impl Hinter for Multiline {
    type Hint = String;
}

impl Highlighter for Multiline {}

impl Helper for Multiline {}

impl Prompt {
    pub(super) fn new() -> anyhow::Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY_MAX)?
            .auto_add_history(true)
            .build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history)?;
        editor.set_helper(Some(Multiline));
        Ok(Self(editor))
    }

    pub(super) fn read(&mut self) -> anyhow::Result<Line> {
        match self.0.readline("> ") {
            Ok(text) => Ok(Line::Text(text)),
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(error.into()),
        }
    }
}
