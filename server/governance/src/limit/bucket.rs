//! What is used up and comes back by the minute, and what is counted by the calendar.

use super::Standing;

/// Milliseconds in which a bucket fills.
pub(super) const MINUTE_MS: i64 = 60_000;

/// What has come back and was not used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    /// `None`: it is full.
    level: Option<Level>,
    /// Units that are reserved: there is no room for others in their place, or they would be there twice when they are given back.
    pub(super) held: i64,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    /// What comes back in a millisecond is `limit` of them; a unit is as many as a minute has milliseconds.
    parts: i64,
    at_ms: i64,
}

/// A count within a day or a month of that number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    number: i64,
    used: i64,
}

impl Bucket {
    /// Parts at a time, if `limit` units fit in.
    pub(super) fn parts(self, limit: i64, now_ms: i64) -> i64 {
        let room = limit.saturating_sub(self.held).saturating_mul(MINUTE_MS);
        let Some(level) = self.level else { return room };
        let elapsed = now_ms.saturating_sub(level.at_ms).max(0);
        level
            .parts
            .saturating_add(elapsed.saturating_mul(limit))
            .min(room)
    }

    /// Takes units out, or puts some in.
    pub(super) fn take(&mut self, limit: i64, now_ms: i64, units: i64) {
        let parts = self
            .parts(limit, now_ms)
            .saturating_sub(units.saturating_mul(MINUTE_MS));
        // A clock that is set back does not give the same time twice.
        let at_ms = self.level.map_or(now_ms, |level| level.at_ms.max(now_ms));
        self.level = Some(Level { parts, at_ms });
    }

    /// How long until so many units are there; nothing if they are.
    pub(super) fn wait_ms(self, limit: i64, now_ms: i64, units: i64) -> i64 {
        let missing = units
            .saturating_mul(MINUTE_MS)
            .saturating_sub(self.parts(limit, now_ms));
        if missing <= 0 {
            0
        } else {
            missing.saturating_add(limit - 1) / limit
        }
    }

    pub(super) fn standing(self, limit: i64, now_ms: i64) -> Standing {
        Standing {
            limit,
            remaining: (self.parts(limit, now_ms) / MINUTE_MS).max(0),
            reset_ms: self.wait_ms(limit, now_ms, limit),
        }
    }
}

impl Window {
    pub(super) fn used(self, number: i64) -> i64 {
        if self.number == number { self.used } else { 0 }
    }

    pub(super) fn add(&mut self, number: i64, tokens: i64) {
        *self = Self {
            number,
            used: self.used(number).saturating_add(tokens).max(0),
        };
    }
}
