//! What a running server takes of its configuration file at SIGHUP, and what it tells that it can't.

use std::collections::BTreeMap;
use std::ffi::OsString;

use anyhow::Context as _;
use clap::ValueEnum as _;
use tokio::signal::unix::Signal;

use super::config::{Effective, check, effective};
use crate::config::LogLevel;
use crate::telemetry;

/// The one option that takes effect at once. What files hold that options name is read again by who uses them.
const LOG_LEVEL: &str = "log-level";

type Values = BTreeMap<String, Effective>;

/// The options that a server was started with.
pub(super) struct Options {
    typed: Vec<OsString>,
    started: Values,
    log_level: Option<String>,
    /// Those that differ from `started`, and were told.
    told: Vec<String>,
}

impl Options {
    /// # Errors
    /// The file has changed since the start, and can't be used.
    pub(super) fn read(typed: Vec<OsString>) -> anyhow::Result<Self> {
        let started = effective(&typed)?;
        Ok(Self {
            log_level: level_of(&started),
            typed,
            started,
            told: Vec::new(),
        })
    }

    /// Reads the file again at every signal.
    pub(super) async fn follow(mut self, mut hangups: Signal) {
        while hangups.recv().await.is_some() {
            let typed = self.typed.clone();
            let read = move || check(&typed).and_then(|()| effective(&typed));
            let read = tokio::task::spawn_blocking(read).await;
            let read = read.context("reading it panicked").flatten();
            if let Err(error) = read.and_then(|new| self.take(&new)) {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the configuration can't be read again: what was before goes on"
                );
            }
        }
    }

    fn take(&mut self, new: &Values) -> anyhow::Result<()> {
        let mut changed = changed(&self.started, new);
        changed.retain(|key| key != LOG_LEVEL);
        if changed != self.told && !changed.is_empty() {
            tracing::warn!(
                options = changed.join(", "),
                "these have changed, and take effect when the server starts again"
            );
        }
        self.told = changed;
        let level = level_of(new);
        if level != self.log_level {
            let name = level.as_deref().unwrap_or_default();
            telemetry::set_level(LogLevel::from_str(name, true).map_err(anyhow::Error::msg)?)?;
            tracing::warn!(log_level = name, "how much is logged has changed");
            self.log_level = level;
        }
        Ok(())
    }
}

/// The level's name, as the file has it between quotes.
fn level_of(values: &Values) -> Option<String> {
    let value = values.get(LOG_LEVEL)?.value.as_deref()?;
    Some(value.trim_matches('"').to_owned())
}

/// Keys whose values differ.
fn changed(old: &Values, new: &Values) -> Vec<String> {
    let value = |of: &Values, key: &str| of.get(key).and_then(|one| one.value.clone());
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    keys.filter(|key| value(old, key) != value(new, key))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_the_start_is_found_and_what_was_taken_back_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rempart.toml");
        let typed: Vec<OsString> = ["rempart", "serve", "m", "--config"]
            .into_iter()
            .map(OsString::from)
            .chain([path.clone().into()])
            .collect();
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("sequences-max = 7\n");
        let mut options = Options::read(typed.clone()).unwrap();
        write("sequences-max = 8\nzero-egress = true\n");
        options.take(&effective(&typed).unwrap()).unwrap();
        assert_eq!(options.told, ["sequences-max", "zero-egress"]);
        write("sequences-max = 7\n");
        options.take(&effective(&typed).unwrap()).unwrap();
        assert!(options.told.is_empty());
    }
}
