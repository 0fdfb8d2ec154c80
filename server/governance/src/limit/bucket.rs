//! What is used up and comes back by the minute, and what is counted by the calendar.

use super::Standing;

/// Milliseconds in which a bucket fills.
pub(super) const MINUTE_MS: i64 = 60_000;

/// What has come back and was not used. What was reserved and is given back is there again, whatever came back meanwhile: over
/// any time the rate holds, and a burst may be larger by what was reserved and not used before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    /// `None`: it is full.
    level: Option<Level>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    /// What comes back in a millisecond is `limit` of them; a unit is as many as a minute has milliseconds.
    parts: i64,
    at_ms: i64,
}

/// Counts within days or months of these numbers, the newest last. Two are kept, so that a clock that is ahead for a moment does
/// not make the true day begin anew.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window([(i64, i64); 2]);

impl Bucket {
    /// Parts at a time, if `limit` units fit in.
    pub(super) fn parts(self, limit: i64, now_ms: i64) -> i64 {
        let full = limit.saturating_mul(MINUTE_MS);
        let Some(level) = self.level else { return full };
        let elapsed = now_ms.saturating_sub(level.at_ms).max(0);
        level
            .parts
            .saturating_add(elapsed.saturating_mul(limit))
            .min(full)
    }

    /// The clock was set back by so much.
    pub(super) fn set_back(&mut self, back_ms: i64) {
        if let Some(level) = &mut self.level {
            level.at_ms = level.at_ms.saturating_sub(back_ms);
        }
    }

    /// Takes units out, or puts some in.
    pub(super) fn take(&mut self, limit: i64, now_ms: i64, units: i64) {
        let parts = self
            .parts(limit, now_ms)
            .saturating_sub(units.saturating_mul(MINUTE_MS));
        self.level = Some(Level { parts, at_ms: now_ms });
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
        // One before both is taken for the first of them: a clock that is set back gives nothing.
        let found = self.0.into_iter().find(|(known, _)| *known >= number);
        found
            .filter(|(known, _)| *known == number || number < self.0[0].0)
            .map_or(0, |(_, used)| used)
    }

    pub(super) fn add(&mut self, number: i64, tokens: i64) {
        let used = self.used(number).saturating_add(tokens).max(0);
        let [first, last] = &mut self.0;
        if number > last.0 {
            *first = *last;
            *last = (number, used);
        } else if number == last.0 {
            last.1 = used;
        } else if number > first.0 {
            *first = (number, used);
        } else {
            first.1 = used;
        }
    }
}
