//! minijinja set up like the environment in which `transformers` renders chat templates.

use std::fmt::Write as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Output, State, Value};

use super::python;
use crate::Error;

/// The one template of an environment.
pub(super) const NAME: &str = "chat_template";
/// Begins the detail of an error that the template raised itself.
pub(super) const RAISED: &str = "raised: ";

/// An environment that holds the parsed template.
pub(super) fn with_template(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(false)
        .build()
        .map_err(|error| Error::Template(error.to_string()))?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(print);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", |state: &State<'_, '_>, value: Value| {
        python::to_string(state, &value)
    });
    environment.add_function(
        "raise_exception",
        |message: Value, _rest: Kwargs| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(
                ErrorKind::InvalidOperation,
                format!("{RAISED}{message}"),
            ))
        },
    );
    environment
        .add_template_owned(NAME, without_generation_tags(source))
        .map_err(|error| Error::Template(error.to_string()))?;
    Ok(environment)
}

/// `{{ value }}` as Python prints it.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&python::to_string(state, value)?),
    };
    written.map_err(minijinja::Error::from)
}

/// `{% generation %}` marks what the assistant says, for training: a block that prints its body.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else { break };
        let inside = &tag[2..end];
        let word = inside
            .trim_matches(|character: char| matches!(character, '-' | '+') || character.is_whitespace());
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                let sign = |character: Option<char>| character.filter(|sign| matches!(sign, '-' | '+'));
                let open = sign(inside.chars().next()).map(String::from).unwrap_or_default();
                let close = sign(inside.chars().next_back())
                    .map(String::from)
                    .unwrap_or_default();
                // Writing to a string cannot fail.
                let _ = write!(out, "{{%{open} {replacement} {close}%}}");
                rest = &tag[end + 2..];
            }
            None => {
                // Only the opening is passed over: a string in the tag may hold "%}".
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out + rest
}
