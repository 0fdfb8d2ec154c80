//! How long a format is waited for.

use std::time::{Duration, Instant};

/// The most that passes between two looks: a machine, or this process, that stood still for longer gave a format no time, either.
const LOOK_MAX: Duration = Duration::from_millis(100);

/// What is left of a time, of which only that counts in which this process ran.
pub(super) struct Patience {
    left: Duration,
    looked: Instant,
}

impl Patience {
    pub(super) fn of(time: Duration) -> Self {
        Self {
            left: time,
            looked: Instant::now(),
        }
    }

    /// How long to wait until the next look.
    pub(super) fn look(&self) -> Duration {
        self.left.min(LOOK_MAX / 2)
    }

    /// Whether nothing is left, now that there was another look.
    pub(super) fn is_over(&mut self) -> bool {
        self.is_over_at(Instant::now())
    }

    fn is_over_at(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.looked).min(LOOK_MAX);
        self.left = self.left.saturating_sub(passed);
        self.looked = now;
        self.left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stands_still_takes_no_time_from_a_format() {
        let ms = Duration::from_millis;
        let mut patience = Patience::of(ms(2000));
        let began = patience.looked;
        // It stops for an hour between two looks.
        assert!(
            !patience.is_over_at(began + ms(10)) && !patience.is_over_at(began + Duration::from_hours(1))
        );
        assert_eq!(patience.left, ms(1890));
        let mut looks = 0;
        while !patience.is_over_at(patience.looked + ms(50)) {
            looks += 1;
        }
        assert_eq!(looks, 37);
        assert_eq!(patience.look(), ms(0));
    }
}
