//! `/v1/responses`: answers made of items, which may be kept for a later request to go on from.

mod answer;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::error::ApiError;
use super::{AppState, Arrived, generate, limits, sse};
use crate::access::Caller;
use crate::chat::{prepare_chat, render};
use crate::config::RequestLimits;
use crate::model::Model;
use crate::openai::responses::ResponsesRequest;
use crate::response_store::Stored;
use answer::Answer;

pub async fn create(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let (state, own) = (Arc::clone(&app), caller.clone());
    let parse = move |body: &[u8], limits: &RequestLimits| parse(&state, &own, body, limits);
    let state = Arc::clone(&app);
    let prepare =
        move |request: ResponsesRequest, model: Result<&Model, ApiError>, limits: &RequestLimits| {
            let keeps = state.responses().keeps();
            if request.store == Some(true) && !keeps {
                let message =
                    "`store` can't be true: this server keeps no responses (--responses-retention-s is 0)";
                return Err(ApiError::invalid("store", "unsupported_parameter", message));
            }
            let prepared = prepare_chat(&request.chat, model?, limits).map_err(named)?;
            Ok((prepared, (request, keeps)))
        };
    let (started, (request, keeps)) = generate::start(&app, arrived.0, request, parse, prepare).await?;
    let stream = request.chat.common.stream.is_some();
    let store = request.store.unwrap_or(keeps).then(|| (Arc::clone(&app), caller));
    let answer = Answer::new(started.model, request, store);
    Ok(if stream {
        sse::respond(started.generation, answer, app.http.keep_alive)
    } else {
        answer.whole(started.generation).await?
    })
}

pub async fn input_tokens(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Response, ApiError> {
    app.registry.check_opened()?;
    let body = limits::read_json(&app, request).await?;
    let (state, caller) = (Arc::clone(&app), body.caller.clone());
    let check = move |body: &[u8]| parse(&state, &caller, body, &state.limits).map(drop);
    let model = generate::model_for(&app, &body, arrived.0, check).await;
    let (bytes, state, caller) = (body.bytes.clone(), Arc::clone(&app), body.caller.clone());
    let work = move || {
        let request = parse(&state, &caller, &bytes, &state.limits)?.chat;
        let model = model?;
        model.check_name(&request.common.model)?;
        render(&request.conversation, &model, &state.limits, usize::MAX).map_err(named)
    };
    let tokens = app
        .preparation
        .run(app.timing(arrived.0).deadline, work)
        .await?
        .tokens;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens.len()})).into_response())
}

/// An error with this interface's names of parameters.
fn named(error: ApiError) -> ApiError {
    error
        .renamed("messages", "input")
        .renamed("max_tokens", "max_output_tokens")
        .renamed("reasoning_effort", "reasoning.effort")
        .renamed("response_format", "text")
}

fn parse(
    app: &AppState,
    caller: &Caller,
    body: &[u8],
    limits: &RequestLimits,
) -> Result<ResponsesRequest, ApiError> {
    ResponsesRequest::parse(body, limits, |id| {
        let mut kept = app.responses();
        let found = kept.get(id, caller.project(), Instant::now())?;
        let response: Value = serde_json::from_str(found.response.get()).ok()?;
        let output = response["output"].as_array().into_iter().flatten();
        let mut items = found.items.clone();
        items.extend(output.filter_map(|item| to_raw_value(item).ok()));
        Some((found.messages.clone(), items))
    })
}

/// The identifier in a path, if nothing else is asked for.
fn only(id: Result<Path<String>, PathRejection>, query: Option<&str>) -> Result<String, ApiError> {
    if query.is_some_and(|query| !query.is_empty()) {
        return Err(ApiError::unsupported("query"));
    }
    // What is no UTF-8 names nothing.
    let id = id.map(|Path(id)| id);
    id.map_err(|_| ApiError::response_not_found(None))
}

/// What there is to tell of a kept answer.
fn tell(
    app: &AppState,
    caller: &Caller,
    id: &str,
    tell: impl FnOnce(&Stored) -> Response,
) -> Result<Response, ApiError> {
    let mut kept = app.responses();
    let found = kept.get(id, caller.project(), Instant::now()).map(tell);
    found.ok_or_else(|| ApiError::response_not_found(None))
}

pub async fn retrieve(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let id = only(id, query.as_deref())?;
    tell(&app, &caller, &id, |kept| Json(&kept.response).into_response())
}

#[derive(Serialize)]
struct Items<'a> {
    object: &'static str,
    data: Vec<&'a RawValue>,
    first_id: Option<Value>,
    last_id: Option<Value>,
    has_more: bool,
}

pub async fn input_items(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let id = only(id, query.as_deref())?;
    tell(&app, &caller, &id, list_items)
}

fn list_items(kept: &Stored) -> Response {
    // The newest comes first, as with OpenAI.
    let data: Vec<&RawValue> = kept.items.iter().rev().map(Box::as_ref).collect();
    let id_of = |item: Option<&&RawValue>| {
        let item: Option<Value> = item.and_then(|raw| serde_json::from_str(raw.get()).ok());
        item.map(|item| item["id"].clone())
    };
    let list = Items {
        object: "list",
        first_id: id_of(data.first()),
        last_id: id_of(data.last()),
        data,
        has_more: false,
    };
    Json(list).into_response()
}

pub async fn delete(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let id = only(id, query.as_deref())?;
    if !app.responses().delete(&id, caller.project(), Instant::now()) {
        return Err(ApiError::response_not_found(None));
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})).into_response())
}
