//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;

use super::AppState;
use super::error::ApiError;
use crate::model::Model;

#[derive(Serialize)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

#[derive(Serialize)]
pub struct ModelCard {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    root: String,
    /// As vLLM names it: tokens of prompt and answer together.
    max_model_len: usize,
}

pub async fn list(State(app): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let model = app.model()?;
    let data = model.names.iter().map(|name| card(&model, name)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

pub async fn retrieve(
    State(app): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let model = app.model()?;
    // What is no UTF-8 names no model.
    let Ok(Path(id)) = id else {
        return Err(ApiError::model_not_found(""));
    };
    model.check_name(&id)?;
    Ok(Json(card(&model, &id)))
}

fn card(model: &Model, name: &str) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: model.created,
        owned_by: "rempart",
        root: model.id().to_owned(),
        max_model_len: model.context_length,
    }
}

/// Now, in seconds since 1970.
pub fn unix_now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
