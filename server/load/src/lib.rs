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

pub use options::LoadArgs;
pub use verdict::{COULD_NOT_RUN, Outcome};

/// Measures what the options say, and writes results where they say.
///
/// # Errors
/// Where nothing could be measured, and what to do about it.
pub fn run(args: &LoadArgs) -> anyhow::Result<Outcome> {
    let plan = Plan::new(args)?;
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
    save(&report)?;
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
    let completed = measured.steps.iter().any(|step| step.summary.completed > 0);
    ensure!(completed, "no request was answered");
    let compared = comparing.transpose()?.unwrap_or_default();
    Ok(outcome(&measured, &compared))
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

fn save(report: &Report<'_>) -> anyhow::Result<()> {
    let results = &report.args.results;
    if let Some(path) = &results.result {
        let lines: Vec<String> = report::objects(report)
            .iter()
            .map(|object| format!("{object}\n"))
            .collect();
        write(path, &lines.concat())?;
    }
    if let Some(path) = &results.csv {
        write(path, &report::csv(report)?)?;
    }
    if let Some(path) = &results.html {
        write(path, &report::page(report)?)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
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
