//! What begins with a slash.

use std::path::PathBuf;

use super::options::TEMPERATURE_MAX;

pub(super) const HELP: &str = "\
/help              this page
/system [TEXT]     what the model is told before everything else; without a text, nothing
/model [NAME]      go on with another model; without a name, the models that there are
/temperature [T]   0 to 2; without a number, the server's
/clear             forget what was said, the system's text and the model stay
/save FILE         write the conversation into a new file; nothing else is ever kept
/quit              end; so does Ctrl-D

A line that ends in \\ goes on in the next one; text between two lines of \"\"\" is taken as it is.
Arrow keys walk through what was typed; Ctrl-C stops an answer.
";

/// One line, or more, that was typed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Typed {
    Nothing,
    Say(String),
    Help,
    System(Option<String>),
    Model(Option<String>),
    Temperature(Option<f64>),
    Clear,
    Save(PathBuf),
    Quit,
}

/// Reads what was typed.
///
/// # Errors
/// What is wrong with a command.
pub(super) fn read(typed: &str) -> Result<Typed, String> {
    let text = typed.trim();
    if text.is_empty() {
        return Ok(Typed::Nothing);
    }
    let Some(command) = text.strip_prefix('/') else {
        return Ok(Typed::Say(unfold(typed)));
    };
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let given = (!rest.is_empty()).then(|| rest.to_owned());
    match name {
        "help" | "?" => Ok(Typed::Help),
        "system" => Ok(Typed::System(given.map(|text| unfold(&text)))),
        "model" => Ok(Typed::Model(given)),
        "temperature" => temperature(given.as_deref()),
        "clear" => Ok(Typed::Clear),
        "save" => given
            .map(|path| Typed::Save(PathBuf::from(path)))
            .ok_or_else(|| "/save FILE: which file?".to_owned()),
        "quit" | "exit" | "bye" => Ok(Typed::Quit),
        _ => Err(format!("/{name}: no such command; /help lists them")),
    }
}

fn temperature(given: Option<&str>) -> Result<Typed, String> {
    let Some(text) = given else {
        return Ok(Typed::Temperature(None));
    };
    text.parse()
        .ok()
        .filter(|value| (0.0..=TEMPERATURE_MAX).contains(value))
        .map(|value| Typed::Temperature(Some(value)))
        .ok_or_else(|| format!("/temperature {text}: a number from 0 to {TEMPERATURE_MAX}"))
}

/// Whether what was typed goes on in the next line.
pub(super) fn goes_on(typed: &str) -> bool {
    match typed.trim_start().strip_prefix(QUOTES) {
        Some(inside) => !inside.contains(QUOTES),
        None => typed.ends_with('\\'),
    }
}

const QUOTES: &str = "\"\"\"";

/// The text that is meant: without quotes around it, or without the backslashes that its lines go on by.
fn unfold(typed: &str) -> String {
    let text = typed.trim();
    match text.strip_prefix(QUOTES) {
        Some(inside) => inside
            .strip_suffix(QUOTES)
            .unwrap_or(inside)
            .trim_matches('\n')
            .to_owned(),
        None => text.replace("\\\n", "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_texts_are_told_apart() {
        let said = |text: &str| Ok(Typed::Say(text.to_owned()));
        assert_eq!(read("  "), Ok(Typed::Nothing));
        assert_eq!(read("hello /help"), said("hello /help"));
        assert_eq!(read("/help"), Ok(Typed::Help));
        assert_eq!(
            read("/system  be brief "),
            Ok(Typed::System(Some("be brief".to_owned())))
        );
        assert_eq!(read("/system"), Ok(Typed::System(None)));
        assert_eq!(read("/model m"), Ok(Typed::Model(Some("m".to_owned()))));
        assert_eq!(read("/temperature 0.5"), Ok(Typed::Temperature(Some(0.5))));
        assert_eq!(read("/temperature"), Ok(Typed::Temperature(None)));
        assert_eq!(read("/save a b.json"), Ok(Typed::Save(PathBuf::from("a b.json"))));
        assert_eq!(read("/clear"), Ok(Typed::Clear));
        assert_eq!(read("/quit"), Ok(Typed::Quit));
        for bad in [
            "/save",
            "/temperature hot",
            "/temperature 3",
            "/temperature nan",
            "/system-text x",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn several_lines_become_one_text() {
        assert!(goes_on("a\\") && !goes_on("a\\\nb") && goes_on("a\\\nb\\"));
        assert_eq!(read("a\\\nb"), Ok(Typed::Say("a\nb".to_owned())));
        assert!(goes_on("\"\"\"a") && goes_on("\"\"\"\na\n") && !goes_on("\"\"\"\na\n\"\"\""));
        assert_eq!(
            read("\"\"\"\n/quit\\\n  b\n\"\"\""),
            Ok(Typed::Say("/quit\\\n  b".to_owned()))
        );
        assert_eq!(read("pasted\nlines"), Ok(Typed::Say("pasted\nlines".to_owned())));
    }
}
