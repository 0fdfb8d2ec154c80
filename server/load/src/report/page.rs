//! A run as one page that fetches nothing.

use anyhow::Context as _;
use minijinja::{Environment, context};
use serde_json::Value;

use super::{Report, chart, table};

const TEMPLATE: &str = include_str!("page.html");

/// # Errors
/// Where a chart or the page can't be drawn.
pub(crate) fn page(report: &Report<'_>) -> anyhow::Result<String> {
    let measured = report.measured;
    let mut environment = Environment::new();
    // The name ends in `.html`: whatever is put in is escaped, but for the charts, which escape what they show.
    environment.add_template("page.html", TEMPLATE)?;
    let judged: Vec<_> = measured
        .steps
        .iter()
        .flat_map(|step| step.judged.iter().map(|one| (step.level.name(), one)))
        .map(|(step, one)| {
            let value = one
                .measured
                .map_or_else(|| "nothing".to_owned(), |value| format!("{value:.2}"));
            context! { step, name => &one.name, bound => &one.bound, value, holds => one.holds }
        })
        .collect();
    let compared: Vec<_> = measured
        .steps
        .iter()
        .zip(report.compared)
        .flat_map(|(step, compared)| compared.iter().map(|one| (step.level.name(), one)))
        .map(|(step, one)| context! { step, said => table::against(one), regression => one.regression })
        .collect();
    let page = environment.get_template("page.html")?.render(context! {
        title => report.args.results.label.clone().unwrap_or_else(|| measured.server.model.clone()),
        facts => facts(report),
        lines => measured.steps.iter().map(table::line).collect::<Vec<_>>(),
        charts => chart::all(report)?,
        judged,
        compared,
        baseline => report.baseline.map(super::Baseline::name),
        knee => measured.knee.map(|knee| knee.clients),
        found => measured.found.map(|found| found.0.map_or_else(|| "none".to_owned(), |rate| format!("{rate:.3}"))),
        version => env!("CARGO_PKG_VERSION"),
    });
    page.context("drawing the page")
}

/// What was measured where, as names and values.
fn facts(report: &Report<'_>) -> Vec<(String, String)> {
    let (about, server) = (&report.about, &report.measured.server);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut facts = vec![
        ("model".to_owned(), server.model.clone()),
        (
            "server".to_owned(),
            format!("{} {}", about.target, server.software.clone().unwrap_or_default()),
        ),
        ("load made by".to_owned(), machine(report)),
        ("seed".to_owned(), about.seed.to_string()),
    ];
    let version = server.version.iter();
    facts.extend(version.map(|(name, value)| (format!("server: {name}"), text(value))));
    if let Some(first) = report.measured.steps.first() {
        facts.push(("started".to_owned(), first.started.to_rfc3339()));
    }
    let listed = server
        .listed
        .iter()
        .filter(|(name, _)| *name != "id" && *name != "object");
    facts.extend(listed.map(|(name, value)| (format!("model: {name}"), text(value))));
    facts.extend(
        about
            .workload
            .iter()
            .map(|(name, value)| (name.clone(), text(value))),
    );
    facts.extend(report.args.results.metadata.iter().cloned());
    facts
}

fn machine(report: &Report<'_>) -> String {
    let machine = &report.about.machine;
    let processor = machine.processor.clone().unwrap_or_default();
    let cores = machine
        .cores
        .map_or_else(String::new, |cores| format!(", {cores} cores"));
    let memory = machine
        .memory_bytes
        .map_or_else(String::new, |bytes| format!(", {} GiB", bytes >> 30));
    format!("{processor}{cores}{memory}, {}", machine.system)
}
