//! Rows of the audit chain, read and written.

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::projects::PROJECT_PREFIX;
use super::{Error, Store, now_ms};
use crate::audit::{AuditEvent, GENESIS};

/// Characters of an actor, an action and an object.
const TEXT_CHARS_MAX: usize = 256;
/// Rows that are read at one time.
const PAGE: i64 = 10_000;

/// Which rows are asked for. Of each list one must fit, unless it is empty.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// Identifiers of keys, people and service accounts that did it, or actors as rows name them.
    pub actors: Vec<String>,
    pub actions: Vec<String>,
    pub objects: Vec<String>,
    /// Identifiers of projects that it was done to, or that its object belongs to.
    pub projects: Vec<String>,
    /// Unix milliseconds, the first and the last.
    pub from_ms: Option<i64>,
    pub to_ms: Option<i64>,
    /// Before the row of this number, and behind that of this.
    pub before: Option<i64>,
    pub behind: Option<i64>,
}

/// What a condition is made of: the words, and what they are about.
struct Condition {
    words: String,
    texts: Vec<String>,
}

impl Condition {
    fn and(&mut self, words: &str) {
        self.words.push_str(" AND ");
        self.words.push_str(words);
    }

    /// Adds that one of these fits; `{}` in the words is where the text is.
    fn one_of(&mut self, words: &str, texts: &[String]) {
        if texts.is_empty() {
            return;
        }
        let each = texts.iter().map(|text| {
            self.texts.push(text.clone());
            words.replace("{}", &format!("${}", self.texts.len()))
        });
        let any = each.collect::<Vec<_>>().join(" OR ");
        self.and(&format!("({any})"));
    }

    fn number(&mut self, words: &str, number: Option<i64>) {
        if let Some(number) = number {
            self.and(&format!("{words} {number}"));
        }
    }
}

/// An identifier of a project as a pattern that fits itself alone; nothing else is one, and fits nothing.
fn pattern(id: &str) -> String {
    let rest = id.strip_prefix(PROJECT_PREFIX).unwrap_or_default();
    let sound = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if sound { id.to_owned() } else { String::new() }
}

impl AuditQuery {
    fn condition(&self) -> Condition {
        let mut condition = Condition {
            words: "TRUE".to_owned(),
            texts: Vec::new(),
        };
        condition.one_of(
            "actor = {} OR actor = 'key:' || {} OR actor IN (SELECT 'key:' || id FROM api_key WHERE owner = {})",
            &self.actors,
        );
        condition.one_of("action = {}", &self.actions);
        condition.one_of("object = {}", &self.objects);
        condition.one_of(
            "object = {} OR detail LIKE '%\"project\":\"' || {} || '\"%' OR object IN (SELECT id FROM api_key WHERE project = {})",
            &self.projects.iter().map(|id| pattern(id)).collect::<Vec<_>>(),
        );
        condition.number("at_ms >=", self.from_ms);
        condition.number("at_ms <=", self.to_ms);
        condition.number("seq <", self.before);
        condition.number("seq >", self.behind);
        condition
    }
}

/// One row that is to be recorded.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    pub actor: &'a str,
    pub action: &'a str,
    pub object: &'a str,
    /// More about it, as JSON.
    pub detail: String,
}

/// Adds the row of a change to that change.
pub(super) async fn append(
    change: &mut Transaction<'static, Any>,
    actor: &str,
    action: &str,
    object: &str,
    detail: String,
) -> Result<(), Error> {
    let record = Record {
        actor,
        action,
        object,
        detail,
    };
    append_all(change, &[record]).await
}

/// Adds rows, one behind the other.
async fn append_all(change: &mut Transaction<'static, Any>, records: &[Record<'_>]) -> Result<(), Error> {
    append_at(change, records, now_ms()).await
}

/// The same at a time, Unix milliseconds.
pub(super) async fn append_at(
    change: &mut Transaction<'static, Any>,
    records: &[Record<'_>],
    at_ms: i64,
) -> Result<(), Error> {
    let last = sqlx::query("SELECT seq, hash, at_ms FROM audit_event ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut **change)
        .await?;
    let (mut seq, mut previous, before_ms): (i64, String, i64) = match last {
        Some(row) => (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?),
        None => (0, GENESIS.to_owned(), 0),
    };
    // A clock that is set back makes no order of its own.
    let at_ms = at_ms.max(before_ms);
    for record in records {
        for text in [record.actor, record.action, record.object] {
            check_text(text)?;
        }
        seq = seq.saturating_add(1);
        let mut event = AuditEvent {
            seq,
            at_ms,
            actor: record.actor.to_owned(),
            action: record.action.to_owned(),
            object: record.object.to_owned(),
            detail: record.detail.clone(),
            previous,
            hash: String::new(),
        };
        event.hash = event.right_hash();
        previous = event.hash.clone();
        insert(change, event).await?;
    }
    Ok(())
}

async fn insert(change: &mut Transaction<'static, Any>, event: AuditEvent) -> Result<(), Error> {
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

pub(super) fn event(row: &AnyRow) -> Result<AuditEvent, Error> {
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

    /// Rows that fit, so many at most, the newest first: the newest of all, or where only those behind one are asked for, the
    /// next behind it.
    ///
    /// # Errors
    /// What the database says.
    pub async fn find_audit(&self, query: &AuditQuery, limit: i64) -> Result<Vec<AuditEvent>, Error> {
        let Condition { words, texts } = query.condition();
        let next = query.behind.is_some() && query.before.is_none();
        let order = if next { "ASC" } else { "DESC" };
        let query = format!(
            "SELECT seq, at_ms, actor, action, object, detail, previous, hash FROM audit_event WHERE {words} \
             ORDER BY seq {order} LIMIT {limit}"
        );
        let mut asked = sqlx::query(sqlx::AssertSqlSafe(query));
        for text in texts {
            asked = asked.bind(text);
        }
        let rows = asked.fetch_all(&self.pool).await?;
        let mut events = rows.iter().map(event).collect::<Result<Vec<_>, _>>()?;
        if next {
            events.reverse();
        }
        Ok(events)
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

    /// Records some things that were done, all of them or none.
    ///
    /// # Errors
    /// As [`Store::record`].
    pub async fn record_all(&self, records: &[Record<'_>]) -> Result<(), Error> {
        let mut change = self.begin().await?;
        append_all(&mut change, records).await?;
        Ok(change.commit().await?)
    }
}
