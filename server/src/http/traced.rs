//! The trace of a request that uses a model, where requests are traced, from the moment that it came.
//!
//! It begins behind the layer that asks for keys: strangers fill no file.

use axum::Extension;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use rempart_traces::{Context, FutureExt as _};

use super::AppState;
use super::guarded::{Guard, Guarded};
use super::observe::{Arrived, method_label, route_label};
use crate::access::Caller;
use crate::traces;

/// The layer that traces a request, to the end of its answer.
pub async fn trace(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    Extension(caller): Extension<Caller>,
    route: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let (route, method) = (route_label(Some(route.as_str())), method_label(request.method()));
    let traces = app.traces.as_ref();
    let begun =
        traces.and_then(|traces| traces::begin(traces, request.headers(), (method, route), arrived.0));
    let Some(context) = begun else {
        return next.run(request).await;
    };
    if let Some(project) = caller.project() {
        traces::project(&context, project);
    }
    if let Some(id) = traces::id(&context) {
        tracing::Span::current().record("trace_id", id);
    }
    let response = next.run(request).with_context(context.clone()).await;
    traces::answered(&context, response.status());
    response.map(|body| Body::new(Guarded { body, guard: context }))
}

/// A request's span ends with its answer, after what that has to tell.
impl Guard for Context {}
