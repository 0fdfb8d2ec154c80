//! `GET /openapi.json`, and `GET /docs`, which is that document as a page to read. The page needs nothing from elsewhere.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};

use super::AppState;
use crate::openapi::document;

const PAGE: &str = include_str!("reference.html");
/// It reads the document, and nothing else; nobody can put it into a frame.
const POLICY: &str = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri \
    'none'; form-action 'none'; frame-ancestors 'none'";

pub async fn openapi(State(app): State<AppState>) -> Response {
    Json(document(&app.limits)).into_response()
}

pub async fn docs() -> Response {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE).into_response()
}
