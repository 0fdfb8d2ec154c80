//! What the server that is meant is configured with: whether it would start.

use std::ffi::OsString;

use super::finding::Finding;
use crate::cli::config::unchecked;
use crate::cli::environment;
use crate::config::ServeArgs;

const WHAT: &str = "configuration";
const MEND: &str =
    "`rempart config show` tells where each value is from, and docs/configuration.md what it may be";

/// Of a server that would be `typed` so, where one is named; and of the environment.
pub(super) fn findings(typed: Option<&[OsString]>) -> Vec<Finding> {
    let misspelt = environment::unknown().into_iter().map(|told| {
        let todo = "a server takes no notice of it: set it by its right name, or leave it out";
        Finding::warning(WHAT, told, todo)
    });
    typed.map(finding).into_iter().chain(misspelt).collect()
}

/// Of a server that would be typed so.
fn finding(typed: &[OsString]) -> Finding {
    match unchecked(typed) {
        Ok((serve, _)) => of(serve),
        Err(error) => Finding::bad(WHAT, in_a_line(&error.to_string()), MEND),
    }
}

fn of(serve: ServeArgs) -> Finding {
    let models = serve.models.len();
    match serve.check() {
        Err(error) => Finding::bad(WHAT, error.to_string(), MEND),
        Ok(_) if models == 0 => Finding::warning(
            WHAT,
            "it names no model",
            "put `models` into the file, or name them behind `rempart serve`",
        ),
        Ok(_) => Finding::good(
            WHAT,
            "`rempart serve` would start with it, as far as options tell",
        ),
    }
}

/// What is wrong of what a command line says, which shows behind it how to type it.
fn in_a_line(error: &str) -> String {
    let said = error.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = said.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::cli::config::behind_serve;

    fn found(text: &str, options: &[&str]) -> (State, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rempart.toml");
        std::fs::write(&path, text).unwrap();
        let options: Vec<OsString> = options.iter().map(OsString::from).collect();
        let finding = finding(&behind_serve(Some(path), &options));
        (finding.state(), serde_json::to_string(&finding).unwrap())
    }

    #[test]
    fn what_a_server_would_not_start_with_is_told() {
        assert_eq!(found("models = [\"m\"]\n", &[]).0, State::Good);
        assert_eq!(found("sequences-max = 3\n", &[]).0, State::Warning);
        assert_eq!(found("sequences-max = 3\n", &["--", "m"]).0, State::Good);
        let (state, told) = found("models = [\"m\"]\nbind = \"0.0.0.0:8080\"\n", &[]);
        assert_eq!(state, State::Bad);
        assert!(told.contains("--bind 0.0.0.0:8080 can be reached"), "{told}");
        let (state, told) = found("sequence-max = 3\n", &["--", "m"]);
        assert_eq!(state, State::Bad);
        assert!(told.contains("did you mean sequences-max?"), "{told}");
        let (state, told) = found("", &["--context-length", "many", "--", "m"]);
        assert_eq!(state, State::Bad);
        assert!(
            told.contains("invalid value 'many' for '--context-length"),
            "{told}"
        );
        assert!(!told.contains("try '--help'"), "{told}");
    }
}
