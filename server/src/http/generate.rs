//! What all endpoints that generate have in common: from a body to a running generation.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::{App, limits};
use crate::chat::generation::Generation;
use crate::chat::{Prepared, Rules};
use crate::config::RequestLimits;
use crate::encoder::EncoderModel;
use crate::model::Model;

/// A generation that runs, and what it was started with.
pub(super) struct Started {
    pub model: Arc<Model>,
    pub generation: Generation,
    pub rules: Rules,
}

/// The model that a body asks for, and that of a body without a name the first one. That there is none is told only after
/// what is wrong with the body itself.
pub(super) async fn model_for(app: &App, body: &[u8], arrived: Instant) -> Result<Arc<Model>, ApiError> {
    let (name, deadline) = (named(body), app.timing(arrived).deadline);
    app.registry.generator(name.as_deref(), deadline).await
}

/// The encoder that a body asks for, likewise. Whoever reads a body without a name refuses it.
pub(super) async fn encoder_for(
    app: &App,
    body: &[u8],
    arrived: Instant,
) -> Result<Arc<EncoderModel>, ApiError> {
    let (name, deadline) = (named(body).unwrap_or_default(), app.timing(arrived).deadline);
    app.registry.encoder(&name, deadline).await
}

/// The name of the model in a body, if there is one to find: whoever reads the body says what is wrong with it. The rest is
/// passed over, and nothing is made of it.
fn named(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        model: Option<&'a RawValue>,
    }
    let named: Named<'_> = serde_json::from_slice(body).ok()?;
    serde_json::from_str(named.model?.get()).ok()
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
    F: FnOnce(&[u8], Result<&Model, ApiError>, &RequestLimits) -> Result<(Prepared, T), ApiError>
        + Send
        + 'static,
{
    app.registry.check_opened()?;
    let body = limits::read_json(app, request).await?;
    let model = model_for(app, &body.bytes, arrived).await;
    let (bytes, request_limits, prepared_for) = (body.bytes.clone(), app.limits.clone(), model.clone());
    let work = move || {
        prepare(
            &bytes,
            prepared_for.as_deref().map_err(Clone::clone),
            &request_limits,
        )
    };
    let deadline = app.timing(arrived).deadline;
    let (mut prepared, kept) = app.preparation.run(deadline, work).await?;
    drop(body);
    let model = model?;
    app.follow_format(&model, &mut prepared, deadline).await?;
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
