//! Who people are at the company's login: issuer and subject together are one person for ever, which an address is not (`OpenID`
//! Connect Core 1.0, section 5.7).

use std::collections::{BTreeMap, HashSet};

use sqlx::{Any, Row as _, Transaction};

use super::people::{address, living_person};
use super::{Error, Store, audit, now_s};
use crate::actor::{Acting, Actor};
use crate::directory::{Insider, People};

/// Who a person is at the login.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginSubject {
    pub issuer: String,
    pub subject: String,
    /// Since when, Unix seconds.
    pub bound: i64,
}

impl Store {
    /// What finds the person of an address, without telling it.
    ///
    /// # Errors
    /// Where it is no address, or the secret is not known.
    pub fn mark_of(&self, email: &str) -> Result<String, Error> {
        Ok(self.secret()?.mark(&address(email)?))
    }

    /// What finds the person of a login's subject, without telling it.
    ///
    /// # Errors
    /// Where the secret is not known.
    pub fn mark_of_subject(&self, issuer: &str, subject: &str) -> Result<String, Error> {
        // No address has such a character: nobody finds a subject by one.
        Ok(self.secret()?.mark(&format!("{issuer}\n{subject}")))
    }

    /// Has a person be this subject of the login from then on, unless they are already.
    ///
    /// # Errors
    /// [`Error::Refused`] where they are another subject, or another person is this one; where they are not here, and what the
    /// database says.
    pub async fn bind_subject(
        &self,
        actor: impl Into<Actor<'_>>,
        person: &str,
        (issuer, subject): (&str, &str),
    ) -> Result<(), Error> {
        let mark = self.mark_of_subject(issuer, subject)?;
        let sealed = self
            .secret()?
            .seal(&bound_to(person), &format!("{issuer}\n{subject}"))?;
        let (mut change, actor) = self.begin_as(actor).await?;
        living_person(&mut change, person).await?;
        let known = sqlx::query("SELECT mark, person FROM subject WHERE mark = $1 OR person = $2")
            .bind(&mark)
            .bind(person)
            .fetch_optional(&mut *change)
            .await?;
        if let Some(row) = known {
            let (own, whose): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            change.rollback().await?;
            if own == mark && whose == person {
                return Ok(());
            }
            let message = "this person is another subject of the login, or another person is this one";
            return Err(Error::Refused(message.to_owned()));
        }
        sqlx::query("INSERT INTO subject (mark, person, sealed, created) VALUES ($1, $2, $3, $4)")
            .bind(&mark)
            .bind(person)
            .bind(sealed)
            .bind(now_s())
            .execute(&mut *change)
            .await?;
        audit::append(&mut change, &actor.name, "user.bound", person, "{}".to_owned()).await?;
        Ok(change.commit().await?)
    }

    /// Has a person be no subject of the login any more: their next good token binds them anew.
    ///
    /// # Errors
    /// Where there is no such person, or they are none, and what the database says.
    pub async fn unbind_subject(&self, actor: impl Into<Actor<'_>>, person: &str) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        living_person(&mut change, person).await?;
        if !unbind(&mut change, &actor, person).await? {
            return Err(Error::Missing(
                "no token has bound this person to a subject of the login".to_owned(),
            ));
        }
        Ok(change.commit().await?)
    }

    /// Who a person is at the login, if they are anybody, and the secret opens it.
    ///
    /// # Errors
    /// What the database says.
    pub async fn subject_of(&self, person: &str) -> Result<Option<LoginSubject>, Error> {
        let row = sqlx::query("SELECT sealed, created FROM subject WHERE person = $1")
            .bind(person)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let (sealed, bound): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        let opened = self.secret()?.unseal(&bound_to(person), &sealed);
        Ok(opened.and_then(|text| {
            let (issuer, subject) = text.split_once('\n')?;
            Some(LoginSubject {
                issuer: issuer.to_owned(),
                subject: subject.to_owned(),
                bound,
            })
        }))
    }

    /// Everybody, as tokens find them.
    ///
    /// # Errors
    /// What the database says.
    pub(super) async fn insiders(&self) -> Result<People, Error> {
        let mut projects: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        let rows = sqlx::query(
            "SELECT m.person, p.id, p.name FROM member m JOIN project p ON p.id = m.project \
             WHERE p.archived IS NULL ORDER BY m.created, p.id",
        )
        .fetch_all(&self.pool)
        .await?;
        for row in &rows {
            let project = (row.try_get(1)?, row.try_get(2)?);
            projects.entry(row.try_get(0)?).or_default().push(project);
        }
        let rows = sqlx::query(
            "SELECT p.mark, p.id, p.ended, s.mark FROM person p LEFT JOIN subject s ON s.person = p.id",
        )
        .fetch_all(&self.pool)
        .await?;
        let (mut insiders, mut gone) = (Vec::with_capacity(rows.len()), HashSet::new());
        for row in &rows {
            let mark: String = row.try_get(0)?;
            if row.try_get::<Option<i64>, _>(2)?.is_some() {
                gone.insert(mark);
                continue;
            }
            let id: String = row.try_get(1)?;
            let projects = projects.remove(&id).unwrap_or_default();
            let subject = row.try_get(3)?;
            insiders.push((
                mark,
                Insider {
                    id,
                    projects,
                    subject,
                },
            ));
        }
        Ok(People::new(insiders, gone))
    }
}

/// Whose the sealed subject is: a person's name is sealed apart.
fn bound_to(person: &str) -> String {
    format!("{person}/subject")
}

/// Has a person be no subject any more; whether they were one.
pub(super) async fn unbind(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    person: &str,
) -> Result<bool, Error> {
    let done = sqlx::query("DELETE FROM subject WHERE person = $1")
        .bind(person)
        .execute(&mut **change)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    audit::append(change, &actor.name, "user.unbound", person, "{}".to_owned()).await?;
    Ok(true)
}
