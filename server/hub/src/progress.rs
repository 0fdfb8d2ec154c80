//! How long work tells what it is doing: plain events, and a terminal display of them.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

/// What is being done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Its checksum is being computed.
    Checking,
    /// It is being fetched from the hub.
    Downloading,
}

/// One thing that happened. Byte counts are totals for the file, not increments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Work on a file begins; `done` is above zero when an interrupted download goes on.
    Started {
        action: Action,
        file: &'a str,
        bytes: u64,
        done: u64,
    },
    /// `done` bytes of the file are finished.
    Advanced { file: &'a str, done: u64 },
    /// The file is complete and checked.
    Finished { file: &'a str },
    /// A try failed; the next follows after `delay`.
    Retrying {
        what: &'a str,
        attempt: u32,
        attempts_max: u32,
        delay: Duration,
        reason: &'a str,
    },
    /// Something the user should read.
    Note(&'a str),
}

/// Receives the events of a pull or a verification, possibly from several threads.
pub trait Progress: Sync {
    fn report(&self, event: Event<'_>);
}

/// Discards every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _: Event<'_>) {}
}

impl<F: Fn(Event<'_>) + Sync> Progress for F {
    fn report(&self, event: Event<'_>) {
        self(event);
    }
}

/// Progress bars on standard error; plain lines, at most one for each tenth of a file, when it is no terminal.
pub struct Terminal {
    bars: Option<MultiProgress>,
    files: Mutex<BTreeMap<String, Line>>,
}

struct Line {
    bar: Option<ProgressBar>,
    action: Action,
    bytes: u64,
    tenths_shown: u64,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// Bars if standard error is a terminal, lines otherwise.
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self {
            bars,
            files: Mutex::default(),
        }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Line>> {
        // A panic elsewhere must not take the display down with it: the map is always usable.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, text: &str) {
        match &self.bars {
            // Failing to draw is no reason to fail a download.
            Some(bars) => drop(bars.println(text)),
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    fn start(&self, action: Action, file: &str, bytes: u64, done: u64) {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(bytes).with_style(style()).with_position(done));
            bar.set_message(format!("{} {file}", verb(action)));
            bar.reset_eta();
            bar
        });
        if bar.is_none() {
            let from = if done > 0 {
                format!(", resuming at {}", HumanBytes(done))
            } else {
                String::new()
            };
            self.line(&format!("{} {file} ({}{from})", verb(action), HumanBytes(bytes)));
        }
        let tenths_shown = tenths(done, bytes);
        if let Some(old) = self.files().insert(
            file.to_owned(),
            Line {
                bar,
                action,
                bytes,
                tenths_shown,
            },
        ) && let Some(bar) = old.bar
        {
            bar.finish_and_clear();
        }
    }

    fn advance(&self, file: &str, done: u64) {
        let mut files = self.files();
        let Some(line) = files.get_mut(file) else { return };
        if let Some(bar) = &line.bar {
            bar.set_position(done);
            return;
        }
        let reached = tenths(done, line.bytes);
        if reached > line.tenths_shown {
            line.tenths_shown = reached;
            let text = format!("{} {file}: {} %", verb(line.action), reached * 10);
            drop(files);
            self.line(&text);
        }
    }

    fn finish(&self, file: &str) {
        let line = self.files().remove(file);
        if let Some(Line { bar: Some(bar), .. }) = line {
            bar.finish();
        }
    }
}

impl Progress for Terminal {
    fn report(&self, event: Event<'_>) {
        match event {
            Event::Started {
                action,
                file,
                bytes,
                done,
            } => self.start(action, &printable(file), bytes, done),
            Event::Advanced { file, done } => self.advance(&printable(file), done),
            Event::Finished { file } => self.finish(&printable(file)),
            Event::Retrying {
                what,
                attempt,
                attempts_max,
                delay,
                reason,
            } => self.line(&format!(
                "{}: {}; try {attempt} of {attempts_max} in {:.1} s",
                printable(what),
                printable(reason),
                delay.as_secs_f32()
            )),
            Event::Note(text) => self.line(&printable(text)),
        }
    }
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Checking => "checking",
        Action::Downloading => "downloading",
    }
}

fn tenths(done: u64, bytes: u64) -> u64 {
    u64::try_from(u128::from(done) * 10 / u128::from(bytes.max(1)))
        .unwrap_or(10)
        .min(10)
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg}  {bar:30}  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}")
        .expect("the template is a constant")
}

/// Names come from a hub: a terminal must not obey control characters in them.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_not_printed() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }

    #[test]
    fn tenths_stay_in_range() {
        assert_eq!(tenths(0, 0), 0);
        assert_eq!(tenths(5, 10), 5);
        assert_eq!(tenths(u64::MAX, 1), 10);
    }

    #[test]
    fn lines_follow_a_file_from_start_to_end() {
        let terminal = Terminal {
            bars: None,
            files: Mutex::default(),
        };
        terminal.report(Event::Started {
            action: Action::Checking,
            file: "a",
            bytes: 100,
            done: 0,
        });
        terminal.report(Event::Advanced { file: "a", done: 55 });
        assert_eq!(terminal.files()["a"].tenths_shown, 5);
        terminal.report(Event::Finished { file: "a" });
        assert!(terminal.files().is_empty());
    }
}
