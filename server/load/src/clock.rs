//! The one clock of a step: nanoseconds since it began, of the monotonic clock.

use std::time::{Duration, Instant};

/// Nanoseconds since a step began.
pub(crate) type Nanos = u64;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(&self) -> Nanos {
        self.at(Instant::now())
    }

    /// When that was; 0 where it was before the step.
    pub(crate) fn at(&self, instant: Instant) -> Nanos {
        nanos(instant.saturating_duration_since(self.0))
    }

    /// How long it is until then; zero where it is past.
    pub(crate) fn until(&self, then: Nanos) -> Duration {
        Duration::from_nanos(then.saturating_sub(self.now()))
    }
}

pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
