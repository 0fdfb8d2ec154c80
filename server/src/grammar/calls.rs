//! Answers with calls of functions, in a model's own syntax, as a grammar in Lark's notation.

use std::fmt::Write as _;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use rempart_text::{CallSyntax, Markup};
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
    rules.write()?;
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
    /// Rules named `list` have what follows a list's tag, `lists` all of several lists.
    fn write(&mut self) -> Result<(), String> {
        let syntax = &self.format.syntax;
        let tag = syntax.trigger().unwrap_or_default();
        self.list("list", syntax, &syntax.begin[tag.len()..], false);
        if self.format.required || self.format.content.is_some() {
            self.lists(tag);
        } else {
            self.free();
        }
        for (at, (_, schema)) in self.format.functions.iter().enumerate() {
            let schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
            let _ = writeln!(self.text, "arguments_{at}: %json {}", prepared_schema(schema)?);
        }
        Ok(())
    }

    /// Calls, or what an answer without them must be.
    fn lists(&mut self, tag: &str) {
        let tag = self.literal(tag);
        let start = if self.format.required {
            "lists".to_owned()
        } else {
            format!("lists | @{CONTENT}")
        };
        let again = self
            .repeats(&self.format.syntax)
            .map_or_else(String::new, |gap| format!("({} {tag} list)*", self.literal(gap)));
        let _ = write!(self.text, "start: {start}\nlists: {tag} list {again}\n");
    }

    /// Text in which a tag, wherever it comes, begins a list; and a call without a tag, if that is what it begins with.
    fn free(&mut self) {
        let syntax = &self.format.syntax;
        let mut start = match syntax.trigger() {
            Some(_) if self.repeats(syntax).is_some() => "call* tail".to_owned(),
            Some(_) => "call | tail".to_owned(),
            None => "tail".to_owned(),
        };
        if let Some(tag) = syntax.trigger() {
            let call = match (self.split)(tag).as_slice() {
                // Text never yields a control token.
                [Markup::Control(token)] => format!("call: tail <[{token}]> list\n"),
                _ => format!("call: head list\nhead[lazy]: /(.|\\n)*{}/\n", escaped(tag)),
            };
            self.text.push_str(&call);
        }
        if let Some(bare) = syntax.bare() {
            self.list("bare", &bare, &bare.begin, true);
            let again = self.repeats(&bare).map(|gap| self.literal(gap));
            if let Some(gap) = again {
                // Behind the first, a call is the only thing that can follow.
                self.list("again", &bare, &bare.begin, false);
                start = format!("bare ({gap} again)* | {start}");
            } else {
                start = format!("bare | {start}");
            }
        }
        let _ = write!(self.text, "start: {start}\ntail: /(.|\\n)*/\n");
    }

    /// What separates lists, if there may be several.
    fn repeats<'s>(&self, syntax: &'s CallSyntax) -> Option<&'s str> {
        syntax.repeats.as_deref().filter(|_| self.format.parallel)
    }

    /// A rule for a list of calls that begins with `begin`. If that is `lazy`, it begins one as soon as it is read, whatever
    /// else it could be.
    fn list(&mut self, rule: &str, syntax: &CallSyntax, begin: &str, lazy: bool) {
        let functions = &self.format.functions;
        let any = |part: &str| -> String {
            let names: Vec<String> = (0..functions.len())
                .map(|at| format!("{rule}_{part}_{at}"))
                .collect();
            names.join(" | ")
        };
        let between = syntax.between.as_deref().filter(|_| self.format.parallel);
        let further = between.map_or_else(String::new, |_| format!("({rule}_further)*"));
        let mut text = format!(
            "{rule}: ({}) {further} {}\n",
            any("first"),
            self.literal(&syntax.end)
        );
        if between.is_some() {
            let _ = writeln!(text, "{rule}_further: {}", any("further"));
        }
        for (at, (name, _)) in functions.iter().enumerate() {
            let head = [begin, name, &syntax.middle].concat();
            if lazy {
                let _ = writeln!(text, "{rule}_head_{at}[lazy]: /{}/", escaped(&head));
                let _ = writeln!(text, "{rule}_first_{at}: {rule}_head_{at} arguments_{at}");
            } else {
                let _ = writeln!(text, "{rule}_first_{at}: {} arguments_{at}", self.literal(&head));
            }
            if let Some(between) = between {
                let head = self.literal(&[between, name, &syntax.middle].concat());
                let _ = writeln!(text, "{rule}_further_{at}: {head} arguments_{at}");
            }
        }
        self.text.push_str(&text);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_is_escaped() {
        assert_eq!(escaped("<a>\n/]"), "<a>\\n\\/\\]");
    }
}
