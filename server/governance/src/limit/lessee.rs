//! What one of several servers on one database has of limits, spends by itself, and asks for. Time and grants come from outside; time
//! is that of the database's clock, or ahead of it.

use std::collections::BTreeMap;

use super::bucket::MINUTE_MS;
use super::pool::{Ask, Counter, Denied, Grant};
use super::{Exceeded, Limited, Limits, Metric, Reserved, Standing, Subject};

/// How long a lease lasts that is not renewed: after that the others have what a server held that is gone, Unix milliseconds.
pub const LEASE_MS: i64 = 5_000;
/// How often it is looked what was not used and goes back.
pub const TICK_MS: i64 = 500;
/// A lease is renewed when it ends within so long.
const RENEW_MS: i64 = 3_000;
/// How long it is known that there was nothing, before it is asked again.
const DENIED_MS: i64 = 250;
/// How long nothing is asked for beyond what is needed, after it was.
const MORE_EVERY_MS: i64 = 50;

/// What a server has of everyone's limits.
#[derive(Debug, Default)]
pub struct Lessee {
    leases: BTreeMap<Counter, Lease>,
    hungry: bool,
}

/// Why a request does not begin yet, or at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Short {
    Over(Exceeded),
    /// Not enough is leased: what is needed is part of the next ask.
    Asked,
}

#[derive(Debug, Default)]
struct Lease {
    limit: i64,
    /// What may be spent, until the lease ends.
    free: i64,
    ends_ms: i64,
    /// What requests have of it until they end, or until their rows are written.
    held: i64,
    /// What the database has of it, unless an answer was lost.
    known: i64,
    unsure: bool,
    returned: i64,
    /// What all servers have above a limit that was lowered: so much of what comes free is nobody's.
    excess: i64,
    settled: i64,
    needs: Vec<i64>,
    /// What was spent, and the most that was held, in this span between two ticks and in the one before.
    spent: [i64; 2],
    most: [i64; 2],
    more_from_ms: i64,
    denied: Option<(Denied, i64)>,
    /// What was left to all, and when.
    left: (i64, i64),
}

/// What a request wants of a counter.
struct Want {
    counter: Counter,
    limit: i64,
    units: i64,
}

impl Want {
    fn over(&self, retry_after_ms: Option<i64>) -> Exceeded {
        Exceeded {
            subject: self.counter.subject.clone(),
            metric: self.counter.metric,
            limit: self.limit,
            retry_after_ms,
        }
    }
}

impl Lessee {
    /// Begins a request, which [`Lessee::end`] ends.
    ///
    /// # Errors
    /// Where it has not begun: why.
    pub fn begin(&mut self, limited: &Limited, now_ms: i64) -> Result<(), Short> {
        let tokens = [
            Metric::TokensPerMinute,
            Metric::TokensPerDay,
            Metric::TokensPerMonth,
        ];
        for want in wants(limited, now_ms, |metric| tokens.contains(&metric).then_some(1)) {
            // Nothing is prepared for one that has nothing left.
            let lease = self.leases.get(&want.counter);
            if let Some(exceeded) = lease.and_then(|lease| lease.exceeded(&want, now_ms)) {
                return Err(Short::Over(exceeded));
            }
        }
        let ones = [Metric::Parallel, Metric::RequestsPerMinute];
        let wants = wants(limited, now_ms, |metric| ones.contains(&metric).then_some(1));
        self.take(&wants.collect::<Vec<_>>(), now_ms)
    }

    /// Reserves tokens for a request that has begun, as [`super::Limiter::reserve`] does.
    ///
    /// # Errors
    /// Where none are reserved: why.
    pub fn reserve(&mut self, limited: &Limited, wanted: Reserved) -> Result<(), Short> {
        let wants = wants(limited, wanted.at_ms, |metric| match metric {
            Metric::TokensPerMinute => Some(wanted.expected),
            Metric::TokensPerDay | Metric::TokensPerMonth => Some(wanted.most),
            Metric::RequestsPerMinute | Metric::Parallel => None,
        });
        self.take(&wants.collect::<Vec<_>>(), wanted.at_ms)
    }

    /// All of it, or nothing; what lacks is asked for.
    fn take(&mut self, wants: &[Want], now_ms: i64) -> Result<(), Short> {
        let mut lacking = Vec::new();
        for want in wants {
            let lease = self.leases.entry(want.counter.clone()).or_default();
            lease.look(want.limit, now_ms);
            if lease.free >= want.units {
                continue;
            }
            if let Some(exceeded) = lease.exceeded(want, now_ms) {
                return Err(Short::Over(exceeded));
            }
            if want.units > want.limit {
                return Err(Short::Over(want.over(None)));
            }
            lacking.push(want);
        }
        if !lacking.is_empty() {
            for want in lacking {
                let lease = self.leases.get_mut(&want.counter);
                lease.expect("it was made above").needs.push(want.units);
            }
            return Err(Short::Asked);
        }
        for want in wants {
            let lease = self.leases.get_mut(&want.counter);
            let lease = lease.expect("it was made above");
            lease.free -= want.units;
            lease.spent[0] = lease.spent[0].saturating_add(want.units);
            if !want.counter.is_bucket() {
                lease.hold(want.units);
            }
            let target = lease.target(&want.counter);
            self.hungry |= lease.free < target / 4 && now_ms >= lease.more_from_ms;
        }
        Ok(())
    }

    /// Counts what a request used in place of what was reserved for it. Of a day and a month it is held until [`Lessee::written`].
    pub fn settle(&mut self, limited: &Limited, reserved: Reserved, used: i64) {
        for want in wants(limited, reserved.at_ms, |metric| match metric {
            Metric::TokensPerMinute => Some(reserved.expected),
            Metric::TokensPerDay | Metric::TokensPerMonth => Some(reserved.most),
            Metric::RequestsPerMinute | Metric::Parallel => None,
        }) {
            let lease = self.leases.entry(want.counter.clone()).or_default();
            if lease.limit == 0 {
                lease.limit = want.limit;
            }
            let unused = want.units.saturating_sub(used);
            if want.counter.is_bucket() {
                lease.settled = lease.settled.saturating_add(unused);
            } else {
                lease.hold(-unused);
                lease.free_up(unused);
            }
        }
    }

    /// A row of tokens is written, and counted by the database from now on.
    pub fn written(&mut self, limited: &Limited, reserved_at_ms: i64, used: i64) {
        let budgets = [Metric::TokensPerDay, Metric::TokensPerMonth];
        for want in wants(limited, reserved_at_ms, |metric| {
            budgets.contains(&metric).then_some(used)
        }) {
            if let Some(lease) = self.leases.get_mut(&want.counter) {
                lease.hold(-want.units);
            }
        }
    }

    /// Ends a request that has begun.
    pub fn end(&mut self, limited: &Limited) {
        for want in wants(limited, 0, |metric| (metric == Metric::Parallel).then_some(1)) {
            if let Some(lease) = self.leases.get_mut(&want.counter) {
                lease.hold(-1);
                lease.free_up(1);
            }
        }
    }

    /// Whether it would ask now, although no request waits.
    pub fn is_hungry(&mut self) -> bool {
        std::mem::take(&mut self.hungry)
    }

    /// What is to be told and asked now: what requests wait for and, with a tick, what goes back and what ends.
    pub fn ask(&mut self, now_ms: i64, tick: bool) -> Vec<Ask> {
        if tick {
            self.leases
                .retain(|counter, lease| !lease.is_idle(counter, now_ms));
        }
        let ask = |(counter, lease): (&Counter, &mut Lease)| lease.ask(counter, now_ms, tick);
        self.leases.iter_mut().filter_map(ask).collect()
    }

    /// Has what the database granted at a time of its own clock.
    pub fn granted(&mut self, asks: &[Ask], grants: &[Grant], at_ms: i64) {
        for (ask, grant) in asks.iter().zip(grants) {
            let Some(lease) = self.leases.get_mut(&ask.counter) else {
                continue;
            };
            lease.free = lease.free.saturating_add(grant.granted);
            lease.ends_ms = at_ms + LEASE_MS;
            lease.known = ask.free.saturating_add(ask.held).saturating_add(grant.granted);
            lease.unsure = false;
            if ask.limit == lease.limit {
                lease.excess = grant.excess;
            }
            lease.left = (grant.left, at_ms);
            lease.more_from_ms = at_ms + MORE_EVERY_MS;
            lease.denied = grant.denied.map(|denied| (denied, at_ms));
        }
    }

    /// Nobody knows whether the database has heard of these asks. What they gave back is not given back again; what they owed is owed.
    pub fn failed(&mut self, asks: &[Ask]) {
        for ask in asks {
            if let Some(lease) = self.leases.get_mut(&ask.counter) {
                lease.unsure = true;
                lease.settled = lease.settled.saturating_add(ask.settled.min(0));
            }
        }
    }

    /// What is left of requests and of tokens a minute, as far as this server knows.
    pub fn standing(&self, limited: &Limited, now_ms: i64) -> [Option<Standing>; 2] {
        [Metric::RequestsPerMinute, Metric::TokensPerMinute].map(|metric| {
            let of = wants(limited, now_ms, |other| (other == metric).then_some(0));
            let standing = |want: Want| match self.leases.get(&want.counter) {
                Some(lease) => lease.standing(now_ms),
                None => standing(want.limit, want.limit),
            };
            of.map(standing).min_by_key(|standing| standing.remaining)
        })
    }
}

impl Lease {
    /// What it is now: of a lease that has ended nothing may be spent, and what is known of another limit is not known.
    fn look(&mut self, limit: i64, now_ms: i64) {
        if now_ms >= self.ends_ms {
            self.free = 0;
        }
        if limit < self.limit {
            // What it has was leased of more; until it is told otherwise, none of what requests hold comes free.
            self.returned = self.returned.saturating_add(self.free);
            (self.free, self.excess) = (0, self.held);
        }
        if self.limit != limit {
            (self.limit, self.denied) = (limit, None);
        }
    }

    /// Has again what a request held.
    fn free_up(&mut self, units: i64) {
        let nobodys = units.clamp(0, self.excess.max(0));
        self.excess -= nobodys;
        self.free = self.free.saturating_add(units.max(0) - nobodys);
    }

    fn hold(&mut self, units: i64) {
        self.held = self.held.saturating_add(units).max(0);
        self.most[0] = self.most[0].max(self.held);
    }

    /// Why something is not to be had, as far as that is known.
    fn exceeded(&self, want: &Want, now_ms: i64) -> Option<Exceeded> {
        let (denied, at_ms) = self.denied?;
        // A clock that was set back makes nothing known for longer.
        let fresh = 0..denied.wait_ms.unwrap_or(DENIED_MS).min(DENIED_MS);
        let known = fresh.contains(&now_ms.saturating_sub(at_ms));
        let more = want.units >= denied.need && want.units > self.free && want.limit == self.limit;
        let wait_ms = denied.wait_ms.unwrap_or(DENIED_MS) - (now_ms - at_ms);
        (known && more).then(|| want.over((want.units <= want.limit).then_some(wait_ms.max(1))))
    }

    /// What it would have free: what is spent in a second, or what was held besides a moment ago.
    fn target(&self, counter: &Counter) -> i64 {
        if counter.is_bucket() {
            self.spent[0].saturating_add(self.spent[1])
        } else {
            self.most[0].max(self.most[1]).saturating_sub(self.held)
        }
    }

    fn is_idle(&self, counter: &Counter, now_ms: i64) -> bool {
        let nothing = self.free <= 0 && self.held == 0 && self.returned == 0 && self.settled == 0;
        let fresh = 0..DENIED_MS;
        let denied = self
            .denied
            .is_some_and(|(_, at_ms)| fresh.contains(&(now_ms - at_ms)));
        nothing
            && self.needs.is_empty()
            && self.known == 0
            && !self.unsure
            && self.target(counter) <= 0
            && !denied
    }

    fn ask(&mut self, counter: &Counter, now_ms: i64, tick: bool) -> Option<Ask> {
        self.look(self.limit, now_ms);
        let target = self.target(counter);
        if tick {
            // What was used between two ticks is kept until the next.
            let recent = if counter.is_bucket() {
                self.spent[0].saturating_mul(2)
            } else {
                self.most[0].saturating_sub(self.held)
            };
            let spare = (self.free - recent).max(0);
            self.free -= spare;
            self.returned = self.returned.saturating_add(spare);
            self.spent = [0, self.spent[0]];
            self.most = [self.held, self.most[0]];
        }
        let lacks = now_ms >= self.more_from_ms && self.free < target / 4;
        let total = self.free.saturating_add(self.held);
        let ends = total > 0 && self.ends_ms.saturating_sub(now_ms) < RENEW_MS;
        let tells = self.settled != 0 || self.unsure || self.known != total;
        if self.needs.is_empty() && !lacks && !(tick && (ends || tells)) {
            return None;
        }
        // What is free serves those first that have waited longest.
        let mut free = self.free;
        let mut needs = std::mem::take(&mut self.needs);
        for need in &mut needs {
            let served = free.min(*need);
            (free, *need) = (free - served, *need - served);
        }
        Some(Ask {
            counter: counter.clone(),
            limit: self.limit,
            free: self.free,
            held: self.held,
            returned: std::mem::take(&mut self.returned),
            settled: std::mem::take(&mut self.settled),
            needs: needs.into_iter().filter(|need| *need > 0).collect(),
            more: (target - free).max(0),
        })
    }

    fn standing(&self, now_ms: i64) -> Standing {
        let (left, at_ms) = self.left;
        let elapsed = now_ms.saturating_sub(at_ms).max(0);
        let back = elapsed.saturating_mul(self.limit) / MINUTE_MS;
        let free = if now_ms < self.ends_ms { self.free } else { 0 };
        standing(self.limit, free.saturating_add(left).saturating_add(back))
    }
}

fn standing(limit: i64, remaining: i64) -> Standing {
    let remaining = remaining.clamp(0, limit);
    Standing {
        limit,
        remaining,
        reset_ms: (limit - remaining).saturating_mul(MINUTE_MS) / limit.max(1),
    }
}

/// What is wanted of each limit there is, where something is.
fn wants(
    limited: &Limited,
    at_ms: i64,
    units: impl Fn(Metric) -> Option<i64> + Copy,
) -> impl Iterator<Item = Want> {
    let of = move |(subject, limits): &(Subject, Limits)| {
        let (subject, limits) = (subject.clone(), *limits);
        Metric::ALL.into_iter().filter_map(move |metric| {
            Some(Want {
                limit: limits.get(metric)?,
                units: units(metric)?,
                counter: Counter::at(&subject, metric, at_ms),
            })
        })
    };
    limited.iter().flat_map(of)
}
