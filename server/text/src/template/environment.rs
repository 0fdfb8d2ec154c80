//! minijinja set up like the environment in which `transformers` renders chat templates.

use std::fmt::Write as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Output, State, Value};

use super::python;
use crate::Error;

/// The one template of an environment.
pub(super) const NAME: &str = "chat_template";
/// What minijinja itself charges for data.
const BYTES_PER_FUEL: usize = 64;
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
    environment.set_unknown_method_callback(method);
    environment.add_test("iterable", |value: Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
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

/// Python's methods of strings, lists and maps. Those that can make a text much longer are paid for beforehand.
fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    if let Some(text) = value.as_str() {
        let length = |index: usize| args.get(index).and_then(Value::as_str).map_or(0, str::len);
        let bytes = match (name, args.first()) {
            ("replace", Some(from)) => {
                // Every empty string between two characters is replaced.
                let found = text.matches(from.as_str().unwrap_or_default()).count();
                found.saturating_mul(length(1)).saturating_add(text.len())
            }
            ("join", Some(items)) => text.len().saturating_mul(items.len().unwrap_or(0)),
            ("format", _) => longest_number(text),
            _ => 0,
        };
        state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// The greatest width or precision that a format can ask for.
fn longest_number(format: &str) -> usize {
    let numbers = format
        .split(|character: char| !character.is_ascii_digit())
        .filter(|digits| !digits.is_empty());
    numbers
        .map(|digits| digits.parse().unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add)
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
        rest = tag;
        let Some((inside, behind)) = tag["{%".len()..].split_once("%}") else {
            break;
        };
        let word = inside
            .trim_matches(|character: char| matches!(character, '-' | '+') || character.is_whitespace());
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        if let Some(replacement) = replacement {
            let sign = |character: Option<char>| character.filter(|sign| matches!(sign, '-' | '+'));
            let open = sign(inside.chars().next()).map(String::from).unwrap_or_default();
            let close = sign(inside.chars().next_back())
                .map(String::from)
                .unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = write!(out, "{{%{open} {replacement} {close}%}}");
            rest = behind;
        } else {
            // Only the opening is passed over: a string in the tag may hold "%}".
            out.push_str("{%");
            rest = &tag[2..];
        }
    }
    out + rest
}
