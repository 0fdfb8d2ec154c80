//! People: whose keys are whose, until they leave or are forgotten.

use std::fmt;
use std::sync::Arc;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::accounts::{ACCOUNT_PREFIX, check_account};
use super::keys::{check_name, revoke};
use super::projects::{ID_DIGITS, check_grant, living_project};
use super::setting::{insert_setting, setting};
use super::{Error, Store, audit, now_s};
use crate::actor::Actor;
use crate::key::random_digits;
use crate::role::Role;
use crate::secret::Secret;

/// What their identifiers begin with.
pub(super) const PERSON_PREFIX: &str = "user_";
/// Which secret a database is used with.
const SECRET: &str = "secret";
/// Bytes of an address (RFC 5321, 4.5.3.1.3, without its brackets).
const ADDRESS_BYTES_MAX: usize = 254;
const COLUMNS: &str = "SELECT id, sealed, role, created, ended FROM person";

/// A person who has, or had, keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub id: String,
    /// Address and name; `None` where the secret that opens them is not known.
    pub named: Option<Named>,
    /// The most that their keys may do.
    pub role: Role,
    /// Unix seconds.
    pub created: i64,
    /// When they left.
    pub ended: Option<i64>,
}

/// What names a person.
#[derive(Clone, PartialEq, Eq)]
pub struct Named {
    pub email: String,
    pub name: String,
}

impl fmt::Debug for Named {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Named")
    }
}

/// A person in a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub person: Person,
    /// Unix seconds.
    pub added: i64,
}

impl Store {
    /// The same with what seals the names of people.
    ///
    /// # Errors
    /// Where the database was used with another secret, and what it says.
    pub async fn with_secret(self, actor: impl Into<Actor<'_>>, secret: Secret) -> Result<Self, Error> {
        let actor = actor.into();
        let mut change = self.begin().await?;
        match setting(&mut change, SECRET).await? {
            Some(own) if own == secret.fingerprint() => {}
            Some(_) => {
                let message = "this is not the secret that the database was used with: names of people are sealed with another";
                return Err(Error::Refused(message.to_owned()));
            }
            None => {
                insert_setting(&mut change, SECRET, secret.fingerprint()).await?;
                let detail = "{}".to_owned();
                audit::append(&mut change, actor.name, "organization.updated", SECRET, detail).await?;
                change.commit().await?;
            }
        }
        Ok(Self {
            secret: Some(Arc::new(secret)),
            ..self
        })
    }

    /// What seals and signs.
    ///
    /// # Errors
    /// Where it is not known.
    pub fn secret(&self) -> Result<&Secret, Error> {
        let missing =
            || Error::Refused("this needs the secret of the database: give --secret FILE".to_owned());
        self.secret.as_deref().ok_or_else(missing)
    }

    /// Adds a person, or has one come back who had left.
    ///
    /// # Errors
    /// Where they are there, the address or the name is none, or the role is above the actor's, and what the database says.
    pub async fn add_person(
        &self,
        actor: impl Into<Actor<'_>>,
        email: &str,
        name: &str,
        role: Role,
    ) -> Result<Person, Error> {
        let (actor, secret) = (actor.into(), self.secret()?);
        let email = address(email)?;
        check_name(name)?;
        check_grant(actor, role)?;
        let mark = secret.mark(&email);
        let mut change = self.begin().await?;
        let known = sqlx::query("SELECT id, ended FROM person WHERE mark = $1")
            .bind(&mark)
            .fetch_optional(&mut *change)
            .await?;
        let id = match &known {
            Some(row) if row.try_get::<Option<i64>, _>(1)?.is_none() => {
                return Err(Error::Refused(
                    "there is a person with this address already".to_owned(),
                ));
            }
            Some(row) => row.try_get(0)?,
            None => format!("{PERSON_PREFIX}{}", random_digits(ID_DIGITS)?),
        };
        let sealed = seal(secret, &id, &email, name)?;
        let created = now_s();
        sqlx::query(
            "INSERT INTO person (id, mark, sealed, role, created) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO UPDATE \
             SET sealed = excluded.sealed, role = excluded.role, created = excluded.created, ended = NULL",
        )
        .bind(&id)
        .bind(&mark)
        .bind(sealed)
        .bind(role.name())
        .bind(created)
        .execute(&mut *change)
        .await?;
        let detail = serde_json::json!({"role": role.name()}).to_string();
        audit::append(&mut change, actor.name, "user.added", &id, detail).await?;
        change.commit().await?;
        let named = Some(Named {
            email,
            name: name.to_owned(),
        });
        Ok(Person {
            id,
            named,
            role,
            created,
            ended: None,
        })
    }

    /// All people, also those who left, oldest first.
    ///
    /// # Errors
    /// What the database says, or that a row is none of ours.
    pub async fn people(&self) -> Result<Vec<Person>, Error> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} ORDER BY created, id")))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| self.person_of(row)).collect()
    }

    /// A person by identifier or address, also one who left.
    ///
    /// # Errors
    /// Where there is none, and what the database says.
    pub async fn person(&self, whom: &str) -> Result<Person, Error> {
        let mark = match &self.secret {
            Some(secret) if whom.contains('@') => secret.mark(&address(whom)?),
            _ => String::new(),
        };
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{COLUMNS} WHERE id = $1 OR mark = $2"
        )))
        .bind(whom)
        .bind(mark)
        .fetch_optional(&self.pool)
        .await?;
        // The address is not told: it is in no error.
        let row = row.ok_or_else(|| Error::Missing("there is no such person".to_owned()))?;
        self.person_of(&row)
    }

    fn person_of(&self, row: &AnyRow) -> Result<Person, Error> {
        let id: String = row.try_get(0)?;
        let sealed: String = row.try_get(1)?;
        let role: String = row.try_get(2)?;
        let role = role
            .parse()
            .map_err(|_| Error::Unsound(format!("the person {id}")))?;
        let opened = self
            .secret
            .as_ref()
            .and_then(|secret| secret.unseal(&id, &sealed));
        let named = opened.and_then(|text| {
            let (email, name) = text.split_once('\n')?;
            Some(Named {
                email: email.to_owned(),
                name: name.to_owned(),
            })
        });
        Ok(Person {
            id,
            named,
            role,
            created: row.try_get(3)?,
            ended: row.try_get(4)?,
        })
    }

    /// Gives a person another role. Keys of theirs that may do more are revoked.
    ///
    /// # Errors
    /// Where there is no such person, or one of the roles is above the actor's, and what the database says.
    pub async fn set_person_role(
        &self,
        actor: impl Into<Actor<'_>>,
        id: &str,
        role: Role,
    ) -> Result<(), Error> {
        let actor = actor.into();
        let mut change = self.begin().await?;
        check_grant(actor, living_person(&mut change, id).await?)?;
        check_grant(actor, role)?;
        revoke(&mut change, actor, "owner", id, &|key| !role.covers(key)).await?;
        sqlx::query("UPDATE person SET role = $1 WHERE id = $2")
            .bind(role.name())
            .bind(id)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"role": role.name()}).to_string();
        audit::append(&mut change, actor.name, "user.updated", id, detail).await?;
        Ok(change.commit().await?)
    }

    /// Has a person leave: their keys are revoked, and they are in no project any more. Who they were stays until they are erased.
    ///
    /// # Errors
    /// Where there is no such person, or their role is above the actor's, and what the database says.
    pub async fn end_person(&self, actor: impl Into<Actor<'_>>, id: &str) -> Result<(), Error> {
        let actor = actor.into();
        let mut change = self.begin().await?;
        check_grant(actor, living_person(&mut change, id).await?)?;
        leave(&mut change, actor, id).await?;
        Ok(change.commit().await?)
    }

    /// Erases who somebody is or was (GDPR, article 17): of them an identifier is left that names nobody, in what was used and in
    /// the audit chain, which holds as before.
    ///
    /// # Errors
    /// Where there is no such person, or their role is above the actor's, and what the database says.
    pub async fn erase_person(&self, actor: impl Into<Actor<'_>>, id: &str) -> Result<(), Error> {
        let (actor, person) = (actor.into(), self.person(id).await?);
        let id = person.id;
        let mut change = self.begin().await?;
        check_grant(actor, person.role)?;
        if living_person(&mut change, &id).await.is_ok() {
            leave(&mut change, actor, &id).await?;
        }
        // What a key is called may name its owner.
        sqlx::query("UPDATE api_key SET name = 'erased' WHERE owner = $1")
            .bind(&id)
            .execute(&mut *change)
            .await?;
        sqlx::query("DELETE FROM person WHERE id = $1")
            .bind(&id)
            .execute(&mut *change)
            .await?;
        audit::append(&mut change, actor.name, "user.erased", &id, "{}".to_owned()).await?;
        change.commit().await?;
        self.clean().await
    }

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
        let (actor, person) = (actor.into(), self.person(id).await?);
        let mut change = self.begin().await?;
        living_person(&mut change, &person.id).await?;
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
            actor.name,
            "role.assignment.created",
            &person.id,
            detail,
        )
        .await?;
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
        let actor = actor.into();
        let mut change = self.begin().await?;
        if !is_member(&mut change, id, project).await? {
            return Err(Error::Missing("this person is not in the project".to_owned()));
        }
        let own = sqlx::query("SELECT id FROM api_key WHERE owner = $1 AND project = $2 AND revoked IS NULL")
            .bind(id)
            .bind(project)
            .fetch_all(&mut *change)
            .await?;
        for key in &own {
            revoke(&mut change, actor, "id", key.try_get(0)?, &|_| true).await?;
        }
        sqlx::query("DELETE FROM member WHERE person = $1 AND project = $2")
            .bind(id)
            .bind(project)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"project": project}).to_string();
        audit::append(&mut change, actor.name, "role.assignment.deleted", id, detail).await?;
        Ok(change.commit().await?)
    }
}

/// Refuses an owner of a key who is not there, or may not have it.
pub(super) async fn check_owner(
    change: &mut Transaction<'static, Any>,
    owner: &str,
    project: &str,
    role: Role,
) -> Result<(), Error> {
    if owner.starts_with(ACCOUNT_PREFIX) {
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

async fn leave(change: &mut Transaction<'static, Any>, actor: Actor<'_>, id: &str) -> Result<(), Error> {
    revoke(change, actor, "owner", id, &|_| true).await?;
    sqlx::query("DELETE FROM member WHERE person = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    sqlx::query("UPDATE person SET ended = $1 WHERE id = $2")
        .bind(now_s())
        .bind(id)
        .execute(&mut **change)
        .await?;
    audit::append(change, actor.name, "user.deleted", id, "{}".to_owned()).await
}

/// The role of a person who has not left.
async fn living_person(change: &mut Transaction<'static, Any>, id: &str) -> Result<Role, Error> {
    let row = sqlx::query("SELECT role FROM person WHERE id = $1 AND ended IS NULL")
        .bind(id)
        .fetch_optional(&mut **change)
        .await?;
    let row = row.ok_or_else(|| Error::Missing("there is no such person".to_owned()))?;
    let role: String = row.try_get(0)?;
    role.parse()
        .map_err(|_| Error::Unsound(format!("the person {id}")))
}

async fn is_member(change: &mut Transaction<'static, Any>, id: &str, project: &str) -> Result<bool, Error> {
    let row = sqlx::query("SELECT person FROM member WHERE person = $1 AND project = $2")
        .bind(id)
        .bind(project)
        .fetch_optional(&mut **change)
        .await?;
    Ok(row.is_some())
}

fn seal(secret: &Secret, id: &str, email: &str, name: &str) -> Result<String, Error> {
    secret.seal(id, &format!("{email}\n{name}"))
}

/// An address in the form in which it is compared.
///
/// # Errors
/// Where it is none.
fn address(text: &str) -> Result<String, Error> {
    let sound = text.len() <= ADDRESS_BYTES_MAX
        && check_name(&text.chars().take(128).collect::<String>()).is_ok()
        && !text.chars().any(char::is_whitespace)
        && text
            .split_once('@')
            .is_some_and(|(who, host)| !who.is_empty() && !host.is_empty() && !host.contains('@'));
    if sound {
        return Ok(text.to_lowercase());
    }
    Err(Error::Refused(format!(
        "an address looks like name@example.org, and has up to {ADDRESS_BYTES_MAX} bytes"
    )))
}
