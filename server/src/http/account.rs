//! Around every request that asks a model: what it uses is recorded, once, however it ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Extension;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Frame, SizeHint};

use super::AppState;
use super::error::ApiError;
use super::observe::Arrived;
use crate::access::Caller;
use crate::ledger::Meter;
use crate::metrics::Rejection;

/// The layer that gives a request its [`Meter`], and sends the row on its way with the end of the answer.
pub async fn account(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    Extension(caller): Extension<Caller>,
    route: MatchedPath,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(meter) = app.access.meter(&caller, route.as_str(), arrived.0) else {
        app.metrics.reject(Rejection::Usage);
        return ApiError::not_ready("usage can't be recorded").into_response();
    };
    request.extensions_mut().insert(meter.clone());
    let guard = Guard { meter };
    let response = next.run(request).await;
    let status = response.status().as_u16();
    if response.body().size_hint().exact().is_some() {
        guard.meter.settle(status).await;
        return response;
    }
    response.map(|body| Body::new(Accounted { body, status, guard }))
}

/// Ends the account of a request that nobody waits for any more.
struct Guard {
    meter: Meter,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A handler that panicked is answered with that, further out.
        self.meter.end(std::thread::panicking().then_some(500));
    }
}

/// The body of an answer that is still being made. Fields are dropped in this order: what makes the answer tells what was used
/// before the account ends.
struct Accounted {
    body: Body,
    status: u16,
    guard: Guard,
}

impl HttpBody for Accounted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) {
            self.guard.meter.end(Some(self.status));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
