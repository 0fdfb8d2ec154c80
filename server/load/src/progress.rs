//! What a person at a terminal sees while a step runs.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::record::{End, Record};

/// How often the line is drawn anew.
const PERIOD: Duration = Duration::from_millis(250);

/// What has happened so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    started: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    tokens: AtomicU64,
}

impl Counts {
    pub(crate) fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ended(&self, record: &Record) {
        let of = match record.end {
            End::Completed => &self.completed,
            End::Failed(_) => &self.failed,
            End::Cancelled => &self.cancelled,
        };
        of.fetch_add(1, Ordering::Relaxed);
        self.tokens
            .fetch_add(u64::from(record.output_tokens()), Ordering::Relaxed);
    }

    fn over(&self) -> u64 {
        [&self.completed, &self.failed, &self.cancelled]
            .into_iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    fn line(&self, elapsed: Duration) -> String {
        let (over, failed) = (self.over(), self.failed.load(Ordering::Relaxed));
        let in_flight = self.started.load(Ordering::Relaxed).saturating_sub(over);
        let seconds = elapsed.as_secs_f64().max(0.001);
        let tokens = self.tokens.load(Ordering::Relaxed) as f64 / seconds;
        format!(
            "{in_flight} in flight, {failed} failed, {:.1} req/s, {tokens:.0} tok/s",
            over as f64 / seconds
        )
    }
}

/// Where people are told what happens. Results go to standard output, this to standard error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    pub quiet: bool,
}

impl Console {
    /// Tells something that a person should know.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            // There is nobody to tell where even this can't be written.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// Shows how a step goes, until what is given is dropped.
    pub(crate) fn show(self, name: &str, requests: usize, counts: &Arc<Counts>) -> Option<JoinSet<()>> {
        if self.quiet || !std::io::stderr().is_terminal() {
            return None;
        }
        let bar = ProgressBar::with_draw_target(Some(requests as u64), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{prefix:<18} {bar:24} {pos}/{len} {elapsed_precise}  {msg}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        let mut tasks = JoinSet::new();
        let counts = Arc::clone(counts);
        tasks.spawn(async move {
            let bar = Cleared(bar);
            let began = Instant::now();
            let mut ticks = interval(PERIOD);
            loop {
                ticks.tick().await;
                bar.0.set_position(counts.over());
                bar.0.set_message(counts.line(began.elapsed()));
            }
        });
        Some(tasks)
    }
}

/// A line that goes away with its task.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
