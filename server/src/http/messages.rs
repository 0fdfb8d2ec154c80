//! `POST /v1/messages` and `POST /v1/messages/count_tokens`, as Anthropic has them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::error::ApiError;
use super::generate::{self, Started};
use super::sse::{self, Chunk, Chunks};
use super::{AppState, Arrived, limits};
use crate::anthropic::MessagesRequest;
use crate::chat::assemble::Said;
use crate::chat::blocks::{Block, Blocks, Step};
use crate::chat::generation::{Generation, Update};
use crate::chat::{Prepared, prepare_chat, render};
use crate::config::RequestLimits;
use crate::model::Model;
use crate::openai::shared::Usage;

const PATH: &str = "/v1/messages";

/// An error with this interface's names of parameters.
pub struct Failure(ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let error = error.renamed("response_format", "output_config");
        Self(
            error
                .renamed("thinking_token_budget", "thinking")
                .renamed("reasoning_effort", "thinking"),
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// The layer that gives errors Anthropic's shape on its paths, wherever they were made: also those of routes that are not
/// there and of requests that never reached one.
pub async fn shape_errors(request: Request, next: Next) -> Response {
    let rest = request.uri().path().strip_prefix(PATH);
    let own = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<ApiError>() {
        Some(error) if own => {
            let (mut parts, _) = response.into_parts();
            parts.headers.remove(CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(body(&error).to_string()))
        }
        _ => response,
    }
}

/// An object that is also one of OpenAI's.
fn body(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        400 | 405 | 415 | 431 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        408 | 504 => "timeout_error",
        _ => "api_error",
    };
    let inner = json!({"type": kind, "message": error.message, "param": error.param, "code": error.code});
    json!({"type": "error", "error": inner})
}

pub async fn messages(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Response, Failure> {
    let parse = |body: &[u8], limits: &RequestLimits| MessagesRequest::parse(body, limits, true);
    let prepare = |request: MessagesRequest,
                   model: Result<&Model, ApiError>,
                   limits: &RequestLimits|
     -> Result<(Prepared, _), ApiError> {
        let prepared = prepare_chat(&request.chat, model?, limits)?;
        Ok((prepared, (request.chat.common.stream.is_some(), request.thinking)))
    };
    let (started, (stream, thinking)) = generate::start(&app, arrived.0, request, parse, prepare).await?;
    let Started {
        model,
        generation,
        rules,
    } = started;
    let answer = Answer {
        model,
        id: format!("msg_{}", uuid::Uuid::new_v4().simple()),
        stops: rules.stops,
        thinking,
        blocks: Blocks::default(),
    };
    Ok(if stream {
        sse::respond(generation, answer, app.http.keep_alive)
    } else {
        answer.whole(generation).await?
    })
}

pub async fn count_tokens(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Response, Failure> {
    app.registry.check_opened()?;
    let body = limits::read_json(&app, request).await?;
    let state = Arc::clone(&app);
    let check = move |body: &[u8]| MessagesRequest::parse(body, &state.limits, false).map(drop);
    let model = generate::model_for(&app, &body, arrived.0, check).await;
    let (bytes, request_limits) = (body.bytes.clone(), app.limits.clone());
    let work = move || {
        let request = MessagesRequest::parse(&bytes, &request_limits, false)?.chat;
        let model = model?;
        model.check_name(&request.common.model)?;
        render(&request.conversation, &model, &request_limits, usize::MAX)
    };
    let tokens = app
        .preparation
        .run(app.timing(arrived.0).deadline, work)
        .await?
        .tokens;
    Ok(Json(json!({"input_tokens": tokens.len()})).into_response())
}

/// One answer, as blocks.
struct Answer {
    model: Arc<Model>,
    id: String,
    stops: Vec<String>,
    /// Whether reasoning is told.
    thinking: bool,
    blocks: Blocks,
}

impl Answer {
    async fn whole(mut self, mut generation: Generation) -> Result<Response, Failure> {
        let (mut reason, mut stop) = ("end_turn", Value::Null);
        while let Some(update) = generation.next().await? {
            if let Some(finish_reason) = update.finish_reason {
                (reason, stop) = self.stop_reason(finish_reason, update.stop);
            }
            for said in update.said {
                self.add(said);
            }
        }
        let mut message = self.message(generation.usage());
        message["content"] = self.blocks.all().iter().map(whole_block).collect();
        message["stop_reason"] = reason.into();
        message["stop_sequence"] = stop;
        Ok(Json(message).into_response())
    }

    /// A message without content.
    fn message(&self, usage: Usage) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model.id(),
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage_of(usage),
        })
    }

    fn add(&mut self, said: Said) -> Vec<Step> {
        if !self.thinking && matches!(said, Said::Reasoning(_)) {
            return Vec::new();
        }
        self.blocks.add(said)
    }

    fn stop_reason(&self, finish_reason: &str, stop: Option<usize>) -> (&'static str, Value) {
        match (finish_reason, stop) {
            ("length", _) => ("max_tokens", Value::Null),
            ("tool_calls", _) => ("tool_use", Value::Null),
            (_, Some(stop)) => ("stop_sequence", self.stops[stop].as_str().into()),
            (_, None) => ("end_turn", Value::Null),
        }
    }

    fn chunk(&self, step: &Step) -> Chunk {
        match step {
            Step::Begun(index) => {
                let block = begun_block(&self.blocks.all()[*index]);
                event(
                    "content_block_start",
                    json!({"index": index, "content_block": block}),
                )
            }
            Step::More(index, text) => {
                let delta = match self.blocks.all()[*index] {
                    Block::Reasoning(_) => json!({"type": "thinking_delta", "thinking": text}),
                    Block::Text(_) => json!({"type": "text_delta", "text": text}),
                    Block::Call { .. } => json!({"type": "input_json_delta", "partial_json": text}),
                };
                event("content_block_delta", json!({"index": index, "delta": delta}))
            }
            Step::Ended(index) => event("content_block_stop", json!({"index": index})),
        }
    }
}

impl Chunks for Answer {
    fn update(&mut self, update: Update, usage: Usage) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if update.first {
            chunks.push(event("message_start", json!({"message": self.message(usage)})));
        }
        for said in update.said {
            // Each step is told before the next said changes the blocks.
            let steps = self.add(said);
            chunks.extend(steps.iter().map(|step| self.chunk(step)));
        }
        if let Some(finish_reason) = update.finish_reason {
            let last = self.blocks.end();
            chunks.extend(last.iter().map(|step| self.chunk(step)));
            let (reason, stop) = self.stop_reason(finish_reason, update.stop);
            let delta = json!({"stop_reason": reason, "stop_sequence": stop});
            chunks.push(event(
                "message_delta",
                json!({"delta": delta, "usage": usage_of(usage)}),
            ));
        }
        chunks
    }

    fn end(&mut self, _usage: Usage) -> Vec<Chunk> {
        vec![event("message_stop", json!({}))]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Chunk> {
        vec![Chunk::named("error", &body(&Failure::from(error.clone()).0))]
    }
}

/// An event, whose data begin with its name.
fn event(name: &'static str, fields: Value) -> Chunk {
    let mut data = json!({"type": name});
    if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
        data.extend(fields);
    }
    Chunk::named(name, &data)
}

/// What was used; tokens that were cached are counted apart.
fn usage_of(usage: Usage) -> Value {
    let cached = usage.prompt_tokens_details.cached_tokens;
    json!({
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    })
}

fn begun_block(block: &Block) -> Value {
    match block {
        Block::Reasoning(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
        Block::Text(_) => json!({"type": "text", "text": ""}),
        Block::Call { id, name, .. } => json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
    }
}

fn whole_block(block: &Block) -> Value {
    match block {
        Block::Reasoning(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
        Block::Text(text) => json!({"type": "text", "text": text}),
        Block::Call { id, name, arguments } => {
            // Arguments that were cut off are no JSON; `stop_reason` says that they were.
            let input = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
    }
}
