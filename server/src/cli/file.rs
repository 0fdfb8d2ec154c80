//! The file that options are in, beside the command line and the environment: TOML, a key for each option that has a variable, by
//! the option's long name. What is typed goes before the environment, that before the file, and the file before defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, CommandFactory as _, FromArgMatches as _};
use rempart_hub::file;
use toml::{Table, Value};

use super::Cli;

/// A file of all options is some 20 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Names that are less alike are no misspelling.
const ALIKE_MIN: f64 = 0.8;
/// The option that names the file, which can't be in it.
pub(super) const OPTION: &str = "config";
/// The command whose options a file can have; others take of them what they have, too.
pub(super) const SERVE: &str = "serve";
/// Its one argument that is no option.
const MODELS: &str = "models";
/// Commands that read no file, or read it by themselves.
const WITHOUT: [&str; 4] = ["config", "support-bundle", "completions", "man"];

/// What was read of a file.
pub(super) struct ConfigFile {
    path: PathBuf,
    values: BTreeMap<String, Vec<String>>,
}

impl Cli {
    /// What was typed, the program's name first, with the environment and the file behind it.
    ///
    /// # Errors
    /// What was typed can't be, or what the file has.
    pub fn parse_with_file(typed: &[OsString]) -> Result<Self, clap::Error> {
        let (command, _) = command_with_file(typed)?;
        let mut matches = command.try_get_matches_from(typed)?;
        Self::from_arg_matches_mut(&mut matches)
    }
}

/// The commands, whose defaults are the file's where one is named; and the keys that the file has.
pub(super) fn command_with_file(typed: &[OsString]) -> Result<(Command, BTreeSet<String>), clap::Error> {
    let command = Cli::command();
    let Some(path) = path_of(&command, typed) else {
        return Ok((command, BTreeSet::new()));
    };
    let apply = || {
        let file = ConfigFile::read(&path)?;
        let applied = file.apply(command.clone())?;
        anyhow::Ok((applied, file.values.into_keys().collect()))
    };
    apply().map_err(|error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error:#}\n")))
}

/// The file that is named. Commands that are hidden are this program's own children, who are told what they need; those that tell of
/// options can do so where the file is wrong.
fn path_of(command: &Command, typed: &[OsString]) -> Option<PathBuf> {
    let lenient = command.clone().ignore_errors(true);
    let matches = lenient.try_get_matches_from(typed).ok()?;
    let name = matches.subcommand_name()?;
    let apart = command.find_subcommand(name)?.is_hide_set() || WITHOUT.contains(&name);
    let path = matches.get_one::<PathBuf>(OPTION).cloned();
    path.filter(|_| !apart)
}

/// The key of an option of `rempart serve` in a file, where it can be in one: as it is in the environment.
pub(super) fn key_of(arg: &Arg) -> Option<&str> {
    arg.get_env()?;
    // An argument of `rempart serve`, and an option of others.
    let models = (arg.get_id() == MODELS).then_some(MODELS);
    let key = models.or(arg.get_long())?;
    (key != OPTION).then_some(key)
}

/// All keys that a file can have.
fn keys(command: &Command) -> BTreeSet<String> {
    let serve = command.find_subcommand(SERVE).into_iter();
    let options = serve
        .flat_map(Command::get_arguments)
        .chain(command.get_arguments());
    options.filter_map(key_of).map(str::to_owned).collect()
}

impl ConfigFile {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let name = || format!("--config {}", path.display());
        let bytes = file::read(path, FILE_BYTES_MAX).with_context(name)?;
        let bytes = bytes.with_context(|| format!("{}: more than {FILE_BYTES_MAX} bytes", name()))?;
        let text = String::from_utf8(bytes).with_context(name)?;
        Self::parse(path, &text).with_context(name)
    }

    fn parse(path: &Path, text: &str) -> anyhow::Result<Self> {
        // The library's error quotes the line, which may have a password in it.
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
            anyhow::anyhow!("line {line}: {}", error.message())
        })?;
        let mut values = BTreeMap::new();
        for (key, value) in table {
            let texts = texts(&value).with_context(|| {
                format!("{key}: a text, a number, true or false, or a list of them is expected: there are no tables")
            })?;
            values.insert(key, texts);
        }
        Ok(Self {
            path: path.to_owned(),
            values,
        })
    }

    /// Makes the file's values the defaults of all commands that have such options.
    fn apply(&self, command: Command) -> anyhow::Result<Command> {
        let (known, path) = (keys(&command), self.path.display());
        for key in self.values.keys() {
            ensure!(
                known.contains(key),
                "--config {path}: {key} is no option{}",
                nearest(key, &known)
            );
        }
        self.apply_below(command, &known)
            .with_context(|| format!("--config {path}"))
    }

    fn apply_below(&self, mut command: Command, known: &BTreeSet<String>) -> anyhow::Result<Command> {
        let options: Vec<Arg> = command.get_arguments().cloned().collect();
        for option in options {
            let Some(key) = key_of(&option)
                .filter(|key| known.contains(*key))
                .map(str::to_owned)
            else {
                continue;
            };
            if let Some(values) = self.values.get(&key) {
                let with_default = with_default(option, &key, values)?;
                command = command.mut_arg(with_default.get_id().clone(), |_| with_default);
            }
        }
        let names: Vec<String> = command
            .get_subcommands()
            .filter(|below| !below.is_hide_set())
            .map(|below| below.get_name().to_owned())
            .collect();
        for name in names {
            let mut failed = None;
            command = command.mut_subcommand(name, |below| {
                self.apply_below(below.clone(), known).unwrap_or_else(|error| {
                    failed = Some(error);
                    below
                })
            });
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(command)
    }
}

/// An option whose default is what the file has, which must be what it takes.
fn with_default(option: Arg, key: &str, values: &[String]) -> anyhow::Result<Arg> {
    let several = matches!(option.get_action(), ArgAction::Append);
    ensure!(several || values.len() == 1, "{key} is one value, not a list");
    if values.is_empty() {
        return Ok(option);
    }
    let option = option.required(false).default_values(values.to_vec());
    let secret = option.is_hide_env_values_set();
    let alone = Command::new("file").no_binary_name(true).arg(option.clone());
    // The environment is not what is looked at here.
    let alone = alone.mut_arg(option.get_id().clone(), |option| option.env(None::<&str>));
    if let Err(error) = alone.try_get_matches_from(Vec::<OsString>::new()) {
        ensure!(!secret, "{key} has not the form that it must have");
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        bail!("{key}: {}", line.strip_prefix("error: ").unwrap_or(line));
    }
    Ok(option)
}

/// A value as it would be typed; of a list all of them.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(yes) => Some(vec![yes.to_string()]),
        Value::Array(values) => {
            let flat = |value: &Value| texts(value).filter(|_| !value.is_array());
            values
                .iter()
                .map(flat)
                .collect::<Option<Vec<_>>>()
                .map(|all| all.concat())
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

/// What is said of a key that is none.
fn nearest(key: &str, known: &BTreeSet<String>) -> String {
    let dashed = key.replace('_', "-");
    match alike(&dashed, known) {
        Some(name) => format!(": did you mean {name}?"),
        None => "; `rempart config reference` lists them".to_owned(),
    }
}

/// The name that another is a misspelling of, perhaps.
pub(super) fn alike<'a>(name: &str, known: &'a BTreeSet<String>) -> Option<&'a String> {
    let alike = |known: &&String| strsim::jaro_winkler(name, known);
    let best = known.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    best.filter(|known| alike(known) >= ALIKE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;
    use crate::config::ServeArgs;

    fn typed(more: &[&str]) -> Vec<OsString> {
        ["rempart", "serve"]
            .iter()
            .chain(more)
            .map(OsString::from)
            .collect()
    }

    fn served(text: &str, more: &[&str]) -> Result<ServeArgs, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rempart.toml");
        std::fs::write(&path, text).unwrap();
        let mut all = typed(more);
        all.extend(["--config".into(), path.into()]);
        let cli = Cli::parse_with_file(&all).map_err(|error| error.to_string())?;
        match cli.command {
            cli::Command::Serve(args) => Ok(*args),
            _ => unreachable!("it was typed"),
        }
    }

    #[test]
    fn a_file_goes_before_defaults_and_behind_what_is_typed() {
        let text = "models = [\"a\", \"b\"]\nsequences-max = 7\nzero-egress = true\nallowed-host = \"one\"\n";
        let args = served(text, &[]).unwrap();
        assert_eq!(args.models, ["a", "b"]);
        assert_eq!(args.engine.sequences_max.get(), 7);
        assert!(args.http.zero_egress);
        assert_eq!(args.http.allowed_host, ["one"]);
        let args = served(text, &["c", "--sequences-max", "9"]).unwrap();
        assert_eq!(
            (args.models, args.engine.sequences_max.get()),
            (vec!["c".to_owned()], 9)
        );
    }

    #[test]
    fn what_a_file_can_not_say_is_told() {
        let fails = |text: &str| served(text, &["m"]).unwrap_err();
        let told = fails("sequence_max = 7");
        assert!(
            told.contains("sequence_max is no option: did you mean sequences-max?"),
            "{told}"
        );
        let told = fails("weather = 7");
        assert!(
            told.contains("weather is no option; `rempart config reference`"),
            "{told}"
        );
        let told = fails("sequences-max = 0");
        assert!(told.contains("sequences-max: invalid value '0'"), "{told}");
        let told = fails("sequences-max = [1, 2]");
        assert!(told.contains("sequences-max is one value"), "{told}");
        let told = fails("[engine]\nsequences-max = 1");
        assert!(told.contains("engine: a text"), "{told}");
        let told = fails("bind = \"127.0.0.1:0\"\nbind = ");
        assert!(told.contains("line 2"), "{told}");
        let told = fails("sequences-max = []");
        assert!(told.contains("sequences-max is one value"), "{told}");
        // Of other commands alone, or an argument of theirs.
        let told = fails("model = \"m\"");
        assert!(
            told.contains("model is no option: did you mean models?"),
            "{told}"
        );
        assert!(fails("force = true").contains("force is no option"));
        let told = fails("bind = \"127.0.0.1:0\"\nthreads = 1\nbind = \"127.0.0.1:1\"\n");
        assert!(told.contains("line 3"), "{told}");
        let told = fails("zero-egress = \"perhaps\"");
        assert!(told.contains("zero-egress: invalid value 'perhaps'"), "{told}");
    }

    #[test]
    fn a_file_that_is_not_there_is_told() {
        let mut all = typed(&["m"]);
        all.extend(["--config".into(), "/not/there.toml".into()]);
        let error = Cli::parse_with_file(&all).unwrap_err().to_string();
        assert!(error.contains("--config /not/there.toml"), "{error}");
    }
}
