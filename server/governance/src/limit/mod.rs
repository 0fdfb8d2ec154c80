//! How much a key, its project and the person whose it is may use. Time comes from outside; nothing here asks a database or waits.
//!
//! Requests and tokens of a minute are buckets that fill evenly, so that a minute's worth can be used at once and then as fast as
//! it comes back; tokens of a day and of a month are counted by the calendar of UTC. Tokens are reserved when a request begins, and
//! settled when it has ended. What was used of a minute beyond the reservation is owed: it has to come back first.
//!
//! One process alone counts with a [`Limiter`]. Of several on one database each is a [`Lessee`], which spends what it was granted of a
//! [`Pool`] and knows of no other.

mod bucket;
mod calendar;
mod lessee;
mod limiter;
mod pool;

use std::fmt;
use std::str::FromStr;

pub use calendar::month_began_ms;
pub use lessee::{LEASE_MS, Lessee, Short, TICK_MS};
pub use limiter::Limiter;
pub(crate) use pool::Pool;
pub use pool::{Ask, Counter, Grant};

/// The most that a limit can be: far above any use, and low enough that no product of it overflows.
pub const LIMIT_MAX: i64 = 1_000_000_000_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    RequestsPerMinute,
    TokensPerMinute,
    TokensPerDay,
    TokensPerMonth,
    /// Requests at one time.
    Parallel,
}

impl Metric {
    pub const ALL: [Self; 5] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::TokensPerDay,
        Self::TokensPerMonth,
        Self::Parallel,
    ];

    /// Its name in the database and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests-per-minute",
            Self::TokensPerMinute => "tokens-per-minute",
            Self::TokensPerDay => "tokens-per-day",
            Self::TokensPerMonth => "tokens-per-month",
            Self::Parallel => "parallel",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests per minute",
            Self::TokensPerMinute => "tokens per minute",
            Self::TokensPerDay => "tokens per day",
            Self::TokensPerMonth => "tokens per month",
            Self::Parallel => "requests at one time",
        }
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|metric| metric.name() == text);
        found.ok_or_else(|| format!("limits are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Who is limited.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    Project(String),
    /// A person: all their keys together, of whatever projects.
    Person(String),
    Key(String),
}

impl Subject {
    /// What kind it is of, and its identifier.
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Project(id) => ("project", id),
            Self::Person(id) => ("user", id),
            Self::Key(id) => ("api_key", id),
        }
    }
}

/// The limits of one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits([Option<i64>; Metric::ALL.len()]);

impl Limits {
    pub fn get(&self, metric: Metric) -> Option<i64> {
        self.0[metric as usize]
    }

    pub fn set(&mut self, metric: Metric, value: Option<i64>) {
        self.0[metric as usize] = value.map(|value| value.clamp(1, LIMIT_MAX));
    }
}

/// Everyone whom a request counts for, each with its limits: a key, its project, and the person whose it is.
pub type Limited = [(Subject, Limits)];

/// Which limit a request is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub subject: Subject,
    pub metric: Metric,
    pub limit: i64,
    /// When to try again, in milliseconds; `None` where the request itself is larger than the limit.
    pub retry_after_ms: Option<i64>,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.subject {
            Subject::Project(_) => "project",
            Subject::Person(_) => "user",
            Subject::Key(_) => "key",
        };
        write!(
            formatter,
            "this {who}'s limit is {} {}",
            self.limit,
            self.metric.what()
        )
    }
}

/// Tokens that are reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// As many as are expected.
    pub expected: i64,
    /// As many as there may be.
    pub most: i64,
}

/// What is left to a request's subjects of a limit that fills by the minute, of the one that is nearest to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub limit: i64,
    pub remaining: i64,
    /// Until it is whole again.
    pub reset_ms: i64,
}

#[cfg(test)]
mod leases_tests;
#[cfg(test)]
mod tests;
