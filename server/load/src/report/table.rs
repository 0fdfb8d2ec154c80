//! A run as a table, for a terminal and for spreadsheets.

use std::fmt::Write as _;

use super::{Report, no_formula};
use crate::baseline::Compared;
use crate::measure::{Found, MeasuredStep};
use crate::plan::Level;
use crate::slo::Latency;
use crate::stats::{PERCENTILES, percentile_name};

const LATENCIES: [Latency; 4] = [Latency::Ttft, Latency::Tpot, Latency::Itl, Latency::E2el];

/// The steps, what became of the SLO, and what the baseline says.
pub(crate) fn terminal(report: &Report<'_>) -> String {
    let measured = report.measured;
    let header = [
        "load",
        "done",
        "failed",
        "req/s",
        "out tok/s",
        "TTFT p50/p95/p99 ms",
        "ITL p50/p95/p99 ms",
        "E2E p50/p95/p99 ms",
    ];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    lines.extend(measured.steps.iter().map(line));
    let mut text = String::new();
    // Writing to a text can't fail.
    let _ = writeln!(
        text,
        "{} at {}, seed {}",
        measured.server.model, report.about.target, report.about.seed
    );
    text.push_str(&aligned(&lines));
    for step in &measured.steps {
        for one in &step.judged {
            let said = if one.holds { "holds" } else { "MISSED" };
            let value = one
                .measured
                .map_or_else(|| "nothing measured".to_owned(), |value| format!("{value:.2}"));
            let _ = writeln!(
                text,
                "{}: {} {}: {said} ({value})",
                step.level.name(),
                one.name,
                one.bound
            );
        }
    }
    for (step, compared) in measured.steps.iter().zip(report.compared) {
        for one in compared {
            let _ = writeln!(text, "{}: {}", step.level.name(), against(one));
        }
    }
    if let Some(knee) = measured.knee {
        let _ = writeln!(
            text,
            "knee: {} clients, {:.1} a second",
            knee.clients, knee.throughput
        );
    }
    match measured.found {
        Some(Found(Some(rate))) => {
            let _ = writeln!(
                text,
                "highest rate that keeps the SLO: {rate:.3} requests a second"
            );
        }
        Some(Found(None)) => text.push_str("not even the lowest rate keeps the SLO\n"),
        None => {}
    }
    if let Some(error) = measured.steps.iter().find_map(|step| step.summary.input_error) {
        let _ = writeln!(
            text,
            "prompts: {:.1} % off the length that was asked for, by the server's count",
            error * 100.0
        );
    }
    text
}

/// A figure beside the baseline's.
pub(super) fn against(one: &Compared) -> String {
    let (low, high) = one.interval;
    let verdict = if one.regression {
        "REGRESSION"
    } else {
        "no regression"
    };
    if one.name == "failed_share" {
        return format!(
            "{}: {:.4} -> {:.4} (99 % of chance: {low:+.4} to {high:+.4}), {verdict}",
            one.name, one.before, one.now
        );
    }
    format!(
        "{}: {:.2} -> {:.2}, {:+.1} % (99 % of chance: {:+.1} to {:+.1} %), {verdict}",
        one.name,
        one.before,
        one.now,
        (one.now / one.before - 1.0) * 100.0,
        (low - 1.0) * 100.0,
        (high - 1.0) * 100.0
    )
}

/// A step as the cells of a line.
pub(super) fn line(step: &MeasuredStep) -> Vec<String> {
    let summary = &step.summary;
    let three = |latency: Latency| {
        let sample = latency.of(summary);
        if sample.is_empty() {
            return "-".to_owned();
        }
        let of = |percent| short(sample.percentile(percent));
        format!("{}/{}/{}", of(50.0), of(95.0), of(99.0))
    };
    vec![
        step.level.name(),
        summary.completed.to_string(),
        summary.failed.to_string(),
        format!("{:.2}", summary.request_throughput),
        format!("{:.1}", summary.output_throughput),
        three(Latency::Ttft),
        three(Latency::Itl),
        three(Latency::E2el),
    ]
}

/// Three digits, about.
fn short(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn aligned(lines: &[Vec<String>]) -> String {
    let width = |at: usize| {
        lines
            .iter()
            .map(|line| line[at].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = if at == 0 {
                write!(text, "{cell:width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    }
    text
}

/// A row for each step, with the names that the JSON has.
///
/// # Errors
/// Where a row can't be written, which memory does not cause.
pub(crate) fn csv(report: &Report<'_>) -> anyhow::Result<String> {
    let counts = [
        "model_id",
        "load",
        "request_rate",
        "max_concurrency",
        "num_prompts",
        "duration",
        "completed",
        "failed",
        "cancelled",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
    ];
    let mut header: Vec<String> = counts.map(str::to_owned).to_vec();
    for latency in LATENCIES {
        header.extend(["mean", "std"].map(|statistic| format!("{statistic}_{}_ms", latency.name())));
        header
            .extend(PERCENTILES.map(|percent| format!("{}_{}_ms", percentile_name(percent), latency.name())));
    }
    header.push("slo_holds".to_owned());
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(&header)?;
    for step in &report.measured.steps {
        writer.write_record(row(report, step))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn row(report: &Report<'_>, step: &MeasuredStep) -> Vec<String> {
    let summary = &step.summary;
    let (rate, clients) = match step.level {
        Level::Closed(clients) => ("inf".to_owned(), clients.to_string()),
        Level::Open(arrivals) => (arrivals.rate.to_string(), String::new()),
        Level::Trace => ("trace".to_owned(), String::new()),
    };
    let mut row = vec![
        no_formula(&report.measured.server.model),
        step.level.name(),
        rate,
        clients,
        step.requests.to_string(),
        summary.duration.to_string(),
        summary.completed.to_string(),
        summary.failed.to_string(),
        summary.cancelled.to_string(),
        summary.total_input_tokens.to_string(),
        summary.total_output_tokens.to_string(),
        summary.request_throughput.to_string(),
        summary
            .request_goodput
            .map_or_else(String::new, |goodput| goodput.to_string()),
        summary.output_throughput.to_string(),
        summary.total_token_throughput.to_string(),
    ];
    for latency in LATENCIES {
        let sample = latency.of(summary);
        row.extend([sample.mean(), sample.std()].map(|value| value.to_string()));
        row.extend(PERCENTILES.map(|percent| sample.percentile(percent).to_string()));
    }
    row.push(if step.judged.is_empty() {
        String::new()
    } else {
        step.holds().to_string()
    });
    row
}
