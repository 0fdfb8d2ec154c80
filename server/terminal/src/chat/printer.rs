//! Writes an answer as it comes: reasoning dimmed, and nothing that would steer the terminal.

use std::io::{self, Write};

use super::answer::Part;
use crate::visible::{line, visible};

const DIM: &str = "\u{1b}[2m";
const PLAIN: &str = "\u{1b}[0m";
const NAME_CHARS_MAX: usize = 80;

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub color: bool,
    /// Whether reasoning is shown; a script wants the answer alone.
    pub reasoning: bool,
}

pub(super) struct Printer<W: Write> {
    to: W,
    look: Look,
    in_reasoning: bool,
    /// Whether the line that is written to has something in it.
    in_line: bool,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(to: W, look: Look) -> Self {
        Self {
            to,
            look,
            in_reasoning: false,
            in_line: false,
        }
    }

    pub(super) fn part(&mut self, part: Part<'_>) -> io::Result<()> {
        let (text, is_reasoning) = match part {
            Part::Content(text) => (visible(text), false),
            Part::Reasoning(text) => (visible(text), true),
            Part::Call(name) => (format!("[calls {}]\n", line(name, NAME_CHARS_MAX)), true),
        };
        if is_reasoning && !self.look.reasoning {
            return Ok(());
        }
        if is_reasoning != self.in_reasoning {
            self.turn(is_reasoning)?;
        }
        self.in_line = !text.ends_with('\n');
        self.to.write_all(text.as_bytes())?;
        self.to.flush()
    }

    /// Between reasoning and content: a new line, and dimmed or not.
    fn turn(&mut self, to_reasoning: bool) -> io::Result<()> {
        self.in_reasoning = to_reasoning;
        if self.in_line {
            self.to.write_all(b"\n")?;
            self.in_line = false;
        }
        if self.look.color {
            let style = if to_reasoning { DIM } else { PLAIN };
            self.to.write_all(style.as_bytes())?;
        }
        Ok(())
    }

    /// Ends the answer, and its last line.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.in_reasoning && self.look.color {
            self.to.write_all(PLAIN.as_bytes())?;
        }
        if self.in_line {
            self.to.write_all(b"\n")?;
        }
        (self.in_reasoning, self.in_line) = (false, false);
        self.to.flush()
    }
}

/// A remark about the answer, dimmed.
pub(super) fn remark(to: &mut impl Write, text: &str, color: bool) -> io::Result<()> {
    if color {
        writeln!(to, "{DIM}[{text}]{PLAIN}")?;
    } else {
        writeln!(to, "[{text}]")?;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(look: Look, parts: &[Part<'_>]) -> String {
        let mut held = Vec::new();
        let mut printer = Printer::new(&mut held, look);
        for part in parts {
            printer.part(*part).unwrap();
        }
        printer.end().unwrap();
        String::from_utf8(held).unwrap()
    }

    const PARTS: &[Part<'_>] = &[
        Part::Reasoning("hm"),
        Part::Reasoning("m"),
        Part::Content("a\u{1b}[31"),
        Part::Content("mb"),
        Part::Call("f\u{7}"),
    ];

    #[test]
    fn reasoning_is_dimmed_and_a_model_steers_nothing() {
        let look = |color, reasoning| Look { color, reasoning };
        assert_eq!(
            printed(look(true, true), PARTS),
            "\u{1b}[2mhmm\n\u{1b}[0ma␛[31mb\n\u{1b}[2m[calls f␇]\n\u{1b}[0m"
        );
        assert_eq!(printed(look(false, true), PARTS), "hmm\na␛[31mb\n[calls f␇]\n");
        assert_eq!(printed(look(false, false), PARTS), "a␛[31mb\n");
    }

    #[test]
    fn an_answer_ends_its_line_once() {
        let look = Look {
            color: false,
            reasoning: true,
        };
        assert_eq!(printed(look, &[Part::Content("a\n")]), "a\n");
        assert_eq!(printed(look, &[]), "");
    }
}
