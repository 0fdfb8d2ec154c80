//! Keys.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::accounts::ServiceAccount;
use super::members::check_owner;
use super::people::no_secret;
use super::projects::{check_grant, living_project};
use super::{Error, Store, audit, now_s};
use crate::actor::{Acting, Actor};
use crate::directory::{Directory, KeyRecord};
use crate::key::{KeyHash, KeyId, NewKey};
use crate::kind::KeyKind;
use crate::role::{Role, Scope};
use crate::secret::Secret;

/// Characters of a name.
const NAME_CHARS_MAX: usize = 128;

const COLUMNS: &str = "SELECT k.id, k.hash, k.project, p.name, k.role, k.name, k.created, k.expires, k.revoked, k.owner, k.kind \
     FROM api_key k JOIN project p ON p.id = k.project";

/// What the name of a key begins with where it is sealed, and what is told of it where it can't be opened.
const SEALED: &str = "sealed:";
const UNREADABLE: &str = "(sealed)";

/// A key that is to be made.
#[derive(Clone, Debug)]
pub struct NewKeyRequest<'a> {
    /// The project's name or identifier.
    pub project: &'a str,
    pub role: Role,
    pub name: &'a str,
    /// Unix seconds; `None`: it is good until it is revoked.
    pub expires: Option<i64>,
    /// The identifier of the person or service account whose it is, where it is anybody's.
    pub owner: Option<&'a str>,
}

impl Store {
    /// Makes a key. Its text is in the answer, and nowhere else.
    ///
    /// # Errors
    /// Where there is no such project, name or owner, or the role is above the actor's or the owner's, and what the database says.
    pub async fn create_key(
        &self,
        actor: impl Into<Actor<'_>>,
        wanted: &NewKeyRequest<'_>,
    ) -> Result<NewKey, Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let key = insert_key(&mut change, &actor, wanted, self.secret.as_deref()).await?;
        change.commit().await?;
        Ok(key)
    }

    /// Ends a key.
    ///
    /// # Errors
    /// Where there is none that lives, or it is not the actor's to end, and what the database says.
    pub async fn revoke_key(&self, actor: impl Into<Actor<'_>>, id: &str) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        revoke(&mut change, &actor, "id", id, &|_| true)
            .await?
            .then_some(())
            .ok_or_else(|| no_key(id))?;
        Ok(change.commit().await?)
    }

    /// Has a key end at another time, Unix seconds.
    ///
    /// # Errors
    /// As [`Store::revoke_key`].
    pub async fn set_expiry(&self, actor: impl Into<Actor<'_>>, id: &str, expires: i64) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let mut living = living_keys(&mut change, "id", id).await?;
        let (_, role) = living.pop().ok_or_else(|| no_key(id))?;
        check_grant(&actor, role)?;
        sqlx::query("UPDATE api_key SET expires = $1 WHERE id = $2")
            .bind(expires)
            .bind(id)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"expires": expires}).to_string();
        audit::append(&mut change, &actor.name, "api_key.updated", id, detail).await?;
        Ok(change.commit().await?)
    }

    /// Whose keys are, of those that are anybody's: from the key's identifier to the owner's.
    ///
    /// # Errors
    /// What the database says.
    pub async fn owners(&self) -> Result<BTreeMap<String, String>, Error> {
        let rows = sqlx::query("SELECT id, owner FROM api_key WHERE owner IS NOT NULL")
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect()
    }

    /// The keys of projects that are not archived, oldest first.
    ///
    /// # Errors
    /// What the database says, or that a row is none of ours.
    pub async fn keys(&self) -> Result<Vec<KeyRecord>, Error> {
        self.key_rows()
            .await?
            .iter()
            .map(|row| self.key_of(row))
            .collect()
    }

    /// The same without rows that are none of ours: they open nothing, and lock nobody else out.
    ///
    /// # Errors
    /// What the database says.
    pub async fn sound_keys(&self) -> Result<Vec<KeyRecord>, Error> {
        let rows = self.key_rows().await?;
        Ok(rows.iter().filter_map(|row| self.key_of(row).ok()).collect())
    }

    async fn key_rows(&self) -> Result<Vec<AnyRow>, Error> {
        let query = format!("{COLUMNS} WHERE p.archived IS NULL ORDER BY k.created, k.id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .fetch_all(&self.pool)
            .await?;
        Ok(rows)
    }

    /// All keys that a person or service account ever had, oldest first.
    ///
    /// # Errors
    /// What the database says, or that a row is none of ours.
    pub async fn keys_of(&self, owner: &str) -> Result<Vec<KeyRecord>, Error> {
        let query = format!("{COLUMNS} WHERE k.owner = $1 ORDER BY k.created, k.id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(owner)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| self.key_of(row)).collect()
    }

    /// A key of its row, with its name as it was given where that can be told.
    fn key_of(&self, row: &AnyRow) -> Result<KeyRecord, Error> {
        let mut key = record(row)?;
        // That of nobody, or of a program, is whatever they call it.
        let owner = key
            .owner
            .as_deref()
            .filter(|owner| !ServiceAccount::is_one(owner));
        if let Some(sealed) = owner.and_then(|_| key.name.strip_prefix(SEALED)) {
            let opened = self
                .secret
                .as_ref()
                .and_then(|secret| secret.unseal(&key.id.0, sealed));
            key.name = opened.unwrap_or_else(|| UNREADABLE.to_owned());
        }
        Ok(key)
    }

    /// Everything that a server needs to know whose a key is.
    ///
    /// # Errors
    /// What the database says.
    pub async fn directory(&self) -> Result<Directory, Error> {
        Ok(Directory::new(self.sound_keys().await?, self.rights().await?)
            .with_limits(self.limits().await?)
            .with_weights(self.weights().await?)
            .with_recordings(self.recordings().await?)
            .with_people(self.insiders().await?))
    }
}

/// The role of a key that is good now, and may govern.
pub(super) async fn governing(change: &mut Transaction<'static, Any>, id: &str) -> Result<Role, Error> {
    let row = sqlx::query(
        "SELECT k.role FROM api_key k JOIN project p ON p.id = k.project WHERE k.id = $1 AND k.revoked IS NULL \
         AND (k.expires IS NULL OR k.expires > $2) AND p.archived IS NULL",
    )
    .bind(id)
    .bind(now_s())
    .fetch_optional(&mut **change)
    .await?;
    let role: String = row.ok_or(Error::Ended)?.try_get(0)?;
    let role: Role = role.parse().map_err(|_| Error::Ended)?;
    if role.allows(Scope::Govern) {
        Ok(role)
    } else {
        Err(Error::Forbidden(role))
    }
}

/// Keys that are not revoked, by what they are or whose.
pub(super) async fn living_keys(
    change: &mut Transaction<'static, Any>,
    column: &'static str,
    value: &str,
) -> Result<Vec<(String, Role)>, Error> {
    let query = format!("SELECT id, role FROM api_key WHERE {column} = $1 AND revoked IS NULL ORDER BY id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(value)
        .fetch_all(&mut **change)
        .await?;
    let key = |row: &AnyRow| {
        let (id, role): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        // What is no role of ours opens nothing, and only who may do everything ends it.
        Ok((id, role.parse().unwrap_or(Role::Owner)))
    };
    rows.iter().map(key).collect()
}

/// Revokes the keys, by what they are or whose, whose role is one of these; whether there were any.
pub(super) async fn revoke(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    column: &'static str,
    value: &str,
    whether: &(dyn Fn(Role) -> bool + Sync),
) -> Result<bool, Error> {
    let mut any = false;
    for (id, role) in living_keys(change, column, value).await? {
        if !whether(role) {
            continue;
        }
        check_grant(actor, role)?;
        sqlx::query("UPDATE api_key SET revoked = $1 WHERE id = $2")
            .bind(now_s())
            .bind(&id)
            .execute(&mut **change)
            .await?;
        audit::append(change, &actor.name, "api_key.deleted", &id, "{}".to_owned()).await?;
        any = true;
    }
    Ok(any)
}

pub(super) fn no_key(id: &str) -> Error {
    Error::Missing(format!("there is no key {id} that is not revoked"))
}

pub(super) async fn insert_key(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    wanted: &NewKeyRequest<'_>,
    secret: Option<&Secret>,
) -> Result<NewKey, Error> {
    let key = NewKey::make()?;
    insert_row(
        change,
        actor,
        wanted,
        (&key.id, &key.hash, KeyKind::Secret),
        secret,
    )
    .await?;
    Ok(key)
}

/// Writes a key of this identifier, which has this hash and is opened by this.
pub(super) async fn insert_row(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    wanted: &NewKeyRequest<'_>,
    (id, hash, kind): (&KeyId, &KeyHash, KeyKind),
    secret: Option<&Secret>,
) -> Result<(), Error> {
    check_name(wanted.name)?;
    check_grant(actor, wanted.role)?;
    let project = living_project(change, wanted.project).await?;
    if let Some(owner) = wanted.owner {
        check_owner(change, actor, owner, (&project, wanted.role)).await?;
    }
    let name = match wanted.owner {
        // What a person's key is called may name them.
        Some(owner) if !ServiceAccount::is_one(owner) => {
            let secret = secret.ok_or_else(no_secret)?;
            [SEALED, &secret.seal(&id.0, wanted.name)?].concat()
        }
        _ => wanted.name.to_owned(),
    };
    sqlx::query(
        "INSERT INTO api_key (id, hash, project, role, name, created, expires, owner, kind) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&id.0)
    .bind(hash.to_hex())
    .bind(&project)
    .bind(wanted.role.name())
    .bind(name)
    .bind(now_s())
    .bind(wanted.expires)
    .bind(wanted.owner)
    .bind(kind.name())
    .execute(&mut **change)
    .await?;
    let detail = serde_json::json!({
        "project": project, "role": wanted.role.name(), "expires": wanted.expires, "owner": wanted.owner,
        "kind": kind.name(),
    });
    audit::append(change, &actor.name, "api_key.created", &id.0, detail.to_string()).await
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
        owner: row.try_get(9)?,
        kind: row
            .try_get::<String, _>(10)?
            .parse()
            .map_err(|_| Error::Unsound(format!("the key {id}")))?,
        id: KeyId(id),
    })
}

pub(super) fn check_name(name: &str) -> Result<(), Error> {
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
pub(super) fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{e0000}'..='\u{e007f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
