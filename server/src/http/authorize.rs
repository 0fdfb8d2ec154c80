//! What each route needs of a key, in one table: what is not in it opens to nobody.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use rempart_governance::Scope;

use super::administration::absent;
use super::error::ApiError;
use super::{App, AppState};
use crate::access::{Caller, Refusal, Shown};
use crate::certificate::ClientCertificate;
use crate::oidc::BadToken;

/// Where Anthropic's clients put the key.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Where OpenAI's clients name the project that they mean.
const OPENAI_PROJECT: HeaderName = HeaderName::from_static("openai-project");
/// What browsers tell of the page that sends a request.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The scheme of `Authorization`, in any case.
const BEARER: &str = "bearer ";

/// No project is called so: names have no blanks around them.
const NO_PROJECT: &str = " ";

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: probes, and what describes the interface.
    Nothing,
    Key(Scope),
    /// One to read, and another to change.
    Keys {
        read: Scope,
        change: Scope,
    },
}

impl Need {
    /// What a key must be for; `None`: no key is needed.
    pub fn scope(self, method: &Method) -> Option<Scope> {
        match self {
            Self::Nothing => None,
            Self::Key(scope) => Some(scope),
            Self::Keys { read, change } => Some(if method.is_safe() { read } else { change }),
        }
    }
}

/// What it needs to see or to change who may do what.
const GOVERNING: Need = Need::Keys {
    read: Scope::Review,
    change: Scope::Govern,
};

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
    ("/v1/organization/usage/completions", Need::Key(Scope::Observe)),
    ("/v1/organization/usage/embeddings", Need::Key(Scope::Observe)),
    ("/v1/organization/usage/{kind}", Need::Key(Scope::Observe)),
    ("/v1/organization/costs", Need::Key(Scope::Observe)),
    ("/v1/organization/projects", GOVERNING),
    ("/v1/organization/projects/{project_id}", GOVERNING),
    ("/v1/organization/projects/{project_id}/archive", GOVERNING),
    (
        "/v1/organization/projects/{project_id}/model_permissions",
        GOVERNING,
    ),
    ("/v1/organization/projects/{project_id}/rate_limits", GOVERNING),
    (
        "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}",
        GOVERNING,
    ),
    ("/v1/organization/projects/{project_id}/api_keys", GOVERNING),
    (
        "/v1/organization/projects/{project_id}/api_keys/{key_id}",
        GOVERNING,
    ),
    (
        "/v1/organization/projects/{project_id}/service_accounts",
        GOVERNING,
    ),
    (
        "/v1/organization/projects/{project_id}/service_accounts/{account_id}",
        GOVERNING,
    ),
    (
        "/v1/organization/projects/{project_id}/service_accounts/{account_id}/api_keys",
        GOVERNING,
    ),
    ("/v1/organization/projects/{project_id}/users", GOVERNING),
    (
        "/v1/organization/projects/{project_id}/users/{user_id}",
        GOVERNING,
    ),
    ("/v1/organization/users", GOVERNING),
    ("/v1/organization/users/{user_id}", GOVERNING),
    ("/v1/organization/admin_api_keys", GOVERNING),
    ("/v1/organization/admin_api_keys/{key_id}", GOVERNING),
    ("/v1/organization/audit_logs", Need::Key(Scope::Audit)),
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
    let need = match path {
        Some(path) => needs
            .iter()
            .find(|(route, _)| *route == path)
            .map(|(_, need)| need.scope(request.method())),
        // A path that is no route is told apart only to those who have a key, one of administration to those who may
        // read what there is.
        None if absent::below(request.uri().path()).is_some() => Some(Some(Scope::Review)),
        None => Some(Some(Scope::Use)),
    };
    let caller = match need {
        None => {
            tracing::error!("a route is in no table of what it needs. This is a bug.");
            return ApiError::internal().into_response();
        }
        Some(None) => Ok(Caller::Anyone),
        Some(Some(scope)) => app.access.authorize(&shown(&request), scope).await,
    };
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => {
            let mut response = refuse(app, &refusal).into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                let scheme = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            response
        }
    }
}

/// What a request shows of who makes it.
fn shown(request: &Request) -> Shown<'_> {
    let headers = request.headers();
    Shown {
        key: key(headers),
        project: project(headers),
        certificate: certificate(request),
    }
}

/// The certificate of the connection, where nothing else says who makes the request. A browser shows it for every page that it
/// has open, whoever has made that, and must have a key.
fn certificate(request: &Request) -> Option<&ClientCertificate> {
    const OTHERS: [HeaderName; 4] = [header::AUTHORIZATION, X_API_KEY, header::ORIGIN, SEC_FETCH_SITE];
    let alone = OTHERS.iter().all(|name| !request.headers().contains_key(name));
    request.extensions().get().filter(|_| alone)
}

/// The project that a head names. What is no text names none that there is.
fn project(headers: &HeaderMap) -> Option<&str> {
    let mut named = headers.get_all(OPENAI_PROJECT).iter();
    let first = named.next()?;
    let one = named.all(|other| other == first);
    let name = first.to_str().ok().filter(|_| one).unwrap_or(NO_PROJECT);
    // The clients send what a variable holds, be it nothing.
    (!name.is_empty()).then_some(name)
}

/// The key in a head, wherever clients put it.
fn key(headers: &HeaderMap) -> Option<&str> {
    // Of two, whoever is in between may have looked at the other.
    let twice = |name: &HeaderName| headers.get_all(name).iter().nth(1).is_some();
    if twice(&header::AUTHORIZATION) || twice(&X_API_KEY) {
        return Some("");
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_at_checked(BEARER.len())?;
        scheme.eq_ignore_ascii_case(BEARER).then(|| key.trim())
    });
    bearer.or_else(|| headers.get(X_API_KEY)?.to_str().ok())
}

/// All that [`reason`] gives.
pub(super) fn reasons() -> impl Iterator<Item = &'static str> {
    let others = ["no_key", "key", "role", "token_person", "project", "unavailable"];
    others.into_iter().chain(BadToken::ALL.map(BadToken::name))
}

/// For the metrics: which kind of refusal it was.
fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NoKey => "no_key",
        Refusal::Key(..) => "key",
        Refusal::Role(..) => "role",
        Refusal::Token(bad) => bad.name(),
        Refusal::Stranger => "token_person",
        Refusal::OtherSubject(_) => BadToken::Subject.name(),
        Refusal::Project(_) | Refusal::Projects { .. } | Refusal::Outside(_) => "project",
        Refusal::Unknowable => "unavailable",
    }
}

/// Notes whose key it was: identifiers are no secret.
fn note(refusal: &Refusal) {
    match refusal {
        Refusal::Key(denied, Some(id)) => tracing::warn!(key = id.0, %denied, "a key was refused"),
        Refusal::Role(role, id) => tracing::warn!(key = id.0, %role, "a key is not for this"),
        Refusal::Project(whose) | Refusal::Outside(whose) | Refusal::Projects { person: whose, .. } => {
            tracing::warn!(whose, "a request is of no project of theirs");
        }
        // Anyone can send as many as they like.
        Refusal::Token(bad) => tracing::debug!(why = %bad, "a token was refused"),
        Refusal::OtherSubject(whose) => tracing::warn!(whose, "a token of their address is somebody else's"),
        Refusal::Stranger => tracing::debug!("a token of nobody who is here was refused"),
        Refusal::NoKey | Refusal::Key(_, None) | Refusal::Unknowable => {}
    }
}

/// Counts and notes a refusal; what is told of it.
pub(super) fn refuse(app: &App, refusal: &Refusal) -> ApiError {
    app.metrics.denied(reason(refusal));
    app.access.count_denial(refusal);
    note(refusal);
    error(refusal)
}

fn error(refusal: &Refusal) -> ApiError {
    match refusal {
        Refusal::NoKey => ApiError::no_key(),
        // Why a key is none is for its owner to ask an operator.
        Refusal::Key(..) | Refusal::Token(_) | Refusal::Stranger | Refusal::OtherSubject(_) => {
            ApiError::wrong_key()
        }
        Refusal::Role(role, _) => ApiError::not_permitted(role.name()),
        Refusal::Project(_) => ApiError::other_project(),
        Refusal::Projects { projects, .. } => ApiError::which_project(projects),
        Refusal::Outside(_) => ApiError::no_project(),
        Refusal::Unknowable => ApiError::not_ready("which keys there are can't be read"),
    }
}
