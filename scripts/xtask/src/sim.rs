//! `cargo xtask sim`: the engine's simulator over many seeds, on every core. A seed alone replays a failure.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rempart_engine::sim;

const PROGRESS_EVERY: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many seeds to run
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Steps that each of them takes
    #[arg(long, default_value_t = 2000)]
    steps: usize,
    /// The first seed: with `--seeds 1`, the one to replay
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads to run on [default: the cores]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

/// What became of one seed; `Err` is the story of its failure.
struct Outcome {
    seed: u64,
    result: Result<sim::Summary, String>,
}

/// The seeds that are left, and whether anyone still wants them.
struct Seeds {
    next: AtomicU64,
    end: u64,
    stop: AtomicBool,
}

impl Seeds {
    fn take(&self) -> Option<u64> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        (seed < self.end).then_some(seed)
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let end = args
        .from
        .checked_add(args.seeds)
        .context("--from plus --seeds is past the last seed")?;
    let seeds = Seeds {
        next: AtomicU64::new(args.from),
        end,
        stop: AtomicBool::new(false),
    };
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = args.threads.map_or_else(cores, NonZeroUsize::get);
    let started = Instant::now();
    let (sender, receiver) = sync_channel(threads * 4);
    let totals = std::thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            let seeds = &seeds;
            scope.spawn(move || work(seeds, args.steps, &sender));
        }
        drop(sender);
        collect(&receiver, &seeds, args.seeds)
    });
    Ok(totals.report(args, threads, started.elapsed()))
}

fn work(seeds: &Seeds, steps: usize, outcomes: &SyncSender<Outcome>) {
    while let Some(seed) = seeds.take() {
        // An assertion inside the engine panics: that too is a finding, and the seed is what the reader needs.
        let result = match catch_unwind(AssertUnwindSafe(|| sim::run(seed, steps))) {
            Ok(Ok(summary)) => Ok(summary),
            Ok(Err(failure)) => Err(failure.to_string()),
            Err(panic) => Err(format!("seed {seed}, panic: {}", panic_message(panic.as_ref()))),
        };
        if outcomes.send(Outcome { seed, result }).is_err() {
            return;
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(without a message)")
}

/// Adds up until every worker is done. After a failure no new seed is handed out, and since seeds go out in order, the
/// lowest failing seed among those in flight is the lowest of all.
fn collect(outcomes: &Receiver<Outcome>, seeds: &Seeds, wanted: u64) -> Totals {
    let mut totals = Totals::default();
    let mut told = Instant::now();
    for outcome in outcomes {
        if outcome.result.is_err() {
            seeds.stop.store(true, Ordering::Relaxed);
        }
        totals.add(outcome);
        if told.elapsed() >= PROGRESS_EVERY {
            crate::say_error(&format!("sim: {} of {wanted} seeds", totals.done));
            told = Instant::now();
        }
    }
    totals
}

#[derive(Default)]
struct Totals {
    done: u64,
    summary: sim::Summary,
    /// The lowest failing seed and its story.
    failure: Option<(u64, String)>,
}

impl Totals {
    fn add(&mut self, outcome: Outcome) {
        self.done += 1;
        match outcome.result {
            Ok(summary) => self.summary += summary,
            Err(story) if self.failure.as_ref().is_none_or(|(seed, _)| outcome.seed < *seed) => {
                self.failure = Some((outcome.seed, story));
            }
            Err(_) => {}
        }
    }

    fn report(&self, args: &Args, threads: usize, took: Duration) -> ExitCode {
        if let Some((seed, story)) = &self.failure {
            crate::say_error(&format!("sim: {story}"));
            crate::say_error(&format!(
                "replay it: cargo xtask sim --from {seed} --seeds 1 --steps {}",
                args.steps
            ));
            return ExitCode::FAILURE;
        }
        let summary = self.summary.to_string();
        for line in summary.lines() {
            crate::say(line);
        }
        let never = self.summary.uncovered();
        if !never.is_empty() {
            crate::say(&format!(
                "sim: never happened in these runs: {}",
                never.join(", ")
            ));
        }
        let (seeds, steps, seconds) = (self.done, args.steps, took.as_secs_f64());
        crate::say(&format!(
            "sim: {seeds} seeds × {steps} steps from seed {}, {threads} thread(s), {seconds:.1} s: no invariant broken",
            args.from
        ));
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(from: u64, seeds: u64) -> Args {
        Args {
            seeds,
            steps: 20,
            from,
            threads: NonZeroUsize::new(2),
        }
    }

    fn is_success(code: ExitCode) -> bool {
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
    }

    #[test]
    fn every_seed_is_run_once() {
        let seeds = Seeds {
            next: AtomicU64::new(3),
            end: 40,
            stop: AtomicBool::new(false),
        };
        let (sender, receiver) = sync_channel(64);
        work(&seeds, 20, &sender);
        drop(sender);
        let totals = collect(&receiver, &seeds, 37);
        assert_eq!((totals.done, totals.summary.runs), (37, 37));
        assert!(is_success(run(&args(3, 5)).unwrap()));
        assert!(run(&args(u64::MAX, 2)).is_err());
    }

    #[test]
    fn the_lowest_failing_seed_is_reported_and_stops_the_rest() {
        let seeds = Seeds {
            next: AtomicU64::new(0),
            end: 9,
            stop: AtomicBool::new(false),
        };
        let (sender, receiver) = sync_channel(4);
        for seed in [5, 2, 7] {
            sender
                .send(Outcome {
                    seed,
                    result: Err(format!("story of {seed}")),
                })
                .unwrap();
        }
        drop(sender);
        let totals = collect(&receiver, &seeds, 9);
        assert_eq!(totals.failure, Some((2, "story of 2".to_owned())));
        assert_eq!(seeds.take(), None);
        assert!(!is_success(totals.report(&args(0, 9), 1, Duration::ZERO)));
    }
}
