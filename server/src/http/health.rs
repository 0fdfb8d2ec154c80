//! Probes for orchestrators, the version, and the page for Prometheus.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use crate::engine_thread::Health;
use crate::shutdown::Phase;

#[derive(Serialize, ToSchema)]
pub struct Status {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Alive: the process should not be restarted, however busy it is.
pub async fn livez(State(app): State<AppState>) -> Response {
    let generator = app.models().ok().and_then(|models| models.generator.as_ref());
    let failed = generator.is_some_and(|model| model.engine.health() == Health::Failed);
    answer(failed.then(|| "the engine has stopped".to_owned()), "alive")
}

/// Ready: a token was made, steps get somewhere, and new requests are taken.
pub async fn readyz(State(app): State<AppState>) -> Response {
    answer(not_ready(&app), "ready")
}

fn not_ready(app: &AppState) -> Option<String> {
    if app.shutdown.phase() > Phase::Running {
        return Some("the server is shutting down".to_owned());
    }
    let Ok(models) = app.models() else {
        return Some("the models are loading".to_owned());
    };
    let failed = models.encoders.iter().find(|encoder| encoder.engine.has_failed());
    if let Some(encoder) = failed {
        return Some(format!("the encoder {} fails at everything", encoder.name));
    }
    let model = models.generator.as_ref()?;
    match model.engine.health() {
        Health::Ready => None,
        Health::Warming => Some("no token was made yet".to_owned()),
        Health::Stalled { seconds } => Some(format!("no step got anywhere for {seconds} seconds")),
        Health::Failed => Some("the engine has stopped".to_owned()),
    }
}

fn answer(reason: Option<String>, well: &'static str) -> Response {
    match reason {
        None => Json(Status {
            status: well,
            reason: None,
        })
        .into_response(),
        Some(reason) => {
            let status = if well == "ready" { "not ready" } else { "failed" };
            let body = Json(Status {
                status,
                reason: Some(reason),
            });
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct Version {
    version: &'static str,
}

pub async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
    })
}

pub async fn metrics(State(app): State<AppState>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, app.metrics.render()).into_response()
}
