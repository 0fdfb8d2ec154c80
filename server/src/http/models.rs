//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::error::ApiError;
use crate::access::Caller;
use crate::registry::About;

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
    /// SHA-256 of its files, as signatures of models have it; absent where neither a signature nor a manifest was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

pub async fn list(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<ModelList>, ApiError> {
    let data = cards(app.registry.offered(&caller)?);
    Ok(Json(ModelList { object: "list", data }))
}

pub async fn retrieve(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let cards = cards(app.registry.offered(&caller)?);
    // What is no UTF-8 names no model.
    let Ok(Path(id)) = id else {
        return Err(app.registry.not_found("", &caller));
    };
    let found = cards.into_iter().find(|card| card.id == id);
    found
        .map(Json)
        .ok_or_else(|| app.registry.not_found(&id, &caller))
}

fn cards(offered: Vec<(Vec<String>, About)>) -> Vec<ModelCard> {
    let mut cards = Vec::new();
    for (names, about) in offered {
        let root = names[0].clone();
        cards.extend(names.into_iter().map(|id| ModelCard {
            id,
            object: "model",
            created: about.created,
            owned_by: "rempart",
            root: root.clone(),
            max_model_len: about.tokens_max,
            sha256: about.sha256.map(|sha256| sha256.to_string()),
        }));
    }
    cards
}

/// Now, in seconds since 1970.
pub fn unix_now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
