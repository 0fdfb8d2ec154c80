//! `rempart config`: what options a server has, what it would start with, and whether it would.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Subcommand};

use super::file::{OPTION, SERVE, command_with_file, key_of};
use super::{Cli, Command, environment};
use crate::config::ServeArgs;

/// What is asked of the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Tell whether `rempart serve` would start with it, and why not
    Check(ServeOptions),
    /// Print what `rempart serve` would start with, and where each value is from
    Show(ServeOptions),
    /// Print all that a configuration file can have, with the defaults, as one to begin with
    Reference,
}

/// What would be typed behind `rempart serve`.
#[derive(Debug, Args)]
pub struct ServeOptions {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// An option's value as it is written into a file, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effective {
    /// `None` where it is not set.
    pub(super) value: Option<String>,
    from: &'static str,
    secret: bool,
}

pub(super) fn config(command: &ConfigCommand, file: Option<PathBuf>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        ConfigCommand::Check(typed) => {
            // A server takes no notice of them, and so they are no reason to refuse.
            for told in environment::unknown() {
                writeln!(std::io::stderr().lock(), "warning: {told}")?;
            }
            check(&behind_serve(file, &typed.options))?;
            writeln!(out, "`rempart serve` would start with it, as far as options tell")?;
        }
        ConfigCommand::Show(typed) => {
            show(&behind_serve(file, &typed.options), &mut out)?;
        }
        ConfigCommand::Reference => reference(&mut out)?,
    }
    Ok(())
}

/// How a server with these options would be typed.
pub(super) fn behind_serve(file: Option<PathBuf>, options: &[OsString]) -> Vec<OsString> {
    let mut typed: Vec<OsString> = ["rempart", SERVE].map(OsString::from).to_vec();
    if let Some(file) = file {
        typed.extend([format!("--{OPTION}").into(), file.into()]);
    }
    typed.extend(options.iter().cloned());
    typed
}

/// Writes what a server would have of each option, without secrets.
///
/// # Errors
/// It can't be parsed, or not be written.
pub(super) fn show(typed: &[OsString], out: &mut impl Write) -> anyhow::Result<()> {
    for (key, effective) in effective(typed)? {
        effective.write(&key, out)?;
    }
    Ok(())
}

/// Whether `rempart serve` would start, as far as its options tell.
///
/// # Errors
/// Why not.
pub(super) fn check(typed: &[OsString]) -> anyhow::Result<()> {
    match Cli::parse_with_file(typed)?.command {
        Command::Serve(args) => Ok(args.check().map(drop)?),
        _ => anyhow::bail!("what follows are options of `rempart serve`"),
    }
}

/// What a server would have of each option that was typed so.
///
/// # Errors
/// It can't be parsed.
pub(super) fn effective(typed: &[OsString]) -> anyhow::Result<BTreeMap<String, Effective>> {
    let parsed = Parsed::of(typed)?;
    let of = |arg: &Arg| {
        let key = key_of(arg)?;
        let in_file = parsed.in_file.contains(key);
        Some((key.to_owned(), Effective::of(arg, &parsed.matches, in_file)))
    };
    Ok(parsed.serve.get_arguments().filter_map(of).collect())
}

/// The options themselves, without the check of whether a server can have them together; and those of them that are secrets.
///
/// # Errors
/// They can't be parsed.
pub(super) fn unchecked(typed: &[OsString]) -> anyhow::Result<(ServeArgs, Vec<String>)> {
    let Parsed { serve, matches, .. } = Parsed::of(typed)?;
    let secret = serve.get_arguments().filter(|arg| arg.is_hide_env_values_set());
    let values = secret.filter_map(|arg| matches.get_raw(arg.get_id().as_str()));
    let secrets = values
        .flatten()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    Ok((ServeArgs::from_arg_matches(&matches)?, secrets))
}

/// What was typed behind `rempart serve`.
struct Parsed {
    serve: clap::Command,
    matches: ArgMatches,
    /// Keys that the file has.
    in_file: BTreeSet<String>,
}

impl Parsed {
    fn of(typed: &[OsString]) -> anyhow::Result<Self> {
        let (command, in_file) = command_with_file(typed)?;
        // A file can be looked at before there is a model.
        let mut command = command.mut_subcommand(SERVE, |serve| {
            serve.mut_arg("models", |models| models.required(false))
        });
        let mut matches = command.try_get_matches_from_mut(typed)?;
        let serve = command
            .find_subcommand(SERVE)
            .context("there is such a command")?;
        let Some((_, matches)) = matches.remove_subcommand().filter(|(name, _)| name == SERVE) else {
            anyhow::bail!("what follows are options of `rempart serve`");
        };
        Ok(Self {
            serve: serve.clone(),
            matches,
            in_file,
        })
    }
}

impl Effective {
    fn of(arg: &Arg, matches: &ArgMatches, in_file: bool) -> Self {
        let id = arg.get_id().as_str();
        let values: Option<Vec<String>> = matches
            .get_raw(id)
            .map(|raw| raw.map(|value| value.to_string_lossy().into_owned()).collect());
        let from = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "typed",
            Some(ValueSource::EnvVariable) => "environment",
            _ if in_file => "file",
            _ => "default",
        };
        Self {
            value: values.map(|values| written(&values, arg)),
            from,
            secret: arg.is_hide_env_values_set(),
        }
    }

    fn write(&self, key: &str, out: &mut impl Write) -> std::io::Result<()> {
        match &self.value {
            // No value: what is shown can be made a file.
            Some(_) if self.secret => writeln!(out, "# {key} is set, and not shown  # {}", self.from),
            Some(value) => writeln!(out, "{key} = {value}  # {}", self.from),
            None => writeln!(out, "# {key} is not set"),
        }
    }
}

/// Values as a file has them: a list where there may be several.
fn written(values: &[String], arg: &Arg) -> String {
    let switch = matches!(arg.get_action(), clap::ArgAction::SetTrue);
    let one = |value: &String| match value.parse::<i64>() {
        Ok(number) if number.to_string() == *value => value.clone(),
        _ if switch => value.clone(),
        _ => toml::Value::from(value.as_str()).to_string(),
    };
    match values {
        [value] if !matches!(arg.get_action(), clap::ArgAction::Append) => one(value),
        values => format!("[{}]", values.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// A file with every option of a server, its help, and its default behind a `#`.
fn reference(out: &mut impl Write) -> std::io::Result<()> {
    writeln!(
        out,
        "# What `rempart serve --config FILE` reads; what is typed, and what is in the environment, goes before it."
    )?;
    let mut root = Cli::command();
    root.build();
    let serve = root.find_subcommand(SERVE).into_iter();
    let mut last = None;
    for arg in serve.flat_map(clap::Command::get_arguments) {
        let Some(key) = key_of(arg) else { continue };
        let heading = arg.get_help_heading().unwrap_or("Server");
        if last.replace(heading) != Some(heading) {
            writeln!(out, "\n## {heading}")?;
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(out, "\n# {}", help.replace('\n', "\n# "))?;
        let defaults: Vec<String> = arg
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        let switch = matches!(arg.get_action(), clap::ArgAction::SetTrue);
        match (defaults.is_empty(), switch) {
            (true, true) => writeln!(out, "#{key} = false")?,
            (true, false) => writeln!(out, "#{key} =")?,
            (false, _) => writeln!(out, "#{key} = {}", written(&defaults, arg))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, more: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rempart.toml");
        std::fs::write(&path, text).unwrap();
        let options: Vec<OsString> = more.iter().map(OsString::from).collect();
        let mut out = Vec::new();
        show(&behind_serve(Some(path), &options), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn where_a_value_is_from_is_shown_and_a_secret_is_not() {
        let shown = shown(
            "models = [\"a\"]\nsequences-max = 7\ndatabase = \"postgres://u:hunter2@db/rempart\"\n",
            &["--queue-requests-max", "9"],
        );
        for line in [
            "models = [\"a\"]  # file",
            "sequences-max = 7  # file",
            "queue-requests-max = 9  # typed",
            "# database is set, and not shown  # file",
            "connections-max = 1024  # default",
            "# tls-certificate is not set",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
        assert!(!shown.contains("hunter2"));
    }

    #[test]
    fn the_reference_is_a_file_that_changes_nothing() {
        let mut out = Vec::new();
        reference(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        // What has a default, without the sign that leaves it out.
        let mut file = String::new();
        for line in text.lines() {
            let line = line
                .strip_prefix('#')
                .filter(|line| !line.starts_with([' ', '#']));
            if let Some(line) = line.filter(|line| !line.ends_with('=')) {
                file += line;
                file += "\n";
            }
        }
        assert!(file.lines().count() > 40, "{file}");
        let (with, without) = (shown(&file, &["m"]), shown("", &["m"]));
        assert_eq!(with.replace("  # file", "  # default"), without);
    }
}
