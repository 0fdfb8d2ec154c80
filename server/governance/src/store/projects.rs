//! Projects and the models that they may use.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::content::stop;
use super::keys::{check_name, insert_key, living_keys};
use super::{Error, NewKeyRequest, Store, audit, now_s};
use crate::actor::{Acting, Actor};
use crate::key::{NewKey, random_digits};
use crate::role::Role;

/// What their identifiers begin with.
pub(super) const PROJECT_PREFIX: &str = "proj_";
/// Digits of an identifier.
pub(super) const ID_DIGITS: usize = 16;
/// Models that a project may be held to.
const RIGHTS_MAX: usize = 1_000;

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

impl Store {
    /// Makes a project, which may use these models, or all if none is named.
    ///
    /// # Errors
    /// Where the name is taken or no name, and what the database says.
    pub async fn create_project(
        &self,
        actor: impl Into<Actor<'_>>,
        name: &str,
        models: &[String],
    ) -> Result<Project, Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let project = insert_project(&mut change, &actor.name, name, models).await?;
        change.commit().await?;
        Ok(project)
    }

    /// Makes a project and a key of the role [`Role::Owner`] in it, where no project was ever made; `None` elsewhere.
    ///
    /// # Errors
    /// What the database says.
    pub async fn create_first(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        name: &str,
    ) -> Result<Option<NewKey>, Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let any = sqlx::query("SELECT id FROM project LIMIT 1")
            .fetch_optional(&mut *change)
            .await?;
        if any.is_some() {
            return Ok(None);
        }
        let made = insert_project(&mut change, &actor.name, project, &[]).await?;
        let wanted = NewKeyRequest {
            project: &made.id,
            role: Role::Owner,
            name,
            expires: None,
            owner: None,
        };
        let key = insert_key(&mut change, &actor, &wanted, None).await?;
        change.commit().await?;
        Ok(Some(key))
    }

    /// Gives a project, by name or identifier, another name.
    ///
    /// # Errors
    /// Where there is no such project, the name is taken or no name, and what the database says.
    pub async fn rename_project(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        name: &str,
    ) -> Result<(), Error> {
        check_name(name)?;
        let (mut change, actor) = self.begin_as(actor).await?;
        let id = living_project(&mut change, project).await?;
        check_free(&mut change, name, &id).await?;
        sqlx::query("UPDATE project SET name = $1 WHERE id = $2")
            .bind(name)
            .bind(&id)
            .execute(&mut *change)
            .await?;
        audit::append(&mut change, &actor.name, "project.updated", &id, "{}".to_owned()).await?;
        Ok(change.commit().await?)
    }

    /// Lets a project, by name or identifier, use these models alone, or all if none is named.
    ///
    /// # Errors
    /// Where there is no such project, or there are too many models, and what the database says.
    pub async fn set_rights(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        models: &[String],
    ) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let id = living_project(&mut change, project).await?;
        sqlx::query("DELETE FROM model_right WHERE project = $1")
            .bind(&id)
            .execute(&mut *change)
            .await?;
        let models = insert_rights(&mut change, &id, models).await?;
        let detail = serde_json::json!({"models": models}).to_string();
        audit::append(&mut change, &actor.name, "project.updated", &id, detail).await?;
        Ok(change.commit().await?)
    }

    /// Ends a project: its keys open nothing any more.
    ///
    /// # Errors
    /// Where there is none, or it has a key that the actor may not end, and what the database says.
    pub async fn archive_project(&self, actor: impl Into<Actor<'_>>, project: &str) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let id = living_project(&mut change, project).await?;
        for (_, role) in living_keys(&mut change, "project", &id).await? {
            check_grant(&actor, role)?;
        }
        sqlx::query("UPDATE project SET archived = $1 WHERE id = $2")
            .bind(now_s())
            .bind(&id)
            .execute(&mut *change)
            .await?;
        // A certificate may be the key of another project then.
        sqlx::query(
            "UPDATE api_key SET revoked = $1 WHERE project = $2 AND kind = 'certificate' AND revoked IS NULL",
        )
        .bind(now_s())
        .bind(&id)
        .execute(&mut *change)
        .await?;
        stop(&mut change, &actor, &id).await?;
        audit::append(&mut change, &actor.name, "project.archived", &id, "{}".to_owned()).await?;
        Ok(change.commit().await?)
    }

    /// All projects, oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn projects(&self) -> Result<Vec<Project>, Error> {
        let mut models: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (project, model) in self.rights().await? {
            models.entry(project).or_default().push(model);
        }
        let rows =
            sqlx::query("SELECT id, name, created, archived, weight FROM project ORDER BY created, id")
                .fetch_all(&self.pool)
                .await?;
        let mut projects = rows.iter().map(project).collect::<Result<Vec<_>, _>>()?;
        for project in &mut projects {
            project.models = models.remove(&project.id).unwrap_or_default();
        }
        Ok(projects)
    }

    /// A project, by its identifier.
    ///
    /// # Errors
    /// Where there is none, and what the database says.
    pub async fn project(&self, id: &str) -> Result<Project, Error> {
        let row = sqlx::query("SELECT id, name, created, archived, weight FROM project WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        let row = row.ok_or_else(|| Error::Missing("there is no such project".to_owned()))?;
        let mut project = project(&row)?;
        let rows = sqlx::query("SELECT model FROM model_right WHERE project = $1 ORDER BY model")
            .bind(id)
            .fetch_all(&self.pool)
            .await?;
        let models: Result<_, sqlx::Error> = rows.iter().map(|row| row.try_get(0)).collect();
        project.models = models?;
        Ok(project)
    }

    pub(super) async fn rights(&self) -> Result<Vec<(String, String)>, Error> {
        let rows = sqlx::query("SELECT project, model FROM model_right ORDER BY project, model")
            .fetch_all(&self.pool)
            .await?;
        let right = |row: &AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
        rows.iter().map(right).collect()
    }
}

fn project(row: &AnyRow) -> Result<Project, Error> {
    Ok(Project {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        created: row.try_get(2)?,
        archived: row.try_get(3)?,
        models: Vec::new(),
        // Whatever somebody has written there, the others are listed.
        weight: row.try_get(4).unwrap_or(1),
    })
}

async fn insert_project(
    change: &mut Transaction<'static, Any>,
    actor: &str,
    name: &str,
    models: &[String],
) -> Result<Project, Error> {
    check_name(name)?;
    let id = format!("{PROJECT_PREFIX}{}", random_digits(ID_DIGITS)?);
    let created = now_s();
    check_free(change, name, &id).await?;
    sqlx::query("INSERT INTO project (id, name, created) VALUES ($1, $2, $3)")
        .bind(&id)
        .bind(name)
        .bind(created)
        .execute(&mut **change)
        .await?;
    let models = insert_rights(change, &id, models).await?;
    let detail = serde_json::json!({"models": models}).to_string();
    audit::append(change, actor, "project.created", &id, detail).await?;
    Ok(Project {
        id,
        name: name.to_owned(),
        created,
        archived: None,
        models,
        weight: 1,
    })
}

/// Refuses a name by which another project is known.
async fn check_free(change: &mut Transaction<'static, Any>, name: &str, id: &str) -> Result<(), Error> {
    let taken = sqlx::query("SELECT id FROM project WHERE (name = $1 OR id = $1) AND id <> $2")
        .bind(name)
        .bind(id)
        .fetch_optional(&mut **change)
        .await?;
    if taken.is_some() {
        return Err(Error::Refused(format!("there is a project {name} already")));
    }
    Ok(())
}

/// The models in order, each once.
async fn insert_rights(
    change: &mut Transaction<'static, Any>,
    project: &str,
    models: &[String],
) -> Result<Vec<String>, Error> {
    let models: BTreeSet<&String> = models.iter().collect();
    if models.len() > RIGHTS_MAX {
        return Err(Error::Refused(format!(
            "a project may be held to {RIGHTS_MAX} models"
        )));
    }
    for model in &models {
        check_name(model)?;
        sqlx::query("INSERT INTO model_right (project, model) VALUES ($1, $2)")
            .bind(project)
            .bind(model.as_str())
            .execute(&mut **change)
            .await?;
    }
    Ok(models.into_iter().cloned().collect())
}

/// Refuses what only those may give or take who have it.
pub(super) fn check_grant(actor: &Acting, role: Role) -> Result<(), Error> {
    if actor.may_grant(role) {
        return Ok(());
    }
    Err(Error::Forbidden(role))
}

/// The identifier of a project that is not archived.
pub(super) async fn living_project(
    change: &mut Transaction<'static, Any>,
    name_or_id: &str,
) -> Result<String, Error> {
    match some_project(change, name_or_id).await? {
        (id, None) => Ok(id),
        (_, Some(_)) => Err(Error::Refused(format!("the project {name_or_id} is archived"))),
    }
}

/// The identifier of a project, by name or identifier, and when it was archived.
pub(super) async fn some_project(
    change: &mut Transaction<'static, Any>,
    name_or_id: &str,
) -> Result<(String, Option<i64>), Error> {
    let found = sqlx::query("SELECT id, archived FROM project WHERE name = $1 OR id = $1")
        .bind(name_or_id)
        .fetch_optional(&mut **change)
        .await?;
    let row = found.ok_or_else(|| Error::Missing(format!("there is no project {name_or_id}")))?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
