//! The routes, and the state that they share.

pub mod accept;
pub mod account;
mod addresses;
pub mod admin;
pub mod administration;
pub mod authorize;
pub mod bodies;
pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod error;
mod generate;
mod guarded;
pub mod head;
pub mod health;
pub mod lanes;
pub mod limits;
pub mod listen;
pub mod messages;
pub mod models;
pub mod observe;
pub mod organization;
mod pace;
pub mod rank;
pub mod reference;
pub mod responses;
pub mod sse;
pub mod timeout_io;
pub mod tls;
pub mod tokenize;
pub mod traced;
mod unread;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rempart_traces::Traces;
use tokio::sync::Semaphore;

use crate::access::Access;
use crate::chat::Prepared;
use crate::config::{HttpSettings, RequestLimits};
use crate::engine_thread::Timing;
use crate::grammar::COMPILING_MAX;
use crate::metrics::{Metrics, Rejection};
use crate::model::Model;
use crate::registry::Registry;
use crate::response_store::ResponseStore;
use crate::shutdown::{Phase, Shutdown};
use bodies::Bodies;
use error::ApiError;
use limits::Preparation;
use observe::Arrived;
use pace::Pace;

/// What every handler can reach.
pub struct App {
    pub http: HttpSettings,
    pub limits: RequestLimits,
    pub metrics: Metrics,
    pub shutdown: Shutdown,
    pub registry: Registry,
    pub access: Access,
    preparation: Preparation,
    /// Texts for encoders wait apart from prompts: there can be thousands in one request.
    encoding: Preparation,
    /// Formats wait for their compiler apart from it: no prompt waits for them.
    compilation: Preparation,
    /// Bytes of bodies that may still be read.
    bodies: Arc<Bodies>,
    /// Turns of requests of administration.
    administration: Semaphore,
    /// Where requests are traced.
    traces: Option<Traces>,
    responses: Mutex<ResponseStore>,
    /// When projects are refused.
    refusals: Pace,
}

pub type AppState = Arc<App>;

impl App {
    pub fn new(
        http: HttpSettings,
        limits: RequestLimits,
        access: Access,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> Self {
        metrics.may_deny(authorize::reasons());
        Self {
            preparation: Preparation::new(http.prepare_concurrency, http.prepare_queue_max, metrics.clone()),
            encoding: Preparation::new(http.prepare_concurrency, http.prepare_queue_max, metrics.clone()),
            compilation: Preparation::new(COMPILING_MAX, http.prepare_queue_max, metrics.clone()),
            bodies: Arc::new(Bodies::new(http.bodies_bytes_max)),
            administration: Semaphore::new(administration::TURNS),
            traces: None,
            refusals: Pace::new(
                http.refusals_per_second,
                http.refusal_wait_max,
                http.connections_max,
            ),
            responses: Mutex::new(ResponseStore::new(
                limits.responses_retention,
                limits.responses_bytes_max,
            )),
            registry: Registry::new(
                metrics.clone(),
                http.admin.unload_timeout,
                http.admin.load_waiting_max,
            ),
            access,
            http,
            limits,
            metrics,
            shutdown,
        }
    }

    /// Has requests traced.
    #[must_use]
    pub fn traced(self, traces: Option<Traces>) -> Self {
        Self { traces, ..self }
    }

    /// Writes what is left of traces; none is taken afterwards.
    pub fn end_traces(&self) {
        if let Some(traces) = &self.traces {
            traces.close();
        }
    }

    /// The answers that are kept. Never held over a wait.
    fn responses(&self) -> MutexGuard<'_, ResponseStore> {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives prepared requests the grammar of the format that was asked for, compiled now if it is a new one, behind what
    /// holds reasoning to its limits.
    async fn follow_format(
        &self,
        model: &Arc<Model>,
        prepared: &mut Prepared,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let mut grammar = None;
        if let Some(asked) = prepared.format.take() {
            grammar = model.grammars.find(&asked);
            if grammar.is_none() {
                let (model, limits) = (Arc::clone(model), self.limits.clone());
                let compile = move || model.grammars.compile(&asked, &limits);
                grammar = Some(self.compilation.run(deadline, compile).await?);
            }
        }
        if let Some(thinking) = prepared.thinking {
            grammar = Some(model.grammars.reasoned(thinking, grammar));
        }
        for request in &mut prepared.requests {
            request.grammar.clone_from(&grammar);
        }
        Ok(())
    }

    /// The times of a request that arrived then.
    pub fn timing(&self, arrived: Instant) -> Timing {
        Timing {
            arrived,
            deadline: arrived + self.http.request_timeout,
        }
    }
}

/// The whole HTTP interface.
pub fn app(state: AppState) -> Router {
    let using = Router::new()
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/messages", post(messages::messages))
        .route("/v1/responses", post(responses::create))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/rerank", post(rank::rerank))
        .route("/rerank", post(rank::rerank))
        .route("/v2/rerank", post(rank::rerank_v2))
        .route("/v1/score", post(rank::score))
        .route("/score", post(rank::score))
        .route_layer(from_fn_with_state(Arc::clone(&state), account::account))
        .route_layer(from_fn_with_state(Arc::clone(&state), traced::trace))
        .route_layer(from_fn_with_state(Arc::clone(&state), pace::pace_refusals));
    let inference = using
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/responses/input_tokens", post(responses::input_tokens))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route_layer(from_fn_with_state(Arc::clone(&state), refuse_while_draining));
    Router::new()
        .merge(inference)
        .route(
            "/v1/responses/{id}",
            get(responses::retrieve).delete(responses::delete),
        )
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route(
            "/v1/organization/usage/completions",
            get(organization::completions),
        )
        .route("/v1/organization/usage/embeddings", get(organization::embeddings))
        .route("/v1/organization/usage/{kind}", get(organization::others))
        .route("/v1/organization/costs", get(organization::costs))
        .merge(administration::routes(&state))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/health", get(health::readyz))
        .route("/version", get(health::version))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(reference::openapi))
        .route("/docs", get(reference::docs))
        .fallback(administration::absent::not_found)
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(from_fn_with_state(Arc::clone(&state), authorize::authorize))
        .layer(from_fn_with_state(Arc::clone(&state), head::check))
        .layer(from_fn_with_state(Arc::clone(&state), observe::observe))
        .layer(from_fn(messages::shape_errors))
        .layer(from_fn(observe::arrive))
        .with_state(state)
}

async fn refuse_while_draining(State(app): State<AppState>, request: Request, next: Next) -> Response {
    if app.shutdown.phase() > Phase::Running {
        app.metrics.reject(Rejection::Draining);
        return ApiError::draining().into_response();
    }
    next.run(request).await
}

/// Answers what comes when the end is told to running answers: nothing is begun any more, whatever it is.
fn ended(app: AppState) -> Router {
    let refuse = move || {
        app.metrics.reject(Rejection::Draining);
        std::future::ready(ApiError::draining())
    };
    Router::new()
        .fallback(refuse)
        .layer(from_fn(messages::shape_errors))
}

/// How often histograms are folded, and kept answers looked through.
const UPKEEP: Duration = Duration::from_secs(5);

/// Keeps the metrics small, and answers no longer than they may be, until the process ends.
pub async fn upkeep(app: AppState) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                app.metrics.upkeep();
                app.responses().expire(Instant::now());
            }
            () = app.shutdown.reached(Phase::Closing) => return,
        }
    }
}
