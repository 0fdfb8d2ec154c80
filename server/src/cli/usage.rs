//! `rempart usage`: what was used, by whom.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Days, NaiveDate};
use clap::Subcommand;
use rempart_governance::{DAY_S, now_s};

use super::govern::with_store;
use crate::config::DatabaseArgs;
use crate::report::{By, Report};

/// Unless other days are asked for: as many up to today.
const DAYS: u64 = 30;
/// Days of one report: two years.
const DAYS_MAX: i64 = 731;
/// What a report is made of at most.
const SUMS_MAX: usize = 5_000_000;

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
        by,
        format,
        output,
    } = command;
    let today = DateTime::from_timestamp(now_s(), 0)
        .context("the clock is wrong")?
        .date_naive();
    let to = to.unwrap_or(today);
    let from = from
        .or(to.checked_sub_days(Days::new(DAYS - 1)))
        .context("--to is before all days")?;
    let days = (to - from).num_days() + 1;
    ensure!(
        (1..=DAYS_MAX).contains(&days),
        "a report has 1 to {DAYS_MAX} days, and --from is not after --to"
    );
    ensure!(
        by.iter().enumerate().all(|(at, one)| !by[..at].contains(one)),
        "--by names the same thing twice"
    );
    with_store(&database, async |store| {
        let start = from
            .and_hms_opt(0, 0, 0)
            .context("a day begins")?
            .and_utc()
            .timestamp();
        let sums = store.usage(start, start + days * DAY_S, DAY_S, SUMS_MAX).await?;
        let (currency, projects, owners) = (
            store.currency().await?,
            store.projects().await?,
            store.owners().await?,
        );
        let report = Report::new((from, to), by, currency.as_deref(), &sums, (&projects, &owners));
        let text = match format {
            Format::Table => report.table(),
            Format::Csv => report.csv()?,
            Format::Html => report.page()?,
        };
        match output {
            Some(path) => write(&path, &text).with_context(|| format!("writing {}", path.display())),
            None => Ok(std::io::stdout().lock().write_all(text.as_bytes())?),
        }
    })
}

/// Who uses what is for the eyes of whoever asked.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}
