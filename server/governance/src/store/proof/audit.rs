//! The proof of the audit chain.

use sqlx::{Any, Transaction};

use super::super::{Database, Error, Store};
use super::Sought;
use super::pages::page;
use crate::audit::{AuditEvent, Broken, GENESIS, verify};
use crate::checkpoint::End;
use crate::content;
use crate::retention::{Cut, Told};

/// Rows that are read at one time.
const PAGE: i64 = 2_000;
const COLUMNS: &str = "seq, at_ms, actor, action, object, detail, previous, hash";

/// A row, in the order of its columns.
type Row = (i64, i64, String, String, String, String, String, String);

/// A chain that holds.
pub(super) struct Chain {
    pub(super) rows: i64,
    pub(super) end: End,
    /// What it tells of deletions.
    pub(super) told: Told,
    /// What it tells of records.
    pub(super) content: content::Told,
    /// Whether its beginning is gone.
    cut: bool,
}

impl Store {
    /// Proves it from the last row of what was deleted on, at a time in Unix milliseconds.
    pub(super) async fn prove_audit(
        &self,
        moment: &mut Transaction<'static, Any>,
        cut: Option<&Cut>,
        sought: &mut Sought<'_>,
        now_ms: i64,
    ) -> Result<Chain, Error> {
        let mut chain = Chain {
            rows: 0,
            end: (0, GENESIS.to_owned()),
            told: Told::new(cut.is_none(), now_ms),
            content: content::Told::default(),
            cut: cut.is_some(),
        };
        // The first page has what stands before the first row, too, where nothing may.
        let mut rows = read(moment, &self.database, i64::MIN).await?;
        if let Some(cut) = cut {
            chain.end = before(cut, rows.first())?;
        }
        while let Some(last) = rows.last() {
            // The database finds the next while these are looked at.
            let behind = last.seq;
            let next = read(moment, &self.database, behind);
            let (next, held) = futures::join!(next, async { chain.hold(&rows, sought) });
            held?;
            rows = next?;
        }
        Ok(chain)
    }
}

/// What stands before the row that was deleted last, which stays: all that it says of itself is in its hash.
fn before(cut: &Cut, first: Option<&AuditEvent>) -> Result<End, Error> {
    let own = first.filter(|row| (row.seq, row.at_ms, &row.hash) == (cut.seq, cut.at_ms, &cut.hash));
    let own = own.ok_or(Broken::Missing(cut.seq))?;
    Ok((own.seq.saturating_sub(1), own.previous.clone()))
}

impl Chain {
    /// Checks the rows that follow.
    fn hold(&mut self, rows: &[AuditEvent], sought: &mut Sought<'_>) -> Result<(), Error> {
        self.end = verify(rows, Some(self.end.clone()))?;
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        self.rows = self.rows.saturating_add(count);
        for row in rows {
            if !sought.missing.is_empty() {
                sought.found(&(row.seq, row.hash.clone()));
            }
            self.told.take(row)?;
            self.content.take(row, std::mem::take(&mut self.cut));
        }
        Ok(())
    }
}

async fn read(
    moment: &mut Transaction<'static, Any>,
    database: &Database,
    behind: i64,
) -> Result<Vec<AuditEvent>, Error> {
    let rest = "audit_event WHERE seq > $1 ORDER BY seq LIMIT $2";
    let rows: Vec<Row> = page(&mut *moment, database, (COLUMNS, rest), &[behind, PAGE]).await?;
    let mut rows: Vec<AuditEvent> = rows.into_iter().map(event).collect();
    rows.sort_by_key(|row| row.seq);
    Ok(rows)
}

fn event((seq, at_ms, actor, action, object, detail, previous, hash): Row) -> AuditEvent {
    AuditEvent {
        seq,
        at_ms,
        actor,
        action,
        object,
        detail,
        previous,
        hash,
    }
}
