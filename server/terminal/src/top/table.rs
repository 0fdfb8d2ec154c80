//! Rows of text for the two tables, models and projects, in the order that is asked for.

use super::interval::{Figures, Interval};
use super::usage::{Usage, Used};

/// A column: its heading, how wide it is at least, and whether a narrow terminal goes without it (the higher, the sooner).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub heading: &'static str,
    pub width: u16,
    pub spare: u8,
}

const fn column(heading: &'static str, width: u16, spare: u8) -> Column {
    Column {
        heading,
        width,
        spare,
    }
}

pub(crate) const MODEL_COLUMNS: &[Column] = &[
    column("MODEL", 16, 0),
    column("RUN", 4, 0),
    column("QUEUE", 5, 0),
    column("REQ/S", 6, 3),
    column("IN TOK/S", 8, 4),
    column("OUT TOK/S", 9, 0),
    column("TTFT p50", 8, 2),
    column("TTFT p95", 8, 1),
    column("ITL p50", 8, 2),
    column("ITL p95", 8, 1),
    column("KV", 4, 1),
    column("CACHED", 6, 5),
];

pub(crate) const PROJECT_COLUMNS: &[Column] = &[
    column("PROJECT", 16, 0),
    column("REQUESTS", 8, 0),
    column("REQ/S", 6, 2),
    column("IN TOK", 9, 0),
    column("OUT TOK", 9, 0),
    column("OUT TOK/S", 9, 1),
    column("CACHED", 6, 3),
];

/// What is shown where there is nothing to tell.
const NOTHING: &str = "-";

/// One line of a table, with what each of its cells is sorted by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub name: String,
    /// Behind the name; `None` sorts below every number.
    pub cells: Vec<(String, Option<f64>)>,
}

/// What a table is sorted by: a column, 0 being the name, and in which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub column: usize,
    pub ascending: bool,
}

pub(crate) fn models(interval: &Interval) -> Vec<Row> {
    interval
        .models
        .iter()
        .map(|(name, figures)| Row {
            name: name.clone(),
            cells: model_cells(figures),
        })
        .collect()
}

fn model_cells(figures: &Figures) -> Vec<(String, Option<f64>)> {
    let time = |seconds: Option<f64>| (seconds.map_or(NOTHING.to_owned(), latency), seconds);
    let share = |share: Option<f64>| (share.map_or(NOTHING.to_owned(), percent), share);
    let number = |value: f64, text: String| (text, Some(value));
    vec![
        number(figures.running, format!("{:.0}", figures.running)),
        number(figures.waiting, format!("{:.0}", figures.waiting)),
        number(figures.requests, rate(figures.requests)),
        number(figures.prompt_tokens, rate(figures.prompt_tokens)),
        number(figures.generated_tokens, rate(figures.generated_tokens)),
        time(figures.ttft.quantile(0.5)),
        time(figures.ttft.quantile(0.95)),
        time(figures.itl.quantile(0.5)),
        time(figures.itl.quantile(0.95)),
        share(figures.kv),
        share(figures.cached),
    ]
}

pub(crate) fn projects(usage: &Usage) -> Vec<Row> {
    let cells = |used: &Used| {
        let per_second = |count: f64| count / usage.seconds.max(1.0);
        let cached = (used.input_tokens > 0.0).then(|| used.cached_tokens / used.input_tokens);
        vec![
            (count(used.requests), Some(used.requests)),
            (rate(per_second(used.requests)), Some(used.requests)),
            (count(used.input_tokens), Some(used.input_tokens)),
            (count(used.output_tokens), Some(used.output_tokens)),
            (rate(per_second(used.output_tokens)), Some(used.output_tokens)),
            (cached.map_or(NOTHING.to_owned(), percent), cached),
        ]
    };
    usage
        .projects
        .iter()
        .map(|(name, used)| Row {
            name: name.clone(),
            cells: cells(used),
        })
        .collect()
}

/// Sorts; rows that are alike stay in the order of their names.
pub(crate) fn sort(rows: &mut [Row], order: Order) {
    rows.sort_by(|one, other| {
        let by_column = match order.column.checked_sub(1) {
            None => one.name.cmp(&other.name),
            Some(at) => {
                let value = |row: &Row| row.cells.get(at).and_then(|cell| cell.1).unwrap_or(-1.0);
                value(one).total_cmp(&value(other))
            }
        };
        let by_column = if order.ascending {
            by_column
        } else {
            by_column.reverse()
        };
        by_column.then_with(|| one.name.cmp(&other.name))
    });
}

/// The columns, by their places, that fit into so many cells: those to spare go first, from the right.
pub(crate) fn fitting(columns: &[Column], width: u16) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..columns.len()).collect();
    loop {
        let wanted: u16 = kept.iter().map(|at| columns[*at].width + 1).sum();
        let Some(worst) = kept.iter().copied().max_by_key(|at| (columns[*at].spare, *at)) else {
            return kept;
        };
        if wanted <= width + 1 || columns[worst].spare == 0 {
            return kept;
        }
        kept.retain(|at| *at != worst);
    }
}

/// A rate a second: with a decimal below 100.
pub(crate) fn rate(value: f64) -> String {
    if value < 99.95 {
        format!("{value:.1}")
    } else {
        count(value)
    }
}

/// A count: whole below 100,000, then in thousands, millions, and so on.
pub(crate) fn count(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e5, "k")];
    for (least, unit) in units {
        if value >= least {
            let unit_is = if unit == "k" { 1e3 } else { least };
            return format!("{:.1}{unit}", value / unit_is);
        }
    }
    format!("{value:.0}")
}

/// Seconds as a latency: milliseconds below 10 s.
pub(crate) fn latency(seconds: f64) -> String {
    if seconds >= 9.9995 {
        format!("{seconds:.1}s")
    } else if seconds >= 0.0995 {
        format!("{:.0}ms", seconds * 1e3)
    } else {
        format!("{:.1}ms", seconds * 1e3)
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// The rows as lines, in columns that are as wide as they need.
pub(crate) fn text(columns: &[Column], rows: &[Row]) -> String {
    let mut lines: Vec<Vec<&str>> = vec![columns.iter().map(|column| column.heading).collect()];
    for row in rows {
        let cells = row.cells.iter().map(|cell| cell.0.as_str());
        lines.push(std::iter::once(row.name.as_str()).chain(cells).collect());
    }
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| {
            lines
                .iter()
                .map(|line| line[at].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(at, (cell, width))| {
            if at == 0 {
                format!("{cell:<width$}")
            } else {
                format!("  {cell:>width$}")
            }
        });
        text.push_str(cells.collect::<String>().trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let rates = [0.04, 9.96, 99.94, 99.96, 12345.6, 123_456.0, 1.5e6, 2e13].map(rate);
        assert_eq!(
            rates,
            ["0.0", "10.0", "99.9", "100", "12346", "123.5k", "1.5M", "20.0T"]
        );
        let latencies = [0.0004, 0.05, 0.5, 9.9, 12.34].map(latency);
        assert_eq!(latencies, ["0.4ms", "50.0ms", "500ms", "9900ms", "12.3s"]);
    }

    #[test]
    fn narrow_terminals_go_without_what_can_be_spared() {
        let headings = |width| {
            fitting(MODEL_COLUMNS, width)
                .into_iter()
                .map(|at| MODEL_COLUMNS[at].heading)
                .collect::<Vec<_>>()
        };
        assert_eq!(headings(200).len(), MODEL_COLUMNS.len());
        assert_eq!(headings(20), ["MODEL", "RUN", "QUEUE", "OUT TOK/S"]);
        for width in 40..200_u16 {
            let wanted: u16 = fitting(MODEL_COLUMNS, width)
                .iter()
                .map(|at| MODEL_COLUMNS[*at].width + 1)
                .sum();
            assert!(wanted <= width + 1, "{width}");
        }
    }

    #[test]
    fn rows_are_sorted_by_any_column() {
        let row = |name: &str, value: Option<f64>| Row {
            name: name.to_owned(),
            cells: vec![(String::new(), value)],
        };
        let mut rows = vec![
            row("b", Some(1.0)),
            row("a", Some(1.0)),
            row("c", None),
            row("d", Some(2.0)),
        ];
        let mut names = |column, ascending| {
            sort(&mut rows, Order { column, ascending });
            rows.iter().map(|row| row.name.clone()).collect::<String>()
        };
        assert_eq!(names(1, false), "dabc");
        assert_eq!(names(1, true), "cabd");
        assert_eq!(names(0, false), "dcba");
        assert_eq!(names(0, true), "abcd");
    }
}
