//! The proof of the audit chain.

use sqlx::{Any, Transaction};

use super::super::{Database, Error, Store};
use super::Sought;
use super::pages::page;
use crate::audit::{AuditEvent, GENESIS, verify};
use crate::checkpoint::End;
use crate::retention::{Cut, RUN, Trimmed};

/// Rows that are read at one time.
const PAGE: i64 = 2_000;
const COLUMNS: &str = "seq, at_ms, actor, action, object, detail, previous, hash";

/// A row, in the order of its columns.
type Row = (i64, i64, String, String, String, String, String, String);

/// A chain that holds.
pub(super) struct Chain {
    pub(super) rows: i64,
    pub(super) end: End,
    /// The last row in it that tells of a deletion.
    pub(super) told_by: Option<i64>,
}

impl Store {
    /// Proves it from behind what was deleted.
    pub(super) async fn prove_audit(
        &self,
        moment: &mut Transaction<'static, Any>,
        cut: Option<&Cut>,
        sought: &mut Sought<'_>,
    ) -> Result<Chain, Error> {
        let mut chain = Chain {
            rows: 0,
            end: cut.map_or_else(|| (0, GENESIS.to_owned()), Cut::end),
            told_by: None,
        };
        sought.found(&chain.end);
        // The first page has what stands before the first row, too, where nothing may.
        let mut rows = read(moment, &self.database, i64::MIN).await?;
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

impl Chain {
    /// Checks the rows that follow.
    fn hold(&mut self, rows: &[AuditEvent], sought: &mut Sought<'_>) -> Result<(), Error> {
        self.end = verify(rows, Some(self.end.clone()))?;
        self.rows = self
            .rows
            .saturating_add(i64::try_from(rows.len()).unwrap_or(i64::MAX));
        for row in rows {
            if !sought.missing.is_empty() {
                sought.found(&(row.seq, row.hash.clone()));
            }
            if row.action == RUN {
                Trimmed::read(row.seq, &row.detail)?.check(row.seq, row.at_ms)?;
                self.told_by = Some(row.seq);
            }
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
