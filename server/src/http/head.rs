//! What is wrong with a request before its route matters: a head that is too large, a host that is not ours.

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::AppState;
use super::error::ApiError;
use crate::config::AllowedHosts;

/// What a request line has beside method and path: blanks, version, line end; then the head's own line end.
const LINE_BYTES: usize = " HTTP/1.1\r\n".len() + 1 + 2;
/// What a header line has beside name and value.
const HEADER_BYTES: usize = ": \r\n".len();

/// Refuses such heads with an error like every other.
pub async fn check(State(app): State<AppState>, request: Request, next: Next) -> Response {
    match check_head(&app, app.http.hosts.as_ref(), &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// The same for administration, which no page of the web has a part in: browsers say where a request comes from if it is
/// from a page, and there is no body whose type would give such a request away.
pub async fn check_admin(State(app): State<AppState>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return ApiError::origin_not_allowed().into_response();
    }
    match check_head(&app, app.http.admin.hosts.as_ref(), &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_head(app: &AppState, hosts: Option<&AllowedHosts>, request: &Request) -> Result<(), ApiError> {
    let limit = app.http.header_bytes_max as usize;
    if head_bytes(request) > limit {
        return Err(ApiError::head_too_large(limit));
    }
    hosts.map_or(Ok(()), |hosts| check_host(hosts, request))
}

/// The size of the head as HTTP/1.1 writes it.
fn head_bytes(request: &Request) -> usize {
    let uri = request.uri();
    let target = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    let line = request.method().as_str().len() + target + LINE_BYTES;
    let headers = request.headers().iter();
    line + headers
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES)
        .sum::<usize>()
}

/// Every host that the request names must be allowed, and only HTTP/1.0 need not name one.
fn check_host(hosts: &AllowedHosts, request: &Request) -> Result<(), ApiError> {
    let target = request.uri().authority().map(Authority::as_str);
    let mut named = target
        .map(Some)
        .into_iter()
        .chain(headers(request.headers()))
        .peekable();
    if named.peek().is_none() && request.version() > Version::HTTP_10 {
        return Err(ApiError::no_host());
    }
    if named.all(|name| name.is_some_and(|name| hosts.allows(name))) {
        Ok(())
    } else {
        Err(ApiError::host_not_allowed())
    }
}

/// The `Host` headers; `None` for one that is not ASCII.
fn headers(headers: &HeaderMap) -> impl Iterator<Item = Option<&str>> {
    headers
        .get_all(header::HOST)
        .iter()
        .map(|value| value.to_str().ok())
}
