//! What all endpoints that generate have in common: from a body to a running generation.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::limits::Received;
use super::{App, limits};
use crate::access::Caller;
use crate::chat::generation::{self, Cut, Generation};
use crate::chat::{Prepared, Rules};
use crate::config::RequestLimits;
use crate::encoder::EncoderModel;
use crate::model::Model;
use crate::openai::prompted::Prompted;
use crate::registry::Use;
use crate::shutdown::Phase;
use crate::traces;

/// A generation that runs, and what it was started with.
pub(super) struct Started {
    pub model: Arc<Model>,
    pub generation: Generation,
    pub rules: Rules,
}

/// The model that a body asks for, and that of a body without a name the first one. That there is none is told only after
/// what is wrong with the body itself; a body that `check` refuses brings no model back into memory.
pub(super) async fn model_for(
    app: &App,
    body: &Received,
    arrived: Instant,
    check: impl FnOnce(&[u8]) -> Result<(), ApiError> + Send + 'static,
) -> Result<Arc<Model>, ApiError> {
    let (name, deadline) = (named(&body.bytes), app.timing(arrived).deadline);
    if app.registry.is_out(name.as_deref(), Use::Text, &body.caller) {
        let body = body.bytes.clone();
        app.preparation.run(deadline, move || check(&body)).await?;
    }
    let registry = &app.registry;
    let model = registry
        .generator(name.as_deref(), &body.caller, deadline)
        .await?;
    if let Some(name) = name {
        traces::asked(&name);
    }
    Ok(model)
}

/// The encoder that a body asks for, likewise. Whoever reads a body without a name refuses it.
pub(super) async fn encoder_for(
    app: &App,
    body: &Received,
    arrived: Instant,
    check: impl FnOnce(&[u8]) -> Result<(), ApiError> + Send + 'static,
) -> Result<Arc<EncoderModel>, ApiError> {
    let name = named(&body.bytes).unwrap_or_default();
    let deadline = app.timing(arrived).deadline;
    if app.registry.is_out(Some(&name), Use::Vectors, &body.caller) {
        let body = body.bytes.clone();
        app.encoding.run(deadline, move || check(&body)).await?;
    }
    let model = app.registry.encoder(&name, &body.caller, deadline).await?;
    traces::asked(&name);
    Ok(model)
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

/// Reads a body, prepares what it asks for and hands it to the engine: `parse` makes a request of the body, and `prepare`
/// also keeps what the answer will need.
pub(super) async fn start<R, T, P, F>(
    app: &App,
    arrived: Instant,
    request: Request,
    parse: P,
    prepare: F,
) -> Result<(Started, T), ApiError>
where
    R: Prompted,
    T: Send + 'static,
    P: Fn(&[u8], &RequestLimits) -> Result<R, ApiError> + Clone + Send + 'static,
    F: FnOnce(R, Result<&Model, ApiError>, &RequestLimits) -> Result<(Prepared, T), ApiError>
        + Send
        + 'static,
{
    app.registry.check_opened()?;
    let body = limits::read_json(app, request).await?;
    let (checks, check_limits) = (parse.clone(), app.limits.clone());
    let check = move |body: &[u8]| checks(body, &check_limits).map(drop);
    let model = model_for(app, &body, arrived, check).await;
    if let Ok(model) = &model
        && body.meter.recording().is_none()
    {
        refuse_early(model, &body)?;
    }
    let (bytes, request_limits, prepared_for) = (body.bytes.clone(), app.limits.clone(), model.clone());
    let asked = body.meter.clone();
    let work = move || {
        asked.asked(&bytes);
        let request = parse(&bytes, &request_limits)?;
        asked.prompted(&request)?;
        prepare(
            request,
            prepared_for.as_deref().map_err(Clone::clone),
            &request_limits,
        )
    };
    let deadline = app.timing(arrived).deadline;
    let (mut prepared, kept) = app.preparation.run(deadline, work).await?;
    for request in &mut prepared.requests {
        request.cache_salt = body.caller.cache_salt();
        request.flow = body.caller.flow();
        if request.priority < 0 && !body.caller.operates() {
            return Err(ApiError::priority_not_permitted());
        }
    }
    let meter = body.meter.clone();
    let cut = cut(app, &body.caller);
    drop(body);
    let model = model?;
    meter.model(model.id());
    traces::model(model.id());
    meter.reserve(prepared.tokens).await?;
    app.follow_format(&model, &mut prepared, deadline).await?;
    let rules = prepared.rules.clone();
    let (answering, timing) = (Arc::clone(&model), app.timing(arrived));
    let generation = Generation::start(answering, prepared, timing, cut, meter).await?;
    let started = Started {
        model,
        generation,
        rules,
    };
    Ok((started, kept))
}

/// Refuses what the queue has no room for before it is parsed, rendered and tokenized: whoever floods a server must not keep it from
/// the work for others. Not what is recorded: of that a refused body is kept, too, and has to be read for it.
fn refuse_early(model: &Model, body: &Received) -> Result<(), ApiError> {
    let open = model.engine.check_not_full(body.caller.flow().id);
    open.map_err(|error| {
        body.meter.model(model.id());
        traces::model(model.id());
        generation::refusal(model, &error)
    })
}

/// What ends an answer early: the process ends, or what its caller has shown does.
fn cut(app: &App, caller: &Caller) -> Cut {
    let (closing, ended) = (app.shutdown.reached(Phase::Closing), app.access.ended(caller));
    Box::pin(async {
        tokio::select! {
            () = closing => ApiError::draining(),
            () = ended => ApiError::key_ended(),
        }
    })
}
