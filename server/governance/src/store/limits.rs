//! What projects, people and keys may use, and their parts of the machine.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::keys::{living_keys, no_key};
use super::people::living_person;
use super::projects::living_project;
use super::{Error, Store, audit};
use crate::actor::Actor;
use crate::limit::{LIMIT_MAX, Limits, Metric, Subject};

/// The most that a project may weigh.
pub const WEIGHT_MAX: u32 = 1_000;

impl Store {
    /// Sets limits of a project, by name or identifier, or of a person or a key, by their identifiers; `None` takes one away, also of
    /// who has ended. What else is limited stays so.
    ///
    /// # Errors
    /// Where there is no such project, person or key, or no such limit, and what the database says.
    pub async fn set_limits(
        &self,
        actor: impl Into<Actor<'_>>,
        whose: &Subject,
        changes: &[(Metric, Option<i64>)],
    ) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let removes = changes.iter().all(|(_, value)| value.is_none());
        let subject = if removes && is_limited(&mut change, whose).await? {
            whose.clone()
        } else {
            living(&mut change, whose).await?
        };
        let (kind, id) = subject.parts();
        for (metric, value) in changes {
            if value.is_some_and(|value| !(1..=LIMIT_MAX).contains(&value)) {
                return Err(Error::Refused(format!("a limit is from 1 to {LIMIT_MAX}")));
            }
            set(&mut change, (kind, id), *metric, *value).await?;
        }
        let told: BTreeMap<&str, Option<i64>> = changes
            .iter()
            .map(|(metric, value)| (metric.name(), *value))
            .collect();
        let detail = serde_json::json!({"subject": kind, "limits": told}).to_string();
        audit::append(&mut change, &actor.name, "rate_limit.updated", id, detail).await?;
        Ok(change.commit().await?)
    }

    /// All limits. Rows that are none of ours limit nobody, and lock nobody out.
    ///
    /// # Errors
    /// What the database says.
    pub async fn limits(&self) -> Result<BTreeMap<Subject, Limits>, Error> {
        let rows =
            sqlx::query("SELECT subject, id, metric, value FROM limit_rule ORDER BY subject, id, metric")
                .fetch_all(&self.pool)
                .await?;
        let mut all: BTreeMap<Subject, Limits> = BTreeMap::new();
        for (subject, metric, value) in rows.iter().filter_map(|row| rule(row).ok()) {
            all.entry(subject).or_default().set(metric, Some(value));
        }
        Ok(all)
    }

    /// Sets a project's part of the machine.
    ///
    /// # Errors
    /// Where there is no such project or weight, and what the database says.
    pub async fn set_weight(
        &self,
        actor: impl Into<Actor<'_>>,
        project: &str,
        weight: u32,
    ) -> Result<(), Error> {
        if !(1..=WEIGHT_MAX).contains(&weight) {
            return Err(Error::Refused(format!("a weight is from 1 to {WEIGHT_MAX}")));
        }
        let (mut change, actor) = self.begin_as(actor).await?;
        let id = living_project(&mut change, project).await?;
        sqlx::query("UPDATE project SET weight = $1 WHERE id = $2")
            .bind(i64::from(weight))
            .bind(&id)
            .execute(&mut *change)
            .await?;
        let detail = serde_json::json!({"weight": weight}).to_string();
        audit::append(&mut change, &actor.name, "project.updated", &id, detail).await?;
        Ok(change.commit().await?)
    }

    pub(super) async fn weights(&self) -> Result<Vec<(String, u32)>, Error> {
        let rows = sqlx::query("SELECT id, weight FROM project WHERE archived IS NULL")
            .fetch_all(&self.pool)
            .await?;
        let weight = |row: &AnyRow| {
            let weight: i64 = row.try_get(1).unwrap_or(1);
            // Whatever somebody has written into the file, no project is left without a part.
            let weight = u32::try_from(weight.clamp(1, i64::from(WEIGHT_MAX))).unwrap_or(1);
            Ok((row.try_get(0)?, weight))
        };
        rows.iter().map(weight).collect()
    }
}

/// Who is to be limited, by identifier.
async fn living(change: &mut Transaction<'static, Any>, whose: &Subject) -> Result<Subject, Error> {
    match whose {
        Subject::Project(name) => return Ok(Subject::Project(living_project(change, name).await?)),
        Subject::Person(id) => drop(living_person(change, id).await?),
        Subject::Key(id) => {
            let living = living_keys(change, "id", id).await?;
            living.first().ok_or_else(|| no_key(id))?;
        }
    }
    Ok(whose.clone())
}

async fn is_limited(change: &mut Transaction<'static, Any>, whose: &Subject) -> Result<bool, Error> {
    let (kind, id) = whose.parts();
    let row = sqlx::query("SELECT COUNT(*) FROM limit_rule WHERE subject = $1 AND id = $2")
        .bind(kind)
        .bind(id)
        .fetch_one(&mut **change)
        .await?;
    Ok(row.try_get::<i64, _>(0)? > 0)
}

fn rule(row: &AnyRow) -> Result<(Subject, Metric, i64), Error> {
    let id: String = row.try_get(1)?;
    let unsound = || Error::Unsound(format!("a limit of {id}"));
    let metric = row.try_get::<String, _>(2)?.parse().map_err(|_| unsound())?;
    let subject = match row.try_get::<String, _>(0)?.as_str() {
        "project" => Subject::Project(id.clone()),
        "user" => Subject::Person(id.clone()),
        "api_key" => Subject::Key(id.clone()),
        _ => return Err(unsound()),
    };
    let value: i64 = row.try_get(3)?;
    if !(1..=LIMIT_MAX).contains(&value) {
        return Err(unsound());
    }
    Ok((subject, metric, value))
}

async fn set(
    change: &mut Transaction<'static, Any>,
    (kind, id): (&str, &str),
    metric: Metric,
    value: Option<i64>,
) -> Result<(), Error> {
    sqlx::query("DELETE FROM limit_rule WHERE subject = $1 AND id = $2 AND metric = $3")
        .bind(kind)
        .bind(id)
        .bind(metric.name())
        .execute(&mut **change)
        .await?;
    if let Some(value) = value {
        sqlx::query("INSERT INTO limit_rule (subject, id, metric, value) VALUES ($1, $2, $3, $4)")
            .bind(kind)
            .bind(id)
            .bind(metric.name())
            .bind(value)
            .execute(&mut **change)
            .await?;
    }
    Ok(())
}
