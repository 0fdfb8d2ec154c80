//! Variables of the environment that look like ours and that no command reads: a name that is misspelt changes nothing, silently.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use clap::{Command, CommandFactory as _};

use super::Cli;
use super::file::alike;

/// What the names of our variables begin with.
const PREFIX: &str = "REMPART_";

/// Those of deploy/compose.yaml, which are no program's.
const COMPOSE: [&str; 2] = ["MODELS", "FILE"];

/// What Kubernetes sets in each container beside a service that is named `rempart`.
fn is_of_kubernetes(own: &str) -> bool {
    own == "PORT"
        || ["SERVICE_HOST", "SERVICE_PORT", "PORT_"]
            .iter()
            .any(|begin| own.starts_with(begin))
}

/// What is wrong with the names of the variables that are set; nothing of their values.
pub(super) fn unknown() -> Vec<String> {
    let names = std::env::vars_os().map(|(name, _)| name);
    unknown_of(names.filter_map(|name| name.into_string().ok()))
}

fn unknown_of(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut known = BTreeSet::new();
    collect(&Cli::command(), &mut known);
    let mut told: Vec<String> = names
        .filter_map(|name| {
            let own = name.strip_prefix(PREFIX)?;
            let other = COMPOSE.contains(&own) || is_of_kubernetes(own);
            // Whoever has set it may have put into the name what steers a terminal.
            let name = name.escape_debug();
            (!other && !known.contains(own)).then(|| match alike(own, &known) {
                Some(meant) => format!("{name} is no variable of any command: did you mean {PREFIX}{meant}?"),
                None => format!("{name} is no variable of any command; docs/configuration.md lists them"),
            })
        })
        .collect();
    told.sort_unstable();
    told
}

/// The names of a command's variables and of those below it, without what all begin with.
fn collect(command: &Command, known: &mut BTreeSet<String>) {
    let variables = command.get_arguments().filter_map(|arg| arg.get_env());
    let own = variables
        .filter_map(OsStr::to_str)
        .filter_map(|name| name.strip_prefix(PREFIX));
    known.extend(own.map(str::to_owned));
    for below in command.get_subcommands() {
        collect(below, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_no_command_reads_is_told_with_the_one_that_was_meant() {
        let told = |names: &[&str]| unknown_of(names.iter().map(|name| (*name).to_owned()));
        let known = [
            "REMPART_CONTEXT_LENGTH",
            "REMPART_CONFIG",
            "REMPART_MODEL",
            "REMPART_LOG_LEVEL",
            "REMPART_MODELS",
            "REMPART_SERVICE_PORT_HTTP",
            "REMPART_PORT_8080_TCP_ADDR",
            "PATH",
            "XREMPART_A",
        ];
        assert_eq!(told(&known), Vec::<String>::new());
        assert_eq!(
            told(&["REMPART_WEATHER", "REMPART_CONTEXTS_LENGTH"]),
            [
                "REMPART_CONTEXTS_LENGTH is no variable of any command: did you mean REMPART_CONTEXT_LENGTH?",
                "REMPART_WEATHER is no variable of any command; docs/configuration.md lists them",
            ]
        );
        assert_eq!(told(&["REMPART_"]).len(), 1);
        assert!(told(&["REMPART_\u{1b}[2J"])[0].starts_with("REMPART_\\u{1b}[2J is"));
    }
}
