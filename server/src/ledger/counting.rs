//! How limits are counted: by this process alone, or with others that serve from the same database.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rempart_governance::{
    Counter, Counts, Error, Leases, Limited, Limiter, Metric, Reserved, Standing, Store, now_ms,
};

use super::leasing::Leasing;
use super::{Expected, Refused};
use crate::metrics::Metrics;

/// How long what is leased may take to be given back at the end.
const GIVE_BACK_MAX: Duration = Duration::from_secs(2);

/// What all requests share. Clones count for the same limits.
#[derive(Clone)]
pub(super) enum Counting {
    Alone(Arc<Mutex<Limiter>>),
    Shared(Arc<Leasing>),
}

/// What a row counts for, where others count, too.
pub(super) struct Charge {
    pub limited: Arc<Limited>,
    /// By the database's clock: of a day and a month tokens are counted in those in which they were reserved.
    pub reserved_at_ms: i64,
    pub tokens: i64,
}

/// How a server counts, and what it asks the database of it.
pub struct Limiting {
    counting: Counting,
    leases: Option<Leases>,
}

impl Limiting {
    /// With what was used so far, where no other server serves from the database.
    pub fn alone(limiter: Limiter) -> Self {
        Self {
            counting: Counting::Alone(Arc::new(Mutex::new(limiter))),
            leases: None,
        }
    }

    /// Together with other servers on a database.
    ///
    /// # Errors
    /// What the database says.
    pub async fn shared(store: &Store, metrics: &Metrics) -> Result<Self, Error> {
        let mut leases = Leases::new(store.clone())?;
        let leasing = Leasing::begin(&mut leases, metrics.leases()).await?;
        Ok(Self {
            counting: Counting::Shared(Arc::new(leasing)),
            leases: Some(leases),
        })
    }

    pub(super) fn counting(&self) -> Counting {
        self.counting.clone()
    }

    /// Asks the database, where that is to be asked, until rows are written no more; then what is left is given back.
    pub(super) async fn keep_while(self, writing: impl Future<Output = ()>) {
        let (Counting::Shared(leasing), Some(mut leases)) = (self.counting, self.leases) else {
            return writing.await;
        };
        tokio::select! {
            () = writing => {}
            () = leasing.keep(&mut leases) => {}
        }
        // What can't be given back ends by itself.
        let _ = tokio::time::timeout(GIVE_BACK_MAX, leases.give_back()).await;
    }
}

impl Counting {
    /// Begins a request; when.
    pub(super) async fn begin(&self, limited: &Limited) -> Result<i64, Refused> {
        match self {
            Self::Alone(limiter) => {
                let now_ms = now_ms();
                let begun = lock(limiter).begin(limited, now_ms);
                begun.map(|()| now_ms).map_err(Refused::Over)
            }
            Self::Shared(leasing) => leasing.begin_request(limited).await,
        }
    }

    /// Reserves tokens for it.
    pub(super) async fn reserve(&self, limited: &Limited, tokens: Expected) -> Result<Reserved, Refused> {
        match self {
            Self::Alone(limiter) => {
                let wanted = tokens.at(now_ms());
                let reserved = lock(limiter).reserve(limited, wanted);
                reserved.map(|()| wanted).map_err(Refused::Over)
            }
            Self::Shared(leasing) => leasing.reserve(limited, tokens).await,
        }
    }

    /// Counts what was used in place of what was reserved.
    pub(super) fn settle(&self, limited: &Limited, reserved: Reserved, used: i64) {
        match self {
            Self::Alone(limiter) => lock(limiter).settle(limited, reserved, now_ms(), used),
            Self::Shared(leasing) => leasing.settle(limited, reserved, used),
        }
    }

    /// Ends a request.
    pub(super) fn end(&self, limited: &Limited) {
        match self {
            Self::Alone(limiter) => lock(limiter).end(limited),
            Self::Shared(leasing) => leasing.end(limited),
        }
    }

    /// What the row of a request counts for.
    pub(super) fn charge(&self, limited: &Arc<Limited>, reserved: Reserved, tokens: i64) -> Option<Charge> {
        matches!(self, Self::Shared(_)).then(|| Charge {
            limited: Arc::clone(limited),
            reserved_at_ms: reserved.at_ms,
            tokens,
        })
    }

    /// The database counts it from now on.
    pub(super) fn written(&self, charge: &Charge) {
        if let Self::Shared(leasing) = self {
            leasing.written(&charge.limited, charge.reserved_at_ms, charge.tokens);
        }
    }

    /// What is left of requests and of tokens a minute.
    pub(super) fn standing(&self, limited: &Limited) -> [Option<Standing>; 2] {
        match self {
            Self::Alone(limiter) => lock(limiter).standing(limited, now_ms()),
            Self::Shared(leasing) => leasing.standing(limited),
        }
    }
}

fn lock(limiter: &Mutex<Limiter>) -> MutexGuard<'_, Limiter> {
    limiter.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What charges come to. All subjects of a request are counted, whether they have limits here or not: where nobody has, the database
/// counts nothing.
pub(super) fn counts<'a>(charges: impl Iterator<Item = &'a Charge>) -> Counts {
    let mut counts = Counts::new();
    for charge in charges.filter(|charge| charge.tokens > 0) {
        for (subject, _) in charge.limited.iter() {
            for metric in [Metric::TokensPerDay, Metric::TokensPerMonth] {
                let counter = Counter::at(subject, metric, charge.reserved_at_ms);
                let sum = counts.entry(counter).or_default();
                *sum = sum.saturating_add(charge.tokens);
            }
        }
    }
    counts
}
