//! What each route needs of a key, in one table: what is not in it opens to nobody.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use rempart_governance::Scope;

use super::AppState;
use super::error::ApiError;
use crate::access::{Caller, Refusal};

/// Where Anthropic's clients put the key.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The scheme of `Authorization`, in any case.
const BEARER: &str = "bearer ";

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: probes, and what describes the interface.
    Nothing,
    Key(Scope),
}

/// The routes of the main interface.
pub const NEEDS: &[(&str, Need)] = &[
    ("/v1/chat/completions", Need::Key(Scope::Use)),
    ("/v1/completions", Need::Key(Scope::Use)),
    ("/v1/messages", Need::Key(Scope::Use)),
    ("/v1/messages/count_tokens", Need::Key(Scope::Use)),
    ("/v1/responses", Need::Key(Scope::Use)),
    ("/v1/responses/input_tokens", Need::Key(Scope::Use)),
    ("/v1/responses/{id}", Need::Key(Scope::Use)),
    ("/v1/responses/{id}/input_items", Need::Key(Scope::Use)),
    ("/v1/embeddings", Need::Key(Scope::Use)),
    ("/v1/rerank", Need::Key(Scope::Use)),
    ("/rerank", Need::Key(Scope::Use)),
    ("/v2/rerank", Need::Key(Scope::Use)),
    ("/v1/score", Need::Key(Scope::Use)),
    ("/score", Need::Key(Scope::Use)),
    ("/v1/models", Need::Key(Scope::Use)),
    ("/v1/models/{*id}", Need::Key(Scope::Use)),
    ("/tokenize", Need::Key(Scope::Use)),
    ("/detokenize", Need::Key(Scope::Use)),
    ("/livez", Need::Nothing),
    ("/readyz", Need::Nothing),
    ("/health", Need::Nothing),
    ("/version", Need::Nothing),
    ("/metrics", Need::Key(Scope::Observe)),
    ("/openapi.json", Need::Nothing),
    ("/docs", Need::Nothing),
];

/// The routes of the administrative interface.
pub const ADMIN_NEEDS: &[(&str, Need)] = &[
    ("/admin/models", Need::Key(Scope::Operate)),
    ("/admin/models/{name}/load", Need::Key(Scope::Operate)),
    ("/admin/models/{name}/unload", Need::Key(Scope::Operate)),
    ("/admin/models/{name}/reload", Need::Key(Scope::Operate)),
    ("/openapi.json", Need::Nothing),
];

/// The layer that lets requests of the main interface through, with their [`Caller`].
pub async fn authorize(State(app): State<AppState>, request: Request, next: Next) -> Response {
    pass(&app, NEEDS, request, next).await
}

/// The same for administration.
pub async fn authorize_admin(State(app): State<AppState>, request: Request, next: Next) -> Response {
    pass(&app, ADMIN_NEEDS, request, next).await
}

async fn pass(app: &AppState, needs: &[(&str, Need)], mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let need = needs.iter().find(|(route, _)| Some(*route) == path);
    // A path that is no route is told apart only to those who have a key.
    let need = need.map_or(Need::Key(Scope::Use), |(_, need)| *need);
    let caller = match need {
        Need::Nothing => Ok(Caller::Anyone),
        Need::Key(scope) => app.access.authorize(key(request.headers()), scope),
    };
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => {
            app.metrics.denied(reason(refusal));
            error(refusal).into_response()
        }
    }
}

/// The key in a head, wherever clients put it.
fn key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_at_checked(BEARER.len())?;
        scheme.eq_ignore_ascii_case(BEARER).then(|| key.trim())
    });
    bearer.or_else(|| headers.get(X_API_KEY)?.to_str().ok())
}

/// For the metrics: which kind of refusal it was.
fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NoKey => "no_key",
        Refusal::Key(_) => "key",
        Refusal::Role(_) => "role",
        Refusal::Unknowable => "unavailable",
    }
}

fn error(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::NoKey => ApiError::no_key(),
        // Why a key is none is for its owner to ask an operator.
        Refusal::Key(_) => ApiError::wrong_key(),
        Refusal::Role(role) => ApiError::not_permitted(role.name()),
        Refusal::Unknowable => ApiError::not_ready("which keys there are can't be read"),
    }
}
