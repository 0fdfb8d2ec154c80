//! How long what is kept is kept, and what is left of the chains when its time is over: the proof begins where deletion ended, and
//! the row that tells so is itself in the chain.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::AuditEvent;
use crate::checkpoint::End;

/// What is recorded whenever something is deleted, with all that the proof begins with: [`Trimmed`].
pub(crate) const RUN: &str = "retention.run";
/// And whenever somebody sets how long what is kept: [`Policy`].
pub(crate) const UPDATED: &str = "retention.updated";
/// How far a clock may be ahead of the one that proves.
pub(crate) const AHEAD_MAX_MS: i64 = 3_600_000;
/// Seconds of a day.
pub const DAY_S: i64 = 86_400;
/// Milliseconds of a day.
pub const DAY_MS: i64 = 1_000 * DAY_S;
/// Rows are kept for this many days at least: limits by the month are counted from them.
const DAYS_MIN: i64 = 32;
/// A hundred years: whoever wants more wants `none`.
const DAYS_MAX: i64 = 36_525;
/// The French authority's recommendation on logs of 14 October 2021 (deliberation 2021-122) has them kept for six to twelve months;
/// the AI Act's article 26(6) asks for six at least.
const RECOMMENDED_DAYS: [i64; 2] = [183, 366];
/// And for three years where something asks for it.
const SUMS_DAYS: i64 = 1_098;

/// Days that each kind is kept for; `None` for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Rows of usage: who asked what model when.
    pub usage: Option<i64>,
    /// Rows of the audit chain.
    pub audit: Option<i64>,
    /// Sums of what was used, by day and without keys from when the rows are deleted.
    pub sums: Option<i64>,
    /// Names of people, from when they left.
    pub people: Option<i64>,
}

impl Default for Policy {
    fn default() -> Self {
        let [least, most] = RECOMMENDED_DAYS;
        Self {
            usage: Some(least),
            audit: Some(most),
            sums: Some(SUMS_DAYS),
            people: Some(most),
        }
    }
}

impl Policy {
    /// Whether it can be followed.
    ///
    /// # Errors
    /// Says which number is wrong, and what it may be.
    pub fn check(&self) -> Result<(), String> {
        for (name, days, min) in [
            ("usage", self.usage, DAYS_MIN),
            ("audit", self.audit, DAYS_MIN),
            ("sums", self.sums, DAYS_MIN),
            ("people", self.people, 0),
        ] {
            if days.is_some_and(|days| !(min..=DAYS_MAX).contains(&days)) {
                return Err(format!("{name} is {min} to {DAYS_MAX} days, or none for ever"));
            }
        }
        // Sums that are older than the rows would be gone while the rows are there to prove them.
        let shorter = match (self.sums, self.usage) {
            (Some(sums), Some(usage)) => sums < usage,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if shorter {
            return Err("sums are kept for as long as rows of usage, or longer".to_owned());
        }
        Ok(())
    }

    /// What somebody should think about, in words.
    pub fn doubts(&self) -> Vec<String> {
        let [least, most] = RECOMMENDED_DAYS;
        let mut doubts = Vec::new();
        for (name, days) in [("usage", self.usage), ("audit", self.audit)] {
            if days.is_some_and(|days| days < least) {
                doubts.push(format!(
                    "{name} is kept for less than six months ({least} days), which the CNIL recommends for logs, and the AI Act's article \
                     26(6) asks of those who use a system of high risk"
                ));
            } else if days.is_none_or(|days| days > most) {
                doubts.push(format!(
                    "{name} is kept for more than twelve months ({most} days): the CNIL recommends that only where a documented need \
                     asks for it, and then for up to three years"
                ));
            }
        }
        if self.sums.is_none_or(|days| days > SUMS_DAYS) {
            doubts.push(format!(
                "sums are kept for more than three years ({SUMS_DAYS} days)"
            ));
        }
        doubts
    }
}

/// Where a chain begins since what was before was deleted: the last row, or batch, that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub seq: i64,
    pub hash: String,
    /// When it was written, Unix milliseconds.
    pub at_ms: i64,
    /// For how many days it had to be kept.
    pub days: i64,
}

impl Cut {
    pub fn end(&self) -> End {
        (self.seq, self.hash.clone())
    }

    /// Whether its time was over.
    fn was_due(&self, now_ms: i64) -> bool {
        let kept = self.days.saturating_mul(DAY_MS);
        self.days >= DAYS_MIN && self.at_ms.saturating_add(kept) <= now_ms
    }
}

/// Sums by day without keys, which stay when their rows are deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSums {
    /// Unix seconds: sums of days before were deleted; 0 where none were.
    pub from: i64,
    /// For how many days these had to be kept.
    pub from_days: i64,
    /// Unix seconds: where the last day ends.
    pub to: i64,
    /// For how many days its rows had to be kept.
    pub to_days: i64,
    /// Rows of batches up to this one are in them, where they began before their end.
    pub batch: i64,
    /// Over the digests of all days.
    pub digest: String,
    /// Those that this deletion has made so, each with its digest.
    #[serde(default)]
    pub days: BTreeMap<i64, String>,
}

impl KeptSums {
    /// The same where of days all was told before.
    pub(crate) fn without_days(self) -> Self {
        Self {
            days: BTreeMap::new(),
            ..self
        }
    }

    /// Whether the rows of all of its days, and the sums of all before, were due.
    fn were_due(&self, now_ms: i64) -> bool {
        let due = |at_s: i64, days: i64| {
            let at_ms = at_s.saturating_mul(1_000);
            days >= DAYS_MIN && at_ms.saturating_add(days.saturating_mul(DAY_MS)) <= now_ms
        };
        due(self.to, self.to_days) && (self.from == 0 || due(self.from, self.from_days))
    }
}

/// What all deletions so far have left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trimmed {
    /// How long what is kept is kept, by which this was due.
    pub policy: Policy,
    pub audit: Option<Cut>,
    pub usage: Option<Cut>,
    pub sums: Option<KeptSums>,
}

/// Where what a deletion says of itself can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BrokenRetention {
    #[error("row {0} does not say what was deleted in words of this program")]
    Form(i64),
    #[error("row {0} says that rows were deleted whose time was not over")]
    Early(i64),
    #[error("row {0} says that rows were deleted by a policy that nobody has set")]
    Policy(i64),
    #[error("row {0} does not go on where the deletion before it ended")]
    Order(i64),
    #[error("a checkpoint of row {0} is younger than what is said to have been deleted with it")]
    Younger(i64),
}

impl Trimmed {
    /// Of the row that tells it.
    pub(crate) fn read(seq: i64, detail: &str) -> Result<Self, BrokenRetention> {
        serde_json::from_str(detail).map_err(|_| BrokenRetention::Form(seq))
    }

    pub(crate) fn detail(&self) -> String {
        serde_json::to_string(self).expect("its keys are numbers, and its texts are texts")
    }

    /// Whether a row of this number and time may say so, to one who proves it at a time.
    fn check(&self, seq: i64, at_ms: i64, now_ms: i64) -> Result<(), BrokenRetention> {
        // A clock that was ahead has made nothing due earlier.
        let at_ms = at_ms.min(now_ms.saturating_add(AHEAD_MAX_MS));
        let due = [&self.audit, &self.usage]
            .into_iter()
            .flatten()
            .all(|cut| cut.was_due(at_ms))
            && self.sums.as_ref().is_none_or(|sums| sums.were_due(at_ms))
            && self.audit.as_ref().is_none_or(|cut| cut.seq < seq);
        if due {
            Ok(())
        } else {
            Err(BrokenRetention::Early(seq))
        }
    }

    /// Whether it goes on where another one ended: of one kind something more is gone by the policy, and of the others what was.
    fn follows(&self, before: &Self, kind: &str) -> bool {
        let cut = |now: &Option<Cut>, then: &Option<Cut>, own: bool, days: Option<i64>| match (now, then) {
            (now, then) if now == then => true,
            (Some(now), then) => {
                let later = then
                    .as_ref()
                    .is_none_or(|then| now.seq > then.seq && now.at_ms >= then.at_ms);
                own && later && Some(now.days) == days
            }
            (None, _) => false,
        };
        cut(&self.audit, &before.audit, kind == AUDIT, self.policy.audit)
            && cut(&self.usage, &before.usage, kind == USAGE, self.policy.usage)
            && self.sums_follow(before.sums.as_ref(), kind)
    }

    fn sums_follow(&self, before: Option<&KeptSums>, kind: &str) -> bool {
        let Some(now) = &self.sums else {
            return before.is_none();
        };
        let then = before.cloned().unwrap_or_default().without_days();
        if now.clone().without_days() == then {
            return now.days.is_empty();
        }
        let to = if now.to == then.to {
            now.to_days == then.to_days && now.batch == then.batch && now.days.is_empty()
        } else {
            now.to > then.to && Some(now.to_days) == self.policy.usage && now.batch >= then.batch
        };
        let from = if now.from == then.from {
            now.from_days == then.from_days
        } else {
            now.from > then.from && Some(now.from_days) == self.policy.sums
        };
        // A day is told once: what comes later is added to a day that was not told yet.
        let days = now.days.keys().all(|day| (then.to..now.to).contains(day));
        kind == SUMS && to && from && days && (now.to, now.from) != (then.to, then.from)
    }

    /// Whether it may be the first of those that are left, where the rows before one of this number are gone: of its own kind
    /// something went by the policy.
    fn begins(&self, kind: &str, first: i64) -> bool {
        let by = |cut: &Option<Cut>, days: Option<i64>| cut.as_ref().map(|cut| cut.days) == days;
        let before = self.audit.as_ref().is_none_or(|cut| cut.seq < first);
        match kind {
            AUDIT => by(&self.audit, self.policy.audit),
            USAGE => before && by(&self.usage, self.policy.usage),
            SUMS => before && self.sums.is_some(),
            _ => false,
        }
    }
}

/// What deletions are of, as their rows name it.
pub(crate) const AUDIT: &str = "audit";
pub(crate) const USAGE: &str = "usage";
pub(crate) const SUMS: &str = "sums";

/// What rows along a chain say of retention, each against those before.
pub(crate) struct Told {
    now_ms: i64,
    /// Whether none are gone.
    whole: bool,
    /// What was set; `None` where the rows that would tell it are gone.
    policy: Option<Policy>,
    /// The number of the first row.
    first: Option<i64>,
    /// The last deletion, and the number of its row.
    last: Option<(i64, Trimmed)>,
    /// Digests of days, by the rows that tell them.
    pub(crate) days: BTreeMap<i64, String>,
}

impl Told {
    /// Along a chain that is whole from its first row on, or not.
    pub(crate) fn new(whole: bool, now_ms: i64) -> Self {
        Self {
            now_ms,
            whole,
            policy: whole.then(Policy::default),
            first: None,
            last: None,
            days: BTreeMap::new(),
        }
    }

    /// The number of the row of the last deletion.
    pub(crate) fn last(&self) -> Option<i64> {
        self.last.as_ref().map(|(seq, _)| *seq)
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// Where it says what can't be.
    pub(crate) fn take(&mut self, row: &AuditEvent) -> Result<(), BrokenRetention> {
        self.first.get_or_insert(row.seq);
        if row.action == UPDATED {
            let policy = serde_json::from_str(&row.detail).map_err(|_| BrokenRetention::Form(row.seq))?;
            self.policy = Some(policy);
        } else if row.action == RUN {
            let state = Trimmed::read(row.seq, &row.detail)?;
            state.check(row.seq, row.at_ms, self.now_ms)?;
            if self.policy.is_some_and(|policy| policy != state.policy) {
                return Err(BrokenRetention::Policy(row.seq));
            }
            let first = self.first.unwrap_or(row.seq);
            let sound = match &self.last {
                Some((_, last)) => state.follows(last, &row.object),
                None if self.whole => state.follows(&Trimmed::default(), &row.object),
                None => state.begins(&row.object, first),
            };
            if !sound {
                return Err(BrokenRetention::Order(row.seq));
            }
            self.policy = Some(state.policy);
            let days = state.sums.iter().flat_map(|sums| sums.days.clone());
            self.days.extend(days);
            self.last = Some((row.seq, state));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
