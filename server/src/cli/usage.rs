//! `rempart usage`: what was used, by whom.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Days, NaiveDate};
use clap::Subcommand;
use rempart_governance::now_s;

use super::govern::with_store;
use crate::config::{DatabaseArgs, currency};
use crate::report::{By, Report};

const DAY_S: i64 = 86_400;
/// Unless other days are asked for: as many up to today.
const DAYS: u64 = 30;
/// Days of one report: two years.
const DAYS_MAX: i64 = 731;

/// What was used.
#[derive(Debug, Subcommand)]
pub enum UsageCommand {
    /// Sum up tokens, requests and costs of some days
    Report {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The first day, of UTC, as YYYY-MM-DD [default: 30 days up to the last one]
        #[arg(long)]
        from: Option<NaiveDate>,
        /// The last day [default: today]
        #[arg(long)]
        to: Option<NaiveDate>,
        /// What rows are divided by; give it again, or several parted by commas
        #[arg(long, value_enum, value_delimiter = ',', default_value = "project")]
        by: Vec<By>,
        /// How it is told
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        /// The currency of the server's prices
        #[arg(long, env = "REMPART_CURRENCY", default_value = "eur", value_parser = currency)]
        currency: String,
        /// Where to write it [default: standard output]
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Format {
    Table,
    Csv,
    /// A page with pictures, in one file
    Html,
}

pub(super) fn usage(command: UsageCommand) -> anyhow::Result<()> {
    let UsageCommand::Report {
        database,
        from,
        to,
        mut by,
        format,
        currency,
        output,
    } = command;
    let today = DateTime::from_timestamp(now_s(), 0)
        .context("the clock is wrong")?
        .date_naive();
    let to = to.unwrap_or(today);
    let from = from.unwrap_or(to - Days::new(DAYS - 1));
    let days = (to - from).num_days() + 1;
    ensure!(
        (1..=DAYS_MAX).contains(&days),
        "a report has 1 to {DAYS_MAX} days, and --from is not after --to"
    );
    by.dedup();
    with_store(&database, async |store| {
        let start = from
            .and_hms_opt(0, 0, 0)
            .context("a day begins")?
            .and_utc()
            .timestamp();
        let sums = store.usage(start, start + days * DAY_S, DAY_S).await?;
        let report = Report::new((from, to), by, &currency, &sums, &store.projects().await?);
        let text = match format {
            Format::Table => report.table(),
            Format::Csv => report.csv()?,
            Format::Html => report.page()?,
        };
        match output {
            Some(path) => std::fs::write(&path, text).with_context(|| format!("writing {}", path.display())),
            None => Ok(std::io::stdout().lock().write_all(text.as_bytes())?),
        }
    })
}
