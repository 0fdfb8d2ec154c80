//! The proof of what was used: batches, their rows, and the sums of them.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::super::retention::{days, digest_of_days};
use super::super::usage::{BATCH, batch, total};
use super::super::{Database, Error, Store};
use super::Sought;
use super::pages::page;
use crate::checkpoint::End;
use crate::retention::{DAY_S, KeptSums, Trimmed};
use crate::usage::{BATCH_ROWS_MAX, BrokenUsage, UsageBatch, UsageEvent, UsageTotal};

/// Batches, and sums, that are read at one time.
const PAGE: i64 = 1_000;
/// Rows that are read at one time, with those of the batch that goes beyond.
const ROWS: usize = 2_000;
const COLUMNS: &str = "seq, id, began_ms, project, api_key, model, endpoint, input, cached, output, first_ms, duration_ms, status, \
     outcome, cost_nano, content";
const SUMS: &str = "SELECT hour, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano \
     FROM usage_bucket WHERE api_key <> '' AND (hour, project, api_key, model, endpoint) > ($1, $2, $3, $4, $5) \
     ORDER BY hour, project, api_key, model, endpoint LIMIT $6";

/// Sums of a day that have no keys.
const KEPT: &str = "SELECT hour, project, api_key, model, endpoint, requests, refused, input, cached, output, cost_nano \
     FROM usage_bucket WHERE hour = $1 AND api_key = ''";

/// A row, in the order of its columns.
type Row = (
    i64,
    String,
    i64,
    String,
    String,
    String,
    String,
    i64,
    i64,
    i64,
    Option<i64>,
    i64,
    i64,
    String,
    i64,
    String,
);
/// What sums of all days are of: project, model and endpoint.
type What = (String, String, String);
/// What a sum by the hour is of: hour, project, key, model and endpoint.
type Of = (i64, String, String, String, String);

/// What was found so far.
struct Found<'a> {
    sums: BTreeMap<Of, UsageTotal>,
    /// Sums in which the rows of some days are, whether they themselves are there or not.
    kept: Option<&'a KeptSums>,
    /// What rows that are still there are in them at least: by project, model and endpoint.
    least: BTreeMap<What, UsageTotal>,
}

impl Store {
    /// Proves all that was used; how many rows there are, and the last batch.
    pub(super) async fn prove_usage(
        &self,
        moment: &mut Transaction<'static, Any>,
        trimmed: &Trimmed,
        told: &BTreeMap<i64, String>,
        sought: &mut Sought<'_>,
    ) -> Result<(i64, Option<End>), Error> {
        let mut found = Found {
            sums: BTreeMap::new(),
            least: BTreeMap::new(),
            kept: trimmed.sums.as_ref(),
        };
        let mut before: Option<UsageBatch> = None;
        let mut rows = 0;
        loop {
            let batches = read_batches(moment, before.as_ref()).await?;
            let Some(first) = batches.first() else { break };
            // The last whose rows were deleted is where the chain begins, and has none.
            let begun = usize::from(before.is_none() && is_cut(first, trimmed));
            if begun == 1 {
                first.check_itself()?;
                sought.found(&(first.seq, first.hash.clone()));
                before = Some(first.clone());
            }
            if before.is_none() && trimmed.usage.is_some() {
                return Err(BrokenUsage::Missing(first.seq).into());
            }
            let batches = &batches[begun..];
            for batch in batches {
                batch.check(before.as_ref())?;
                // Whoever wrote another number of rows into it shall not fill the memory.
                if batch.rows() > BATCH_ROWS_MAX {
                    return Err(BrokenUsage::Batch(batch.seq).into());
                }
                sought.found(&(batch.seq, batch.hash.clone()));
                before = Some(batch.clone());
            }
            rows += self.check_rows(moment, batches, &mut found).await?;
        }
        let last = before.as_ref().map_or(0, |last| last.seq);
        if trimmed.usage.is_some() && before.is_none()
            || trimmed.sums.as_ref().is_some_and(|kept| kept.batch > last)
        {
            return Err(BrokenUsage::Missing(last).into());
        }
        let count = sqlx::query("SELECT COUNT(*) FROM usage_event")
            .fetch_one(&mut **moment)
            .await?;
        if count.try_get::<i64, _>(0)? != rows {
            return Err(BrokenUsage::Stray.into());
        }
        self.check_sums(moment, &mut found).await?;
        self.check_kept(moment, &found, told).await?;
        Ok((rows, before.map(|last| (last.seq, last.hash))))
    }

    /// Checks the rows of batches that follow each other, and adds them to the sums; how many they are.
    async fn check_rows(
        &self,
        moment: &mut Transaction<'static, Any>,
        batches: &[UsageBatch],
        found: &mut Found<'_>,
    ) -> Result<i64, Error> {
        let mut groups = groups(batches).into_iter();
        let Some(mut group) = groups.next() else {
            return Ok(0);
        };
        let mut rows = read_rows(moment, &self.database, group).await?;
        let mut count = 0;
        loop {
            count += i64::try_from(rows.len()).unwrap_or(i64::MAX);
            let Some(next) = groups.next() else {
                found.hold(group, &rows)?;
                return Ok(count);
            };
            // The database finds the next while these are looked at.
            let reading = read_rows(moment, &self.database, next);
            let (read, held) = futures::join!(reading, async { found.hold(group, &rows) });
            held?;
            (group, rows) = (next, read?);
        }
    }

    /// Checks that the sums by the hour are these.
    async fn check_sums(
        &self,
        moment: &mut Transaction<'static, Any>,
        found: &mut Found<'_>,
    ) -> Result<(), Error> {
        let mut from: Of = (
            i64::MIN,
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        );
        loop {
            let page = sqlx::query(SUMS)
                .bind(from.0)
                .bind(from.1.clone())
                .bind(from.2.clone())
                .bind(from.3.clone())
                .bind(from.4.clone())
                .bind(PAGE)
                .fetch_all(&mut **moment)
                .await?;
            let Some(last) = page.last() else { break };
            from = of(last)?;
            for row in &page {
                let (of, told) = (of(row)?, total(row)?);
                if found.sums.remove(&of) != Some(told) {
                    return Err(BrokenUsage::Sum(of.0).into());
                }
            }
        }
        if let Some(((hour, ..), _)) = found.sums.first_key_value() {
            return Err(BrokenUsage::Sum(*hour).into());
        }
        Ok(())
    }

    /// Checks that the sums without keys are those that were kept: of each day what its digest says, which all digests together
    /// prove, and the row that told it, where there is one; and no less than rows that are still there.
    async fn check_kept(
        &self,
        moment: &mut Transaction<'static, Any>,
        found: &Found<'_>,
        told: &BTreeMap<i64, String>,
    ) -> Result<(), Error> {
        let days = days(moment).await?;
        let proven = found.kept.map(|kept| kept.digest.as_str());
        if proven.map_or(!days.is_empty(), |digest| digest != digest_of_days(&days)) {
            return Err(BrokenUsage::Kept.into());
        }
        let (mut without, mut sums): (usize, BTreeMap<What, UsageTotal>) = (0, BTreeMap::new());
        for (day, digest) in &days {
            let within = found.kept.is_some_and(|kept| (kept.from..kept.to).contains(day));
            let same = told.get(day).is_none_or(|told| told == digest);
            if !within || !same || self.digest_of_day(moment, *day).await? != *digest {
                return Err(BrokenUsage::Kept.into());
            }
            for row in &sqlx::query(KEPT).bind(*day).fetch_all(&mut **moment).await? {
                let (_, project, _, model, endpoint) = of(row)?;
                sums.entry((project, model, endpoint))
                    .or_default()
                    .add(total(row)?);
                without += 1;
            }
        }
        let covered =
            |(what, least): (&What, &UsageTotal)| sums.get(what).is_some_and(|sum| sum.covers(*least));
        let all = sqlx::query("SELECT COUNT(*) FROM usage_bucket WHERE api_key = ''")
            .fetch_one(&mut **moment)
            .await?;
        // There are none of other days, and rows have theirs.
        if usize::try_from(all.try_get::<i64, _>(0)?) == Ok(without) && found.least.iter().all(covered) {
            return Ok(());
        }
        Err(BrokenUsage::Kept.into())
    }
}

/// Whether a batch is the last whose rows were deleted.
fn is_cut(batch: &UsageBatch, trimmed: &Trimmed) -> bool {
    let end = trimmed.usage.as_ref();
    end.is_some_and(|cut| (cut.seq, cut.at_ms, &cut.hash) == (batch.seq, batch.at_ms, &batch.hash))
}

impl Found<'_> {
    /// Checks the rows of these batches.
    fn hold(&mut self, batches: &[UsageBatch], rows: &[UsageEvent]) -> Result<(), Error> {
        let mut rest = rows;
        for batch in batches {
            let own;
            (own, rest) = rest
                .split_at_checked(batch.rows())
                .ok_or(BrokenUsage::Rows(batch.seq))?;
            batch.check_rows(own)?;
            for row in own {
                self.add(batch, row);
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        Err(BrokenUsage::Stray.into())
    }

    fn add(&mut self, batch: &UsageBatch, row: &UsageEvent) {
        let hour = row.hour();
        if self
            .kept
            .is_some_and(|kept| batch.seq <= kept.batch && hour < kept.to)
        {
            let day = hour.div_euclid(DAY_S) * DAY_S;
            if self.kept.is_some_and(|kept| day >= kept.from) {
                let what = (row.project.clone(), row.model.clone(), row.endpoint.clone());
                self.least.entry(what).or_default().add(row.total());
            }
            return;
        }
        let of = (
            hour,
            row.project.clone(),
            row.key.clone(),
            row.model.clone(),
            row.endpoint.clone(),
        );
        self.sums.entry(of).or_default().add(row.total());
    }
}

/// Batches whose rows are read together.
fn groups(batches: &[UsageBatch]) -> Vec<&[UsageBatch]> {
    let mut groups = Vec::new();
    let (mut begin, mut rows) = (0, 0);
    for (at, batch) in batches.iter().enumerate() {
        rows += batch.rows();
        if rows >= ROWS || at + 1 == batches.len() {
            groups.push(&batches[begin..=at]);
            (begin, rows) = (at + 1, 0);
        }
    }
    groups
}

async fn read_batches(
    moment: &mut Transaction<'static, Any>,
    before: Option<&UsageBatch>,
) -> Result<Vec<UsageBatch>, Error> {
    let behind = before.map_or(i64::MIN, |batch| batch.seq);
    let page = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{BATCH} WHERE seq > $1 ORDER BY seq LIMIT $2"
    )))
    .bind(behind)
    .bind(PAGE)
    .fetch_all(&mut **moment)
    .await?;
    page.iter().map(batch).collect()
}

async fn read_rows(
    moment: &mut Transaction<'static, Any>,
    database: &Database,
    batches: &[UsageBatch],
) -> Result<Vec<UsageEvent>, Error> {
    let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
        return Ok(Vec::new());
    };
    let rest = "usage_event WHERE seq >= $1 AND seq <= $2 ORDER BY seq LIMIT $3";
    // A row more than there may be shows that there is one.
    let limit = last.last.saturating_sub(first.first).saturating_add(2);
    let numbers = [first.first, last.last, limit];
    let mut rows: Vec<Row> = page(&mut *moment, database, (COLUMNS, rest), &numbers).await?;
    rows.sort_by_key(|row| row.0);
    Ok(rows.into_iter().map(event).collect())
}

fn event(row: Row) -> UsageEvent {
    let (
        _,
        id,
        began_ms,
        project,
        key,
        model,
        endpoint,
        input,
        cached,
        output,
        first_ms,
        duration_ms,
        status,
        outcome,
        cost_nano,
        content,
    ) = row;
    UsageEvent {
        id,
        began_ms,
        project,
        key,
        model,
        endpoint,
        input,
        cached,
        output,
        first_ms,
        duration_ms,
        status,
        outcome,
        cost_nano,
        content,
    }
}

fn of(row: &AnyRow) -> Result<Of, Error> {
    Ok((
        row.try_get(0)?,
        row.try_get(1)?,
        row.try_get(2)?,
        row.try_get(3)?,
        row.try_get(4)?,
    ))
}
