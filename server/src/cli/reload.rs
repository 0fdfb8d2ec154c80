//! What a running server takes of its configuration file at SIGHUP, and what it tells that it can't.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::ValueEnum as _;
use tokio::signal::unix::Signal;

use super::config::{Effective, effective};
use crate::config::LogLevel;
use crate::telemetry;

/// The one option that takes effect at once. What files hold that options name is read again by who uses them.
const LOG_LEVEL: &str = "log-level";

/// The options that a server was started with.
pub(super) struct Options {
    typed: Vec<OsString>,
    now: BTreeMap<String, Effective>,
}

impl Options {
    pub(super) fn read(typed: Vec<OsString>) -> Self {
        let now = effective(&typed).unwrap_or_default();
        Self { typed, now }
    }

    /// Reads the file again at every signal.
    pub(super) async fn follow(mut self, mut hangups: Signal) {
        while hangups.recv().await.is_some() {
            // A file is read within a millisecond, or its disk is gone.
            let typed = self.typed.clone();
            let read = tokio::task::spawn_blocking(move || effective(&typed)).await;
            match read {
                Ok(Ok(new)) => self.take(new),
                Ok(Err(error)) => tracing::error!(
                    error = format!("{error:#}"),
                    "the configuration can't be read again: what was before goes on"
                ),
                Err(_) => {
                    tracing::error!("reading the configuration again panicked: what was before goes on");
                }
            }
        }
    }

    fn take(&mut self, new: BTreeMap<String, Effective>) {
        let changed = changed(&self.now, &new);
        let (at_once, later): (Vec<&str>, Vec<&str>) = changed.iter().partition(|key| **key == LOG_LEVEL);
        if !later.is_empty() {
            tracing::warn!(
                options = later.join(", "),
                "these have changed, and take effect when the server starts again"
            );
        }
        if !at_once.is_empty() {
            let level = new.get(LOG_LEVEL).and_then(|level| level.value.as_deref());
            let level = level.and_then(|level| LogLevel::from_str(level.trim_matches('"'), true).ok());
            let set = level.map(telemetry::set_level);
            if let Some(Ok(())) = set {
                tracing::warn!(log_level = ?level, "how much is logged has changed");
            }
        }
        // What is told once is not told at the next signal.
        self.now = new;
    }
}

/// Keys whose values differ.
fn changed<'a>(old: &'a BTreeMap<String, Effective>, new: &'a BTreeMap<String, Effective>) -> Vec<&'a str> {
    let value =
        |of: &'a BTreeMap<String, Effective>, key: &str| of.get(key).and_then(|one| one.value.as_ref());
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    keys.filter(|key| value(old, key) != value(new, key))
        .map(String::as_str)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_in_the_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rempart.toml");
        let typed: Vec<OsString> = ["rempart", "serve", "m", "--config"]
            .into_iter()
            .map(OsString::from)
            .chain([path.clone().into()])
            .collect();
        std::fs::write(&path, "sequences-max = 7\nlog-level = \"info\"\n").unwrap();
        let old = effective(&typed).unwrap();
        assert!(changed(&old, &old).is_empty());
        std::fs::write(&path, "log-level = \"debug\"\nzero-egress = true\n").unwrap();
        let new = effective(&typed).unwrap();
        assert_eq!(changed(&old, &new), ["log-level", "sequences-max", "zero-egress"]);
    }
}
