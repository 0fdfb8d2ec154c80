//! What this server has of limits that others on the same database count with it: leases, asked for by one task for all requests.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rempart_governance::{ASKS_MAX, Ask, Error, Leases, Lessee, Limited, Reserved, Short, Standing, TICK_MS};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Expected, Refused};
use crate::metrics::LeaseMetrics;

/// How long the database may take to answer; what is asked meanwhile goes with the next ask.
const ASK_MAX: Duration = Duration::from_secs(2);
/// How long a request waits for a lease.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// What all requests share.
pub(super) struct Leasing {
    state: Mutex<State>,
    /// Something is to be asked.
    wake: Notify,
    /// The last ask that has ended, and whether it was answered.
    ended: watch::Sender<(u64, bool)>,
    metrics: LeaseMetrics,
}

struct State {
    lessee: Lessee,
    /// The number of the ask that was sent last.
    sent: u64,
    clock: Clock,
}

/// The database's clock, as far as it can be known: never behind it.
struct Clock {
    shown_ms: i64,
    /// When that was asked.
    asked: Instant,
}

impl Clock {
    fn now_ms(&self) -> i64 {
        let since = i64::try_from(self.asked.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.shown_ms.saturating_add(since)
    }
}

impl Leasing {
    /// With nothing leased yet.
    ///
    /// # Errors
    /// What the database says.
    pub(super) async fn begin(leases: &mut Leases, metrics: LeaseMetrics) -> Result<Self, Error> {
        let asked = Instant::now();
        let shown_ms = leases.clock().await?;
        Ok(Self {
            state: Mutex::new(State {
                lessee: Lessee::default(),
                sent: 0,
                clock: Clock { shown_ms, asked },
            }),
            wake: Notify::new(),
            ended: watch::Sender::new((0, true)),
            metrics,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request; when, by the database's clock.
    pub(super) async fn begin_request(&self, limited: &Limited) -> Result<i64, Refused> {
        self.granted(|lessee, now_ms| lessee.begin(limited, now_ms).map(|()| now_ms))
            .await
    }

    pub(super) async fn reserve(&self, limited: &Limited, tokens: Expected) -> Result<Reserved, Refused> {
        self.granted(|lessee, now_ms| {
            let wanted = tokens.at(now_ms);
            lessee.reserve(limited, wanted).map(|()| wanted)
        })
        .await
    }

    pub(super) fn settle(&self, limited: &Limited, reserved: Reserved, used: i64) {
        self.state().lessee.settle(limited, reserved, used);
    }

    pub(super) fn end(&self, limited: &Limited) {
        self.state().lessee.end(limited);
    }

    pub(super) fn written(&self, limited: &Limited, reserved_at_ms: i64, used: i64) {
        self.state().lessee.written(limited, reserved_at_ms, used);
    }

    pub(super) fn standing(&self, limited: &Limited) -> [Option<Standing>; 2] {
        let state = self.state();
        state.lessee.standing(limited, state.clock.now_ms())
    }

    /// Tries at once, and again with each answer of the database, while not enough is leased.
    async fn granted<T>(&self, take: impl Fn(&mut Lessee, i64) -> Result<T, Short>) -> Result<T, Refused> {
        let mut ended = None;
        let trying = async {
            loop {
                let next = {
                    let mut state = self.state();
                    let now_ms = state.clock.now_ms();
                    match take(&mut state.lessee, now_ms) {
                        Ok(taken) => {
                            if state.lessee.is_hungry() {
                                self.wake.notify_one();
                            }
                            return Ok(taken);
                        }
                        Err(Short::Over(exceeded)) => return Err(Refused::Over(exceeded)),
                        // One that is under way does not have it.
                        Err(Short::Asked) => state.sent + 1,
                    }
                };
                self.metrics.waits();
                self.wake.notify_one();
                let ended = ended.get_or_insert_with(|| self.ended.subscribe());
                let answered = ended.wait_for(|(number, _)| *number >= next).await;
                if !answered.is_ok_and(|ended| ended.1) {
                    return Err(Refused::Unrecorded);
                }
            }
        };
        timeout(WAIT_MAX, trying)
            .await
            .unwrap_or(Err(Refused::Unrecorded))
    }

    /// Asks whenever a request waits, and tells what is not used and what is held, for as long as it runs.
    pub(super) async fn keep(&self, leases: &mut Leases) {
        let mut ticks = interval(Duration::from_millis(TICK_MS.unsigned_abs()));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            let tick = tokio::select! {
                _ = ticks.tick() => true,
                () = self.wake.notified() => false,
            };
            let (number, asks) = {
                let mut state = self.state();
                let now_ms = state.clock.now_ms();
                let asks = state.lessee.ask(now_ms, tick);
                state.sent += 1;
                (state.sent, asks)
            };
            let mut answered = Ok(());
            for some in asks.chunks(ASKS_MAX) {
                let asked = self.ask(leases, some).await;
                answered = answered.and(asked);
            }
            let is_answered = answered.is_ok();
            match answered {
                Ok(()) if failing && !asks.is_empty() => {
                    failing = false;
                    tracing::info!("limits are leased again");
                }
                Err(error) if !failing => {
                    failing = true;
                    let error = format!("{:#}", anyhow::Error::new(error));
                    tracing::error!(
                        error,
                        "limits can't be leased: requests that lack them are refused until they can"
                    );
                }
                _ => {}
            }
            self.ended.send_replace((number, is_answered));
        }
    }

    async fn ask(&self, leases: &mut Leases, asks: &[Ask]) -> Result<(), Error> {
        let asked = Instant::now();
        let answer = timeout(ASK_MAX, leases.lend(asks)).await;
        let mut state = self.state();
        match answer.unwrap_or(Err(Error::Silent)) {
            Ok((grants, shown_ms)) => {
                state.clock = Clock { shown_ms, asked };
                state.lessee.granted(asks, &grants, shown_ms);
                self.metrics.asked();
                Ok(())
            }
            Err(error) => {
                state.lessee.failed(asks);
                self.metrics.failed();
                Err(error)
            }
        }
    }
}
