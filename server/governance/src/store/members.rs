//! Who is in which project, and may have keys of it.

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::accounts::{ServiceAccount, check_account};
use super::keys::revoke;
use super::people::{Person, living_person};
use super::projects::{check_grant, living_project};
use super::tokens;
use super::{Error, Store, audit, now_s};
use crate::actor::{Acting, Actor};
use crate::role::Role;

/// A person in a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub person: Person,
    /// Unix seconds.
    pub added: i64,
}

impl Store {
    /// The people of a project, by its identifier, in the order in which they came.
    ///
    /// # Errors
    /// What the database says.
    pub async fn members(&self, project: &str) -> Result<Vec<Member>, Error> {
        let rows = sqlx::query(
            "SELECT p.id, p.sealed, p.role, p.created, p.ended, m.created FROM member m JOIN person p ON p.id = m.person \
             WHERE m.project = $1 ORDER BY m.created, p.id",
        )
        .bind(project)
        .fetch_all(&self.pool)
        .await?;
        let member = |row: &AnyRow| {
            Ok(Member {
                person: self.person_of(row)?,
                added: row.try_get(5)?,
            })
        };
        rows.iter().map(member).collect()
    }

    /// Lets a person have keys of a project, by name or identifier.
    ///
    /// # Errors
    /// Where there is no such person or project, or they are in it, and what the database says.
    pub async fn add_member(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        id: &str,
    ) -> Result<Member, Error> {
        let person = self.person(id).await?;
        let (mut change, actor) = self.begin_as(actor).await?;
        // What they do from then on is done in their name.
        let role = living_person(&mut change, &person.id).await?;
        check_grant(&actor, role)?;
        let project = living_project(&mut change, project).await?;
        if is_member(&mut change, &person.id, &project).await? {
            return Err(Error::Refused("this person is in the project already".to_owned()));
        }
        let added = now_s();
        sqlx::query("INSERT INTO member (person, project, created) VALUES ($1, $2, $3)")
            .bind(&person.id)
            .bind(&project)
            .bind(added)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"project": project}).to_string();
        audit::append(
            &mut change,
            &actor.name,
            "role.assignment.created",
            &person.id,
            detail,
        )
        .await?;
        tokens::restore(&mut change, &actor, (&person.id, &project), role).await?;
        change.commit().await?;
        Ok(Member { person, added })
    }

    /// Takes a person out of a project, by its identifier; their keys of it are revoked.
    ///
    /// # Errors
    /// Where they are not in it, or have a key that is not the actor's to end, and what the database says.
    pub async fn remove_member(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        id: &str,
    ) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        if !is_member(&mut change, id, project).await? {
            return Err(Error::Missing("this person is not in the project".to_owned()));
        }
        check_grant(&actor, living_person(&mut change, id).await?)?;
        let own = sqlx::query("SELECT id FROM api_key WHERE owner = $1 AND project = $2 AND revoked IS NULL")
            .bind(id)
            .bind(project)
            .fetch_all(&mut *change)
            .await?;
        for key in &own {
            revoke(&mut change, &actor, "id", key.try_get(0)?, &|_| true).await?;
        }
        sqlx::query("DELETE FROM member WHERE person = $1 AND project = $2")
            .bind(id)
            .bind(project)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"project": project}).to_string();
        audit::append(&mut change, &actor.name, "role.assignment.deleted", id, detail).await?;
        Ok(change.commit().await?)
    }
}

/// Refuses an owner of a key who is not there, or may not have it.
pub(super) async fn check_owner(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    owner: &str,
    (project, role): (&str, Role),
) -> Result<(), Error> {
    if ServiceAccount::is_one(owner) {
        check_account(change, owner, project).await?;
        return if role == Role::Service {
            Ok(())
        } else {
            Err(Error::Refused(
                "keys of a service account have the role service".to_owned(),
            ))
        };
    }
    let own = living_person(change, owner).await?;
    // Whoever has the key acts in their name.
    check_grant(actor, own)?;
    if !own.covers(role) {
        return Err(Error::Refused(format!(
            "a person of the role {own} has no key of the role {role}"
        )));
    }
    if !is_member(change, owner, project).await? {
        return Err(Error::Refused(
            "this person is not in the project: add them first".to_owned(),
        ));
    }
    Ok(())
}

async fn is_member(change: &mut Transaction<'static, Any>, id: &str, project: &str) -> Result<bool, Error> {
    let row = sqlx::query("SELECT person FROM member WHERE person = $1 AND project = $2")
        .bind(id)
        .bind(project)
        .fetch_optional(&mut **change)
        .await?;
    Ok(row.is_some())
}
