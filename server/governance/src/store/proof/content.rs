//! The proof of what was asked and answered, where it is recorded: each record is the one that its row of usage has the hash of, and
//! none is missing whose time has not come.

use sqlx::{Any, Row as _, Transaction};

use super::super::content::{CONTENT, content};
use super::super::{Error, Store};
use crate::content::{BrokenContent, Deletions, due_of};

/// Records that are read at one time, and marks of those that are gone.
const RECORDS: i64 = 50;
const MARKS: i64 = 5_000;

impl Store {
    /// Proves all records at a time, Unix milliseconds; how many there are.
    pub(super) async fn prove_content(
        &self,
        moment: &mut Transaction<'static, Any>,
        deletions: &Deletions,
        now_ms: i64,
    ) -> Result<i64, Error> {
        let records = check_records(moment).await?;
        check_missing(moment, deletions, now_ms).await?;
        Ok(records)
    }
}

/// Checks the records that are there.
async fn check_records(moment: &mut Transaction<'static, Any>) -> Result<i64, Error> {
    let columns: Vec<String> = CONTENT.iter().map(|column| format!("record.{column}")).collect();
    let words = format!(
        "SELECT {}, used.project, used.api_key, used.began_ms, used.content FROM content AS record \
         LEFT JOIN usage_event AS used ON used.id = record.request WHERE record.request > $1 ORDER BY record.request LIMIT $2",
        columns.join(", ")
    );
    let (mut behind, mut records) = (String::new(), 0_i64);
    let at = CONTENT.len();
    loop {
        let rows = sqlx::query(sqlx::AssertSqlSafe(words.clone()))
            .bind(behind.clone())
            .bind(RECORDS)
            .fetch_all(&mut **moment)
            .await?;
        for row in &rows {
            let record = content(row)?;
            let of: (Option<String>, Option<String>, Option<i64>, Option<String>) = (
                row.try_get(at)?,
                row.try_get(at + 1)?,
                row.try_get(at + 2)?,
                row.try_get(at + 3)?,
            );
            let own = (
                Some(record.project.clone()),
                Some(record.key.clone()),
                Some(record.began_ms),
                Some(record.mark()),
            );
            if of != own {
                return Err(BrokenContent::Changed(record.request).into());
            }
            behind = record.request;
            records += 1;
        }
        if rows.is_empty() {
            return Ok(records);
        }
    }
}

/// Checks that records which are not there were due, or deleted by somebody, as the audit chain tells.
async fn check_missing(
    moment: &mut Transaction<'static, Any>,
    deletions: &Deletions,
    now_ms: i64,
) -> Result<(), Error> {
    let words = "SELECT used.seq, used.id, used.project, used.api_key, used.began_ms, used.content FROM usage_event AS used \
         WHERE used.content <> '' AND used.seq > $1 AND NOT EXISTS (SELECT 1 FROM content WHERE content.request = used.id) \
         ORDER BY used.seq LIMIT $2";
    let mut behind = i64::MIN;
    loop {
        let rows = sqlx::query(words)
            .bind(behind)
            .bind(MARKS)
            .fetch_all(&mut **moment)
            .await?;
        for row in &rows {
            let (id, project, key): (String, String, String) =
                (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            let (began_ms, mark): (i64, String) = (row.try_get(4)?, row.try_get(5)?);
            let due = due_of(&mark).is_some_and(|due_ms| due_ms < now_ms);
            if !due && !deletions.cover(&project, &key, began_ms) {
                return Err(BrokenContent::Missing(id).into());
            }
            behind = row.try_get(0)?;
        }
        if rows.is_empty() {
            return Ok(());
        }
    }
}
