//! What all endpoints that generate have in common: from a body to a running generation.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;

use super::error::ApiError;
use super::{App, limits};
use crate::chat::generation::Generation;
use crate::chat::{Prepared, Rules};
use crate::config::RequestLimits;
use crate::model::Model;

/// A generation that runs, and what it was started with.
pub(super) struct Started {
    pub model: Arc<Model>,
    pub generation: Generation,
    pub rules: Rules,
}

/// Reads a body, prepares what it asks for and hands it to the engine. `prepare` also keeps what the answer will need.
pub(super) async fn start<T, F>(
    app: &App,
    arrived: Instant,
    request: Request,
    prepare: F,
) -> Result<(Started, T), ApiError>
where
    T: Send + 'static,
    F: FnOnce(&[u8], &Model, &RequestLimits) -> Result<(Prepared, T), ApiError> + Send + 'static,
{
    let model = app.model()?;
    let body = limits::read_json(app, request).await?;
    let (bytes, request_limits, prepared_for) = (body.bytes.clone(), app.limits.clone(), Arc::clone(&model));
    let work = move || prepare(&bytes, &prepared_for, &request_limits);
    let (mut prepared, kept) = app.preparation.run(work).await?;
    drop(body);
    app.follow_format(&model, &mut prepared).await?;
    let rules = prepared.rules.clone();
    let generation =
        Generation::start(Arc::clone(&model), prepared, app.timing(arrived), &app.shutdown).await?;
    let started = Started {
        model,
        generation,
        rules,
    };
    Ok((started, kept))
}
