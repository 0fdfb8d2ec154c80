//! Programs that act for a project.

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::keys::{check_name, insert_key, revoke};
use super::projects::{ID_DIGITS, living_project};
use super::{Error, NewKeyRequest, Store, audit, now_s};
use crate::actor::Actor;
use crate::key::{NewKey, random_digits};
use crate::role::Role;

/// What their identifiers begin with.
const ACCOUNT_PREFIX: &str = "svc_acct_";

/// A program that has keys of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    pub id: String,
    pub project: String,
    pub name: String,
    /// Unix seconds.
    pub created: i64,
}

impl ServiceAccount {
    /// Whether an identifier is of one.
    pub fn is_one(id: &str) -> bool {
        id.starts_with(ACCOUNT_PREFIX)
    }
}

impl Store {
    /// Makes a service account of a project, and a first key of it if one is wanted: until when, Unix seconds, or for good.
    ///
    /// # Errors
    /// Where there is no such project, or no such name, and what the database says.
    pub async fn create_account(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        name: &str,
        key: Option<Option<i64>>,
    ) -> Result<(ServiceAccount, Option<NewKey>), Error> {
        check_name(name)?;
        let (mut change, actor) = self.begin_as(actor).await?;
        let account = ServiceAccount {
            id: format!("{ACCOUNT_PREFIX}{}", random_digits(ID_DIGITS)?),
            project: living_project(&mut change, project).await?,
            name: name.to_owned(),
            created: now_s(),
        };
        sqlx::query("INSERT INTO service_account (id, project, name, created) VALUES ($1, $2, $3, $4)")
            .bind(&account.id)
            .bind(&account.project)
            .bind(name)
            .bind(account.created)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"project": account.project}).to_string();
        audit::append(
            &mut change,
            &actor.name,
            "service_account.created",
            &account.id,
            detail,
        )
        .await?;
        let mut made = None;
        if let Some(expires) = key {
            let wanted = NewKeyRequest {
                project: &account.project,
                role: Role::Service,
                name,
                expires,
                owner: Some(&account.id),
            };
            made = Some(insert_key(&mut change, &actor, &wanted, self.secret.as_deref()).await?);
        }
        change.commit().await?;
        Ok((account, made))
    }

    /// The service accounts of a project, by its identifier, oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn accounts(&self, project: &str) -> Result<Vec<ServiceAccount>, Error> {
        let rows = sqlx::query(
            "SELECT id, project, name, created FROM service_account WHERE project = $1 AND ended IS NULL \
             ORDER BY created, id",
        )
        .bind(project)
        .fetch_all(&self.pool)
        .await?;
        let account = |row: &AnyRow| {
            Ok(ServiceAccount {
                id: row.try_get(0)?,
                project: row.try_get(1)?,
                name: row.try_get(2)?,
                created: row.try_get(3)?,
            })
        };
        rows.iter().map(account).collect()
    }

    /// Gives a service account of a project another name.
    ///
    /// # Errors
    /// Where there is none, or no such name, and what the database says.
    pub async fn rename_account(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        id: &str,
        name: &str,
    ) -> Result<(), Error> {
        check_name(name)?;
        let (mut change, actor) = self.begin_as(actor).await?;
        check_account(&mut change, id, project).await?;
        sqlx::query("UPDATE service_account SET name = $1 WHERE id = $2")
            .bind(name)
            .bind(id)
            .execute(&mut *change)
            .await?;
        audit::append(
            &mut change,
            &actor.name,
            "service_account.updated",
            id,
            "{}".to_owned(),
        )
        .await?;
        Ok(change.commit().await?)
    }

    /// Ends a service account of a project, and its keys.
    ///
    /// # Errors
    /// Where there is none, and what the database says.
    pub async fn end_account(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        id: &str,
    ) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        check_account(&mut change, id, project).await?;
        revoke(&mut change, &actor, "owner", id, &|_| true).await?;
        sqlx::query("UPDATE service_account SET ended = $1 WHERE id = $2")
            .bind(now_s())
            .bind(id)
            .execute(&mut *change)
            .await?;
        audit::append(
            &mut change,
            &actor.name,
            "service_account.deleted",
            id,
            "{}".to_owned(),
        )
        .await?;
        Ok(change.commit().await?)
    }
}

/// Refuses where a project has no such service account.
pub(super) async fn check_account(
    change: &mut Transaction<'static, Any>,
    id: &str,
    project: &str,
) -> Result<(), Error> {
    let found =
        sqlx::query("SELECT id FROM service_account WHERE id = $1 AND project = $2 AND ended IS NULL")
            .bind(id)
            .bind(project)
            .fetch_optional(&mut **change)
            .await?;
    found
        .map(drop)
        .ok_or_else(|| Error::Missing(format!("the project has no service account {id}")))
}
