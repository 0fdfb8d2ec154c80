//! Around every request: its id, its span, its metrics, one line in the log, and a net for panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;
use tracing::Instrument as _;

use super::AppState;
use super::error::ApiError;
use super::guarded::{Guard, Guarded};
use crate::metrics::GaugeGuard;
use crate::shutdown::Phase;

const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The patterns of all routes.
pub const ROUTES: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/responses/{id}",
    "/v1/responses/{id}/input_items",
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v2/rerank",
    "/v1/score",
    "/score",
    "/v1/models",
    "/v1/models/{*id}",
    "/tokenize",
    "/detokenize",
    "/v1/organization/usage/completions",
    "/v1/organization/usage/embeddings",
    "/v1/organization/usage/{kind}",
    "/v1/organization/costs",
    "/v1/organization/projects",
    "/v1/organization/projects/{project_id}",
    "/v1/organization/projects/{project_id}/archive",
    "/v1/organization/projects/{project_id}/model_permissions",
    "/v1/organization/projects/{project_id}/rate_limits",
    "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}",
    "/v1/organization/projects/{project_id}/api_keys",
    "/v1/organization/projects/{project_id}/api_keys/{key_id}",
    "/v1/organization/projects/{project_id}/service_accounts",
    "/v1/organization/projects/{project_id}/service_accounts/{account_id}",
    "/v1/organization/projects/{project_id}/service_accounts/{account_id}/api_keys",
    "/v1/organization/projects/{project_id}/users",
    "/v1/organization/projects/{project_id}/users/{user_id}",
    "/v1/organization/users",
    "/v1/organization/users/{user_id}",
    "/v1/organization/admin_api_keys",
    "/v1/organization/admin_api_keys/{key_id}",
    "/v1/organization/audit_logs",
    "/livez",
    "/readyz",
    "/health",
    "/version",
    "/metrics",
    "/openapi.json",
    "/docs",
];

/// The patterns of the administrative interface.
pub const ADMIN_ROUTES: &[&str] = &[
    "/admin/models",
    "/admin/models/{name}/load",
    "/admin/models/{name}/unload",
    "/admin/models/{name}/reload",
    "/openapi.json",
];

/// When a request's head was read.
#[derive(Debug, Clone, Copy)]
pub struct Arrived(pub Instant);

/// A request's id, the client's own or one made here.
#[derive(Debug, Clone)]
pub struct RequestId(pub HeaderValue);

/// The outermost layer: notes when a request came and under which id.
pub async fn arrive(mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    request.extensions_mut().insert(Arrived(Instant::now()));
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    // Anthropic's clients look for another name.
    response.headers_mut().insert(ANTHROPIC_REQUEST_ID, id.clone());
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The layer that watches a request after its route is known.
pub async fn observe(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = route_label(matched);
    let method = method_label(request.method());
    let began = Instant::now();
    let id = request
        .extensions()
        .get::<RequestId>()
        .and_then(|id| id.0.to_str().ok().map(str::to_owned));
    let span = tracing::info_span!(
        "request",
        id,
        method,
        route,
        traceparent = tracing::field::Empty,
        trace_id = tracing::field::Empty
    );
    if let Some(parent) = traceparent(request.headers()) {
        span.record("traceparent", parent);
    }
    let in_flight = app.metrics.in_flight();
    let answered = AssertUnwindSafe(next.run(request).instrument(span.clone()))
        .catch_unwind()
        .await;
    let response = answered.unwrap_or_else(|_| {
        app.metrics.handler_panicked();
        span.in_scope(|| tracing::error!("a handler panicked. This is a bug."));
        ApiError::internal().into_response()
    });
    let mut response = response;
    if app.shutdown.phase() > Phase::Running {
        // A kept connection would keep the process from ending.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let (status, took) = (response.status().as_u16(), began.elapsed());
    app.metrics.answered(route, method, status, took);
    span.in_scope(|| match route {
        // Probes and scrapes come every few seconds; what they find is logged where it happens.
        "/livez" | "/readyz" | "/health" | "/metrics" => {
            tracing::debug!(status, seconds = took.as_secs_f64(), "answered");
        }
        // Strangers can cause any number of these; the metrics count them.
        _ if response.status() == StatusCode::UNAUTHORIZED => {
            tracing::debug!(status, seconds = took.as_secs_f64(), "answered");
        }
        _ => tracing::info!(status, seconds = took.as_secs_f64(), "answered"),
    });
    response.map(|body| {
        Body::new(Guarded {
            body,
            guard: in_flight,
        })
    })
}

/// The client's id if it is short visible ASCII, which can neither break a log line nor be a hidden channel for much.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let visible = |value: &&HeaderValue| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers
        .get(REQUEST_ID)
        .filter(visible)
        .cloned()
        .unwrap_or_else(|| {
            let id = uuid::Uuid::new_v4().simple().to_string();
            HeaderValue::from_str(&id).expect("hexadecimal digits are a header value")
        })
}

/// A W3C trace context: 55 characters, hexadecimal digits in four groups. Anything else is dropped.
fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(TRACEPARENT)?.to_str().ok()?;
    let groups: Vec<&str> = value.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hexadecimal = groups
        .iter()
        .all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()));
    (lengths == [2, 32, 16, 2] && hexadecimal).then_some(value)
}

/// The route's pattern, or "other": a label must not take values that clients choose.
pub(super) fn route_label(matched: Option<&str>) -> &'static str {
    matched
        .and_then(|path| ROUTES.iter().chain(ADMIN_ROUTES).find(|route| **route == path))
        .copied()
        .unwrap_or("other")
}

pub(super) fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// A request counts as in flight until its answer has been sent or dropped.
impl Guard for GaugeGuard {}
