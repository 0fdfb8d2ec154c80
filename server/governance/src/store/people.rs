//! People: whose keys are whose, until they leave or are forgotten.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::content::delete_of_owner;
use super::keys::{check_name, misleads, revoke};
use super::projects::{ID_DIGITS, check_grant};
use super::setting::{insert_setting, setting};
use super::subjects::unbind;
use super::tokens::follow_role;
use super::{Error, Store, audit, now_s};
use crate::actor::{Acting, Actor};
use crate::directory::PERSON_PREFIX;
use crate::key::random_digits;
use crate::role::Role;
use crate::secret::Secret;

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

impl Store {
    /// The same with what seals the names of people.
    ///
    /// # Errors
    /// Where the database was used with another secret, and what it says.
    pub async fn with_secret(self, actor: impl Into<Actor<'_>>, secret: Secret) -> Result<Self, Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        if setting(&mut change, SECRET).await?.is_none() {
            insert_setting(&mut change, SECRET, secret.fingerprint()).await?;
            let detail = "{}".to_owned();
            audit::append(&mut change, &actor.name, "organization.updated", SECRET, detail).await?;
            change.commit().await?;
        } else {
            change.rollback().await?;
        }
        self.with_known_secret(secret).await
    }

    /// The same with the secret of a file, which is made if the database was used with none.
    ///
    /// # Errors
    /// As [`Store::with_secret`], and where the file of the secret that it was used with is missing.
    pub async fn with_secret_of(self, actor: impl Into<Actor<'_>>, place: &Path) -> Result<Self, Error> {
        let secret = match self.setting(SECRET).await? {
            // Another would open nothing, and might take the place of the right one in a copy.
            Some(_) if !place.exists() => {
                let message =
                    "the secret that the database was used with is not there: put its copy back".to_owned();
                return Err(Error::Refused(message));
            }
            Some(_) => Secret::open(place)?,
            None => Secret::open_or_make(place)?,
        };
        self.with_secret(actor, secret).await
    }

    /// The same, where the database was used with that secret before; where it was used with none, nothing is sealed.
    ///
    /// # Errors
    /// As [`Store::with_secret`].
    pub async fn with_known_secret(self, secret: Secret) -> Result<Self, Error> {
        let known = self.setting(SECRET).await?;
        if known.is_some_and(|known| known != secret.fingerprint()) {
            let message = "this is not the secret that the database was used with: names of people are sealed with another";
            return Err(Error::Refused(message.to_owned()));
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
        self.secret.as_deref().ok_or_else(no_secret)
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
        let secret = self.secret()?;
        let email = address(email)?;
        check_name(name)?;
        check_role(role)?;
        let mark = secret.mark(&email);
        let (mut change, actor) = self.begin_as(actor).await?;
        check_grant(&actor, role)?;
        let known = sqlx::query("SELECT id, ended, role FROM person WHERE mark = $1")
            .bind(&mark)
            .fetch_optional(&mut *change)
            .await?;
        let id = match &known {
            Some(row) if row.try_get::<Option<i64>, _>(1)?.is_none() => {
                return Err(Error::Refused(
                    "there is a person with this address already".to_owned(),
                ));
            }
            Some(row) => {
                // Who they were is not for everyone to write anew.
                let before: String = row.try_get(2)?;
                check_grant(&actor, before.parse().unwrap_or(Role::Owner))?;
                row.try_get(0)?
            }
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
        audit::append(&mut change, &actor.name, "user.added", &id, detail).await?;
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
        let mark = if whom.contains('@') {
            // Without the secret nobody could tell whether there is one of this address.
            self.secret()?.mark(&address(whom)?)
        } else {
            String::new()
        };
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{COLUMNS} WHERE id = $1 OR mark = $2"
        )))
        .bind(whom)
        .bind(mark)
        .fetch_optional(&self.pool)
        .await?;
        let row = row.ok_or_else(nobody)?;
        self.person_of(&row)
    }

    pub(super) fn person_of(&self, row: &AnyRow) -> Result<Person, Error> {
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
        let (mut change, actor) = self.begin_as(actor).await?;
        check_role(role)?;
        check_grant(&actor, living_person(&mut change, id).await?)?;
        check_grant(&actor, role)?;
        follow_role(&mut change, id, role).await?;
        revoke(&mut change, &actor, "owner", id, &|key| !role.covers(key)).await?;
        sqlx::query("UPDATE person SET role = $1 WHERE id = $2")
            .bind(role.name())
            .bind(id)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"role": role.name()}).to_string();
        audit::append(&mut change, &actor.name, "user.updated", id, detail).await?;
        Ok(change.commit().await?)
    }

    /// Has a person leave: their keys are revoked, and they are in no project any more. Who they were stays until they are erased.
    ///
    /// # Errors
    /// Where there is no such person, or their role is above the actor's, and what the database says.
    pub async fn end_person(&self, actor: impl Into<Actor<'_>>, id: &str) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        check_grant(&actor, living_person(&mut change, id).await?)?;
        leave(&mut change, &actor, id).await?;
        Ok(change.commit().await?)
    }

    /// Erases who somebody is or was (GDPR, article 17): of them an identifier is left that names nobody, in what was used and in
    /// the audit chain, which holds as before.
    ///
    /// # Errors
    /// Where there is no such person, or their role is above the actor's, and what the database says.
    pub async fn erase_person(&self, actor: impl Into<Actor<'_>>, id: &str) -> Result<(), Error> {
        let (id, actor) = (self.person(id).await?.id, actor.into());
        let (mut change, acting) = self.begin_as(actor).await?;
        check_grant(&acting, some_person(&mut change, &id).await?.0)?;
        change.rollback().await?;
        self.delete_most_of_owner(actor, &id).await?;
        let (mut change, actor) = self.begin_as(actor).await?;
        let (role, ended) = some_person(&mut change, &id).await?;
        check_grant(&actor, role)?;
        if ended.is_none() {
            leave(&mut change, &actor, &id).await?;
        }
        forget(&mut change, &actor, &id).await?;
        change.commit().await?;
        self.clean().await
    }
}

fn check_role(role: Role) -> Result<(), Error> {
    if role == Role::Service {
        let message = "service accounts have the role service, and no people".to_owned();
        return Err(Error::Refused(message));
    }
    Ok(())
}

async fn leave(change: &mut Transaction<'static, Any>, actor: &Acting, id: &str) -> Result<(), Error> {
    revoke(change, actor, "owner", id, &|_| true).await?;
    // Who comes back may have another account at the login by then.
    unbind(change, actor, id).await?;
    sqlx::query("DELETE FROM member WHERE person = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    sqlx::query("UPDATE person SET ended = $1 WHERE id = $2")
        .bind(now_s())
        .bind(id)
        .execute(&mut **change)
        .await?;
    audit::append(change, &actor.name, "user.deleted", id, "{}".to_owned()).await
}

/// Erases who somebody was who has left.
pub(super) async fn forget(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    id: &str,
) -> Result<(), Error> {
    delete_of_owner(change, actor, id, true).await?;
    // What a key is called may name its owner.
    sqlx::query("UPDATE api_key SET name = 'erased' WHERE owner = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    sqlx::query("DELETE FROM subject WHERE person = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    sqlx::query("DELETE FROM person WHERE id = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    audit::append(change, &actor.name, "user.erased", id, "{}".to_owned()).await
}

/// The role of a person who has not left.
pub(super) async fn living_person(change: &mut Transaction<'static, Any>, id: &str) -> Result<Role, Error> {
    match some_person(change, id).await? {
        (role, None) => Ok(role),
        (_, Some(_)) => Err(nobody()),
    }
}

/// The role of a person, and when they left.
async fn some_person(change: &mut Transaction<'static, Any>, id: &str) -> Result<(Role, Option<i64>), Error> {
    let row = sqlx::query("SELECT role, ended FROM person WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut **change)
        .await?;
    let row = row.ok_or_else(nobody)?;
    let role: String = row.try_get(0)?;
    let role = role
        .parse()
        .map_err(|_| Error::Unsound(format!("the person {id}")))?;
    Ok((role, row.try_get(1)?))
}

pub(super) fn no_secret() -> Error {
    Error::Refused("this needs the secret of the database: give --secret FILE".to_owned())
}

/// The address is not told: it is in no error.
fn nobody() -> Error {
    Error::Missing("there is no such person".to_owned())
}

fn seal(secret: &Secret, id: &str, email: &str, name: &str) -> Result<String, Error> {
    secret.seal(id, &format!("{email}\n{name}"))
}

/// Whether a character is another spelling of one that stays itself when it is written small and large again: the sign of kelvins
/// would be a `k`.
fn passes_for_another(character: char) -> bool {
    let small: String = character.to_lowercase().collect();
    let own = character.to_string();
    small != own && small.to_uppercase() != own
}

/// An address in the form in which it is compared.
///
/// # Errors
/// Where it is none.
pub(super) fn address(text: &str) -> Result<String, Error> {
    let sound = text.len() <= ADDRESS_BYTES_MAX
        && !text.chars().any(|character| {
            character.is_whitespace() || misleads(character) || passes_for_another(character)
        })
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
