//! Rust source with its comments and strings blanked out, so that a rule can look for a word and find only code.

/// A Rust file in two masks. Both keep every line where it was.
pub(crate) struct Source {
    /// Comments and the insides of strings are blank.
    pub(crate) code: String,
    /// Only comments are blank: for rules about `cfg(feature = "…")`.
    pub(crate) code_and_strings: String,
}

/// A function of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// The 1-based line of its `fn`.
    pub(crate) line: usize,
    /// Lines between its braces, as clippy's `too_many_lines` counts, but with comments and blank lines.
    pub(crate) body_lines: usize,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let mut masker = Masker {
            chars: text.chars().collect(),
            at: 0,
            code: String::with_capacity(text.len()),
            code_and_strings: String::with_capacity(text.len()),
        };
        masker.run();
        Self {
            code: masker.code,
            code_and_strings: masker.code_and_strings,
        }
    }

    /// Every `fn` that has a body, in the order of their first lines.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let bytes = self.code.as_bytes();
        let mut found = Vec::new();
        for at in words(&self.code, "fn") {
            let Some(name) = identifier_after(&self.code, at + 2) else {
                continue;
            };
            let Some(open) = body_start(bytes, at) else {
                continue;
            };
            let close = matching_brace(bytes, open);
            let body_lines = (line_of(&self.code, close) - line_of(&self.code, open)).saturating_sub(1);
            found.push(Function {
                name,
                line: line_of(&self.code, at),
                body_lines,
            });
        }
        found
    }
}

/// Byte offsets at which `word` stands alone, not as a part of a longer identifier.
pub(crate) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = text[..*at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_identifier) && !after.is_some_and(is_identifier)
    })
}

/// The 1-based line that holds byte `at`.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn is_identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn identifier_after(text: &str, at: usize) -> Option<String> {
    let rest = text[at..].trim_start();
    let name: String = rest.chars().take_while(|c| is_identifier(*c)).collect();
    (!name.is_empty() && rest.len() < text[at..].len()).then_some(name)
}

/// The `{` that opens the body of the function at `at`; None for a declaration that ends in `;`.
fn body_start(bytes: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, byte) in bytes[at..].iter().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' if depth == 0 => return Some(at + offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The `}` that closes the `{` at `open`, or the last byte where none does.
fn matching_brace(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in bytes[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return open + offset;
                }
            }
            _ => {}
        }
    }
    bytes.len() - 1
}

struct Masker {
    chars: Vec<char>,
    at: usize,
    code: String,
    code_and_strings: String,
}

#[derive(Clone, Copy)]
enum Kind {
    Code,
    Comment,
    Text,
}

impl Masker {
    fn run(&mut self) {
        while self.at < self.chars.len() {
            match (self.chars[self.at], self.peek(1)) {
                ('/', Some('/')) => self.line_comment(),
                ('/', Some('*')) => self.block_comment(),
                ('"', _) => self.string(),
                ('\'', _) => self.quote(),
                ('r', Some('"' | '#')) if !self.inside_identifier() => self.raw_string(),
                _ => self.take(Kind::Code),
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    /// Whether the `r` at hand is the tail of a name; `br"…"` and `cr"…"` are raw strings all the same.
    fn inside_identifier(&self) -> bool {
        let before = |distance: usize| self.at.checked_sub(distance).map(|at| self.chars[at]);
        match before(1) {
            Some('b' | 'c') => before(2).is_some_and(is_identifier),
            other => other.is_some_and(is_identifier),
        }
    }

    fn take(&mut self, kind: Kind) {
        let c = self.chars[self.at];
        let blank = if c == '\n' { '\n' } else { ' ' };
        let (in_code, in_strings) = match kind {
            Kind::Code => (c, c),
            Kind::Text => (blank, c),
            Kind::Comment => (blank, blank),
        };
        self.code.push(in_code);
        self.code_and_strings.push(in_strings);
        self.at += 1;
    }

    fn line_comment(&mut self) {
        while self.at < self.chars.len() && self.chars[self.at] != '\n' {
            self.take(Kind::Comment);
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.chars.len() {
            let pair = (self.chars[self.at], self.peek(1));
            match pair {
                ('/', Some('*')) => depth += 1,
                ('*', Some('/')) => depth -= 1,
                _ => {
                    self.take(Kind::Comment);
                    continue;
                }
            }
            self.take(Kind::Comment);
            self.take(Kind::Comment);
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        self.take(Kind::Code);
        while self.at < self.chars.len() {
            match self.chars[self.at] {
                '"' => return self.take(Kind::Code),
                '\\' if self.peek(1).is_some() => {
                    self.take(Kind::Text);
                    self.take(Kind::Text);
                }
                _ => self.take(Kind::Text),
            }
        }
    }

    /// A character literal, or the quote of a lifetime or label, which is code.
    fn quote(&mut self) {
        let literal = self.peek(1) == Some('\\') || self.peek(2) == Some('\'');
        self.take(Kind::Code);
        if !literal {
            return;
        }
        // The first character of the literal may itself be a backslash and a quote.
        if self.peek(0) == Some('\\') {
            self.take(Kind::Text);
        }
        self.take(Kind::Text);
        while self.at < self.chars.len() && self.chars[self.at] != '\'' {
            self.take(Kind::Text);
        }
        if self.at < self.chars.len() {
            self.take(Kind::Code);
        }
    }

    fn raw_string(&mut self) {
        let hashes = self.chars[self.at + 1..]
            .iter()
            .take_while(|c| **c == '#')
            .count();
        if self.peek(1 + hashes) != Some('"') {
            // A raw identifier such as r#type.
            return self.take(Kind::Code);
        }
        for _ in 0..hashes + 2 {
            self.take(Kind::Code);
        }
        while self.at < self.chars.len() {
            let closes =
                self.chars[self.at] == '"' && (1..=hashes).all(|ahead| self.peek(ahead) == Some('#'));
            if closes {
                for _ in 0..=hashes {
                    self.take(Kind::Code);
                }
                return;
            }
            self.take(Kind::Text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions(text: &str) -> Vec<(String, usize, usize)> {
        Source::new(text)
            .functions()
            .into_iter()
            .map(|f| (f.name, f.line, f.body_lines))
            .collect()
    }

    #[test]
    fn comments_and_strings_are_blank_and_lines_stay() {
        let text = "a(\"unsafe\"); // unsafe\n/* unsafe /* nested */\nunsafe */ b('\"', r#\"un\"safe\"#);\nlet x: &'static str = c;";
        let source = Source::new(text);
        assert_eq!(source.code.lines().count(), text.lines().count());
        assert!(!source.code.contains("safe"), "{}", source.code);
        assert!(source.code.contains("&'static str = c;"));
        assert!(source.code_and_strings.contains("\"unsafe\""));
        assert!(!source.code_and_strings.contains("nested"));
    }

    #[test]
    fn quotes_inside_literals_do_not_end_them() {
        let source =
            Source::new(r#"let a = ['\'', '"', '\\']; let b = "\"unsafe\\"; let c = b'"'; unsafe {}"#);
        assert_eq!(words(&source.code, "unsafe").count(), 1, "{}", source.code);
    }

    #[test]
    fn raw_identifiers_are_code() {
        let source = Source::new("r#type r#\"unsafe\"# br\"unsafe\" for\"unsafe\" unsafe");
        assert_eq!(words(&source.code, "unsafe").count(), 1, "{}", source.code);
        assert!(source.code.contains("r#type"));
    }

    #[test]
    fn functions_are_measured_between_their_braces() {
        let text = "trait T {\n fn declared(&self) -> [u8; 4];\n}\nfn one(\n a: [u8; 2],\n) {\n let b = \"}\";\n if a { b }\n}\ntype F = fn(u8);\nfn two() {}\n";
        assert_eq!(
            functions(text),
            vec![("one".to_owned(), 4, 2), ("two".to_owned(), 11, 0)]
        );
    }

    #[test]
    fn words_do_not_match_inside_names() {
        assert_eq!(
            words("unsafe_code unsafe my_unsafe unsafe", "unsafe").collect::<Vec<_>>(),
            vec![12, 29]
        );
    }
}
