//! All of a database as lines of JSON, whichever kind it is of, and a database made of them.
//!
//! The first line says what it is. A table's line names it and its columns; its rows are arrays. The last line has the number of
//! rows and the SHA-256 of all lines before, so that a copy that was cut or changed is none.

use std::io::{BufRead, Write};

use futures::TryStreamExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction, TypeInfo as _, ValueRef as _};

use super::usage_writer::chain_all;
use super::{Error, Store, audit, now_ms, parts};
use crate::actor::Actor;
use crate::key::hex;

/// Which form of lines this is.
const VERSION: u64 = 1;
/// Rows of one statement.
const ROWS_AT_ONCE: usize = 50;
/// Bytes of a line: a row of the audit chain has one text that can be long.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// All tables but the migrations' own, those of leases, which last for seconds, and `content`, whose records would outlive their time
/// in copies: those first that others refer to, each with its columns and the ones it is ordered by. A column
/// that comes later has a default and stands behind the others: copies that were made before have the first ones.
const TABLES: &[(&str, &[&str], &str)] = &[
    ("project", &["id", "name", "created", "archived", "weight"], "id"),
    ("model_right", &["project", "model"], "project, model"),
    (
        "person",
        &["id", "mark", "sealed", "role", "created", "ended"],
        "id",
    ),
    ("subject", &["mark", "person", "sealed", "created"], "mark"),
    ("member", &["person", "project", "created"], "person, project"),
    (
        "service_account",
        &["id", "project", "name", "created", "ended"],
        "id",
    ),
    (
        "api_key",
        &[
            "id", "hash", "project", "role", "name", "created", "expires", "revoked", "owner", "kind",
        ],
        "id",
    ),
    (
        "limit_rule",
        &["subject", "id", "metric", "value"],
        "subject, id, metric",
    ),
    ("setting", &["name", "value"], "name"),
    (
        "audit_event",
        &[
            "seq", "at_ms", "actor", "action", "object", "detail", "previous", "hash",
        ],
        "seq",
    ),
    ("usage_batch", parts::BATCH, "seq"),
    ("usage_event", parts::ROW, "seq"),
    ("usage_unchained", parts::ROW, "seq"),
    (
        "usage_bucket",
        parts::SUM,
        "hour, project, api_key, model, endpoint",
    ),
    ("kept_day", &["day", "digest"], "day"),
];

/// Of what may be absent all else are numbers; a server wants to know of what type an absent value is.
const TEXT_THAT_MAY_BE_ABSENT: &str = "owner";

/// The tables of a copy.
pub(super) fn tables() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|(name, _, _)| *name)
}

/// Writes lines, and counts and digests them.
struct Lines<W> {
    out: W,
    digest: Sha256,
    rows: u64,
}

impl<W: Write> Lines<W> {
    fn put(&mut self, line: &Value) -> Result<(), Error> {
        let text = format!("{line}\n");
        self.digest.update(text.as_bytes());
        Ok(self.out.write_all(text.as_bytes())?)
    }
}

impl Store {
    /// Writes all there is at one moment, whatever is written meanwhile; the number of rows. `told` hears of each row.
    ///
    /// # Errors
    /// Names a row of usage that somebody else has written among those that wait to be chained, as no restored database could chain it,
    /// or a trigger, which the copy would not have; what the database says, and what can't be written.
    pub async fn back_up(
        &self,
        actor: impl Into<Actor<'_>>,
        out: impl Write,
        mut told: impl FnMut(),
    ) -> Result<u64, Error> {
        self.check_waiting().await?;
        // It is in the copy, too: whoever has one can be asked when it was made.
        let (mut change, acting) = self.begin_as(actor).await?;
        audit::append(
            &mut change,
            &acting.name,
            "database.exported",
            "database",
            "{}".to_owned(),
        )
        .await?;
        change.commit().await?;
        let mut moment = self.reports.begin_with(self.database.begin_moment()).await?;
        let mut lines = Lines {
            out,
            digest: Sha256::new(),
            rows: 0,
        };
        lines.put(&json!({"rempart_backup": VERSION, "at_ms": now_ms()}))?;
        for (table, columns, order) in TABLES {
            lines.put(&json!({"table": table, "columns": columns}))?;
            let query = format!("SELECT {} FROM {table} ORDER BY {order}", columns.join(", "));
            let mut rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch(&mut *moment);
            while let Some(row) = rows.try_next().await? {
                lines.put(&values(&row)?)?;
                lines.rows += 1;
                told();
            }
        }
        moment.rollback().await?;
        // Who restores it is told an end to note, which no loss of power may take back.
        self.sync_log().await?;
        let (rows, digest) = (lines.rows, hex(&lines.digest.clone().finalize()));
        lines.put(&json!({"end": true, "rows": rows, "sha256": digest}))?;
        lines.out.flush()?;
        Ok(rows)
    }

    /// Fills this database, which must be a new one, with what another had; the number of rows. All of it or nothing.
    ///
    /// # Errors
    /// Where this has rows, what is read is no whole copy, and what the database says.
    pub async fn restore(
        &self,
        actor: impl Into<Actor<'_>>,
        from: impl BufRead,
        mut told: impl FnMut(),
    ) -> Result<u64, Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        check_new(&mut change).await?;
        let mut copy = Copy::begin(from)?;
        let mut rows: Vec<Vec<Value>> = Vec::new();
        let mut table = None;
        let mut count = 0;
        loop {
            let line = copy.next()?;
            let row = matches!(line, Line::Row(_));
            if !rows.is_empty() && (!row || rows.len() == ROWS_AT_ONCE) {
                insert(&mut change, table.ok_or_else(no_copy)?, &rows).await?;
                rows.clear();
            }
            match line {
                Line::Table(next) => table = Some(next),
                Line::Row(row) => {
                    rows.push(row);
                    count += 1;
                    told();
                }
                Line::End(whole) if whole == count && copy.from.fill_buf()?.is_empty() => break,
                Line::End(_) => return Err(no_copy()),
            }
        }
        audit::append(
            &mut change,
            &actor.name,
            "database.restored",
            "database",
            "{}".to_owned(),
        )
        .await?;
        chain_all(&mut change, &self.database).await?;
        change.commit().await?;
        Ok(count)
    }
}

fn no_copy() -> Error {
    Error::Refused(
        "this is no whole copy of a database: it was cut, changed or made by something else".to_owned(),
    )
}

/// A row as an array of its values.
fn values(row: &AnyRow) -> Result<Value, Error> {
    let value = |at: usize| -> Result<Value, Error> {
        let raw = row.try_get_raw(at)?;
        if raw.is_null() {
            return Ok(Value::Null);
        }
        Ok(match raw.type_info().name() {
            "BIGINT" | "INTEGER" => json!(row.try_get::<i64, _>(at)?),
            _ => json!(row.try_get::<String, _>(at)?),
        })
    };
    (0..row.len()).map(value).collect()
}

/// Refuses a database that has anything.
async fn check_new(change: &mut Transaction<'static, Any>) -> Result<(), Error> {
    for (table, ..) in TABLES {
        let query = format!("SELECT COUNT(*) FROM {table}");
        let row = sqlx::query(sqlx::AssertSqlSafe(query))
            .fetch_one(&mut **change)
            .await?;
        if row.try_get::<i64, _>(0)? > 0 {
            let message = "this database is in use: a copy is restored into a new one".to_owned();
            return Err(Error::Refused(message));
        }
    }
    Ok(())
}

async fn insert(
    change: &mut Transaction<'static, Any>,
    table: usize,
    rows: &[Vec<Value>],
) -> Result<(), Error> {
    let (name, columns, _) = TABLES[table];
    let columns = &columns[..rows.first().map_or(0, Vec::len)];
    let groups: Vec<String> = (0..rows.len())
        .map(|row| {
            let marks: Vec<String> = (1..=columns.len())
                .map(|at| format!("${}", row * columns.len() + at))
                .collect();
            format!("({})", marks.join(", "))
        })
        .collect();
    let query = format!(
        "INSERT INTO {name} ({}) VALUES {}",
        columns.join(", "),
        groups.join(", ")
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(query));
    let named = rows.iter().flat_map(|row| columns.iter().zip(row));
    for (column, value) in named {
        query = match value {
            Value::Null if *column == TEXT_THAT_MAY_BE_ABSENT => query.bind(None::<String>),
            Value::Null => query.bind(None::<i64>),
            Value::Number(number) => query.bind(number.as_i64().ok_or_else(no_copy)?),
            Value::String(text) => query.bind(text.clone()),
            _ => return Err(no_copy()),
        };
    }
    query.execute(&mut **change).await?;
    Ok(())
}

/// One line of a copy.
enum Line {
    /// What follows is of this table.
    Table(usize),
    Row(Vec<Value>),
    /// All of it was read, and is what was written; the number of rows.
    End(u64),
}

/// A copy as it is read.
struct Copy<R> {
    from: R,
    digest: Sha256,
    columns: usize,
}

impl<R: BufRead> Copy<R> {
    fn begin(from: R) -> Result<Self, Error> {
        let mut copy = Self {
            from,
            digest: Sha256::new(),
            columns: 0,
        };
        let (_, first) = copy.line()?;
        match first.get("rempart_backup").and_then(Value::as_u64) {
            Some(VERSION) => Ok(copy),
            Some(_) => Err(Error::Refused(
                "this copy was made by a newer version of this program".to_owned(),
            )),
            None => Err(no_copy()),
        }
    }

    /// A line, and the digest of those before.
    fn line(&mut self) -> Result<(String, Value), Error> {
        let before = hex(&self.digest.clone().finalize());
        let mut text = String::new();
        let from = &mut self.from;
        std::io::Read::take(from, LINE_BYTES_MAX).read_line(&mut text)?;
        self.digest.update(text.as_bytes());
        let value = serde_json::from_str(&text).map_err(|_| no_copy())?;
        Ok((before, value))
    }

    fn next(&mut self) -> Result<Line, Error> {
        let (before, value) = self.line()?;
        if let Value::Array(row) = value {
            return if row.len() == self.columns {
                Ok(Line::Row(row))
            } else {
                Err(no_copy())
            };
        }
        if value.get("end").is_some() {
            let rows = value.get("rows").and_then(Value::as_u64);
            let same = value.get("sha256").and_then(Value::as_str) == Some(before.as_str());
            return rows.filter(|_| same).map(Line::End).ok_or_else(no_copy);
        }
        let name = value.get("table").and_then(Value::as_str);
        let found = TABLES.iter().position(|(table, ..)| Some(*table) == name);
        let table = found.ok_or_else(no_copy)?;
        let (_, columns, _) = TABLES[table];
        let given = value.get("columns").and_then(Value::as_array);
        let given = given.filter(|given| {
            let same = given.iter().zip(columns).all(|(given, own)| given == own);
            !given.is_empty() && given.len() <= columns.len() && same
        });
        self.columns = given.ok_or_else(no_copy)?.len();
        Ok(Line::Table(table))
    }
}
