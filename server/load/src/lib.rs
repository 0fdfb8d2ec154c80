//! `rempart bench`: load on any OpenAI-compatible server, and what its clients see of it.
//!
//! A request's way: `options` are checked into a `plan`; `measure` runs its steps; `run` sends requests at their times,
//! which a `schedule` made of a `dataset`'s texts; `client` takes the answers down event by event into `record`s, and a
//! `summary` makes figures of them. `slo` and `baseline` judge those, and `report` tells them.
//!
//! Times are those of one monotonic `clock`; when something arrived is how long ago that was by the kernel, of now. Nothing that is kept holds a prompt, an answer or a key.

#![forbid(unsafe_code)]
#![expect(clippy::cast_sign_loss, reason = "no time, count or share here is negative")]

mod baseline;
mod body;
mod chunk;
mod client;
mod clock;
mod connection;
mod dataset;
mod digest;
mod failure;
mod limits;
mod machine;
mod measure;
mod options;
mod plan;
mod progress;
mod record;
mod report;
mod rng;
mod run;
mod schedule;
mod search;
mod slo;
mod stats;
mod summary;
mod verdict;
mod workload;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use tokio::runtime;

use baseline::Compared;
use measure::Measured;
use plan::Plan;
use progress::Console;
use report::{About, Baseline, Report};

use options::ResultArgs;

pub use options::LoadArgs;
pub use verdict::{COULD_NOT_RUN, Outcome};

/// Measures what the options say, and writes results where they say.
///
/// # Errors
/// Where nothing could be measured, and what to do about it.
pub fn run(args: &LoadArgs) -> anyhow::Result<Outcome> {
    let plan = Plan::new(args)?;
    check_files(&args.results)?;
    let baseline = args.results.baseline.as_deref().map(Baseline::read).transpose()?;
    if let Some(baseline) = &baseline {
        baseline.check(&plan)?;
    }
    let console = Console {
        quiet: args.results.quiet,
    };
    // Each request in flight is a socket. Where the limit stays low, connections fail and say so.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let about = About::new(&plan);
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let slo = args.results.slo.as_ref();
    let named = matches!(plan.shape, plan::Shape::Levels(_));
    let measured = runtime.block_on(Box::pin(measure::measure(plan, slo, console)))?;
    // What was measured is told, whatever becomes of the comparison.
    let comparing = baseline
        .as_ref()
        .map(|baseline| compare(args, (about.seed, named), &measured, baseline));
    let compared = comparing.as_ref().and_then(|compared| compared.as_ref().ok());
    let report = Report {
        args,
        about,
        measured: &measured,
        compared: compared.map_or(&[], Vec::as_slice),
        baseline: baseline.as_ref(),
    };
    for (step, _) in measured
        .steps
        .iter()
        .zip(report.compared)
        .filter(|(_, said)| said.is_empty())
    {
        console.note(&format!("{}: not compared with the baseline", step.level.name()));
    }
    std::io::stdout()
        .lock()
        .write_all(report::terminal(&report).as_bytes())?;
    save(&report)?;
    let completed = measured.steps.iter().any(|step| step.summary.completed > 0);
    ensure!(completed, "no request was answered");
    let compared = comparing.transpose();
    if outcome(&measured, &[]) == Outcome::SloMissed {
        if let Err(error) = compared {
            console.note(&format!("{error:#}"));
        }
        return Ok(Outcome::SloMissed);
    }
    Ok(outcome(&measured, &compared?.unwrap_or_default()))
}

/// For each step what the comparison gives. Where steps were not `named`, but those of a sweep or a search, nothing for such as the
/// baseline does not have, or as had too few requests.
fn compare(
    args: &LoadArgs,
    (seed, named): (u64, bool),
    measured: &Measured,
    baseline: &Baseline,
) -> anyhow::Result<Vec<Vec<Compared>>> {
    let generates = args.server.endpoint.generates();
    let of_step = |step: &measure::MeasuredStep| {
        let Some(before) = baseline.step(step.level) else {
            return Ok(Vec::new());
        };
        let now = baseline::side(&step.records, step.window, generates, step.level.is_closed());
        let before = before.side()?;
        for side in [&before, &now] {
            match baseline::enough(side.requests.len()) {
                Err(few) if named => return Err(few.context("--baseline")),
                Err(_) => return Ok(Vec::new()),
                Ok(()) => {}
            }
        }
        let tolerance = args.results.regression_tolerance;
        Ok(baseline::compare(&before, &now, tolerance, seed))
    };
    let compared: Vec<Vec<Compared>> = measured
        .steps
        .iter()
        .map(of_step)
        .collect::<anyhow::Result<_>>()?;
    ensure!(
        compared.iter().any(|step| !step.is_empty()),
        "--baseline: no step could be compared: it has other ones, or they have too few requests"
    );
    Ok(compared)
}

/// Writes each file that was asked for, whatever becomes of the others.
///
/// # Errors
/// Which could not be written.
fn save(report: &Report<'_>) -> anyhow::Result<()> {
    let results = &report.args.results;
    let lines = || {
        let objects = report::objects(report).into_iter();
        Ok(objects
            .map(|object| format!("{object}\n"))
            .collect::<Vec<_>>()
            .concat())
    };
    let failed: Vec<String> = [
        results.result.as_deref().map(|path| write(path, lines())),
        results
            .csv
            .as_deref()
            .map(|path| write(path, report::csv(report))),
        results
            .html
            .as_deref()
            .map(|path| write(path, report::page(report))),
    ]
    .into_iter()
    .flatten()
    .filter_map(|written| Some(format!("{:#}", written.err()?)))
    .collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn write(path: &Path, text: anyhow::Result<String>) -> anyhow::Result<()> {
    fs::write(path, text?).with_context(|| format!("writing {}", path.display()))
}

/// Whether results can be written, before there are any.
///
/// # Errors
/// Where a folder is not there, or two would have one file.
fn check_files(results: &ResultArgs) -> anyhow::Result<()> {
    let files = [
        ("--result", &results.result),
        ("--csv", &results.csv),
        ("--html", &results.html),
    ];
    let files: Vec<(&str, &Path)> = files
        .into_iter()
        .filter_map(|(option, path)| Some((option, path.as_deref()?)))
        .collect();
    for (index, (option, path)) in files.iter().enumerate() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        ensure!(
            folder.is_none_or(Path::is_dir) && !path.is_dir(),
            "{option} {}: must be a file in a folder that is there",
            path.display()
        );
        let other = files[..index].iter().find(|(_, before)| before == path);
        ensure!(
            other.is_none(),
            "{option} {}: is another option's file",
            path.display()
        );
    }
    Ok(())
}

/// A sweep and a search look for the edge, and so go beyond it: a search asks whether any rate keeps the SLO, and a sweep whether
/// its knee does.
fn outcome(measured: &Measured, compared: &[Vec<Compared>]) -> Outcome {
    let holds = match (&measured.found, &measured.knee) {
        (Some(found), _) => found.0.is_some(),
        (None, Some(knee)) => {
            let at_knee = |step: &&measure::MeasuredStep| step.level == plan::Level::Closed(knee.clients);
            measured
                .steps
                .iter()
                .find(at_knee)
                .is_none_or(measure::MeasuredStep::holds)
        }
        (None, None) => measured.steps.iter().all(measure::MeasuredStep::holds),
    };
    if !holds {
        Outcome::SloMissed
    } else if compared.iter().flatten().any(|one| one.regression) {
        Outcome::Regression
    } else {
        Outcome::Good
    }
}
