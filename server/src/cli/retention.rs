//! `rempart retention`: how long what is kept is kept.

use std::str::FromStr;

use anyhow::{Context as _, ensure};
use chrono::DateTime;
use clap::Subcommand;
use rempart_governance::{DAY_S, Deleted, Policy, Store, now_ms};

use super::backup::Bar;
use super::content;
use super::govern::{say, with_store};
use crate::config::DatabaseArgs;

/// Days without a row after which the clock is in doubt.
const UNUSED_DAYS_MAX: i64 = 32;

/// Retention.
#[derive(Debug, Subcommand)]
pub enum RetentionCommand {
    /// Tell how long each kind is kept, what the oldest is, and what was deleted last
    Status {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Set for how many days something is kept; a running server deletes what is older within the next hour
    Set {
        #[command(flatten)]
        database: DatabaseArgs,
        /// `usage` (rows of requests), `audit` (rows of the chain), `sums` (sums by day, which stay when rows go) or `people` (names
        /// of those who left), with a number of days or `none` for ever
        #[arg(required = true, value_name = "KIND=DAYS")]
        kinds: Vec<Setting>,
    },
    /// Delete what is older at once; a server does so by itself
    Run {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Tell how much is due, and delete nothing
        #[arg(long)]
        dry_run: bool,
        /// Delete although nothing was recorded for more than 32 days: the clock is right
        #[arg(long)]
        unused: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Usage,
    Audit,
    Sums,
    People,
}

/// For how many days something is kept; `None` for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting(Kind, Option<i64>);

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, days) = text
            .split_once('=')
            .ok_or("this is written as KIND=DAYS or KIND=none")?;
        let kind = match kind {
            "usage" => Kind::Usage,
            "audit" => Kind::Audit,
            "sums" => Kind::Sums,
            "people" => Kind::People,
            _ => return Err("what is kept is usage, audit, sums or people".to_owned()),
        };
        let days = match days {
            "none" => None,
            days => Some(days.parse().map_err(|_| "days are a whole number, or none")?),
        };
        Ok(Self(kind, days))
    }
}

impl Setting {
    fn set(self, policy: &mut Policy) {
        let Self(kind, days) = self;
        match kind {
            Kind::Usage => policy.usage = days,
            Kind::Audit => policy.audit = days,
            Kind::Sums => policy.sums = days,
            Kind::People => policy.people = days,
        }
    }
}

pub(super) fn retention(command: RetentionCommand) -> anyhow::Result<()> {
    match command {
        RetentionCommand::Status { database } => with_store(&database, status),
        RetentionCommand::Set { database, kinds } => with_store(&database, async |store| {
            let set = |policy: &mut Policy| kinds.iter().for_each(|kind| kind.set(policy));
            store.change_retention(&database.actor(), set).await?;
            status(store).await
        }),
        RetentionCommand::Run {
            database,
            dry_run: true,
            ..
        } => with_store(&database, async |store| {
            let due = store.due(now_ms()).await?;
            say(&format!("due: {}", told(due)))
        }),
        RetentionCommand::Run { database, unused, .. } => with_store(&database, async |store| {
            if !unused {
                check_clock(store).await?;
            }
            let bar = Bar::new("deleted");
            let trimmed = store
                .trim(&database.actor(), now_ms(), |so_far| bar.at(rows(so_far)))
                .await;
            drop(bar);
            let deleted =
                trimmed.context("what was deleted before stays deleted, and all that is left is whole")?;
            say(&format!("deleted: {}", told(deleted)))
        }),
    }
}

/// Refuses to delete by a clock that may be far ahead: all would be due by it.
async fn check_clock(store: &Store) -> anyhow::Result<()> {
    let Some(newest_ms) = store.newest_ms().await? else {
        return Ok(());
    };
    let days = (now_ms() - newest_ms) / (1_000 * DAY_S);
    ensure!(
        days <= UNUSED_DAYS_MAX,
        "by this machine's clock nothing was recorded for {days} days. If the clock is right, say so with --unused"
    );
    Ok(())
}

fn told(rows: Deleted) -> String {
    format!(
        "{} rows of usage, {} of the audit chain, {} sums, the names of {} people, {} records of content",
        rows.usage, rows.audit, rows.sums, rows.people, rows.content
    )
}

fn rows(deleted: Deleted) -> u64 {
    deleted.usage + deleted.audit + deleted.sums + deleted.people + deleted.content
}

async fn status(store: &Store) -> anyhow::Result<()> {
    let (policy, oldest) = (store.retention().await?, store.oldest().await?);
    say("kind    kept for       oldest      what")?;
    for (kind, days, oldest, what) in [
        ("usage", policy.usage, oldest.usage, "who asked what model when"),
        (
            "audit",
            policy.audit,
            oldest.audit,
            "what was done to keys, people, models and settings",
        ),
        (
            "sums",
            policy.sums,
            oldest.sums,
            "what was used, by day and without keys once the rows are gone",
        ),
        (
            "people",
            policy.people,
            oldest.people,
            "names and addresses of those who left, from then on",
        ),
    ] {
        let days = days.map_or_else(|| "ever".to_owned(), |days| format!("{days} days"));
        let oldest = oldest.map_or_else(|| "none".to_owned(), day);
        say(&format!("{kind:6}  {days:13}  {oldest:10}  {what}"))?;
    }
    content::status(store).await?;
    for doubt in policy.doubts() {
        say(&format!("note: {doubt}"))?;
    }
    if let Some(until_ms) = store.held_until_ms(now_ms()).await? {
        say(&format!(
            "note: a clock that was ahead has written a row of usage of {}, which keeps those behind it until its time",
            day(until_ms / 1_000)
        ))?;
    }
    match store.last_deletion().await? {
        Some((seq, at_ms)) => say(&format!(
            "last deleted: {}, row {seq} of the audit chain",
            day(at_ms / 1_000)
        )),
        None => say("nothing was deleted yet"),
    }
}

/// A time as its day, of UTC.
pub(super) fn day(at_s: i64) -> String {
    DateTime::from_timestamp(at_s, 0).map_or_else(|| "never".to_owned(), |time| time.date_naive().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_numbers_or_none() {
        let setting = |text: &str| text.parse::<Setting>();
        assert_eq!(setting("usage=40"), Ok(Setting(Kind::Usage, Some(40))));
        assert_eq!(setting("people=none"), Ok(Setting(Kind::People, None)));
        for wrong in ["usage", "usage=", "usage=-", "content=4", "usage=1.5", "=4"] {
            assert!(setting(wrong).is_err(), "{wrong}");
        }
    }
}
