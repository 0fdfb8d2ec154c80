//! At what pace a project is refused.
//!
//! A refusal costs the processor some tenths of a millisecond, and clients that don't heed `Retry-After` come again with each: so
//! many that they take from others what their project's share does not give them. Beyond some in a second, a refusal waits for
//! its turn, and so does whoever waits for it. It is a virtual scheduling algorithm (ITU-T I.371, the generic cell rate
//! algorithm) that delays where that one drops. Few wait at one time, as each holds a connection: the others are refused at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AppState;
use super::error::ApiError;
use super::observe::Arrived;
use crate::access::Caller;
use crate::shutdown::Phase;

/// The time for which what was not used may be used at once.
const BURST: Duration = Duration::from_secs(1);
/// Flows that are remembered before those that are quiet are forgotten.
const FLOWS_KEPT: usize = 1024;
/// Refusals of one flow that wait at one time.
const FLOW_WAITING_MAX: usize = 32;
/// Of all flows, as a part of the connections that may be open.
const CONNECTIONS_PER_WAITING: usize = 8;
/// What is paced. Not who is over a limit: more of it may come back while a client waits, which would then get less.
const PACED: &str = "server_is_overloaded";

/// When each flow is refused next, and how many wait for that.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    wait_max: Duration,
    flows: Mutex<HashMap<u64, Turns>>,
    waiting: Arc<Semaphore>,
}

#[derive(Debug)]
struct Turns {
    next: Instant,
    waiting: Arc<Semaphore>,
}

/// A refusal's wait, and its places among those that do.
#[derive(Debug)]
struct Wait {
    time: Duration,
    _places: [OwnedSemaphorePermit; 2],
}

impl Pace {
    pub(super) fn new(per_second: u32, wait_max: Duration, connections_max: usize) -> Self {
        Self {
            interval: BURST / per_second.max(1),
            wait_max,
            flows: Mutex::default(),
            waiting: Arc::new(Semaphore::new(connections_max / CONNECTIONS_PER_WAITING)),
        }
    }

    /// How long a refusal of this flow waits, at most as long as any may; `None`: it is sent at once.
    fn turn(&self, flow: u64, now: Instant) -> Option<Wait> {
        let quiet = now.checked_sub(BURST).unwrap_or(now);
        // Never held over a wait.
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        if flows.len() >= FLOWS_KEPT && !flows.contains_key(&flow) {
            flows.retain(|_, turns| turns.next > quiet);
        }
        let turns = flows.entry(flow).or_insert_with(|| Turns {
            next: quiet,
            waiting: Arc::new(Semaphore::new(FLOW_WAITING_MAX)),
        });
        let next = turns.next.max(quiet) + self.interval;
        let time = next.saturating_duration_since(now);
        if time <= self.wait_max {
            turns.next = next;
        }
        let time = time.min(self.wait_max);
        if time.is_zero() {
            return None;
        }
        let own = Arc::clone(&turns.waiting).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        Some(Wait {
            time,
            _places: [own, all],
        })
    }
}

/// The layer that lets a project's refusals wait for their turns, as far as the request has time. Without keys there are no
/// others to be kept from anything.
pub(super) async fn pace_refusals(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    let code = response
        .extensions()
        .get::<ApiError>()
        .and_then(|error| error.code);
    if code == Some(PACED)
        && let Caller::Holder(_) = &caller
        && let Some(wait) = app.refusals.turn(caller.flow().id, Instant::now())
    {
        let left = app
            .timing(arrived.0)
            .deadline
            .saturating_duration_since(Instant::now());
        let _ = tokio::time::timeout(wait.time.min(left), app.shutdown.reached(Phase::Draining)).await;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(pace: &Pace, flow: u64, now: Instant, count: usize) -> Vec<Duration> {
        let time = |_| pace.turn(flow, now).map_or(Duration::ZERO, |wait| wait.time);
        (0..count).map(time).collect()
    }

    #[test]
    fn some_are_refused_at_once_and_the_rest_one_after_the_other() {
        let ms = Duration::from_millis;
        let pace = Pace::new(4, ms(600), 1024);
        let now = Instant::now() + ms(10_000);
        let turns = times(&pace, 7, now, 8);
        assert_eq!(turns, [0, 0, 0, 0, 250, 500, 600, 600].map(ms));
        // Another flow has turns of its own, and time gives them back: one in a quarter of a second, four in a second at most.
        assert_eq!(times(&pace, 8, now, 1), [ms(0)]);
        assert_eq!(times(&pace, 7, now + ms(500), 1), [ms(250)]);
        let later = now + ms(60_000);
        assert_eq!(times(&pace, 7, later, 5), [0, 0, 0, 0, 250].map(ms));
    }

    #[test]
    fn without_a_wait_all_are_refused_at_once() {
        let pace = Pace::new(1, Duration::ZERO, 1024);
        let now = Instant::now();
        assert!((0..100).all(|_| pace.turn(1, now).is_none()));
    }

    #[test]
    fn few_wait_at_one_time() {
        let now = Instant::now();
        // Of a flow; and of all, an eighth of the connections.
        let pace = Pace::new(1, BURST, 400);
        let wait = |flow| {
            (0..FLOW_WAITING_MAX + 8)
                .filter_map(|_| pace.turn(flow, now))
                .collect()
        };
        let first: Vec<Wait> = wait(1);
        let second: Vec<Wait> = wait(2);
        assert_eq!(
            (first.len(), second.len()),
            (FLOW_WAITING_MAX, 50 - FLOW_WAITING_MAX)
        );
        drop(first);
        assert_eq!(wait(1).len(), FLOW_WAITING_MAX);
    }

    #[test]
    fn quiet_flows_are_forgotten() {
        let pace = Pace::new(20, BURST, 1024);
        let now = Instant::now();
        for flow in 0..FLOWS_KEPT as u64 {
            pace.turn(flow, now);
        }
        pace.turn(FLOWS_KEPT as u64, now + 2 * BURST);
        assert_eq!(pace.flows.lock().unwrap().len(), 1);
    }
}
