//! Spans in which a model reasons before it answers.

/// How templates in use write a span of reasoning.
const KNOWN: [(&str, &str); 3] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
];

/// What begins and ends a span of reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningMarkers {
    pub open: &'static str,
    pub close: &'static str,
}

impl ReasoningMarkers {
    /// Those that a template's source names.
    pub(super) fn of(source: &str) -> Option<Self> {
        let mut named = KNOWN
            .iter()
            .filter(|(open, close)| source.contains(open) && source.contains(close));
        named.next().map(|&(open, close)| Self { open, close })
    }

    /// Whether a prompt ends at the beginning of a span, so that the answer goes on in it.
    pub fn begun_by(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }

    /// A prompt without the span that its end begins, or begins and closes: where an answer that has calls begins.
    pub(super) fn cut_from<'a>(&self, prompt: &'a str) -> &'a str {
        let cut = |text: &'a str, marker: &str| text.trim_end().strip_suffix(marker);
        match (cut(prompt, self.close), cut(prompt, self.open)) {
            (Some(closed), _) => cut(closed, self.open).unwrap_or(closed),
            (None, Some(opened)) => opened,
            (None, None) => prompt,
        }
    }

    /// An answer without the empty span that a template writes in front of it.
    pub(super) fn skip_in<'a>(&self, answer: &'a str) -> &'a str {
        let text = answer.trim_start();
        let inside = text.strip_prefix(self.open).unwrap_or(text);
        match inside.split_once(self.close) {
            Some((reasoning, rest)) if reasoning.trim().is_empty() => rest.trim_start(),
            _ => answer,
        }
    }
}
