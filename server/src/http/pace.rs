//! At what pace a project is refused.
//!
//! A refusal costs the processor about as much as a token, and clients that don't heed `Retry-After` come again with each: so
//! many that they take from others what their project's share does not give them. Beyond some in a second, a refusal waits for
//! its turn, and so does whoever waits for it. It is a virtual scheduling algorithm (ITU-T I.371, the generic cell rate
//! algorithm) that delays where that one drops.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use super::AppState;
use crate::access::Caller;
use crate::shutdown::Phase;

/// The time for which what was not used may be used at once.
const BURST: Duration = Duration::from_secs(1);
/// Flows that are remembered before those that are quiet are forgotten.
const FLOWS_KEPT: usize = 1024;

/// When each flow is refused next.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    wait_max: Duration,
    next: Mutex<HashMap<u64, Instant>>,
}

impl Pace {
    pub(super) fn new(per_second: u32, wait_max: Duration) -> Self {
        Self {
            interval: BURST / per_second.max(1),
            wait_max,
            next: Mutex::default(),
        }
    }

    /// How long a refusal of this flow waits, at most as long as any may.
    pub(super) fn turn(&self, flow: u64, now: Instant) -> Duration {
        // Never held over a wait.
        let mut flows = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if flows.len() >= FLOWS_KEPT && !flows.contains_key(&flow) {
            flows.retain(|_, next| *next + BURST > now);
        }
        let quiet = now.checked_sub(BURST).unwrap_or(now);
        let next = flows.get(&flow).copied().unwrap_or(quiet).max(quiet) + self.interval;
        let wait = next.saturating_duration_since(now);
        if wait > self.wait_max {
            return self.wait_max;
        }
        flows.insert(flow, next);
        wait
    }
}

/// The layer that lets a project's refusals wait for their turns. Their rows are written by then. Without keys there are no others
/// to be kept from anything.
pub(super) async fn pace_refusals(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    let refused = matches!(
        response.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    if refused && let Caller::Holder(_) = &caller {
        let wait = app.refusals.turn(caller.flow().id, Instant::now());
        let _ = tokio::time::timeout(wait, app.shutdown.reached(Phase::Draining)).await;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_refused_at_once_and_the_rest_one_after_the_other() {
        let ms = Duration::from_millis;
        let pace = Pace::new(4, ms(600));
        let now = Instant::now() + ms(10_000);
        let turns: Vec<Duration> = (0..8).map(|_| pace.turn(7, now)).collect();
        assert_eq!(turns, [0, 0, 0, 0, 250, 500, 600, 600].map(ms));
        // Another flow has turns of its own, and time gives them back: one in a quarter of a second, four in a second at most.
        assert_eq!(pace.turn(8, now), ms(0));
        assert_eq!(pace.turn(7, now + ms(500)), ms(250));
        let later = now + ms(60_000);
        let turns: Vec<Duration> = (0..5).map(|_| pace.turn(7, later)).collect();
        assert_eq!(turns, [0, 0, 0, 0, 250].map(ms));
    }

    #[test]
    fn without_a_wait_all_are_refused_at_once() {
        let pace = Pace::new(1, Duration::ZERO);
        let now = Instant::now();
        assert!((0..100).all(|_| pace.turn(1, now).is_zero()));
    }

    #[test]
    fn quiet_flows_are_forgotten() {
        let pace = Pace::new(20, BURST);
        let now = Instant::now();
        for flow in 0..FLOWS_KEPT as u64 {
            pace.turn(flow, now);
        }
        pace.turn(FLOWS_KEPT as u64, now + 2 * BURST);
        assert_eq!(pace.next.lock().unwrap().len(), 1);
    }
}
