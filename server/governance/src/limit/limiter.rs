//! The limits of everyone at work.

use std::collections::BTreeMap;

use super::bucket::{Bucket, Window};
use super::calendar::{day, day_ends_ms, month, month_ends_ms};
use super::{Exceeded, Limited, Limits, Metric, Reserved, Standing, Subject};

/// When one of the requests that run may have ended, for all that anybody knows.
pub(super) const PARALLEL_RETRY_MS: i64 = 1_000;

/// What everyone has used of their limits.
#[derive(Debug, Default)]
pub struct Limiter {
    states: BTreeMap<Subject, State>,
    /// The time at which it was last used, Unix milliseconds.
    last_ms: i64,
}

#[derive(Debug, Default)]
struct State {
    parallel: i64,
    requests: Bucket,
    tokens: Bucket,
    day: Window,
    month: Window,
}

impl Limiter {
    /// Counts tokens that were used before this began.
    pub fn remember(&mut self, subject: Subject, at_ms: i64, tokens: i64) {
        let state = self.states.entry(subject).or_default();
        state.count(at_ms, at_ms, tokens);
    }

    /// Where the clock was set back, everything goes on from there.
    fn notice(&mut self, now_ms: i64) {
        let back_ms = self.last_ms.saturating_sub(now_ms);
        self.last_ms = now_ms;
        if back_ms > 0 {
            for state in self.states.values_mut() {
                state.requests.set_back(back_ms);
                state.tokens.set_back(back_ms);
            }
        }
    }

    /// Begins a request, which [`Limiter::end`] ends.
    ///
    /// # Errors
    /// The limit that keeps it from beginning; then it has not begun.
    pub fn begin(&mut self, limited: &Limited, now_ms: i64) -> Result<(), Exceeded> {
        self.notice(now_ms);
        for (subject, limits) in limited {
            let state = self.states.entry(subject.clone()).or_default();
            let exceeded = |metric, limit, retry_after_ms| Exceeded {
                subject: subject.clone(),
                metric,
                limit,
                retry_after_ms,
            };
            if let Some(limit) = limits
                .get(Metric::Parallel)
                .filter(|limit| state.parallel >= *limit)
            {
                return Err(exceeded(Metric::Parallel, limit, Some(PARALLEL_RETRY_MS)));
            }
            if let Some(limit) = limits.get(Metric::RequestsPerMinute) {
                let wait_ms = state.requests.wait_ms(limit, now_ms, 1);
                if wait_ms > 0 {
                    return Err(exceeded(Metric::RequestsPerMinute, limit, Some(wait_ms)));
                }
            }
            // Nothing is prepared for one that has nothing left.
            let one = Reserved {
                at_ms: now_ms,
                expected: 1,
                most: 1,
            };
            if let Some((metric, limit, retry_after_ms)) = state.over(limits, one) {
                return Err(exceeded(metric, limit, retry_after_ms));
            }
        }
        for (subject, limits) in limited {
            let state = self.states.entry(subject.clone()).or_default();
            state.parallel += 1;
            if let Some(limit) = limits.get(Metric::RequestsPerMinute) {
                state.requests.take(limit, now_ms, 1);
            }
        }
        Ok(())
    }

    /// Reserves tokens for a request that has begun, as many as are expected of a minute's, and as many as there may be of a day's
    /// and a month's: these are budgets, which are not overdrawn.
    ///
    /// # Errors
    /// The limit that they are over; then none are reserved.
    pub fn reserve(&mut self, limited: &Limited, wanted: Reserved) -> Result<(), Exceeded> {
        self.notice(wanted.at_ms);
        for (subject, limits) in limited {
            let state = self.states.entry(subject.clone()).or_default();
            let over = state.over(limits, wanted);
            if let Some((metric, limit, retry_after_ms)) = over {
                return Err(Exceeded {
                    subject: subject.clone(),
                    metric,
                    limit,
                    retry_after_ms,
                });
            }
        }
        for (subject, limits) in limited {
            let state = self.states.entry(subject.clone()).or_default();
            state.count(wanted.at_ms, wanted.at_ms, wanted.most);
            if let Some(limit) = limits.get(Metric::TokensPerMinute) {
                state.tokens.take(limit, wanted.at_ms, wanted.expected);
            }
        }
        Ok(())
    }

    /// Counts what was used in place of what was reserved, under the same limits.
    pub fn settle(&mut self, limited: &Limited, reserved: Reserved, now_ms: i64, used: i64) {
        self.notice(now_ms);
        for (subject, limits) in limited {
            let state = self.states.entry(subject.clone()).or_default();
            state.count(reserved.at_ms, now_ms, used.saturating_sub(reserved.most));
            if let Some(limit) = limits.get(Metric::TokensPerMinute) {
                state
                    .tokens
                    .take(limit, now_ms, used.saturating_sub(reserved.expected));
            }
        }
    }

    /// Ends a request that has begun.
    pub fn end(&mut self, limited: &Limited) {
        for (subject, _) in limited {
            if let Some(state) = self.states.get_mut(subject) {
                state.parallel -= 1;
            }
        }
    }

    /// What is left of requests and of tokens a minute, where there are such limits.
    pub fn standing(&self, limited: &Limited, now_ms: i64) -> [Option<Standing>; 2] {
        let nearest = |metric: Metric, bucket: fn(&State) -> Bucket| {
            let of = |(subject, limits): &(Subject, Limits)| {
                let bucket = self.states.get(subject).map_or_else(Bucket::default, bucket);
                limits.get(metric).map(|limit| bucket.standing(limit, now_ms))
            };
            limited
                .iter()
                .filter_map(of)
                .min_by_key(|standing| standing.remaining)
        };
        [
            nearest(Metric::RequestsPerMinute, |state| state.requests),
            nearest(Metric::TokensPerMinute, |state| state.tokens),
        ]
    }
}

impl State {
    /// What was reserved in a day or month before gives nothing back to this one.
    fn count(&mut self, reserved_at_ms: i64, now_ms: i64, tokens: i64) {
        if tokens > 0 || day(reserved_at_ms) == day(now_ms) {
            self.day.add(day(now_ms), tokens);
        }
        if tokens > 0 || month(reserved_at_ms) == month(now_ms) {
            self.month.add(month(now_ms), tokens);
        }
    }

    /// The limit that so many tokens more are over.
    fn over(&self, limits: &Limits, wanted: Reserved) -> Option<(Metric, i64, Option<i64>)> {
        let (now_ms, tokens) = (wanted.at_ms, wanted.expected);
        if let Some(limit) = limits.get(Metric::TokensPerMinute) {
            let wait_ms = self.tokens.wait_ms(limit, now_ms, tokens);
            if wait_ms > 0 {
                return Some((
                    Metric::TokensPerMinute,
                    limit,
                    (tokens <= limit).then_some(wait_ms),
                ));
            }
        }
        let tokens = wanted.most;
        let windows = [
            (
                Metric::TokensPerDay,
                self.day.used(day(now_ms)),
                day_ends_ms(now_ms),
            ),
            (
                Metric::TokensPerMonth,
                self.month.used(month(now_ms)),
                month_ends_ms(now_ms),
            ),
        ];
        windows.into_iter().find_map(|(metric, used, ends_ms)| {
            let limit = limits
                .get(metric)
                .filter(|limit| used.saturating_add(tokens) > *limit)?;
            Some((metric, limit, (tokens <= limit).then_some(ends_ms - now_ms)))
        })
    }
}
