//! Rows of the audit chain, read and written.

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::{Error, Store, now_ms};
use crate::audit::{AuditEvent, GENESIS};

/// Characters of an actor, an action and an object.
const TEXT_CHARS_MAX: usize = 256;
/// Rows that are read at one time.
const PAGE: i64 = 10_000;

/// Adds the row of a change to that change.
pub(super) async fn append(
    change: &mut Transaction<'static, Any>,
    actor: &str,
    action: &str,
    object: &str,
    detail: String,
) -> Result<(), Error> {
    for text in [actor, action, object] {
        check_text(text)?;
    }
    let last = sqlx::query("SELECT seq, hash, at_ms FROM audit_event ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut **change)
        .await?;
    let (seq, previous, before_ms) = match last {
        Some(row) => (
            row.try_get::<i64, _>(0)?.saturating_add(1),
            row.try_get(1)?,
            row.try_get(2)?,
        ),
        None => (1, GENESIS.to_owned(), 0),
    };
    let mut event = AuditEvent {
        seq,
        // A clock that is set back makes no order of its own.
        at_ms: now_ms().max(before_ms),
        actor: actor.to_owned(),
        action: action.to_owned(),
        object: object.to_owned(),
        detail,
        previous,
        hash: String::new(),
    };
    event.hash = event.right_hash();
    sqlx::query(
        "INSERT INTO audit_event (seq, at_ms, actor, action, object, detail, previous, hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(event.seq)
    .bind(event.at_ms)
    .bind(event.actor)
    .bind(event.action)
    .bind(event.object)
    .bind(event.detail)
    .bind(event.previous)
    .bind(event.hash)
    .execute(&mut **change)
    .await?;
    Ok(())
}

/// Refuses what would look like another row, or steer a terminal, when it is printed.
fn check_text(text: &str) -> Result<(), Error> {
    if text.chars().count() <= TEXT_CHARS_MAX && !text.chars().any(char::is_control) {
        return Ok(());
    }
    let message =
        format!("what is recorded has up to {TEXT_CHARS_MAX} characters, and none that controls a terminal");
    Err(Error::Refused(message))
}

fn event(row: &AnyRow) -> Result<AuditEvent, Error> {
    Ok(AuditEvent {
        seq: row.try_get(0)?,
        at_ms: row.try_get(1)?,
        actor: row.try_get(2)?,
        action: row.try_get(3)?,
        object: row.try_get(4)?,
        detail: row.try_get(5)?,
        previous: row.try_get(6)?,
        hash: row.try_get(7)?,
    })
}

impl Store {
    /// Rows behind the one of this number, oldest first, a page of them.
    ///
    /// # Errors
    /// What the database says.
    pub async fn audit_events(&self, behind: i64) -> Result<Vec<AuditEvent>, Error> {
        let rows = sqlx::query(
            "SELECT seq, at_ms, actor, action, object, detail, previous, hash FROM audit_event WHERE seq > $1 \
             ORDER BY seq LIMIT $2",
        )
        .bind(behind)
        .bind(PAGE)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(event).collect()
    }

    /// Number and hash of the last row; 0 and none where there is no row.
    ///
    /// # Errors
    /// What the database says.
    pub async fn audit_end(&self) -> Result<(i64, String), Error> {
        let row = sqlx::query("SELECT seq, hash FROM audit_event ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&self.pool)
            .await?;
        row.map_or(Ok((0, String::new())), |row| {
            Ok((row.try_get(0)?, row.try_get(1)?))
        })
    }

    /// Records something that was done.
    ///
    /// # Errors
    /// What the database says: what can't be recorded must not be done.
    pub async fn record(&self, actor: &str, action: &str, object: &str, detail: String) -> Result<(), Error> {
        let mut change = self.begin().await?;
        append(&mut change, actor, action, object, detail).await?;
        Ok(change.commit().await?)
    }
}
