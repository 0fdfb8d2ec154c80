//! Projects, their rights and their keys.

use std::collections::BTreeSet;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::{Error, Store, audit, now_s};
use crate::directory::{Directory, KeyRecord};
use crate::key::{KeyHash, KeyId, NewKey, random_digits};
use crate::role::Role;

/// Characters of a name.
const NAME_CHARS_MAX: usize = 128;
const ID_DIGITS: usize = 16;

/// A part of the company that uses models apart from the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    pub id: String,
    pub name: String,
    /// Unix seconds.
    pub created: i64,
    pub archived: Option<i64>,
    /// The models it may use; none: all.
    pub models: Vec<String>,
    /// Its part of the machine, against those of others.
    pub weight: i64,
}

/// A key that is to be made.
#[derive(Clone, Debug)]
pub struct NewKeyRequest<'a> {
    /// The project's name or identifier.
    pub project: &'a str,
    pub role: Role,
    pub name: &'a str,
    /// Unix seconds; `None`: it is good until it is revoked.
    pub expires: Option<i64>,
}

impl Store {
    /// Makes a project, which may use these models, or all if none is named.
    ///
    /// # Errors
    /// Where the name is taken or no name, and what the database says.
    pub async fn create_project(&self, actor: &str, name: &str, models: &[String]) -> Result<Project, Error> {
        let mut change = self.begin().await?;
        let project = insert_project(&mut change, actor, name, models).await?;
        change.commit().await?;
        Ok(project)
    }

    /// Makes a project and a key of the role [`Role::Owner`] in it, where nothing was ever made; `None` elsewhere.
    ///
    /// # Errors
    /// What the database says.
    pub async fn create_first(
        &self,
        actor: &str,
        project: &str,
        name: &str,
    ) -> Result<Option<NewKey>, Error> {
        let mut change = self.begin().await?;
        let any = sqlx::query("SELECT seq FROM audit_event LIMIT 1")
            .fetch_optional(&mut *change)
            .await?;
        if any.is_some() {
            return Ok(None);
        }
        let made = insert_project(&mut change, actor, project, &[]).await?;
        let wanted = NewKeyRequest {
            project: &made.id,
            role: Role::Owner,
            name,
            expires: None,
        };
        let key = insert_key(&mut change, actor, &wanted).await?;
        change.commit().await?;
        Ok(Some(key))
    }

    /// Ends a project: its keys open nothing any more.
    ///
    /// # Errors
    /// Where there is none, and what the database says.
    pub async fn archive_project(&self, actor: &str, project: &str) -> Result<(), Error> {
        let mut change = self.begin().await?;
        let id = living_project(&mut change, project).await?;
        sqlx::query("UPDATE project SET archived = $1 WHERE id = $2")
            .bind(now_s())
            .bind(&id)
            .execute(&mut *change)
            .await?;
        audit::append(&mut change, actor, "project.archived", &id, "{}".to_owned()).await?;
        Ok(change.commit().await?)
    }

    /// All projects, oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn projects(&self) -> Result<Vec<Project>, Error> {
        let rights = self.rights().await?;
        let rows =
            sqlx::query("SELECT id, name, created, archived, weight FROM project ORDER BY created, id")
                .fetch_all(&self.pool)
                .await?;
        let project = |row: &AnyRow| -> Result<Project, Error> {
            let id: String = row.try_get(0)?;
            let own = rights.iter().filter(|(project, _)| *project == id);
            Ok(Project {
                models: own.map(|(_, model)| model.clone()).collect(),
                id,
                name: row.try_get(1)?,
                created: row.try_get(2)?,
                archived: row.try_get(3)?,
                // Whatever somebody has written there, the others are listed.
                weight: row.try_get(4).unwrap_or(1),
            })
        };
        rows.iter().map(project).collect()
    }

    /// Makes a key. Its text is in the answer, and nowhere else.
    ///
    /// # Errors
    /// Where there is no such project, or no such name, and what the database says.
    pub async fn create_key(&self, actor: &str, wanted: &NewKeyRequest<'_>) -> Result<NewKey, Error> {
        let mut change = self.begin().await?;
        let key = insert_key(&mut change, actor, wanted).await?;
        change.commit().await?;
        Ok(key)
    }

    /// Ends a key.
    ///
    /// # Errors
    /// Where there is none that lives, and what the database says.
    pub async fn revoke_key(&self, actor: &str, id: &str) -> Result<(), Error> {
        let mut change = self.begin().await?;
        let ended = sqlx::query("UPDATE api_key SET revoked = $1 WHERE id = $2 AND revoked IS NULL")
            .bind(now_s())
            .bind(id)
            .execute(&mut *change)
            .await?;
        if ended.rows_affected() == 0 {
            return Err(Error::Refused(format!(
                "there is no key {id} that is not revoked"
            )));
        }
        audit::append(&mut change, actor, "api_key.revoked", id, "{}".to_owned()).await?;
        Ok(change.commit().await?)
    }

    /// The keys of projects that are not archived, oldest first.
    ///
    /// # Errors
    /// What the database says, or that a row is none of ours.
    pub async fn keys(&self) -> Result<Vec<KeyRecord>, Error> {
        self.key_rows().await?.iter().map(record).collect()
    }

    async fn key_rows(&self) -> Result<Vec<AnyRow>, Error> {
        let rows = sqlx::query(
            "SELECT k.id, k.hash, k.project, p.name, k.role, k.name, k.created, k.expires, k.revoked FROM api_key k \
             JOIN project p ON p.id = k.project WHERE p.archived IS NULL ORDER BY k.created, k.id",
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }

    async fn rights(&self) -> Result<Vec<(String, String)>, Error> {
        let rows = sqlx::query("SELECT project, model FROM model_right ORDER BY project, model")
            .fetch_all(&self.pool)
            .await?;
        let right = |row: &AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
        rows.iter().map(right).collect()
    }

    /// Everything that a server needs to know whose a key is.
    ///
    /// # Errors
    /// What the database says.
    pub async fn directory(&self) -> Result<Directory, Error> {
        let rows = self.key_rows().await?;
        // A row that is none of ours opens nothing, and locks nobody else out.
        let keys = rows.iter().filter_map(|row| record(row).ok());
        Ok(Directory::new(keys.collect(), self.rights().await?)
            .with_limits(self.limits().await?)
            .with_weights(self.weights().await?))
    }
}

async fn insert_project(
    change: &mut Transaction<'static, Any>,
    actor: &str,
    name: &str,
    models: &[String],
) -> Result<Project, Error> {
    check_name(name)?;
    let models: BTreeSet<String> = models.iter().cloned().collect();
    let id = format!("proj_{}", random_digits(ID_DIGITS)?);
    let created = now_s();
    let taken = sqlx::query("SELECT id FROM project WHERE name = $1 OR id = $1")
        .bind(name)
        .fetch_optional(&mut **change)
        .await?;
    if taken.is_some() {
        return Err(Error::Refused(format!("there is a project {name} already")));
    }
    sqlx::query("INSERT INTO project (id, name, created) VALUES ($1, $2, $3)")
        .bind(&id)
        .bind(name)
        .bind(created)
        .execute(&mut **change)
        .await?;
    for model in &models {
        sqlx::query("INSERT INTO model_right (project, model) VALUES ($1, $2)")
            .bind(&id)
            .bind(model)
            .execute(&mut **change)
            .await?;
    }
    let detail = serde_json::json!({"models": models}).to_string();
    audit::append(change, actor, "project.created", &id, detail).await?;
    Ok(Project {
        id,
        name: name.to_owned(),
        created,
        archived: None,
        models: models.into_iter().collect(),
        weight: 1,
    })
}

async fn insert_key(
    change: &mut Transaction<'static, Any>,
    actor: &str,
    wanted: &NewKeyRequest<'_>,
) -> Result<NewKey, Error> {
    check_name(wanted.name)?;
    let project = living_project(change, wanted.project).await?;
    let key = NewKey::make()?;
    sqlx::query(
        "INSERT INTO api_key (id, hash, project, role, name, created, expires) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&key.id.0)
    .bind(key.hash.to_hex())
    .bind(&project)
    .bind(wanted.role.name())
    .bind(wanted.name)
    .bind(now_s())
    .bind(wanted.expires)
    .execute(&mut **change)
    .await?;
    let detail =
        serde_json::json!({"project": project, "role": wanted.role.name(), "expires": wanted.expires});
    audit::append(change, actor, "api_key.created", &key.id.0, detail.to_string()).await?;
    Ok(key)
}

/// The identifier of a project that is not archived.
pub(super) async fn living_project(
    change: &mut Transaction<'static, Any>,
    name_or_id: &str,
) -> Result<String, Error> {
    let found = sqlx::query("SELECT id, archived FROM project WHERE name = $1 OR id = $1")
        .bind(name_or_id)
        .fetch_optional(&mut **change)
        .await?;
    let row = found.ok_or_else(|| Error::Refused(format!("there is no project {name_or_id}")))?;
    if row.try_get::<Option<i64>, _>(1)?.is_some() {
        return Err(Error::Refused(format!("the project {name_or_id} is archived")));
    }
    Ok(row.try_get(0)?)
}

fn record(row: &AnyRow) -> Result<KeyRecord, Error> {
    let id: String = row.try_get(0)?;
    let unsound = || Error::Unsound(format!("the key {id}"));
    let hash = KeyHash::from_hex(&row.try_get::<String, _>(1)?).ok_or_else(unsound)?;
    let role = row.try_get::<String, _>(4)?.parse().map_err(|_| unsound())?;
    Ok(KeyRecord {
        hash,
        project: row.try_get(2)?,
        project_name: row.try_get(3)?,
        role,
        name: row.try_get(5)?,
        created: row.try_get(6)?,
        expires: row.try_get(7)?,
        revoked: row.try_get(8)?,
        id: KeyId(id),
    })
}

fn check_name(name: &str) -> Result<(), Error> {
    let chars = name.chars().count();
    if (1..=NAME_CHARS_MAX).contains(&chars) && name.trim() == name && !name.chars().any(misleads) {
        return Ok(());
    }
    let message = format!(
        "a name has 1 to {NAME_CHARS_MAX} characters, none that controls a terminal or can't be seen, and no blanks around it"
    );
    Err(Error::Refused(message))
}

/// Whether a character controls a terminal, changes the order of what is read, or can't be seen.
fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
