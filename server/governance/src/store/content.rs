//! Records of what was asked and answered: what is recorded, and what is read and deleted of it.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{Any, AnyConnection, Row as _, Transaction};

use super::projects::{living_project, some_project};
use super::{Error, Store, audit, now_s};
use crate::actor::{Acting, Actor};
use crate::content::{Content, DELETED, Recording, SET, Sealed};

/// Columns of a record, in the order in which they are written and read.
pub(super) const CONTENT: &[&str] = &[
    "request",
    "project",
    "api_key",
    "began_ms",
    "due_ms",
    "fingerprint",
    "reader",
    "asked",
    "answered",
];
/// Records that are deleted at one time: they are larger than rows of other kinds.
const DELETED_AT_ONCE: i64 = 500;
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
    /// Those of a prompt.
    pub fingerprint: Option<String>,
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
        if recording.fingerprints {
            self.secret()?;
        }
        let (mut change, actor) = self.begin_as(actor).await?;
        let id = living_project(&mut change, project).await?;
        let detail = serde_json::to_string(recording).map_err(|error| Error::Unsound(error.to_string()))?;
        audit::append(&mut change, &actor.name, SET, &id, detail).await?;
        change.commit().await?;
        Ok(id)
    }

    /// What is recorded, or was, by project: the audit chain says so, and nothing beside it.
    ///
    /// # Errors
    /// What the database says, or that it does not hold what this program writes.
    pub async fn recordings(&self) -> Result<BTreeMap<String, Recording>, Error> {
        let mut connection = self.pool.acquire().await?;
        recordings(&mut connection).await
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
             AND ($5 = '' OR fingerprint = $5) AND (began_ms, request) > ($6, $7) ORDER BY began_ms, request LIMIT $8",
            CONTENT.join(", ")
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(words))
            .bind(query.project.clone())
            .bind(query.from_ms.unwrap_or(i64::MIN))
            .bind(query.to_ms.unwrap_or(i64::MAX))
            .bind(query.request.clone().unwrap_or_default())
            .bind(query.fingerprint.clone().unwrap_or_default())
            .bind(behind_ms)
            .bind(behind)
            .bind(most)
            .fetch_all(&self.reports)
            .await?;
        rows.iter().map(content).collect()
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

    /// Deletes all records of a project, by name or identifier; how many there were.
    ///
    /// # Errors
    /// Where there is no such project, and what the database says.
    pub async fn delete_content(&self, actor: impl Into<Actor<'_>>, project: &str) -> Result<u64, Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let (id, _) = some_project(&mut change, project).await?;
        let done = sqlx::query("DELETE FROM content WHERE project = $1")
            .bind(&id)
            .execute(&mut *change)
            .await?;
        let records = done.rows_affected();
        let detail = json!({"records": records}).to_string();
        audit::append(&mut change, &actor.name, DELETED, &id, detail).await?;
        change.commit().await?;
        self.overwrite().await?;
        Ok(records)
    }
}

/// The last that was said of each project.
pub(super) async fn recordings(connection: &mut AnyConnection) -> Result<BTreeMap<String, Recording>, Error> {
    let words = "SELECT object, detail, seq FROM audit_event WHERE action = $1 ORDER BY seq";
    let rows = sqlx::query(words).bind(SET).fetch_all(connection).await?;
    let read = |row: &AnyRow| {
        let (detail, seq): (String, i64) = (row.try_get(1)?, row.try_get(2)?);
        let recording = serde_json::from_str(&detail).ok().filter(Recording::is_sound);
        let unsound = || Error::Unsound(format!("what is recorded, row {seq} of the audit chain"));
        Ok((row.try_get(0)?, recording.ok_or_else(unsound)?))
    };
    rows.iter().map(read).collect()
}

/// Deletes some records that are due at a time, Unix milliseconds; `None` where there are none.
pub(super) async fn delete_due(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    now_ms: i64,
) -> Result<Option<u64>, Error> {
    let words = "DELETE FROM content WHERE request IN (SELECT request FROM content WHERE due_ms < $1 ORDER BY due_ms LIMIT $2)";
    let done = sqlx::query(words)
        .bind(now_ms)
        .bind(DELETED_AT_ONCE)
        .execute(&mut **change)
        .await?;
    let records = done.rows_affected();
    if records == 0 {
        return Ok(None);
    }
    let detail = json!({"records": records}).to_string();
    audit::append(change, &actor.name, DELETED, DUE, detail).await?;
    Ok(Some(records))
}

/// Deletes all records of somebody's keys.
pub(super) async fn delete_of_owner(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    owner: &str,
) -> Result<(), Error> {
    let keys = sqlx::query(
        "SELECT DISTINCT api_key FROM content WHERE api_key IN (SELECT id FROM api_key WHERE owner = $1)",
    )
    .bind(owner)
    .fetch_all(&mut **change)
    .await?;
    let keys: Vec<String> = keys.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Ok(());
    }
    let done = sqlx::query("DELETE FROM content WHERE api_key IN (SELECT id FROM api_key WHERE owner = $1)")
        .bind(owner)
        .execute(&mut **change)
        .await?;
    let detail = json!({"records": done.rows_affected(), "keys": keys}).to_string();
    audit::append(change, &actor.name, DELETED, owner, detail).await
}

pub(super) fn content(row: &AnyRow) -> Result<Content, Error> {
    Ok(Content {
        request: row.try_get(0)?,
        project: row.try_get(1)?,
        key: row.try_get(2)?,
        began_ms: row.try_get(3)?,
        due_ms: row.try_get(4)?,
        fingerprint: row.try_get(5)?,
        sealed: Sealed {
            reader: row.try_get(6)?,
            asked: row.try_get(7)?,
            answered: row.try_get(8)?,
        },
    })
}
