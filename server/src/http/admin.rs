//! Administration at run time, on an address of its own: which models there are, and their loading and unloading.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::middleware::from_fn;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::error::ApiError;
use super::{AppState, authorize, head, observe};
use crate::access::Caller;
use crate::openapi::admin_document;
use crate::registry::Snapshot;
use crate::shutdown::Phase;

/// The models that are known.
#[derive(Serialize, ToSchema)]
#[schema(as = AdminModelList)]
pub struct Snapshots {
    object: &'static str,
    data: Vec<Snapshot>,
}

type Name = Result<Path<String>, PathRejection>;

/// The administrative interface.
pub fn app(state: AppState) -> Router {
    Router::new()
        .route("/admin/models", get(list))
        .route("/admin/models/{name}/load", post(load))
        .route("/admin/models/{name}/unload", post(unload))
        .route("/admin/models/{name}/reload", post(reload))
        .route("/openapi.json", get(async || Json(admin_document())))
        .fallback(async || ApiError::route_not_found())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(from_fn_with_state(Arc::clone(&state), authorize::authorize_admin))
        .layer(from_fn_with_state(Arc::clone(&state), head::check_admin))
        .layer(from_fn_with_state(Arc::clone(&state), observe::observe))
        .layer(from_fn(observe::arrive))
        .with_state(state)
}

async fn list(State(app): State<AppState>) -> Json<Snapshots> {
    Json(Snapshots {
        object: "list",
        data: app.registry.snapshots(),
    })
}

async fn load(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    name: Name,
) -> Result<Json<Snapshot>, ApiError> {
    let name = recorded(&app, &caller, "model.load", name).await?;
    answered(&app, app.registry.load(&name)).await
}

async fn unload(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    name: Name,
) -> Result<Json<Snapshot>, ApiError> {
    let name = recorded(&app, &caller, "model.unload", name).await?;
    answered(&app, app.registry.unload(&name)).await
}

async fn reload(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    name: Name,
) -> Result<Json<Snapshot>, ApiError> {
    let name = recorded(&app, &caller, "model.reload", name).await?;
    answered(&app, app.registry.reload(&name)).await
}

/// The name of a model that there is, once it is recorded what is to be done to it: what can't be recorded is not done.
async fn recorded(app: &AppState, caller: &Caller, action: &str, name: Name) -> Result<String, ApiError> {
    let name = checked(app, name)?;
    app.registry.resolve(&name).await?;
    // Of one that is in memory, which it is: another may be there by its name before and after.
    let sha256 = app.registry.sha256_of(&name);
    let detail = sha256.map_or_else(|| json!({}), |sha256| json!({"sha256": sha256.to_string()}));
    let recorded = app.access.record(caller, action, &name, detail).await;
    recorded.map_err(|error| {
        tracing::error!(%error, "the audit chain can't be written");
        ApiError::not_ready("what is done can't be recorded")
    })?;
    Ok(name)
}

/// The answer to a change, or, where the process ends first, that it does.
async fn answered(
    app: &AppState,
    change: impl Future<Output = Result<Snapshot, ApiError>>,
) -> Result<Json<Snapshot>, ApiError> {
    tokio::select! {
        snapshot = change => snapshot.map(Json),
        () = app.shutdown.reached(Phase::Closing) => Err(ApiError::draining()),
    }
}

/// The name in a path, while models may still come and go.
fn checked(app: &AppState, name: Name) -> Result<String, ApiError> {
    if app.shutdown.phase() > Phase::Running {
        return Err(ApiError::draining());
    }
    // What is no UTF-8 names no model.
    name.map(|Path(name)| name)
        .map_err(|_| app.registry.not_found("", &Caller::Anyone))
}
