//! A report of what was used: as a table, as CSV, and as a page with pictures.

mod chart;
mod page;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, NaiveDate};
use rempart_governance::{Project, UsageSum, UsageTotal};

/// What rows of a report are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    Day,
    Project,
    Key,
    /// Whose key it was: the identifier of a person or a service account
    Owner,
    Model,
    Endpoint,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Project => "project",
            Self::Key => "key",
            Self::Owner => "owner",
            Self::Model => "model",
            Self::Endpoint => "endpoint",
        }
    }
}

/// Sums of a span of days.
pub struct Report {
    /// The first and the last day, of UTC.
    pub days: (NaiveDate, NaiveDate),
    /// In upper case; `None` where no prices were ever set.
    pub currency: Option<String>,
    by: Vec<By>,
    rows: BTreeMap<Vec<String>, UsageTotal>,
    total: UsageTotal,
    /// By project and day.
    daily: BTreeMap<String, BTreeMap<NaiveDate, UsageTotal>>,
}

/// What a report says where a key has no owner.
const NOBODY: &str = "none";
/// And where the rows that told the key are deleted.
const DELETED: &str = "deleted";
/// What a row says behind what it is of.
const NUMBERS: [&str; 6] = ["requests", "refused", "input", "cached", "output", "cost"];

impl Report {
    /// Of sums that each lie within a day.
    pub fn new(
        days: (NaiveDate, NaiveDate),
        by: Vec<By>,
        currency: Option<&str>,
        sums: &[UsageSum],
        (projects, owners): (&[Project], &BTreeMap<String, String>),
    ) -> Self {
        let names: BTreeMap<&str, &str> = projects
            .iter()
            .map(|project| (project.id.as_str(), project.name.as_str()))
            .collect();
        let mut report = Self {
            days,
            currency: currency.map(str::to_uppercase),
            by,
            rows: BTreeMap::new(),
            total: UsageTotal::default(),
            daily: BTreeMap::new(),
        };
        for sum in sums {
            let Some(day) = DateTime::from_timestamp(sum.start, 0).map(|time| time.date_naive()) else {
                continue;
            };
            let project = *names.get(sum.project.as_str()).unwrap_or(&sum.project.as_str());
            let of = |by: &By| match by {
                By::Day => day.to_string(),
                By::Project => project.to_owned(),
                // Sums outlive the rows that tell whose they were.
                By::Key | By::Owner if sum.key.is_empty() => DELETED.to_owned(),
                By::Key => sum.key.clone(),
                By::Owner => owners.get(&sum.key).cloned().unwrap_or_else(|| NOBODY.to_owned()),
                By::Model => sum.model.clone(),
                By::Endpoint => sum.endpoint.clone(),
            };
            let row = report.rows.entry(report.by.iter().map(of).collect()).or_default();
            row.add(sum.total);
            report.total.add(sum.total);
            let of_day = report
                .daily
                .entry(project.to_owned())
                .or_default()
                .entry(day)
                .or_default();
            of_day.add(sum.total);
        }
        report
    }

    /// What costs are told in.
    fn costs(&self) -> String {
        self.currency.as_ref().map_or_else(
            || "no prices were set".to_owned(),
            |currency| format!("costs in {currency}"),
        )
    }

    fn header(&self) -> Vec<&'static str> {
        self.by.iter().map(|by| by.name()).chain(NUMBERS).collect()
    }

    /// Every row as texts, the sum of all of them last.
    fn lines(&self) -> Vec<Vec<String>> {
        let mut lines: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|(of, total)| line(of.clone(), *total))
            .collect();
        let mut of = vec![String::new(); self.by.len()];
        if let Some(first) = of.first_mut() {
            "all".clone_into(first);
        }
        lines.push(line(of, self.total));
        lines
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let header: Vec<String> = self.header().into_iter().map(str::to_owned).collect();
        let lines: Vec<Vec<String>> = std::iter::once(header).chain(self.lines()).collect();
        let widths: Vec<usize> = (0..lines[0].len())
            .map(|at| {
                lines
                    .iter()
                    .map(|line| line[at].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = format!("{} to {} (UTC), {}\n", self.days.0, self.days.1, self.costs());
        for line in lines {
            for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let padded = if at < self.by.len() {
                    format!("{cell:width$}")
                } else {
                    format!("{cell:>width$}")
                };
                // Writing to a text can't fail.
                let _ = write!(text, "{}{padded}", if at == 0 { "" } else { "  " });
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }

    /// For other programs. The rows are summed nowhere, so that they can be summed there.
    ///
    /// # Errors
    /// Where a row can't be written, which memory does not cause.
    pub fn csv(&self) -> anyhow::Result<String> {
        let currency = self.currency.clone().unwrap_or_default();
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(self.header().into_iter().chain(["currency"]))?;
        for (of, total) in &self.rows {
            let of: Vec<String> = of.iter().map(|text| no_formula(text)).collect();
            writer.write_record(line(of, *total).iter().chain([&currency]))?;
        }
        Ok(String::from_utf8(writer.into_inner()?)?)
    }

    /// For people: one file, which fetches nothing.
    ///
    /// # Errors
    /// Where the page or a picture can't be drawn.
    pub fn page(&self) -> anyhow::Result<String> {
        page::render(self)
    }
}

fn line(of: Vec<String>, total: UsageTotal) -> Vec<String> {
    let counts = [
        total.requests,
        total.refused,
        total.input,
        total.cached,
        total.output,
    ];
    let counts = counts.map(|count| count.to_string());
    of.into_iter()
        .chain(counts)
        .chain([cost(total.cost_nano)])
        .collect()
}

/// In the currency, with the six decimals that small requests need.
fn cost(nano: i64) -> String {
    let micro = (i128::from(nano) + 500).div_euclid(1_000);
    format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000)
}

/// Spreadsheets would compute what begins like this.
fn no_formula(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']) {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn report(by: Vec<By>) -> Report {
        let project = |id: &str, name: &str| Project {
            id: id.to_owned(),
            name: name.to_owned(),
            created: 0,
            archived: None,
            models: Vec::new(),
            weight: 1,
        };
        let sum = |start: &str, project: &str, output: i64| UsageSum {
            start: day(start).and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp(),
            project: project.to_owned(),
            key: "abcdefgh".to_owned(),
            model: "m".to_owned(),
            endpoint: "/v1/chat/completions".to_owned(),
            total: UsageTotal {
                requests: 1,
                refused: 2,
                input: 10,
                cached: 4,
                output,
                cost_nano: 1_234_567 * output,
            },
        };
        let sums = [
            sum("2026-11-24", "proj_a", 1),
            sum("2026-11-25", "proj_a", 20),
            sum("2026-11-25", "proj_b", 300),
            sum("2026-11-25", "proj_gone", 4_000),
        ];
        let projects = [project("proj_a", "sales"), project("proj_b", "=<b>&\",")];
        Report::new(
            (day("2026-11-24"), day("2026-11-26")),
            by,
            Some("eur"),
            &sums,
            (&projects, &BTreeMap::new()),
        )
    }

    #[test]
    fn whose_a_key_is_is_told_where_it_is_known() {
        let owners = BTreeMap::from([("aaaaaaaa".to_owned(), "user_1".to_owned())]);
        let sums: Vec<UsageSum> = ["aaaaaaaa", "bbbbbbbb", ""]
            .into_iter()
            .map(|key| UsageSum {
                start: 0,
                project: "proj_a".to_owned(),
                key: key.to_owned(),
                model: "m".to_owned(),
                endpoint: "/v1/embeddings".to_owned(),
                total: UsageTotal {
                    requests: 1,
                    ..UsageTotal::default()
                },
            })
            .collect();
        let days = (day("1970-01-01"), day("1970-01-01"));
        let report = Report::new(days, vec![By::Owner, By::Key], None, &sums, (&[], &owners));
        let csv = report.csv().unwrap();
        let of: Vec<&str> = csv.lines().filter_map(|line| line.split(",1,").next()).collect();
        assert_eq!(
            of[1..4],
            ["deleted,deleted", "none,bbbbbbbb", "user_1,aaaaaaaa"],
            "{csv}"
        );
    }

    #[test]
    fn a_table_adds_up() {
        insta::assert_snapshot!(report(vec![By::Project]).table(), @r#"
        2026-11-24 to 2026-11-26 (UTC), costs in EUR
        project    requests  refused  input  cached  output      cost
        =<b>&",           1        2     10       4     300  0.370370
        proj_gone         1        2     10       4    4000  4.938268
        sales             2        4     20       8      21  0.025926
        all               4        8     40      16    4321  5.334564
        "#);
        insta::assert_snapshot!(report(vec![By::Day, By::Model]).table(), @"
        2026-11-24 to 2026-11-26 (UTC), costs in EUR
        day         model  requests  refused  input  cached  output      cost
        2026-11-24  m             1        2     10       4       1  0.001235
        2026-11-25  m             3        6     30      12    4320  5.333329
        all                       4        8     40      16    4321  5.334564
        ");
    }

    #[test]
    fn no_cell_of_a_csv_is_computed() {
        insta::assert_snapshot!(report(vec![By::Project, By::Day]).csv().unwrap(), @r#"
        project,day,requests,refused,input,cached,output,cost,currency
        "'=<b>&"",",2026-11-25,1,2,10,4,300,0.370370,EUR
        proj_gone,2026-11-25,1,2,10,4,4000,4.938268,EUR
        sales,2026-11-24,1,2,10,4,1,0.001235,EUR
        sales,2026-11-25,1,2,10,4,20,0.024691,EUR
        "#);
    }

    #[test]
    fn a_page_shows_names_as_they_are() {
        let page = report(vec![By::Project]).page().unwrap();
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"), "{page}");
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(
            !page.contains("http://")
                || page.matches("http://").count() == page.matches("http://www.w3.org").count()
        );
        assert!(!page.contains("https://") && !page.contains("<script"));
    }

    #[test]
    fn costs_are_rounded_to_millionths() {
        assert_eq!(cost(0), "0.000000");
        assert_eq!(cost(1_499), "0.000001");
        assert_eq!(cost(1_500), "0.000002");
        assert_eq!(cost(i64::MAX), "9223372036.854776");
    }
}
