//! Answers with calls of functions, in a model's own syntax, as a grammar in Lark's notation.

use std::fmt::Write as _;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use rempart_text::Markup;
use serde_json::Value;

use super::{prepared_schema, source};
use crate::openai::format::CallFormat;

/// What a vocabulary makes of markup.
pub(super) type Split<'a> = &'a dyn Fn(&str) -> Vec<Markup>;

/// The name of the grammar that answers without calls follow.
const CONTENT: &str = "content";

/// The grammar of a format.
pub(super) fn grammar(format: &CallFormat, split: Split<'_>) -> Result<TopLevelGrammar, String> {
    let mut rules = Rules {
        format,
        split,
        text: String::new(),
    };
    rules.start();
    rules.calls()?;
    let mut grammars = vec![GrammarWithLexer {
        lark_grammar: Some(rules.text),
        ..GrammarWithLexer::default()
    }];
    if let Some(content) = format.content.as_ref().filter(|_| !format.required) {
        let mut inner = source(content, split)?.grammars;
        for grammar in &mut inner {
            grammar.name = Some(CONTENT.to_owned());
        }
        grammars.extend(inner);
    }
    Ok(TopLevelGrammar {
        grammars,
        max_tokens: None,
    })
}

struct Rules<'a> {
    format: &'a CallFormat,
    split: Split<'a>,
    text: String,
}

impl Rules<'_> {
    /// What an answer is made of. A rule `list` has what follows a list's tag, `lists` all of several lists.
    fn start(&mut self) {
        let syntax = &self.format.syntax;
        let tag = syntax.trigger();
        let tag_literal = tag.map_or_else(String::new, |tag| self.literal(tag));
        let several = self
            .format
            .parallel
            .then_some(syntax.repeats.as_deref())
            .flatten();
        let again = several.map_or_else(String::new, |gap| {
            format!("({} {tag_literal} list)*", self.literal(gap))
        });
        let lists = format!("lists: {tag_literal} list {again}\n");
        let start = match (self.format.required, &self.format.content, tag) {
            (true, ..) => format!("start: lists\n{lists}"),
            (false, Some(_), _) => format!("start: lists | @{CONTENT}\n{lists}"),
            (false, None, Some(tag)) => self.anywhere(tag, several.is_some()),
            (false, None, None) => {
                let other = differing(&syntax.begin);
                format!("start: lists | other?\n{lists}other: /{other}/\n")
            }
        };
        self.text.push_str(&start);
    }

    /// Text in which a tag, wherever it comes, begins a list.
    fn anywhere(&self, tag: &str, several: bool) -> String {
        let start = if several { "call* tail" } else { "call | tail" };
        let call = match (self.split)(tag).as_slice() {
            // Text never yields a control token.
            [Markup::Control(token)] => format!("call: tail <[{token}]> list\n"),
            _ => format!("call: head list\nhead[lazy]: /(.|\\n)*{}/\n", escaped(tag)),
        };
        format!("start: {start}\n{call}tail: /(.|\\n)*/\n")
    }

    /// The calls of a list.
    fn calls(&mut self) -> Result<(), String> {
        let syntax = &self.format.syntax;
        let begin = &syntax.begin[syntax.trigger().map_or(0, str::len)..];
        let end = self.literal(&syntax.end);
        let names = |prefix: &str| -> String {
            let names: Vec<String> = (0..self.format.functions.len())
                .map(|at| format!("{prefix}_{at}"))
                .collect();
            names.join(" | ")
        };
        let between = syntax.between.as_deref().filter(|_| self.format.parallel);
        let mut text = match between {
            Some(_) => format!("list: first further* {end}\nfurther: {}\n", names("further")),
            None => format!("list: first {end}\n"),
        };
        let _ = writeln!(text, "first: {}", names("first"));
        for (at, (name, schema)) in self.format.functions.iter().enumerate() {
            let head = self.literal(&[begin, name, &syntax.middle].concat());
            let _ = writeln!(text, "first_{at}: {head} arguments_{at}");
            if let Some(between) = between {
                let head = self.literal(&[between, name, &syntax.middle].concat());
                let _ = writeln!(text, "further_{at}: {head} arguments_{at}");
            }
            let schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
            let _ = writeln!(text, "arguments_{at}: %json {}", prepared_schema(schema)?);
        }
        self.text.push_str(&text);
        Ok(())
    }

    /// Markup as it must stand.
    fn literal(&self, text: &str) -> String {
        let pieces: Vec<String> = (self.split)(text)
            .iter()
            .map(|piece| match piece {
                Markup::Text(text) => quoted(text),
                Markup::Control(token) => format!("<[{token}]>"),
            })
            .collect();
        pieces.join(" ")
    }
}

/// A text as a string of Lark's.
pub(super) fn quoted(text: &str) -> String {
    // Lark's strings are JSON's, but for one character.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A text as a regular expression.
fn escaped(text: &str) -> String {
    // Letters after a backslash, and `<` and `>`, would mean something else.
    text.chars()
        .map(|character| match character {
            '\n' => "\\n".to_owned(),
            _ if r"\.+*?()|[]{}^$/&~-#".contains(character) => format!("\\{character}"),
            _ => character.to_string(),
        })
        .collect()
}

/// A regular expression of texts, at least one character long, that do not begin as `text` does to its end.
fn differing(text: &str) -> String {
    let mut ways: Vec<String> = Vec::new();
    let mut begun = String::new();
    for character in text.chars() {
        let class = escaped(&character.to_string());
        ways.push(format!("{begun}[^{class}](.|\\n)*"));
        begun.push_str(&class);
        ways.push(begun.clone());
    }
    // The whole of it is where a call begins.
    ways.pop();
    ways.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_differ() {
        assert_eq!(differing("{\""), "[^\\{](.|\\n)*|\\{|\\{[^\"](.|\\n)*");
        assert_eq!(escaped("<a>\n/]"), "<a>\\n\\/\\]");
    }
}
