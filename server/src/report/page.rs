//! The report as a page.

use anyhow::Context as _;
use minijinja::{Environment, context};
use rempart_governance::UsageTotal;

use super::{Report, chart};

const TEMPLATE: &str = include_str!("page.html");

pub(super) fn render(report: &Report) -> anyhow::Result<String> {
    let tokens = |total: &UsageTotal| total.input.saturating_add(total.output) as f64;
    let cost = |total: &UsageTotal| total.cost_nano as f64 / 1e9;
    let mut charts = vec![chart::stacked(report, "Tokens a day, by project", tokens)?];
    if let Some(currency) = report.currency.as_ref().filter(|_| report.total.cost_nano > 0) {
        let title = format!("{currency} a day, by project");
        charts.push(chart::stacked(report, &title, cost)?);
    }
    let mut environment = Environment::new();
    // The name ends in `.html`: whatever is put in is escaped, but for the pictures, which escape what they show.
    environment.add_template("page.html", TEMPLATE)?;
    let mut lines = report.lines();
    let total = lines.pop();
    let page = environment.get_template("page.html")?.render(context! {
        from => report.days.0.to_string(),
        to => report.days.1.to_string(),
        costs => report.costs(),
        header => report.header(),
        labels => report.by.len(),
        lines,
        total,
        charts,
        version => env!("CARGO_PKG_VERSION"),
    });
    page.context("drawing the page")
}
