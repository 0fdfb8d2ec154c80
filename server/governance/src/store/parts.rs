//! What a batch of usage is written as: statements, each by itself or some of them together.

use std::sync::LazyLock;

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, Transaction};

use super::content::CONTENT;
use super::usage_writer::Of;
use super::{Database, Error};
use crate::content::Content;
use crate::usage::{UsageBatch, UsageEvent, UsageTotal};

/// Parts that go to a file together: its driver has a thread of its own, and to wake it costs more than a row. (Of more of them the
/// text would be long, and new for every number of rows; a server takes one statement at a time.)
const TOGETHER_MAX: usize = 8;

/// Columns of the tables of usage, as they are written and copied.
pub(super) const BATCH: &[&str] = &[
    "seq",
    "at_ms",
    "first_row",
    "last_row",
    "digest",
    "previous",
    "hash",
];
pub(super) const ROW: &[&str] = &[
    "seq",
    "id",
    "began_ms",
    "project",
    "api_key",
    "model",
    "endpoint",
    "input",
    "cached",
    "output",
    "first_ms",
    "duration_ms",
    "status",
    "outcome",
    "cost_nano",
    "content",
];
pub(super) const SUM: &[&str] = &[
    "hour",
    "project",
    "api_key",
    "model",
    "endpoint",
    "requests",
    "refused",
    "input",
    "cached",
    "output",
    "cost_nano",
];
/// What a sum that is there already is added to.
const ADDED: &str = " ON CONFLICT (hour, project, api_key, model, endpoint) DO UPDATE SET \
     requests = usage_bucket.requests + excluded.requests, refused = usage_bucket.refused + excluded.refused, \
     input = usage_bucket.input + excluded.input, cached = usage_bucket.cached + excluded.cached, \
     output = usage_bucket.output + excluded.output, cost_nano = usage_bucket.cost_nano + excluded.cost_nano";

/// A table that parts go to.
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
    /// What stands behind the values.
    end: &'static str,
    /// The insertion of one row.
    alone: LazyLock<String>,
}

static BATCHES: Table = Table {
    name: "usage_batch",
    columns: BATCH,
    end: "",
    alone: LazyLock::new(|| BATCHES.insertion(1)),
};
static ROWS: Table = Table {
    name: "usage_event",
    columns: ROW,
    end: "",
    alone: LazyLock::new(|| ROWS.insertion(1)),
};
/// Rows that wait for a batch, and get their number there.
static UNCHAINED: Table = Table {
    name: "usage_unchained",
    columns: ROW.split_at(1).1,
    end: "",
    alone: LazyLock::new(|| UNCHAINED.insertion(1)),
};
static SUMS: Table = Table {
    name: "usage_bucket",
    columns: SUM,
    end: ADDED,
    alone: LazyLock::new(|| SUMS.insertion(1)),
};
static RECORDS: Table = Table {
    name: "content",
    columns: CONTENT,
    end: "",
    alone: LazyLock::new(|| RECORDS.insertion(1)),
};

impl Table {
    /// An insertion whose values are numbered from this on.
    fn insertion(&self, from: usize) -> String {
        let marks: Vec<String> = (from..from + self.columns.len())
            .map(|at| format!("${at}"))
            .collect();
        let (columns, marks) = (self.columns.join(", "), marks.join(", "));
        format!(
            "INSERT INTO {} ({columns}) VALUES ({marks}){}",
            self.name, self.end
        )
    }
}

/// One statement of a batch.
pub(super) enum Part<'a> {
    Batch(&'a UsageBatch),
    /// With its number.
    Row(i64, &'a UsageEvent),
    Unchained(&'a UsageEvent),
    Sum(Of<'a>, UsageTotal),
    Content(&'a Content),
}

/// A value of a part, as both drivers take it.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Number(i64),
    Known(Option<i64>),
    Text(&'a str),
}

type Asked<'q> = Query<'q, Any, AnyArguments>;

impl<'a> Part<'a> {
    fn table(&self) -> &'static Table {
        match self {
            Self::Batch(_) => &BATCHES,
            Self::Row(..) => &ROWS,
            Self::Unchained(_) => &UNCHAINED,
            Self::Sum(..) => &SUMS,
            Self::Content(_) => &RECORDS,
        }
    }

    /// Its statement, where it goes alone.
    pub(super) fn words(&self) -> &'static str {
        &self.table().alone
    }

    /// The values of its columns, in their order.
    pub(super) fn values(&self) -> Vec<Value<'a>> {
        use Value::{Number, Text};
        match *self {
            Self::Batch(batch) => vec![
                Number(batch.seq),
                Number(batch.at_ms),
                Number(batch.first),
                Number(batch.last),
                Text(&batch.digest),
                Text(&batch.previous),
                Text(&batch.hash),
            ],
            Self::Row(seq, row) => std::iter::once(Number(seq)).chain(values_of(row)).collect(),
            Self::Unchained(row) => values_of(row),
            Self::Sum((hour, project, key, model, endpoint), ref sum) => vec![
                Number(hour),
                Text(project),
                Text(key),
                Text(model),
                Text(endpoint),
                Number(sum.requests),
                Number(sum.refused),
                Number(sum.input),
                Number(sum.cached),
                Number(sum.output),
                Number(sum.cost_nano),
            ],
            Self::Content(record) => vec![
                Text(&record.request),
                Text(&record.project),
                Text(&record.key),
                Number(record.began_ms),
                Number(record.due_ms),
                Number(record.announced),
                Text(&record.fingerprint),
                Text(&record.sealed.reader),
                Text(&record.sealed.asked),
                Text(&record.sealed.answered),
                Number(record.sealed.bytes()),
            ],
        }
    }
}

/// The values of a row that has no number.
fn values_of(row: &UsageEvent) -> Vec<Value<'_>> {
    use Value::{Known, Number, Text};
    vec![
        Text(&row.id),
        Number(row.began_ms),
        Text(&row.project),
        Text(&row.key),
        Text(&row.model),
        Text(&row.endpoint),
        Number(row.input),
        Number(row.cached),
        Number(row.output),
        Known(row.first_ms),
        Number(row.duration_ms),
        Number(row.status),
        Text(&row.outcome),
        Number(row.cost_nano),
        Text(&row.content),
    ]
}

/// Parts as one query.
fn together<'q>(parts: &[Part<'_>]) -> Asked<'q> {
    let (mut words, mut from) = (Vec::new(), 1);
    for part in parts {
        words.push(part.table().insertion(from));
        from += part.table().columns.len();
    }
    let asked = sqlx::query(sqlx::AssertSqlSafe(words.join(";")));
    parts
        .iter()
        .flat_map(Part::values)
        .fold(asked, |asked, value| match value {
            Value::Number(number) => asked.bind(number),
            Value::Known(number) => asked.bind(number),
            Value::Text(text) => asked.bind(text.to_owned()),
        })
}

/// Writes parts, in their order.
pub(super) async fn put(
    change: &mut Transaction<'_, Any>,
    database: &Database,
    parts: &[Part<'_>],
) -> Result<(), Error> {
    let at_once = match database {
        Database::File(_) if parts.len() <= TOGETHER_MAX => parts.len(),
        Database::File(_) | Database::Server(_) => 1,
    };
    for some in parts.chunks(at_once.max(1)) {
        together(some).execute(&mut **change).await?;
    }
    Ok(())
}
