//! Probes for orchestrators, the version, and the page for Prometheus.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use crate::process;
use crate::registry::Served;
use crate::shutdown::Phase;

#[derive(Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "they are what clients read")]
pub struct Status {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Present, and true, where the kernel refuses the server every connection to elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_egress: Option<bool>,
}

/// Alive: the process should not be restarted, however busy it is.
pub async fn livez(State(app): State<AppState>) -> Response {
    let mut loaded = app.registry.loaded().into_iter();
    let failed = loaded.any(|(_, served)| served.has_stopped());
    answer(failed.then(|| "the engine has stopped".to_owned()), "alive", None)
}

/// Ready: a token was made, steps get somewhere, and new requests are taken.
pub async fn readyz(State(app): State<AppState>) -> Response {
    answer(not_ready(&app), "ready", app.http.zero_egress.then_some(true))
}

/// Models that an operator loads, or has unloaded, leave the server as ready as it was.
fn not_ready(app: &AppState) -> Option<String> {
    if app.shutdown.phase() > Phase::Running {
        return Some("the server is shutting down".to_owned());
    }
    if app.registry.check_opened().is_err() {
        return Some("the models are loading".to_owned());
    }
    if let Some(ailment) = app.access.ailment() {
        return Some(ailment.to_owned());
    }
    if let Some(name) = app.registry.failed() {
        return Some(format!("{name} could not be loaded again"));
    }
    let loaded = app.registry.loaded();
    let generators = loaded
        .iter()
        .filter(|(_, served)| matches!(served, Served::Generator(_)));
    let several = generators.count() > 1;
    loaded.iter().find_map(|(name, served)| match served.ailment()? {
        ailment if several => Some(format!("{name}: {ailment}")),
        ailment => Some(ailment),
    })
}

fn answer(reason: Option<String>, well: &'static str, zero_egress: Option<bool>) -> Response {
    match reason {
        None => Json(Status {
            status: well,
            reason: None,
            zero_egress,
        })
        .into_response(),
        Some(reason) => {
            let status = if well == "ready" { "not ready" } else { "failed" };
            let body = Json(Status {
                status,
                reason: Some(reason),
                zero_egress,
            });
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct Version {
    version: &'static str,
    /// Which build of it: what the linker has named the binary by
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<&'static str>,
}

pub async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
        build: process::BUILD.as_deref(),
    })
}

pub async fn metrics(State(app): State<AppState>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    if let Some(traces) = &app.traces {
        app.metrics.traced(traces.counts());
    }
    (content_type, app.metrics.render(not_ready(&app).is_none())).into_response()
}
