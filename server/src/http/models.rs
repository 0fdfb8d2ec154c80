//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::{AppState, Models};

#[derive(Serialize, ToSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

#[derive(Serialize, ToSchema)]
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
    let data = cards(app.models()?);
    Ok(Json(ModelList { object: "list", data }))
}

pub async fn retrieve(
    State(app): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let cards = cards(app.models()?);
    // What is no UTF-8 names no model.
    let Ok(Path(id)) = id else {
        return Err(ApiError::model_not_found(""));
    };
    let found = cards.into_iter().find(|card| card.id == id);
    found.map(Json).ok_or_else(|| ApiError::model_not_found(&id))
}

fn cards(models: &Models) -> Vec<ModelCard> {
    let card = |name: &str, root: &str, created, max_model_len| ModelCard {
        id: name.to_owned(),
        object: "model",
        created,
        owned_by: "rempart",
        root: root.to_owned(),
        max_model_len,
    };
    let generator = models.generator.iter().flat_map(|model| {
        let names = model.names.iter();
        names.map(|name| card(name, model.id(), model.created, model.context_length))
    });
    let encoders = models.encoders.iter();
    generator
        .chain(encoders.map(|model| card(&model.name, &model.name, model.created, model.tokens_max)))
        .collect()
}

/// Now, in seconds since 1970.
pub fn unix_now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
