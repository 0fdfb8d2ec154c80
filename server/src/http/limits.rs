//! How much a client may send, and how much of it is worked on at one time.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use futures::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::App;
use super::authorize;
use super::bodies::Held;
use super::error::ApiError;
use crate::access::Caller;
use crate::ledger::Meter;
use crate::metrics::{Metrics, Rejection};

/// What a client is told to wait when a limit of the HTTP side is reached, in seconds: these queues drain in less.
const RETRY_AFTER_S: u64 = 1;

/// A body, and the budget that it holds until it is dropped.
pub struct Received {
    pub bytes: Bytes,
    pub caller: Caller,
    pub meter: Meter,
    _held: Arc<Held>,
}

/// Reads a JSON body within its limits of size and time.
pub async fn read_json(app: &App, request: Request) -> Result<Received, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::not_json());
    }
    if is_compressed(request.headers()) {
        return Err(ApiError::compressed());
    }
    let limit = app.http.body_bytes_max;
    let announced = content_length(request.headers());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::body_too_large(limit));
    }
    let timeout = app.http.body_timeout;
    let caller = request.extensions().get().cloned();
    // The layer in front of every route puts it there.
    let caller: Caller = caller.ok_or_else(ApiError::internal)?;
    // Of requests that use no model nothing is counted.
    let meter: Meter = request.extensions().get().cloned().unwrap_or_default();
    let (bytes, held) = tokio::time::timeout(timeout, collect(app, request.into_body(), &caller, limit))
        .await
        .unwrap_or_else(|_| Err(ApiError::body_timeout(timeout.as_secs())))?;
    let held = Arc::new(held);
    meter.hold(&held);
    // A body can take its time, in which a key may end.
    app.access
        .recheck(&caller)
        .map_err(|refusal| authorize::refuse(app, &refusal))?;
    Ok(Received {
        bytes,
        caller,
        meter,
        _held: held,
    })
}

async fn collect(app: &App, body: Body, caller: &Caller, limit: usize) -> Result<(Bytes, Held), ApiError> {
    let mut bytes = Vec::new();
    let mut held = app.bodies.begin(caller.project());
    let mut frames = body.into_data_stream();
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|_| ApiError::malformed("The request body could not be read"))?;
        if bytes.len() + frame.len() > limit {
            return Err(ApiError::body_too_large(limit));
        }
        if !held.take(frame.len()) {
            app.metrics.reject(Rejection::Bodies);
            return Err(ApiError {
                close: true,
                ..ApiError::overloaded(RETRY_AFTER_S)
            });
        }
        bytes.extend_from_slice(&frame);
    }
    Ok((bytes.into(), held))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = value.split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn is_compressed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Bounded work off the reactor: parsing, templates and tokenizing can take milliseconds for a long prompt.
pub struct Preparation {
    /// Whose pool has the threads: one for all lanes, so that there are no more of them than work at one time.
    runtime: Handle,
    running: Arc<Semaphore>,
    waiting: Semaphore,
    metrics: Metrics,
}

impl Preparation {
    /// # Panics
    /// Outside of a runtime, whose threads it uses.
    pub fn new(running: usize, waiting: usize, metrics: Metrics) -> Self {
        Self {
            runtime: Handle::current(),
            running: Arc::new(Semaphore::new(running.min(Semaphore::MAX_PERMITS))),
            waiting: Semaphore::new(waiting.min(Semaphore::MAX_PERMITS)),
            metrics,
        }
    }

    /// Runs `work` on the blocking pool when it is its turn. Whoever waits beyond `deadline` is told so, and work whose turn
    /// comes later is not done.
    pub async fn run<T, F>(&self, deadline: Instant, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ApiError> + Send + 'static,
    {
        let Ok(_waiting) = self.waiting.try_acquire() else {
            self.metrics.reject(Rejection::PrepareQueue);
            return Err(ApiError::overloaded(RETRY_AFTER_S));
        };
        let metrics = self.metrics.clone();
        let timed = move || {
            let began = Instant::now();
            let done = work();
            metrics.prepared(began.elapsed());
            done
        };
        self.in_turn(deadline, timed).await
    }

    /// Likewise, for what has to be done with a result that is there: however many wait, it is not refused.
    pub async fn in_turn<T, F>(&self, deadline: Instant, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ApiError> + Send + 'static,
    {
        let at = tokio::time::Instant::from_std(deadline);
        let running = tokio::time::timeout_at(at, Arc::clone(&self.running).acquire_owned())
            .await
            .map_err(|_| ApiError::deadline())?
            .expect("the semaphore is never closed");
        let span = tracing::Span::current();
        let work = self.runtime.spawn_blocking(move || {
            // Held by the work itself: a client that leaves must not let a further prompt in beside it.
            let _running = running;
            span.in_scope(work)
        });
        let result = tokio::time::timeout_at(at, work)
            .await
            .map_err(|_| ApiError::deadline())?;
        result.unwrap_or_else(|_| {
            tracing::error!("work for a request panicked. This is a bug.");
            Err(ApiError::internal())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_to_be_done_with_a_result_is_not_refused() {
        let preparation = Preparation::new(1, 0, Metrics::new().unwrap());
        let soon = Instant::now() + Duration::from_mins(1);
        let refused = preparation.run(soon, || Ok(1)).await.unwrap_err();
        assert_eq!(refused.status.as_u16(), 503);
        assert_eq!(preparation.in_turn(soon, || Ok(2)).await.unwrap(), 2);
    }

    /// Whoever waits for others' work is told when its own time is over, and its work is not done later.
    #[tokio::test]
    async fn waiting_for_a_turn_ends_with_the_deadline() {
        let preparation = Preparation::new(1, 2, Metrics::new().unwrap());
        let (release, held) = mpsc::channel::<()>();
        let late = Instant::now() + Duration::from_mins(1);
        let first = preparation.run(late, move || {
            held.recv().ok();
            Ok(1)
        });
        let second = async {
            // The first one has its turn by now: it was asked first.
            let soon = Instant::now() + Duration::from_millis(20);
            let error = preparation.run(soon, || Ok(2)).await.unwrap_err();
            release.send(()).unwrap();
            error
        };
        let (first, error) = tokio::join!(first, second);
        assert_eq!(first.unwrap(), 1);
        assert_eq!(error.status.as_u16(), 504);
    }
}
