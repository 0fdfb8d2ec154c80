//! Keys without a text of their own: those of people who show a token of the company's login, and of clients' certificates.

use sqlx::{Any, Row as _, Transaction};

use super::keys::insert_row;
use super::members::check_owner;
use super::people::living_person;
use super::projects::check_grant;
use super::{Error, NewKeyRequest, Store, audit};
use crate::actor::{Acting, Actor};
use crate::key::{KeyHash, KeyId};
use crate::kind::KeyKind;
use crate::role::Role;

/// What the keys of tokens are called: they are told apart by whose they are.
const NAME: &str = "token";

impl Store {
    /// Makes the key that a person's tokens count as in a project, by identifiers, unless there is one: good or not, it stays as
    /// it is.
    ///
    /// # Errors
    /// Where they are not in the project, and what the database says.
    pub async fn ensure_token_key(
        &self,
        actor: impl Into<Actor<'_>>,
        person: &str,
        project: &str,
    ) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let known =
            sqlx::query("SELECT id FROM api_key WHERE owner = $1 AND project = $2 AND kind = 'token'")
                .bind(person)
                .bind(project)
                .fetch_optional(&mut *change)
                .await?;
        if known.is_some() {
            return Ok(change.rollback().await?);
        }
        let wanted = NewKeyRequest {
            project,
            role: living_person(&mut change, person).await?,
            name: NAME,
            expires: None,
            owner: Some(person),
        };
        let id = KeyId::make()?;
        let key = (&id, &KeyHash::NONE, KeyKind::Token);
        insert_row(&mut change, &actor, &wanted, key, self.secret.as_deref()).await?;
        Ok(change.commit().await?)
    }

    /// Makes the key of a client's certificate.
    ///
    /// # Errors
    /// As [`Store::create_key`], and where another key that was not revoked is of this certificate.
    pub async fn create_certificate_key(
        &self,
        actor: impl Into<Actor<'_>>,
        wanted: &NewKeyRequest<'_>,
        public_key: &KeyHash,
    ) -> Result<KeyId, Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let taken = sqlx::query(
            "SELECT id FROM api_key WHERE hash = $1 AND kind = 'certificate' AND revoked IS NULL",
        )
        .bind(public_key.to_hex())
        .fetch_optional(&mut *change)
        .await?;
        if let Some(row) = taken {
            let id: String = row.try_get(0)?;
            return Err(Error::Refused(format!(
                "the key {id} is of this certificate's public key already: revoke it first"
            )));
        }
        let id = KeyId::make()?;
        let key = (&id, public_key, KeyKind::Certificate);
        insert_row(&mut change, &actor, wanted, key, self.secret.as_deref()).await?;
        change.commit().await?;
        Ok(id)
    }

    /// Has a person's tokens open their project again, after its key was revoked or has expired.
    ///
    /// # Errors
    /// Where it is no key of tokens, its owner is not in the project any more, or it is not the actor's to give, and what the
    /// database says.
    pub async fn restore_token_key(&self, actor: impl Into<Actor<'_>>, id: &str) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let row = sqlx::query("SELECT owner, project FROM api_key WHERE id = $1 AND kind = 'token'")
            .bind(id)
            .fetch_optional(&mut *change)
            .await?;
        let none = || Error::Missing(format!("there is no key {id} of somebody's tokens"));
        let row = row.ok_or_else(none)?;
        let (owner, project): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let role = living_person(&mut change, &owner).await?;
        check_grant(&actor, role)?;
        check_owner(&mut change, &actor, &owner, (&project, role)).await?;
        restore(&mut change, &actor, (&owner, &project), role).await?;
        Ok(change.commit().await?)
    }
}

/// Makes the key of a person's tokens in a project good again, if there is one that is not.
pub(super) async fn restore(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    (person, project): (&str, &str),
    role: Role,
) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT id FROM api_key WHERE owner = $1 AND project = $2 AND kind = 'token' \
         AND (revoked IS NOT NULL OR expires IS NOT NULL)",
    )
    .bind(person)
    .bind(project)
    .fetch_optional(&mut **change)
    .await?;
    let Some(row) = row else {
        return Ok(());
    };
    let id: String = row.try_get(0)?;
    sqlx::query("UPDATE api_key SET revoked = NULL, expires = NULL, role = $1 WHERE id = $2")
        .bind(role.name())
        .bind(&id)
        .execute(&mut **change)
        .await?;
    let detail = serde_json::json!({"role": role.name(), "restored": true}).to_string();
    audit::append(change, &actor.name, "api_key.updated", &id, detail).await
}

/// The keys of a person's tokens have the role that the person has, whichever that becomes.
pub(super) async fn follow_role(
    change: &mut Transaction<'static, Any>,
    person: &str,
    role: Role,
) -> Result<(), Error> {
    sqlx::query("UPDATE api_key SET role = $1 WHERE owner = $2 AND kind = 'token'")
        .bind(role.name())
        .bind(person)
        .execute(&mut **change)
        .await?;
    Ok(())
}
