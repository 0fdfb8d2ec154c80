//! `/v1/organization/*`: what was used, by whom.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use rempart_governance::{Error, now_s};

use super::AppState;
use super::error::ApiError;
use crate::openai::usage::{Asked, UsagePage, UsageRequest};

/// What one answer is made of at most: each is of one span, key, model and endpoint.
const SUMS_MAX: usize = 100_000;

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

pub async fn completions(State(app): State<AppState>, query: Pairs) -> Result<Json<UsagePage>, ApiError> {
    used(&app, Asked::Completions, query).await
}

pub async fn embeddings(State(app): State<AppState>, query: Pairs) -> Result<Json<UsagePage>, ApiError> {
    used(&app, Asked::Embeddings, query).await
}

pub async fn costs(State(app): State<AppState>, query: Pairs) -> Result<Json<UsagePage>, ApiError> {
    used(&app, Asked::Costs, query).await
}

async fn used(app: &AppState, asked: Asked, query: Pairs) -> Result<Json<UsagePage>, ApiError> {
    let Query(query) =
        query.map_err(|_| ApiError::invalid("query", "invalid_value", "The query is not readable"))?;
    let store = app.access.store().ok_or_else(ApiError::no_database)?;
    let request = UsageRequest::parse(asked, &query, now_s())?;
    let (from, to) = (request.from, request.page_end());
    let sums = store.usage(from, to, request.width.span_s, SUMS_MAX).await;
    let sums = sums.map_err(|error| match error {
        Error::TooMany(_) => {
            let message =
                format!("`limit` is too large: that is more than {SUMS_MAX} sums of keys and models");
            ApiError::invalid("limit", "out_of_range", message)
        }
        error => {
            tracing::error!(%error, "usage can't be read");
            ApiError::not_ready("usage can't be read")
        }
    })?;
    let owners = store.owners().await.map_err(|error| {
        tracing::error!(%error, "owners of keys can't be read");
        ApiError::not_ready("usage can't be read")
    })?;
    Ok(Json(request.answer(&sums, &owners, app.access.currency())))
}
