//! The proof of what was asked and answered, where it is recorded: each record is the one that its row of usage has the hash of, and
//! none is missing whose time has not come.

use sqlx::{Any, Row as _, Transaction};

use super::super::content::{CONTENT, content};
use super::super::{Error, Store};
use crate::content::{BrokenContent, Mark, Told};

/// Records that are read at one time, and marks.
const RECORDS: i64 = 50;
const MARKS: i64 = 5_000;

impl Store {
    /// Proves all records at a time, Unix milliseconds; how many there are.
    pub(super) async fn prove_content(
        &self,
        moment: &mut Transaction<'static, Any>,
        told: &Told,
        now_ms: i64,
    ) -> Result<i64, Error> {
        let records = check_records(moment).await?;
        check_marks(moment, told, now_ms).await?;
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

/// Checks that each record was to be made, as the audit chain tells, and that those which are not there were due or deleted.
async fn check_marks(moment: &mut Transaction<'static, Any>, told: &Told, now_ms: i64) -> Result<(), Error> {
    let words = "SELECT used.seq, used.id, used.project, used.api_key, used.began_ms, used.content, record.request \
         FROM usage_event AS used LEFT JOIN content AS record ON record.request = used.id \
         WHERE used.content <> '' AND used.seq > $1 ORDER BY used.seq LIMIT $2";
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
            let record: Option<String> = row.try_get(6)?;
            let Some(mark) = Mark::read(&mark) else {
                return Err(BrokenContent::Changed(id).into());
            };
            if !told.announced(&project, began_ms, mark) {
                return Err(BrokenContent::Unannounced(id).into());
            }
            let gone = mark.due_ms < now_ms || told.deleted(&project, &key, began_ms);
            if record.is_none() && !gone {
                return Err(BrokenContent::Missing(id).into());
            }
            behind = row.try_get(0)?;
        }
        if rows.is_empty() {
            return Ok(());
        }
    }
}
