//! How a model writes calls of functions.

use serde::{Deserialize, Serialize};

/// `begin` NAME `middle` ARGUMENTS, then `between` NAME `middle` ARGUMENTS for each further call of the list, then `end`.
/// Arguments are a JSON object. Without `between`, a list has one call, and lists follow each other if `repeats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallSyntax {
    pub begin: String,
    pub middle: String,
    pub between: Option<String>,
    pub end: String,
    /// White space that separates lists; `None` where an answer has only one.
    pub repeats: Option<String>,
}

/// How the head of a call, up to its arguments, compares with a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head<'a> {
    /// More text must come.
    Incomplete,
    /// It is none.
    Other,
    /// Its bytes, and the name in it.
    Call(usize, &'a str),
}

/// What follows a call's arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    Incomplete,
    /// The list ends after so many bytes.
    End(usize),
    /// The next call's name follows after so many bytes.
    Next(usize),
}

impl CallSyntax {
    /// The tags around JSON that small models without a syntax of their own know best.
    pub(super) fn generic() -> Self {
        Self {
            begin: "<tool_call>\n{\"name\": \"".to_owned(),
            middle: "\", \"arguments\": ".to_owned(),
            between: None,
            end: "}\n</tool_call>".to_owned(),
            repeats: Some("\n".to_owned()),
        }
    }

    /// Of what a template writes around two calls; where it writes one call only, `between` is `None`.
    pub(super) fn new(begin: &str, middle: &str, between: Option<&str>, end: &str) -> Self {
        // Lists of one call, one after the other, look like a list of two.
        let gap = between.and_then(|between| {
            let gap = between.strip_prefix(end)?.strip_suffix(begin)?;
            gap.trim().is_empty().then(|| gap.to_owned())
        });
        Self {
            begin: begin.to_owned(),
            middle: middle.to_owned(),
            between: between.filter(|_| gap.is_none()).map(str::to_owned),
            end: end.to_owned(),
            repeats: gap,
        }
    }

    /// The tag that says, anywhere in an answer, that a call follows. Without one, a call is what an answer begins with.
    pub fn trigger(&self) -> Option<&str> {
        let close = match self.begin.chars().next()? {
            '<' => '>',
            '[' => ']',
            _ => return None,
        };
        let end = self.begin.find(close)? + 1;
        let tag = &self.begin[..end];
        (!tag.contains(['{', '"'])).then_some(tag)
    }

    /// The syntax of calls that an answer begins with: this one, if it has no tag; or, where there is JSON inside the tags,
    /// this one without them, as small models often leave them out. It may be text as well: only a known function's name
    /// makes it a call.
    pub fn bare(&self) -> Option<Self> {
        let Some(tag) = self.trigger() else {
            return Some(self.clone());
        };
        let begin = self.begin[tag.len()..].trim_start();
        let json = begin.starts_with(['{', '[']) && self.middle.trim_end().ends_with(':');
        // What closes the JSON comes before the tag that closes the list, which may end with a bracket, too.
        let end = self
            .end
            .find(|character| !matches!(character, '}' | ']'))
            .unwrap_or(self.end.len());
        (json && end > 0).then(|| Self {
            begin: begin.to_owned(),
            middle: self.middle.clone(),
            between: self.between.clone(),
            end: self.end[..end].to_owned(),
            repeats: self.between.is_none().then(|| "\n".to_owned()),
        })
    }

    /// A call as the model would write it alone.
    pub fn write(&self, name: &str, arguments: &str) -> String {
        [&self.begin, name, &self.middle, arguments, &self.end].concat()
    }

    /// Compares the head of a list's first call (of a further one: after `between`) with the beginning of a text.
    pub(super) fn head<'a>(&self, text: &'a str, first: bool) -> Head<'a> {
        let begin = if first { self.begin.as_str() } else { "" };
        let Some(rest) = text.strip_prefix(begin) else {
            return if begin.starts_with(text) {
                Head::Incomplete
            } else {
                Head::Other
            };
        };
        let name_end = rest.find(|character| !is_of_name(character));
        // The same for a name that ends and for one that has not yet: pieces must change nothing.
        if name_end.unwrap_or(rest.len()) > NAME_BYTES_MAX {
            return Head::Other;
        }
        let Some(name_end) = name_end else {
            return Head::Incomplete;
        };
        let (name, after) = rest.split_at(name_end);
        // The arguments are an object: without its bracket, `middle` may still go on.
        let middle = self.middle.as_str();
        match after.strip_prefix(middle) {
            Some(arguments) if arguments.starts_with('{') && !name.is_empty() => {
                Head::Call(begin.len() + name.len() + middle.len(), name)
            }
            Some("") if !name.is_empty() => Head::Incomplete,
            None if middle.starts_with(after) && !name.is_empty() => Head::Incomplete,
            _ => Head::Other,
        }
    }

    /// What the beginning of a text that follows arguments is.
    pub(super) fn tail(&self, text: &str) -> Tail {
        let between = self.between.as_deref();
        if let Some(between) = between.filter(|between| text.starts_with(between)) {
            return Tail::Next(between.len());
        }
        let more = |whole: &str| whole.len() > text.len() && whole.starts_with(text);
        if between.is_some_and(more) || more(&self.end) {
            return Tail::Incomplete;
        }
        // What is neither is not lost: it is read as content.
        Tail::End(if text.starts_with(&self.end) {
            self.end.len()
        } else {
            0
        })
    }
}

/// The longest name that is looked for, bytes.
const NAME_BYTES_MAX: usize = 128;

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> CallSyntax {
        let (begin, between) = ("[TOOL_CALLS][{\"name\": \"", "}, {\"name\": \"");
        CallSyntax::new(begin, "\", \"arguments\": ", Some(between), "}]")
    }

    #[test]
    fn lists_of_one_call_repeat() {
        let generic = CallSyntax::generic();
        let between = format!("{}\n{}", generic.end, generic.begin);
        let found = CallSyntax::new(&generic.begin, &generic.middle, Some(&between), &generic.end);
        assert_eq!(found, generic);
        assert_eq!(found.trigger(), Some("<tool_call>"));
        assert_eq!(list().trigger(), Some("[TOOL_CALLS]"));
        assert_eq!(list().repeats, None);
        let bare = CallSyntax::new("{\"name\": \"", "\", \"parameters\": ", None, "}");
        assert_eq!((bare.trigger(), bare.bare()), (None, Some(bare.clone())));
        let bare = generic.bare().unwrap();
        assert_eq!(
            (bare.write("f", "{}"), bare.trigger()),
            ("{\"name\": \"f\", \"arguments\": {}}".to_owned(), None)
        );
        let bare = list().bare().unwrap();
        assert_eq!(bare.write("f", "{}"), "[{\"name\": \"f\", \"arguments\": {}}]");
        assert_eq!(CallSyntax::new("[TOOL_CALLS]", "[ARGS]", None, "").bare(), None);
    }

    #[test]
    fn heads_and_tails_in_every_length() {
        let syntax = list();
        let head = "[TOOL_CALLS][{\"name\": \"get_it\", \"arguments\": ";
        for cut in 0..=head.len() {
            assert_eq!(syntax.head(&head[..cut], true), Head::Incomplete, "{cut}");
        }
        let whole = format!("{head}{{");
        assert_eq!(syntax.head(&whole, true), Head::Call(head.len(), "get_it"));
        assert_eq!(syntax.head("[TOOL_CALLS]x", true), Head::Other);
        let long = format!("[TOOL_CALLS][{{\"name\": \"{}", "n".repeat(NAME_BYTES_MAX + 1));
        assert_eq!(syntax.head(&long, true), Head::Other);
        assert_eq!(
            syntax.head(&format!("{long}\", \"arguments\": {{"), true),
            Head::Other
        );
        assert_eq!(syntax.head("[TOOL_CALLS][{\"name\": \"\"", true), Head::Other);
        assert_eq!(syntax.tail("}"), Tail::Incomplete);
        assert_eq!(syntax.tail("}]"), Tail::End(2));
        assert_eq!(syntax.tail("}, {\"name\": \"x"), Tail::Next(13));
        assert_eq!(syntax.tail("?"), Tail::End(0));
    }
}
