//! Around every request that asks a model: what it uses is recorded, once, however it ends.

use axum::Extension;
use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use rempart_governance::{Recording, Standing};

use super::AppState;
use super::error::ApiError;
use super::guarded::{Guard, Guarded};
use super::observe::Arrived;
use crate::access::Caller;
use crate::ledger::{Meter, Refused};
use crate::metrics::Rejection;

/// When a place may be free again, in seconds.
const RETRY_AFTER_S: u64 = 1;
/// Says what of a request is recorded, where anything is.
pub(crate) const RECORDED: HeaderName = HeaderName::from_static("x-rempart-recorded");
/// What it says: content, a keyed hash of the prompt, or both.
pub(crate) const RECORDED_WORDS: [&str; 3] = ["content", "fingerprint", "content, fingerprint"];
const REQUESTS: [&str; 3] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
];
const TOKENS: [&str; 3] = [
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

/// The layer that gives a request its [`Meter`], and sends the row on its way with the end of the answer.
pub async fn account(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    Extension(caller): Extension<Caller>,
    route: MatchedPath,
    mut request: Request,
    next: Next,
) -> Response {
    let meter = match app.access.meter(&caller, route.as_str(), arrived.0).await {
        Ok(meter) => meter,
        Err(Refused::Unrecorded) => {
            app.metrics.reject(Rejection::Usage);
            return ApiError::not_ready("usage can't be recorded").into_response();
        }
        Err(Refused::Full) => {
            app.metrics.reject(Rejection::Usage);
            return ApiError::overloaded(RETRY_AFTER_S).into_response();
        }
        Err(Refused::Over(exceeded)) => {
            app.metrics.limited(exceeded.metric.name());
            let mut refusal = ApiError::over_limit(&exceeded).into_response();
            tell_standing(refusal.headers_mut(), app.access.standing(&caller));
            return refusal;
        }
    };
    request.extensions_mut().insert(meter.clone());
    let recording = meter.recording();
    let open = Open { meter: meter.clone() };
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    let whole = response.body().size_hint().exact().is_some();
    if whole {
        open.meter.settle(status).await;
    }
    tell_standing(response.headers_mut(), app.access.standing(&caller));
    if let Some(recording) = recording {
        let told = HeaderValue::from_static(told(&recording));
        response.headers_mut().insert(RECORDED, told);
    }
    if whole {
        return response;
    }
    let guard = Account { open, status };
    response.map(|body| Body::new(Guarded { body, guard }))
}

/// What of the request is recorded, for whoever reads the answer.
fn told(recording: &Recording) -> &'static str {
    let [content, fingerprint, both] = RECORDED_WORDS;
    match (recording.reader.is_some(), recording.fingerprints) {
        (true, true) => both,
        (true, false) => content,
        (false, _) => fingerprint,
    }
}

/// What is left of limits by the minute, as OpenAI's clients look for it.
fn tell_standing(headers: &mut HeaderMap, standing: [Option<Standing>; 2]) {
    for (names, standing) in [REQUESTS, TOKENS].into_iter().zip(standing) {
        let Some(Standing {
            limit,
            remaining,
            reset_ms,
        }) = standing
        else {
            continue;
        };
        let values = [limit.to_string(), remaining.to_string(), duration(reset_ms)];
        for (name, value) in names.into_iter().zip(values) {
            let value = HeaderValue::try_from(value).expect("digits and letters are a header value");
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// As `1m2.5s`, `2.5s` or `250ms`.
fn duration(ms: i64) -> String {
    let (minutes, ms) = (ms / 60_000, ms % 60_000);
    if minutes == 0 && ms < 1_000 {
        return format!("{ms}ms");
    }
    let minutes = if minutes > 0 {
        format!("{minutes}m")
    } else {
        String::new()
    };
    format!("{minutes}{}s", ms as f64 / 1_000.0)
}

/// Ends the account of a request that nobody waits for any more.
struct Open {
    meter: Meter,
}

impl Drop for Open {
    fn drop(&mut self) {
        // A handler that panicked is answered with that, further out.
        self.meter.end(std::thread::panicking().then_some(500));
    }
}

/// The account of an answer that is still being made.
struct Account {
    open: Open,
    status: u16,
}

impl Guard for Account {
    fn ended(&mut self) {
        self.open.meter.end(Some(self.status));
    }
}
