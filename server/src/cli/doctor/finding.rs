//! What a doctor says of one thing.

use std::io::{self, Write};

use serde::Serialize;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Good,
    /// Slower, or less safe, than it could be.
    Warning,
    /// A server would not work, or not as promised.
    Bad,
}

/// What was found, and what to do about it where it is not good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    what: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    todo: Option<String>,
}

impl Finding {
    pub(super) fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Good,
            found: found.into(),
            todo: None,
        }
    }

    pub(super) fn warning(what: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            state: State::Warning,
            todo: Some(todo.into()),
            ..Self::good(what, found)
        }
    }

    pub(super) fn bad(what: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            state: State::Bad,
            ..Self::warning(what, found, todo)
        }
    }

    pub(super) fn is_bad(&self) -> bool {
        self.state == State::Bad
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// A line for it, and one for what to do.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let state = match self.state {
            State::Good => "good",
            State::Warning => "warning",
            State::Bad => "BAD",
        };
        writeln!(out, "{state:<8} {:<13} {}", self.what, printable(&self.found))?;
        match &self.todo {
            Some(todo) => writeln!(out, "{:<22} -> {}", "", printable(todo)),
            None => Ok(()),
        }
    }
}

/// A text in one line, without what would steer a terminal: names of models and files are whoever's who made them.
fn printable(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

/// Bytes in a unit that people read.
pub(super) fn in_gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_whatever_a_name_holds() {
        let mut out = Vec::new();
        let name = "m\u{1b}[31m\nBAD      forged";
        Finding::warning("memory", name, name).write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
