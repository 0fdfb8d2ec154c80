//! Sums that stay when their rows go: those of a day, without keys.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use sqlx::{Any, Row as _, Transaction};

use super::super::usage::total;
use super::super::{Error, Store};
use super::{day_before, delete, number, record, trimmed};
use crate::actor::Acting;
use crate::key::hex;
use crate::retention::{DAY_S, Policy, SUMS};
use crate::usage::hash;

impl Store {
    /// Makes the sums of the next day whose rows go ones without keys, and deletes those that are too old; how many these were.
    pub(super) async fn keep_sums(
        &self,
        change: &mut Transaction<'static, Any>,
        actor: &Acting,
        policy: &Policy,
        now_ms: i64,
    ) -> Result<Option<u64>, Error> {
        let by = |days: Option<i64>| days.map_or(0, |days| day_before(now_ms, days));
        let mut state = trimmed(change).await?;
        let mut kept = state.sums.take().unwrap_or_default();
        if let Some(lock) = self.database.lock_usage() {
            // No batch comes between its number and its sums.
            sqlx::query(lock).fetch_one(&mut **change).await?;
        }
        let hour = number(
            change,
            "SELECT MIN(hour) FROM usage_bucket WHERE api_key <> '' AND hour < $1",
            by(policy.usage),
        )
        .await?;
        // What is of days that had their turn goes with the next.
        let next = hour
            .map(|hour| (hour.div_euclid(DAY_S) * DAY_S).max(kept.to))
            .filter(|day| day + DAY_S <= by(policy.usage));
        let first = number(
            change,
            "SELECT MIN(day) FROM kept_day WHERE day < $1",
            by(policy.sums),
        )
        .await?;
        if next.is_none() && first.is_none() {
            return Ok(None);
        }
        kept.days = BTreeMap::new();
        if let Some(day) = next {
            kept.days = BTreeMap::from([(day, self.merge(change, day).await?)]);
            (kept.to, kept.to_days) = (day + DAY_S, policy.usage.unwrap_or_default());
            let last = number(change, "SELECT MAX(seq) FROM usage_batch WHERE seq > $1", 0).await?;
            kept.batch = last.unwrap_or_default();
        }
        if first.is_some() && by(policy.sums) > kept.from {
            (kept.from, kept.from_days) = (by(policy.sums), policy.sums.unwrap_or_default());
        }
        let gone = delete(
            change,
            "DELETE FROM usage_bucket WHERE api_key = '' AND hour < $1",
            kept.from,
        )
        .await?;
        delete(change, "DELETE FROM kept_day WHERE day < $1", kept.from).await?;
        kept.days = kept.days.split_off(&kept.from);
        kept.digest = digest_of_days(&days(change).await?);
        state.sums = Some(kept);
        record(change, &actor.name, SUMS, &state, now_ms).await?;
        Ok(Some(gone))
    }

    /// Makes the sums of a day ones without hours and keys; their digest. With them goes what is of earlier hours, which a clock that
    /// was wrong or a request that took long has written since their day had its turn: what a digest was told of does not change.
    async fn merge(&self, change: &mut Transaction<'static, Any>, day: i64) -> Result<String, Error> {
        let merge = format!(
            "INSERT INTO usage_bucket (hour, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano) \
             SELECT {day}, project, '', model, endpoint, CAST(SUM(requests) AS BIGINT), CAST(SUM(refused) AS BIGINT), \
             CAST(SUM(input) AS BIGINT), CAST(SUM(cached) AS BIGINT), CAST(SUM(output) AS BIGINT), CAST(SUM(cost_nano) AS BIGINT) \
             FROM usage_bucket WHERE api_key <> '' AND hour < $1 GROUP BY project, model, endpoint"
        );
        sqlx::query(sqlx::AssertSqlSafe(merge))
            .bind(day + DAY_S)
            .execute(&mut **change)
            .await?;
        delete(
            change,
            "DELETE FROM usage_bucket WHERE api_key <> '' AND hour < $1",
            day + DAY_S,
        )
        .await?;
        let digest = self.digest_of_day(change, day).await?;
        sqlx::query("INSERT INTO kept_day (day, digest) VALUES ($1, $2)")
            .bind(day)
            .bind(&digest)
            .execute(&mut **change)
            .await?;
        Ok(digest)
    }

    /// Of a day's sums without keys.
    pub(in crate::store) async fn digest_of_day(
        &self,
        change: &mut Transaction<'static, Any>,
        day: i64,
    ) -> Result<String, Error> {
        // The same on both kinds of database, whatever language theirs is.
        let order = self.database.by_bytes();
        let query = format!(
            "SELECT hour, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano FROM usage_bucket \
             WHERE hour = $1 AND api_key = '' ORDER BY project {order}, model {order}, endpoint {order}"
        );
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(day)
            .fetch(&mut **change);
        let mut hasher = Sha256::new();
        while let Some(row) = rows.try_next().await? {
            let sum = total(&row)?;
            let of: [String; 3] = [row.try_get(1)?, row.try_get(3)?, row.try_get(4)?];
            let numbers = [
                sum.requests,
                sum.refused,
                sum.input,
                sum.cached,
                sum.output,
                sum.cost_nano,
            ]
            .map(|number| number.to_string());
            hasher.update(hash(of.iter().chain(&numbers).map(String::as_str)));
        }
        Ok(hex(&hasher.finalize()))
    }
}

/// Days whose sums have no keys, and their digests.
pub(in crate::store) async fn days(
    change: &mut Transaction<'static, Any>,
) -> Result<Vec<(i64, String)>, Error> {
    let rows = sqlx::query("SELECT day, digest FROM kept_day ORDER BY day")
        .fetch_all(&mut **change)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

pub(in crate::store) fn digest_of_days(days: &[(i64, String)]) -> String {
    let texts: Vec<String> = days
        .iter()
        .flat_map(|(day, digest)| [day.to_string(), digest.clone()])
        .collect();
    hash(texts.iter().map(String::as_str))
}
