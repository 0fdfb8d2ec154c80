//! `/v1/organization/*`: what was used, by whom.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use rempart_governance::{Error, Store, now_s};

use super::AppState;
use super::error::ApiError;
use crate::openai::usage::{Asked, NEVER_USED, UsagePage, UsageRequest};

/// What one answer is made of at most: each is of one span, key, model and endpoint.
const SUMS_MAX: usize = 100_000;

/// Parameters that say which spans are told.
const SPANS: [&str; 5] = ["start_time", "end_time", "bucket_width", "limit", "page"];

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

/// Of what this server does not have: who reads all kinds finds that none of it was used.
pub async fn others(
    State(app): State<AppState>,
    kind: Result<Path<String>, PathRejection>,
    query: Pairs,
) -> Result<Json<UsagePage>, ApiError> {
    if !kind.is_ok_and(|Path(kind)| NEVER_USED.contains(&kind.as_str())) {
        return Err(ApiError::route_not_found());
    }
    // What each kind can be filtered and grouped by is its own, and of nothing there is nothing to tell apart.
    let query = query.map(|Query(pairs)| {
        Query(
            pairs
                .into_iter()
                .filter(|(name, _)| SPANS.contains(&name.as_str()))
                .collect(),
        )
    });
    let (_, request) = read(&app, Asked::Completions, query)?;
    Ok(Json(request.answer(&[], &BTreeMap::new(), app.access.currency())))
}

fn read(app: &AppState, asked: Asked, query: Pairs) -> Result<(&Store, UsageRequest), ApiError> {
    let Query(query) =
        query.map_err(|_| ApiError::invalid("query", "invalid_value", "The query is not readable"))?;
    let store = app.access.store().ok_or_else(ApiError::no_database)?;
    Ok((store, UsageRequest::parse(asked, &query, now_s())?))
}

async fn used(app: &AppState, asked: Asked, query: Pairs) -> Result<Json<UsagePage>, ApiError> {
    let (store, request) = read(app, asked, query)?;
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
