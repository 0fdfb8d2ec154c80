//! What a request's trace says: of HTTP what any server's does, and of an answer how long it waited, was read and was written.
//!
//! Names are those of OpenTelemetry's conventions for HTTP and for generative AI. Nothing that a client has written is among the
//! values, but the trace's own id.

use std::time::{Instant, SystemTime};

use axum::http::{HeaderMap, StatusCode};
use rempart_engine::Event;
use rempart_traces::{
    Array, Context, KeyValue, Status, StringValue, TraceContextExt as _, Traces, Value, part,
};

use crate::openai::shared::Usage;

const OPERATION: &str = "gen_ai.operation.name";
/// One of the names of the model, as it was asked for.
const ASKED: &str = "gen_ai.request.model";
/// The name that answers carry.
const MODEL: &str = "gen_ai.response.model";

/// What the conventions call what a route does; `None` where it is no use of a model.
fn operation(route: &str) -> Option<&'static str> {
    Some(match route {
        "/v1/chat/completions" | "/v1/messages" | "/v1/responses" => "chat",
        "/v1/completions" => "text_completion",
        "/v1/embeddings" => "embeddings",
        // The conventions have no name for them.
        "/v1/rerank" | "/rerank" | "/v2/rerank" => "rerank",
        "/v1/score" | "/score" => "score",
        _ => return None,
    })
}

/// The id of a request's trace, if it is traced.
pub fn id(request: &Context) -> Option<String> {
    let span = request.span();
    span.is_recording()
        .then(|| span.span_context().trace_id().to_string())
}

/// What is done, in a request's context.
struct Operation(&'static str);

/// The time of day at a moment.
fn time_at(moment: Instant) -> SystemTime {
    SystemTime::now() - moment.elapsed()
}

/// Begins the trace of a request, where it uses a model.
pub fn begin(
    traces: &Traces,
    headers: &HeaderMap,
    (method, route): (&'static str, &'static str),
    came: Instant,
) -> Option<Context> {
    let operation = operation(route)?;
    let attributes = vec![
        KeyValue::new(OPERATION, operation),
        KeyValue::new("gen_ai.provider.name", "rempart"),
        KeyValue::new("http.request.method", method),
        KeyValue::new("http.route", route),
    ];
    let context = traces.begin(headers, operation.to_owned(), time_at(came), attributes);
    Some(context.with_value(Operation(operation)))
}

/// Says for which project a request was made. By whom is in the rows of usage, which are kept for as long as is said there.
pub fn project(request: &Context, name: &str) {
    let span = request.span();
    span.set_attribute(KeyValue::new("rempart.project", name.to_owned()));
}

/// Says by which name the request that runs has found a model. One that finds none is text of the client's, and is not told.
pub fn asked(name: &str) {
    Context::map_current(|request| {
        request
            .span()
            .set_attribute(KeyValue::new(ASKED, name.to_owned()));
    });
}

/// Says which model the request that runs has got.
pub fn model(id: &str) {
    Context::map_current(|request| {
        if let Some(Operation(operation)) = request.get() {
            request.span().update_name(format!("{operation} {id}"));
            request.span().set_attribute(KeyValue::new(MODEL, id.to_owned()));
        }
    });
}

/// Says how a request was answered. What the server itself is to blame for is an error.
pub fn answered(request: &Context, status: StatusCode) {
    let span = request.span();
    span.set_attribute(KeyValue::new(
        "http.response.status_code",
        i64::from(status.as_u16()),
    ));
    if status.is_server_error() {
        span.set_attribute(KeyValue::new("error.type", status.as_u16().to_string()));
        span.set_status(Status::error(""));
    }
}

/// When what happened to a request that generates, as far as it has.
#[derive(Debug)]
pub struct Moments {
    request: Context,
    arrived: Instant,
    /// Its first sequence got a place in a step.
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    reasons: Vec<&'static str>,
}

impl Moments {
    /// Of the request that runs.
    pub fn new(arrived: Instant) -> Self {
        Self {
            request: Context::current(),
            arrived,
            started: None,
            first_token: None,
            last_token: None,
            reasons: Vec::new(),
        }
    }

    /// Notes what has happened to one of its choices.
    pub fn note(&mut self, event: &Event, at: Instant) {
        match event {
            Event::Started { .. } => {
                self.started.get_or_insert(at);
            }
            Event::Token(_) => {
                self.first_token.get_or_insert(at);
                self.last_token = Some(at);
            }
            Event::Finished(_) | Event::PromptLogprobs(_) | Event::Predicted(_) => {}
        }
    }

    /// Notes why a choice has ended.
    pub fn finished(&mut self, reason: &'static str) {
        if self.request.span().is_recording() {
            self.reasons.push(reason);
        }
    }

    /// Tells all that is known at the end of the request, in parts that lie one behind the other.
    pub fn tell(&self, usage: &Usage) {
        let span = self.request.span();
        if !span.is_recording() {
            return;
        }
        let number = |tokens: usize| i64::try_from(tokens).unwrap_or(i64::MAX);
        let cached = number(usage.prompt_tokens_details.cached_tokens);
        let tokens = [
            ("gen_ai.usage.input_tokens", number(usage.prompt_tokens)),
            ("gen_ai.usage.cache_read.input_tokens", cached),
            ("gen_ai.usage.output_tokens", number(usage.completion_tokens)),
        ];
        span.set_attributes(tokens.map(|(name, tokens)| KeyValue::new(name, tokens)));
        if !self.reasons.is_empty() {
            let reasons: Vec<StringValue> = self.reasons.iter().copied().map(StringValue::from).collect();
            let reasons = Value::Array(Array::String(reasons));
            span.set_attribute(KeyValue::new("gen_ai.response.finish_reasons", reasons));
        }
        let tell = |name, from: Option<Instant>, to: Option<Instant>| {
            if let (Some(from), Some(to)) = (from, to) {
                part(&self.request, name, (time_at(from), time_at(to)), Vec::new());
            }
        };
        tell("queue", Some(self.arrived), self.started);
        tell("prefill", self.started, self.first_token);
        tell("decode", self.first_token, self.last_token);
    }
}
