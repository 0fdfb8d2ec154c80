//! Records of what was asked and answered: what is recorded, and what is read and deleted of it.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::projects::{living_project, some_project};
use super::retention::{PAUSE, last_run, policy};
use super::{Error, Store, audit, now_s};
use crate::actor::{Acting, Actor};
use crate::audit::AuditEvent;
use crate::content::{Announced, Content, DELETED, Deletions, Recording, SET, Sealed};

/// Columns of a record, in the order in which they are written and read.
pub(super) const CONTENT: &[&str] = &[
    "request",
    "project",
    "api_key",
    "began_ms",
    "due_ms",
    "announced",
    "fingerprint",
    "reader",
    "asked",
    "answered",
    "bytes",
];
/// Records, and their bytes, that are deleted at one time: others wait for as long as that takes.
const RECORDS_AT_ONCE: i64 = 500;
const BYTES_AT_ONCE: i64 = 8 << 20;
/// Requests of a prompt that are told.
const FOUND_MAX: i64 = 10_000;
/// What a deletion is of whose time had come.
const DUE: &str = "due";

/// Which records are asked for.
#[derive(Clone, Debug, Default)]
pub struct ContentQuery {
    /// The project's identifier.
    pub project: String,
    /// When they began: from one time on and before another, Unix milliseconds.
    pub from_ms: Option<i64>,
    pub to_ms: Option<i64>,
    /// That of one request.
    pub request: Option<String>,
    /// Those behind one: when it began, and its request.
    pub behind: Option<(i64, String)>,
}

/// How many records a project has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The project's identifier.
    pub project: String,
    pub records: i64,
    /// When the oldest began, Unix milliseconds.
    pub oldest_ms: i64,
}

impl Store {
    /// Has a project, by name or identifier, recorded from now on; its identifier.
    ///
    /// # Errors
    /// Where that can't be done as it is asked for, there is no such project, and what the database says.
    pub async fn set_recording(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        recording: &Recording,
    ) -> Result<String, Error> {
        recording.check(now_s()).map_err(Error::Refused)?;
        let runs = recording.runs(now_s());
        if runs && recording.fingerprints {
            self.secret()?;
        }
        let (mut change, actor) = self.begin_as(actor).await?;
        let id = if runs {
            let policy = policy(&mut change).await?;
            recording.check_kept(&policy, now_s()).map_err(Error::Refused)?;
            living_project(&mut change, project).await?
        } else {
            some_project(&mut change, project).await?.0
        };
        let detail = serde_json::to_string(recording).map_err(|error| Error::Unsound(error.to_string()))?;
        audit::append(&mut change, &actor.name, SET, &id, detail).await?;
        change.commit().await?;
        Ok(id)
    }

    /// What is recorded, or was, by project: the audit chain says so, and nothing beside it.
    ///
    /// # Errors
    /// What the database says, or that it does not hold what this program writes.
    pub async fn recordings(&self) -> Result<BTreeMap<String, Announced>, Error> {
        let mut moment = self.pool.begin().await?;
        recordings(&mut moment).await
    }

    /// A keyed hash of a prompt of a project.
    ///
    /// # Errors
    /// Where the secret is not known.
    pub fn fingerprint(&self, project: &str, prompt: &str) -> Result<String, Error> {
        Ok(self.secret()?.prompt(project, prompt))
    }

    /// So many records at most, the oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn contents(&self, query: &ContentQuery, most: i64) -> Result<Vec<Content>, Error> {
        let (behind_ms, behind) = query.behind.clone().unwrap_or((i64::MIN, String::new()));
        let words = format!(
            "SELECT {} FROM content WHERE project = $1 AND began_ms >= $2 AND began_ms < $3 AND ($4 = '' OR request = $4) \
             AND (began_ms, request) > ($5, $6) ORDER BY began_ms, request LIMIT $7",
            CONTENT.join(", ")
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(words))
            .bind(query.project.clone())
            .bind(query.from_ms.unwrap_or(i64::MIN))
            .bind(query.to_ms.unwrap_or(i64::MAX))
            .bind(query.request.clone().unwrap_or_default())
            .bind(behind_ms)
            .bind(behind)
            .bind(most)
            .fetch_all(&self.reports)
            .await?;
        rows.iter().map(content).collect()
    }

    /// Requests of a project that asked just this, with their keys and when they began, Unix milliseconds; at most ten thousand.
    ///
    /// # Errors
    /// Where the secret is not known, and what the database says.
    pub async fn find_prompt(
        &self,
        project: &str,
        prompt: &str,
    ) -> Result<Vec<(String, String, i64)>, Error> {
        let words = "SELECT request, api_key, began_ms FROM content WHERE fingerprint = $1 AND project = $2 ORDER BY began_ms, request LIMIT $3";
        let rows = sqlx::query(words)
            .bind(self.fingerprint(project, prompt)?)
            .bind(project.to_owned())
            .bind(FOUND_MAX)
            .fetch_all(&self.reports)
            .await?;
        let read = |row: &AnyRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        rows.iter().map(read).collect()
    }

    /// How many records there are, by project.
    ///
    /// # Errors
    /// What the database says.
    pub async fn kept_content(&self) -> Result<Vec<Kept>, Error> {
        let words = "SELECT project, COUNT(*), MIN(began_ms) FROM content GROUP BY project ORDER BY project";
        let rows = sqlx::query(words).fetch_all(&self.reports).await?;
        let read = |row: &AnyRow| {
            Ok(Kept {
                project: row.try_get(0)?,
                records: row.try_get(1)?,
                oldest_ms: row.try_get(2)?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Requests of a key of which there are records, with when they began and are due, Unix milliseconds.
    ///
    /// # Errors
    /// What the database says.
    pub async fn content_of_key(&self, key: &str) -> Result<Vec<(String, i64, i64)>, Error> {
        let words =
            "SELECT request, began_ms, due_ms FROM content WHERE api_key = $1 ORDER BY began_ms, request";
        let rows = sqlx::query(words).bind(key).fetch_all(&self.reports).await?;
        let read = |row: &AnyRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        rows.iter().map(read).collect()
    }

    /// Deletes all records of a project, by name or identifier, step by step; how many there were.
    ///
    /// # Errors
    /// Where there is no such project, and what the database says: what was deleted before stays deleted.
    pub async fn delete_content(&self, actor: impl Into<Actor<'_>>, project: &str) -> Result<u64, Error> {
        let (actor, mut records) = (actor.into(), 0);
        loop {
            let (mut change, acting) = self.begin_as(actor).await?;
            let (id, _) = some_project(&mut change, project).await?;
            let some = some_of(&mut change, "project = $1", &id).await?;
            let gone = delete(&mut change, &some).await?;
            // Also where there are none: of requests that run no record is kept.
            if gone > 0 || records == 0 {
                let detail = json!({"records": gone}).to_string();
                audit::append(&mut change, &acting.name, DELETED, &id, detail).await?;
            }
            change.commit().await?;
            records += gone;
            if gone == 0 {
                self.overwrite().await?;
                return Ok(records);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Deletes records of somebody's keys, by identifier, step by step, until few are left.
    ///
    /// # Errors
    /// What the database says.
    pub(super) async fn delete_most_of_owner(&self, actor: Actor<'_>, owner: &str) -> Result<(), Error> {
        loop {
            let (mut change, actor) = self.begin_as(actor).await?;
            let left = delete_of_owner(&mut change, &actor, owner, false).await?;
            change.commit().await?;
            if !left {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The last that was said of each project.
pub(super) async fn recordings(
    moment: &mut Transaction<'static, Any>,
) -> Result<BTreeMap<String, Announced>, Error> {
    // Before it nothing is proven any more: whatever stands there was put there by somebody else.
    let begin = last_run(moment).await?.and_then(|(_, trimmed)| trimmed.audit);
    let words = "SELECT seq, at_ms, actor, action, object, detail, previous, hash FROM audit_event \
         WHERE action = $1 AND seq >= $2 ORDER BY seq";
    let rows = sqlx::query(words)
        .bind(SET)
        .bind(begin.map_or(1, |cut| cut.seq))
        .fetch_all(&mut **moment)
        .await?;
    let mut last = BTreeMap::new();
    for row in &rows {
        let row = audit::event(row)?;
        last.insert(row.object.clone(), row);
    }
    let announced = |(project, row): (String, AuditEvent)| {
        let read: Option<Recording> = serde_json::from_str(&row.detail).ok();
        let sound = read.filter(|recording| row.hash == row.right_hash() && recording.is_sound());
        let unsound = || Error::Unsound(format!("what is recorded, row {} of the audit chain", row.seq));
        let announced = Announced {
            recording: sound.ok_or_else(unsound)?,
            row: row.seq,
            at_ms: row.at_ms,
        };
        Ok((project, announced))
    };
    last.into_iter().map(announced).collect()
}

/// What was deleted of records since a time, Unix milliseconds.
pub(super) async fn deletions(change: &mut Transaction<'_, Any>, since_ms: i64) -> Result<Deletions, Error> {
    let words = "SELECT object, at_ms, detail FROM audit_event WHERE action = $1 AND at_ms >= $2";
    let rows = sqlx::query(words)
        .bind(DELETED)
        .bind(since_ms)
        .fetch_all(&mut **change)
        .await?;
    let mut deletions = Deletions::default();
    for row in &rows {
        let (object, detail): (String, String) = (row.try_get(0)?, row.try_get(2)?);
        deletions.take(&object, row.try_get(1)?, &detail);
    }
    Ok(deletions)
}

/// Requests of the next records that are deleted at one time, of those that a condition about a text fits.
async fn some_of(
    change: &mut Transaction<'static, Any>,
    condition: &'static str,
    of: &str,
) -> Result<Vec<String>, Error> {
    let words = format!("SELECT request, bytes FROM content WHERE {condition} ORDER BY due_ms LIMIT $2");
    let rows = sqlx::query(sqlx::AssertSqlSafe(words))
        .bind(of.to_owned())
        .bind(RECORDS_AT_ONCE)
        .fetch_all(&mut **change)
        .await?;
    few(&rows)
}

/// As many as are deleted at one time.
fn few(rows: &[AnyRow]) -> Result<Vec<String>, Error> {
    let (mut some, mut bytes) = (Vec::new(), 0_i64);
    for row in rows {
        bytes = bytes.saturating_add(row.try_get(1)?);
        if bytes > BYTES_AT_ONCE && !some.is_empty() {
            break;
        }
        some.push(row.try_get(0)?);
    }
    Ok(some)
}

async fn delete(change: &mut Transaction<'static, Any>, requests: &[String]) -> Result<u64, Error> {
    let mut gone = 0;
    for request in requests {
        let done = sqlx::query("DELETE FROM content WHERE request = $1")
            .bind(request.clone())
            .execute(&mut **change)
            .await?;
        gone += done.rows_affected();
    }
    Ok(gone)
}

/// Deletes some records that are due at a time, Unix milliseconds; `None` where there are none.
pub(super) async fn delete_due(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    now_ms: i64,
) -> Result<Option<u64>, Error> {
    let rows = sqlx::query("SELECT request, bytes FROM content WHERE due_ms < $1 ORDER BY due_ms LIMIT $2")
        .bind(now_ms)
        .bind(RECORDS_AT_ONCE)
        .fetch_all(&mut **change)
        .await?;
    let records = delete(change, &few(&rows)?).await?;
    if records == 0 {
        return Ok(None);
    }
    let detail = json!({"records": records}).to_string();
    audit::append(change, &actor.name, DELETED, DUE, detail).await?;
    Ok(Some(records))
}

/// Deletes some records of somebody's keys; whether there may be more. A row tells of them or, where it is to, that there are none: of
/// requests of theirs that run no record is kept then.
pub(super) async fn delete_of_owner(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    owner: &str,
    told: bool,
) -> Result<bool, Error> {
    let recorded = sqlx::query("SELECT seq FROM audit_event WHERE action = $1 LIMIT 1")
        .bind(SET)
        .fetch_optional(&mut **change)
        .await?;
    if recorded.is_none() {
        return Ok(false);
    }
    let keys = sqlx::query("SELECT id FROM api_key WHERE owner = $1 ORDER BY id")
        .bind(owner.to_owned())
        .fetch_all(&mut **change)
        .await?;
    let keys: Vec<String> = keys.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let own = "api_key IN (SELECT id FROM api_key WHERE owner = $1)";
    let some = some_of(change, own, owner).await?;
    let records = delete(change, &some).await?;
    if records > 0 || told && !keys.is_empty() {
        let detail = json!({"records": records, "keys": keys}).to_string();
        audit::append(change, &actor.name, DELETED, owner, detail).await?;
    }
    Ok(records > 0)
}

pub(super) fn content(row: &AnyRow) -> Result<Content, Error> {
    Ok(Content {
        request: row.try_get(0)?,
        project: row.try_get(1)?,
        key: row.try_get(2)?,
        began_ms: row.try_get(3)?,
        due_ms: row.try_get(4)?,
        announced: row.try_get(5)?,
        fingerprint: row.try_get(6)?,
        sealed: Sealed {
            reader: row.try_get(7)?,
            asked: row.try_get(8)?,
            answered: row.try_get(9)?,
        },
    })
}

/// Ends the recording of a project, if it has one.
pub(super) async fn stop(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    project: &str,
) -> Result<(), Error> {
    let known = recordings(change).await?.remove(project);
    let Some(known) = known.filter(|known| known.recording.runs(now_s())) else {
        return Ok(());
    };
    let stopped = Recording {
        until: now_s(),
        ..known.recording
    };
    let detail = serde_json::to_string(&stopped).map_err(|error| Error::Unsound(error.to_string()))?;
    audit::append(change, &actor.name, SET, project, detail).await
}
