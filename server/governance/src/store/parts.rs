//! What a batch of usage is written as: statements, each by itself or some of them together.

use std::fmt::Write as _;
use std::sync::LazyLock;

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, Transaction};

use super::content::CONTENT;
use super::usage::Of;
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

/// One statement of a batch.
pub(super) enum Part<'a> {
    Batch(&'a UsageBatch),
    /// With its number.
    Row(i64, &'a UsageEvent),
    Sum(Of<'a>, UsageTotal),
    Content(&'a Content),
}

type Asked<'q> = Query<'q, Any, AnyArguments>;

impl Part<'_> {
    /// Adds its words, whose values are numbered from this on; the number behind them.
    fn put(&self, words: &mut String, from: usize) -> usize {
        let (table, columns, end) = match self {
            Self::Batch(_) => ("usage_batch", BATCH, ""),
            Self::Row(..) => ("usage_event", ROW, ""),
            Self::Sum(..) => ("usage_bucket", SUM, ADDED),
            Self::Content(_) => ("content", CONTENT, ""),
        };
        let next = from + columns.len();
        let marks: Vec<String> = (from..next).map(|at| format!("${at}")).collect();
        // What is written into memory can't fail.
        let _ = write!(
            words,
            "INSERT INTO {table} ({}) VALUES ({}){end}",
            columns.join(", "),
            marks.join(", ")
        );
        next
    }

    /// Adds its values.
    fn bind<'q>(&self, asked: Asked<'q>) -> Asked<'q> {
        match self {
            Self::Batch(batch) => asked
                .bind(batch.seq)
                .bind(batch.at_ms)
                .bind(batch.first)
                .bind(batch.last)
                .bind(batch.digest.clone())
                .bind(batch.previous.clone())
                .bind(batch.hash.clone()),
            Self::Row(seq, row) => asked
                .bind(*seq)
                .bind(row.id.clone())
                .bind(row.began_ms)
                .bind(row.project.clone())
                .bind(row.key.clone())
                .bind(row.model.clone())
                .bind(row.endpoint.clone())
                .bind(row.input)
                .bind(row.cached)
                .bind(row.output)
                .bind(row.first_ms)
                .bind(row.duration_ms)
                .bind(row.status)
                .bind(row.outcome.clone())
                .bind(row.cost_nano)
                .bind(row.content.clone()),
            Self::Sum((hour, project, key, model, endpoint), sum) => asked
                .bind(*hour)
                .bind((*project).to_owned())
                .bind((*key).to_owned())
                .bind((*model).to_owned())
                .bind((*endpoint).to_owned())
                .bind(sum.requests)
                .bind(sum.refused)
                .bind(sum.input)
                .bind(sum.cached)
                .bind(sum.output)
                .bind(sum.cost_nano),
            Self::Content(record) => asked
                .bind(record.request.clone())
                .bind(record.project.clone())
                .bind(record.key.clone())
                .bind(record.began_ms)
                .bind(record.due_ms)
                .bind(record.announced)
                .bind(record.fingerprint.clone())
                .bind(record.sealed.reader.clone())
                .bind(record.sealed.asked.clone())
                .bind(record.sealed.answered.clone())
                .bind(record.sealed.bytes()),
        }
    }
}

/// Adds the words and values of parts that go together.
fn together<'q>(parts: &[Part<'_>], begin: &str, end: &str) -> Asked<'q> {
    let (mut words, mut next) = (begin.to_owned(), 1);
    for part in parts {
        next = part.put(&mut words, next);
        words.push(';');
    }
    words.push_str(end);
    let asked = sqlx::query(sqlx::AssertSqlSafe(words));
    parts.iter().fold(asked, |asked, part| part.bind(asked))
}

/// What a connection to a file is told, so that a batch of one row is one statement: a view without rows, whose columns are those of
/// the three tables, and what an insertion into it does. It is the connection's own, and so no part of the file.
pub(super) fn one_row_view() -> String {
    let columns = one_row_columns();
    let nothing = vec!["NULL"; columns.len()].join(", ");
    let mut words = format!(
        "; PRAGMA temp_store = MEMORY; CREATE TEMP VIEW one_row ({}) AS SELECT {nothing} WHERE FALSE; \
         CREATE TEMP TRIGGER one_row_written INSTEAD OF INSERT ON one_row BEGIN ",
        columns.join(", ")
    );
    for (table, of_table, end) in ONE_ROW {
        let values: Vec<String> = of_table
            .iter()
            .map(|column| format!("NEW.{table}_{column}"))
            .collect();
        let (names, values) = (of_table.join(", "), values.join(", "));
        // What is written into memory can't fail.
        let _ = write!(words, "INSERT INTO {table} ({names}) VALUES ({values}){end}; ");
    }
    words + "END"
}

/// The tables of a batch of one row.
const ONE_ROW: [(&str, &[&str], &str); 3] = [
    ("usage_batch", BATCH, ""),
    ("usage_event", ROW, ""),
    ("usage_bucket", SUM, ADDED),
];

static ONE_ROW_WRITTEN: LazyLock<String> = LazyLock::new(|| {
    let marks: Vec<String> = (1..=one_row_columns().len()).map(|at| format!("${at}")).collect();
    format!("INSERT INTO one_row VALUES ({})", marks.join(", "))
});

fn one_row_columns() -> Vec<String> {
    let of = |(table, columns, _): &(&str, &[&str], &str)| {
        let named: Vec<String> = columns.iter().map(|column| format!("{table}_{column}")).collect();
        named
    };
    ONE_ROW.iter().flat_map(of).collect()
}

/// Writes few parts to a file as a change of their own, with its begin and its end in one go, or as one statement where it is one
/// row: each statement wakes whoever waits for it. Whether it did, or the parts are too many. The connection is one for usage.
///
/// # Errors
/// What the database says; then none of it is written, unless the connection is lost.
pub(super) async fn put_at_once(
    connection: &mut AnyConnection,
    database: &Database,
    parts: &[Part<'_>],
) -> Result<bool, Error> {
    if !matches!(database, Database::File(_)) || parts.len() > TOGETHER_MAX {
        return Ok(false);
    }
    if let [Part::Batch(_), Part::Row(..), Part::Sum(..)] = parts {
        let asked = sqlx::query(ONE_ROW_WRITTEN.as_str());
        let asked = parts.iter().fold(asked, |asked, part| part.bind(asked));
        asked.execute(&mut *connection).await?;
        return Ok(true);
    }
    let begin = format!("{};", database.begin());
    let written = together(parts, &begin, "COMMIT").execute(&mut *connection).await;
    if let Err(error) = written {
        // The driver knows of no change that it could take back. Where none has begun, this fails.
        let _ = sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await;
        return Err(error.into());
    }
    Ok(true)
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
        together(some, "", "").execute(&mut **change).await?;
    }
    Ok(())
}
