//! Deletion of what was kept for long enough, in steps that hold nobody up; each step tells what it has left in a row of the chain.

mod sums;

use std::time::Duration;

use sqlx::any::AnyRow;
use sqlx::{Any, AnyConnection, Row as _, Transaction};

use super::audit::{self, Record, append_at};
use super::content::{delete_due, delete_of_owner, recordings};
use super::people::forget;
use super::usage::{BATCH, batch};
use super::{Error, Store, now_s};
use crate::actor::{Acting, Actor};
use crate::content::Announced;
use crate::retention::{
    AHEAD_MAX_MS, AUDIT, BrokenRetention, Cut, DAY_MS, DAY_S, KeptSums, Policy, RUN, Trimmed, UPDATED, USAGE,
};
use crate::usage::UsageBatch;
pub(super) use sums::{days, digest_of_days};

/// Rows that are deleted at one time: others wait for as long as that takes.
const ROWS_AT_ONCE: i64 = 5_000;
/// After each time, so that others come before the next.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// How much was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub usage: u64,
    pub audit: u64,
    pub sums: u64,
    pub people: u64,
    pub content: u64,
}

/// When the oldest of each kind was written, Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oldest {
    pub usage: Option<i64>,
    pub audit: Option<i64>,
    pub sums: Option<i64>,
    /// When the first of those who left and are not erased left.
    pub people: Option<i64>,
}

impl Store {
    /// How long what is kept is kept: the chain says so, and nothing beside it.
    ///
    /// # Errors
    /// What the database says, or that it does not hold what this program writes.
    pub async fn retention(&self) -> Result<Policy, Error> {
        let mut connection = self.pool.acquire().await?;
        policy(&mut connection).await
    }

    /// Sets how long.
    ///
    /// # Errors
    /// Where that can't be followed, and what the database says.
    pub async fn set_retention(&self, actor: impl Into<Actor<'_>>, policy: &Policy) -> Result<(), Error> {
        let (change, actor) = self.begin_as(actor).await?;
        set_policy(change, &actor, policy).await
    }

    /// Changes something of it: what somebody else sets at the same time is not undone.
    ///
    /// # Errors
    /// As [`Store::set_retention`].
    pub async fn change_retention(
        &self,
        actor: impl Into<Actor<'_>>,
        set: impl FnOnce(&mut Policy),
    ) -> Result<(), Error> {
        let (mut change, actor) = self.begin_as(actor).await?;
        let mut policy = policy(&mut change).await?;
        set(&mut policy);
        set_policy(change, &actor, &policy).await
    }

    /// How much is due at a time, Unix milliseconds, by the policy of now. Rows of usage are kept from when they were chained.
    ///
    /// # Errors
    /// What the database says.
    pub async fn due(&self, now_ms: i64) -> Result<Deleted, Error> {
        let policy = self.retention().await?;
        let before = |days: Option<i64>| days.map_or(i64::MIN, |days| day_before(now_ms, days));
        let [usage, audit, sums, people] =
            [policy.usage, policy.audit, policy.sums, policy.people].map(before);
        let row = sqlx::query(
            "SELECT (SELECT COALESCE(CAST(SUM(last_row - first_row + 1) AS BIGINT), 0) FROM usage_batch WHERE at_ms < $1 \
             AND EXISTS (SELECT 1 FROM usage_event WHERE usage_event.seq = usage_batch.last_row)), \
             (SELECT COUNT(*) FROM audit_event WHERE at_ms < $2), (SELECT COUNT(*) FROM usage_bucket WHERE hour < $3), \
             (SELECT COUNT(*) FROM person WHERE ended < $4), (SELECT COUNT(*) FROM content WHERE due_ms < $5)",
        )
        .bind(usage.saturating_mul(1_000))
        .bind(audit.saturating_mul(1_000))
        .bind(sums)
        .bind(people)
        .bind(now_ms)
        .fetch_one(&self.reports)
        .await?;
        let count = |at: usize| Ok::<_, Error>(u64::try_from(row.try_get::<i64, _>(at)?).unwrap_or(0));
        Ok(Deleted {
            usage: count(0)?,
            // The last of them stays, which proves where the chain begins.
            audit: count(1)?.saturating_sub(1),
            sums: count(2)?,
            people: count(3)?,
            content: count(4)?,
        })
    }

    /// When the newest row of either chain was written, Unix milliseconds.
    ///
    /// # Errors
    /// What the database says.
    pub async fn newest_ms(&self) -> Result<Option<i64>, Error> {
        let row =
            sqlx::query("SELECT (SELECT MAX(at_ms) FROM audit_event), (SELECT MAX(at_ms) FROM usage_batch)")
                .fetch_one(&self.pool)
                .await?;
        let (audit, usage): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(audit.max(usage))
    }

    /// When the request began whose row keeps those behind it, or when its batch was written, Unix milliseconds: a clock that was
    /// ahead has done so.
    ///
    /// # Errors
    /// What the database says.
    pub async fn held_until_ms(&self, now_ms: i64) -> Result<Option<i64>, Error> {
        let row = sqlx::query(
            "SELECT MAX(at) FROM (SELECT began_ms AS at FROM usage_event UNION ALL SELECT began_ms FROM usage_unchained UNION ALL \
             SELECT at_ms FROM (SELECT at_ms FROM usage_batch ORDER BY seq DESC LIMIT 1) AS newest) AS used WHERE at > $1",
        )
        .bind(now_ms.saturating_add(AHEAD_MAX_MS))
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get(0)?)
    }

    /// When the oldest of each kind was written.
    ///
    /// # Errors
    /// What the database says.
    pub async fn oldest(&self) -> Result<Oldest, Error> {
        let row = sqlx::query(
            "SELECT (SELECT MIN(began_ms) / 1000 FROM (SELECT MIN(began_ms) AS began_ms FROM usage_event \
             UNION ALL SELECT MIN(began_ms) FROM usage_unchained) AS used), (SELECT MIN(at_ms) / 1000 FROM audit_event), \
             (SELECT MIN(hour) FROM usage_bucket), (SELECT MIN(ended) FROM person)",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Oldest {
            usage: row.try_get(0)?,
            audit: row.try_get(1)?,
            sums: row.try_get(2)?,
            people: row.try_get(3)?,
        })
    }

    /// The number of the row that tells of the last deletion, and when that was, Unix milliseconds.
    ///
    /// # Errors
    /// What the database says.
    pub async fn last_deletion(&self) -> Result<Option<(i64, i64)>, Error> {
        let row =
            sqlx::query("SELECT seq, at_ms FROM audit_event WHERE action = $1 ORDER BY seq DESC LIMIT 1")
                .bind(RUN)
                .fetch_optional(&self.pool)
                .await?;
        let read = |row: AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
        row.map(read).transpose()
    }

    /// Deletes what is older than it may be at a time, Unix milliseconds; `told` hears of each step how much it was so far. Each step
    /// goes by the policy of its moment. What was done before an error stays done, and both chains hold; where one kind fails, the
    /// others go on.
    ///
    /// # Errors
    /// The first of what the database says.
    pub async fn trim(
        &self,
        actor: impl Into<Actor<'_>>,
        now_ms: i64,
        mut told: impl FnMut(Deleted),
    ) -> Result<Deleted, Error> {
        let actor = actor.into();
        // A row is kept from when it was chained, so that none waits for longer than it must.
        let (mut deleted, mut failed) = (Deleted::default(), self.chain_usage().await.err());
        let end = self.audit_end().await?.0;
        for kind in [Kind::Content, Kind::Sums, Kind::Usage, Kind::Audit, Kind::People] {
            loop {
                let gone = match self.step(kind, actor, now_ms, end).await {
                    Ok(Some(gone)) => gone,
                    Ok(None) => break,
                    Err(error) => {
                        failed.get_or_insert(error);
                        break;
                    }
                };
                *deleted.of(kind) += gone;
                told(deleted);
                tokio::time::sleep(PAUSE).await;
            }
        }
        if deleted != Deleted::default() {
            self.overwrite().await?;
        }
        failed.map_or(Ok(deleted), Err)
    }

    /// One deletion of a kind; how much it was, or `None` where nothing is due.
    async fn step(&self, kind: Kind, actor: Actor<'_>, now_ms: i64, end: i64) -> Result<Option<u64>, Error> {
        // It would be of a file that has no name any more.
        self.check_file()?;
        let (mut change, actor) = self.begin_as(actor).await?;
        let policy = policy(&mut change).await?;
        let by = |days| day_before(now_ms, days);
        let gone = match (kind, policy.usage, policy.audit, policy.people) {
            (Kind::Content, ..) => delete_due(&mut change, &actor, now_ms).await?,
            (Kind::Sums, Some(_), ..) => self.keep_sums(&mut change, &actor, &policy, now_ms).await?,
            (Kind::Usage, Some(days), ..) => {
                trim_usage(&mut change, &actor, (by(days), days), now_ms).await?
            }
            // Rows of its own are none that it deletes, whatever days somebody has written there.
            (Kind::Audit, _, Some(days), _) => {
                trim_audit(&mut change, &actor, (by(days), days, end), now_ms).await?
            }
            (Kind::People, _, _, Some(days)) => forget_one(&mut change, &actor, by(days)).await?,
            _ => None,
        };
        if gone.is_some() {
            change.commit().await?;
        } else {
            change.rollback().await?;
        }
        Ok(gone)
    }
}

/// Sets how long what is kept is kept, unless something is recorded for longer.
async fn set_policy(
    mut change: Transaction<'static, Any>,
    actor: &Acting,
    policy: &Policy,
) -> Result<(), Error> {
    policy.check().map_err(Error::Refused)?;
    for Announced { at_ms, recording, .. } in recordings(&mut change).await?.values() {
        if recording.runs(now_s()) {
            recording
                .check_kept(policy, at_ms / 1_000)
                .map_err(Error::Refused)?;
        }
    }
    let text = serde_json::to_string(policy).map_err(|error| Error::Unsound(error.to_string()))?;
    audit::append(&mut change, &actor.name, UPDATED, "retention", text).await?;
    Ok(change.commit().await?)
}

/// What goes, in this order: rows only when their sums stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Each record has its own time.
    Content,
    Sums,
    Usage,
    Audit,
    People,
}

impl Deleted {
    fn of(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Content => &mut self.content,
            Kind::Sums => &mut self.sums,
            Kind::Usage => &mut self.usage,
            Kind::Audit => &mut self.audit,
            Kind::People => &mut self.people,
        }
    }
}

/// Deletes some batches with their rows, from before a time, Unix seconds, all of which are in the sums that stay.
async fn trim_usage(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    (before, days): (i64, i64),
    now_ms: i64,
) -> Result<Option<u64>, Error> {
    let mut state = trimmed(change).await?;
    let Some(sums) = &state.sums else { return Ok(None) };
    let Some(last) = last_due(change, &state, sums, before.saturating_mul(1_000)).await? else {
        return Ok(None);
    };
    let records =
        "DELETE FROM content WHERE request IN (SELECT id FROM usage_event WHERE seq <= $1 AND content <> '')";
    delete(change, records, last.last).await?;
    let rows = delete(change, "DELETE FROM usage_event WHERE seq <= $1", last.last).await?;
    // The last of them stays without its rows: the next stands behind it, and its hash proves its number and its time.
    delete(change, "DELETE FROM usage_batch WHERE seq < $1", last.seq).await?;
    state.usage = Some(Cut {
        seq: last.seq,
        hash: last.hash,
        at_ms: last.at_ms,
        days,
    });
    state.sums = state.sums.map(KeptSums::without_days);
    record(change, &actor.name, USAGE, &state, now_ms).await?;
    Ok(Some(rows))
}

/// Deletes some rows of the audit chain, from before a time, Unix seconds, and up to a number.
async fn trim_audit(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    (before, days, end): (i64, i64, i64),
    now_ms: i64,
) -> Result<Option<u64>, Error> {
    let mut state = trimmed(change).await?;
    let begin = state.audit.as_ref().map_or(0, |cut| cut.seq);
    let last = sqlx::query(
        "SELECT seq, hash, at_ms FROM audit_event WHERE seq > $1 AND seq <= $2 AND at_ms < $3 ORDER BY seq DESC LIMIT 1",
    )
    .bind(begin)
    .bind(begin.saturating_add(ROWS_AT_ONCE).min(end))
    .bind(before.saturating_mul(1_000))
    .fetch_optional(&mut **change)
    .await?;
    let Some(last) = last else { return Ok(None) };
    let cut = Cut {
        seq: last.try_get(0)?,
        hash: last.try_get(1)?,
        at_ms: last.try_get(2)?,
        days,
    };
    // The last of them stays: the next stands behind it, and its hash proves its number and its time.
    let rows = delete(change, "DELETE FROM audit_event WHERE seq < $1", cut.seq).await?;
    state.audit = Some(cut);
    state.sums = state.sums.map(KeptSums::without_days);
    record(change, &actor.name, AUDIT, &state, now_ms).await?;
    Ok(Some(rows))
}

/// Erases who somebody was who left before a time, Unix seconds.
async fn forget_one(
    change: &mut Transaction<'static, Any>,
    actor: &Acting,
    before: i64,
) -> Result<Option<u64>, Error> {
    let row = sqlx::query("SELECT id FROM person WHERE ended < $1 ORDER BY ended LIMIT 1")
        .bind(before)
        .fetch_optional(&mut **change)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let id: String = row.try_get(0)?;
    if delete_of_owner(change, actor, &id, false).await? {
        // Records first, which take longer: others come before the rest.
        return Ok(Some(0));
    }
    forget(change, actor, &id).await?;
    Ok(Some(1))
}

async fn number(
    change: &mut Transaction<'static, Any>,
    query: &'static str,
    of: i64,
) -> Result<Option<i64>, Error> {
    let row = sqlx::query(query).bind(of).fetch_one(&mut **change).await?;
    Ok(row.try_get(0)?)
}

async fn delete(change: &mut Transaction<'static, Any>, query: &'static str, of: i64) -> Result<u64, Error> {
    let done = sqlx::query(query).bind(of).execute(&mut **change).await?;
    Ok(done.rows_affected())
}

/// What the chain says of how long what is kept: the last time it was set, or followed.
pub(super) async fn policy(connection: &mut AnyConnection) -> Result<Policy, Error> {
    let set = last_of(connection, UPDATED).await?;
    let run = last_of(connection, RUN).await?;
    let policy = match (set, run) {
        (Some((seq, detail)), run) if run.as_ref().is_none_or(|(run, _)| *run < seq) => {
            serde_json::from_str(&detail).map_err(|_| BrokenRetention::Form(seq))?
        }
        (_, Some((seq, detail))) => Trimmed::read(seq, &detail)?.policy,
        (_, None) => Policy::default(),
    };
    policy
        .check()
        .map_err(|wrong| Error::Unsound(format!("retention: {wrong}")))?;
    Ok(policy)
}

/// Number and detail of the last row in which something was done.
async fn last_of(connection: &mut AnyConnection, action: &str) -> Result<Option<(i64, String)>, Error> {
    let row = sqlx::query("SELECT seq, detail FROM audit_event WHERE action = $1 ORDER BY seq DESC LIMIT 1")
        .bind(action)
        .fetch_optional(connection)
        .await?;
    let read = |row: AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
    row.map(read).transpose()
}

/// When the day began that was so many days before, Unix seconds.
fn day_before(now_ms: i64, days: i64) -> i64 {
    now_ms
        .div_euclid(DAY_MS)
        .saturating_sub(days)
        .saturating_mul(DAY_S)
}

/// What all deletions so far have left, and the policy of now.
async fn trimmed(change: &mut Transaction<'static, Any>) -> Result<Trimmed, Error> {
    let last = last_run(change).await?.map(|(_, state)| state);
    Ok(Trimmed {
        policy: policy(change).await?,
        ..last.unwrap_or_default()
    })
}

/// The number of the last row that tells of a deletion, and what it tells.
pub(super) async fn last_run(
    change: &mut Transaction<'static, Any>,
) -> Result<Option<(i64, Trimmed)>, Error> {
    let Some((seq, detail)) = last_of(change, RUN).await? else {
        return Ok(None);
    };
    Ok(Some((seq, Trimmed::read(seq, &detail)?)))
}

async fn record(
    change: &mut Transaction<'static, Any>,
    actor: &str,
    object: &str,
    state: &Trimmed,
    now_ms: i64,
) -> Result<(), Error> {
    let record = Record {
        actor,
        action: RUN,
        object,
        detail: state.detail(),
    };
    append_at(change, &[record], now_ms).await
}

/// The last batch of the next that may go: written before a time, Unix milliseconds, with rows that are all in the sums that stay.
async fn last_due(
    change: &mut Transaction<'static, Any>,
    state: &Trimmed,
    sums: &KeptSums,
    before_ms: i64,
) -> Result<Option<UsageBatch>, Error> {
    let begin = state.usage.as_ref().map_or(0, |cut| cut.seq);
    let find = format!(
        "{BATCH} WHERE seq > $1 AND seq <= $2 AND at_ms < $3 AND last_row < $4 ORDER BY seq DESC LIMIT 1"
    );
    // Each has a row at least.
    let batch_max = sums.batch.min(begin.saturating_add(ROWS_AT_ONCE));
    let mut row_end = first_row(change, begin).await?.saturating_add(ROWS_AT_ONCE);
    loop {
        let found = sqlx::query(sqlx::AssertSqlSafe(find.clone()))
            .bind(begin)
            .bind(batch_max)
            .bind(before_ms)
            .bind(row_end)
            .fetch_optional(&mut **change)
            .await?;
        let Some(found) = found else { return Ok(None) };
        let found = batch(&found)?;
        // A clock that was ahead for a while has written times to come, whose sums do not stay yet.
        let late = sqlx::query("SELECT MIN(seq) FROM usage_event WHERE seq <= $1 AND began_ms >= $2")
            .bind(found.last)
            .bind(sums.to.saturating_mul(1_000))
            .fetch_one(&mut **change)
            .await?;
        match late.try_get::<Option<i64>, _>(0)? {
            None => return Ok(Some(found)),
            Some(late) => row_end = late,
        }
    }
}

/// The first row behind a batch.
async fn first_row(change: &mut Transaction<'static, Any>, behind: i64) -> Result<i64, Error> {
    let query = "SELECT first_row FROM usage_batch WHERE seq > $1 ORDER BY seq LIMIT 1";
    let row = sqlx::query(query)
        .bind(behind)
        .fetch_optional(&mut **change)
        .await?;
    row.map_or(Ok(0), |row| Ok(row.try_get(0)?))
}
