//! What all servers on one database have of a limit together, and what one of them gets of it for a while.
//!
//! Whatever a server may spend is a lease, which the database knows: what is left is the limit less what is used and less what is
//! leased. A lease that nobody renews ends, and what it held is there again. Times are those of the database's clock.

use super::bucket::MINUTE_MS;
use super::calendar::{day, day_ends_ms, month, month_began_at, month_ends_ms};
use super::limiter::PARALLEL_RETRY_MS;
use super::{Metric, Subject};
use crate::retention::DAY_MS;

/// When what others have and do not use may be given back, in milliseconds.
const OTHERS_RETRY_MS: i64 = 1_000;
/// A server gets one in so many of what is left beyond what its requests need now: the others may need it.
const SHARE: i64 = 4;

/// What is counted in one place for all servers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter {
    pub subject: Subject,
    pub metric: Metric,
    /// The day since 1970 or the month since year 0 that it is of; 0 where it is of neither.
    pub span: i64,
}

impl Counter {
    /// What counts something at a time, Unix milliseconds.
    pub fn at(subject: &Subject, metric: Metric, at_ms: i64) -> Self {
        let span = match metric {
            Metric::TokensPerDay => day(at_ms),
            Metric::TokensPerMonth => month(at_ms),
            Metric::RequestsPerMinute | Metric::TokensPerMinute | Metric::Parallel => 0,
        };
        Self {
            subject: subject.clone(),
            metric,
            span,
        }
    }

    /// The day or the month that it is of: when it begins, and when it has ended, Unix milliseconds.
    pub(crate) fn time_ms(&self) -> Option<(i64, i64)> {
        let (from, to) = (self.span, self.span.saturating_add(1));
        match self.metric {
            Metric::TokensPerDay => Some((from.saturating_mul(DAY_MS), to.saturating_mul(DAY_MS))),
            Metric::TokensPerMonth => Some((month_began_at(from), month_began_at(to))),
            Metric::RequestsPerMinute | Metric::TokensPerMinute | Metric::Parallel => None,
        }
    }

    /// Whether what is spent comes back by the minute. What is spent of others is held until a request ends, or is in a row.
    pub(super) fn is_bucket(&self) -> bool {
        matches!(self.metric, Metric::RequestsPerMinute | Metric::TokensPerMinute)
    }
}

/// What the database knows of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Tokens of rows that are written; of what comes back by the minute what is there, in parts of which a unit has as many as a
    /// minute has milliseconds.
    pub value: i64,
    /// When it was that much.
    pub at_ms: i64,
    /// What the server has that asks, and what the others have, of leases that have not ended.
    pub own: i64,
    pub others: i64,
    /// What leases had that have ended since it was that much, and when the last of them did.
    pub ended: (i64, i64),
}

/// What a server tells and asks of a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub counter: Counter,
    pub limit: i64,
    /// What it has and keeps, although no request holds it.
    pub free: i64,
    /// What its requests hold until they end, or until their rows are written.
    pub held: i64,
    /// What it had and gives back.
    pub returned: i64,
    /// Of a minute's tokens: what was reserved and not used; below 0, what was used and not reserved.
    pub settled: i64,
    /// What requests wait for, each by itself.
    pub needs: Vec<i64>,
    /// What it would have besides, so that the next ones need not wait.
    pub more: i64,
}

/// What a server gets of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub granted: i64,
    /// What is left to others, and to the next ask.
    pub left: i64,
    /// What is used and leased above the limit, as that was lowered.
    pub excess: i64,
    pub denied: Option<Denied>,
}

/// What could not be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// So much and more.
    pub need: i64,
    /// When to try again; `None` where it is more than the limit.
    pub wait_ms: Option<i64>,
}

impl Pool {
    /// As a counter begins of which nothing is used, or, of a day or month, so many tokens are.
    pub(crate) fn new(metric: Metric, limit: i64, used: i64, now_ms: i64) -> Self {
        let value = match metric {
            Metric::RequestsPerMinute | Metric::TokensPerMinute => limit.saturating_mul(MINUTE_MS),
            Metric::TokensPerDay | Metric::TokensPerMonth => used,
            Metric::Parallel => 0,
        };
        Self {
            value,
            at_ms: now_ms,
            own: 0,
            others: 0,
            ended: (0, 0),
        }
    }

    /// Adds a lease of a server, the one that asks or another, which ends at a time, or has ended.
    pub(crate) fn add(&mut self, is_own: bool, held: i64, until_ms: i64, now_ms: i64) {
        let (ended, last_ms) = self.ended;
        if until_ms <= now_ms {
            self.ended = (ended.saturating_add(held), last_ms.max(until_ms));
        } else if is_own {
            self.own = self.own.saturating_add(held);
        } else {
            self.others = self.others.saturating_add(held);
        }
    }

    /// Grants what there is; what the server has from now on is what it kept and what it is granted.
    ///
    /// What is there and what is leased is never more than the limit, and of a minute it grows no faster than that comes back: what
    /// all servers spend over any time is within what one bucket would give. (A server whose lease has ended and that is still
    /// there has its own again first, even if nothing is left for it.)
    pub(crate) fn lend(&mut self, ask: &Ask, now_ms: i64) -> Grant {
        if ask.counter.is_bucket() {
            self.come_back(ask, now_ms);
        }
        self.own = ask.free.saturating_add(ask.held);
        let mut left = self.left(ask);
        let (mut granted, mut denied) = (0, None);
        for need in &ask.needs {
            if *need <= left {
                left -= need;
                granted += need;
            } else if denied.is_none_or(|least| *need < least) {
                denied = Some(*need);
            }
        }
        let more = ask.more.min(left / SHARE).max(0);
        left -= more;
        granted += more;
        self.own = self.own.saturating_add(granted);
        if ask.counter.is_bucket() {
            self.value = self.value.saturating_sub(granted.saturating_mul(MINUTE_MS));
        }
        let denied = denied.map(|need| Denied {
            // Of what there is nothing of, nothing is granted.
            need: if left <= 0 { 1 } else { need },
            wait_ms: self.wait_ms(ask, need, now_ms),
        });
        let excess = if ask.counter.is_bucket() {
            0
        } else {
            left.saturating_neg().max(0)
        };
        Grant {
            granted,
            excess,
            left: left.max(0),
            denied,
        }
    }

    /// What came back since, and what the server tells of what it had.
    fn come_back(&mut self, ask: &Ask, now_ms: i64) {
        let parts = |units: i64| units.saturating_mul(MINUTE_MS);
        // What was spent since the last ask is taken for leased until now: else it would come back for a time before.
        let leased = self.others.saturating_add(self.own);
        let (ended, last_ms) = self.ended;
        let mut back = self.value;
        let mut from_ms = self.at_ms;
        if last_ms > from_ms {
            // So was what leases had that have ended, until then.
            back = back.saturating_add((last_ms - from_ms).saturating_mul(ask.limit));
            back = back.min(parts(ask.limit.saturating_sub(leased).saturating_sub(ended)));
            from_ms = last_ms;
        }
        let elapsed = now_ms.saturating_sub(from_ms).max(0);
        back = back.saturating_add(elapsed.saturating_mul(ask.limit));
        // Where the limit was made less, what was more is gone.
        self.value = back.min(parts(ask.limit.saturating_sub(leased)));
        // A lease that has ended gives nothing back a second time, and what the server still keeps of it is taken anew.
        let returned = ask.returned.min(self.own.saturating_sub(ask.free)).max(0);
        let anew = ask.free.saturating_sub(self.own).max(0);
        let change = returned.saturating_sub(anew).saturating_add(ask.settled);
        let most = parts(ask.limit.saturating_sub(self.others).saturating_sub(ask.free));
        self.value = self.value.saturating_add(parts(change)).min(most);
        self.at_ms = now_ms;
    }

    /// Units that nobody has.
    fn left(&self, ask: &Ask) -> i64 {
        if ask.counter.is_bucket() {
            return self.value.div_euclid(MINUTE_MS);
        }
        let leased = self.others.saturating_add(self.own);
        ask.limit.saturating_sub(self.value).saturating_sub(leased)
    }

    fn wait_ms(&self, ask: &Ask, need: i64, now_ms: i64) -> Option<i64> {
        if need > ask.limit {
            return None;
        }
        let used_up = match ask.counter.metric {
            Metric::Parallel => return Some(PARALLEL_RETRY_MS),
            Metric::TokensPerDay => day_ends_ms(now_ms) - now_ms,
            Metric::TokensPerMonth => month_ends_ms(now_ms) - now_ms,
            Metric::RequestsPerMinute | Metric::TokensPerMinute => {
                let missing = need.saturating_mul(MINUTE_MS).saturating_sub(self.value);
                (missing.saturating_add(ask.limit - 1) / ask.limit).max(1)
            }
        };
        // What is leased may be back earlier.
        let may_be = if ask.counter.is_bucket() {
            self.others > 0
        } else {
            self.value.saturating_add(need) <= ask.limit
        };
        Some(if may_be {
            used_up.min(OTHERS_RETRY_MS)
        } else {
            used_up
        })
    }
}
