//! `/v1/organization/*` but for usage: projects, keys, people, service accounts and the audit chain, in OpenAI's shape.

pub mod absent;
pub mod audit;
pub mod keys;
pub mod people;
pub mod projects;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use rempart_governance::{Actor, Denied, Error, Project, Store};

use super::error::ApiError;
use super::{App, AppState, authorize, limits};
use crate::access::{Caller, Refusal};
use crate::metrics::Rejection;

/// Lists that are made at one time.
pub const TURNS: usize = 2;
/// How long one waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(5);

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;
type Id = Result<Path<String>, PathRejection>;
type Ids = Result<Path<(String, String)>, PathRejection>;

/// The routes.
pub fn routes(state: &AppState) -> Router<AppState> {
    const PROJECT: &str = "/v1/organization/projects/{project_id}";
    let of = |path: &str| format!("{PROJECT}{path}");
    Router::new()
        .route(
            "/v1/organization/projects",
            get(projects::list).post(projects::create),
        )
        .route(PROJECT, get(projects::retrieve).post(projects::update))
        .route(&of("/archive"), axum::routing::post(projects::archive))
        .route(
            &of("/model_permissions"),
            get(projects::models)
                .post(projects::set_models)
                .delete(projects::allow_all),
        )
        .route(&of("/rate_limits"), get(projects::rates))
        .route(
            &of("/rate_limits/{rate_limit_id}"),
            axum::routing::post(projects::set_rates),
        )
        .route(&of("/api_keys"), get(keys::list).post(keys::create))
        .route(
            &of("/api_keys/{key_id}"),
            get(keys::retrieve).post(keys::update).delete(keys::delete),
        )
        .route(
            &of("/service_accounts"),
            get(keys::accounts).post(keys::create_account),
        )
        .route(
            &of("/service_accounts/{account_id}"),
            get(keys::account)
                .post(keys::rename_account)
                .delete(keys::delete_account),
        )
        .route(
            &of("/service_accounts/{account_id}/api_keys"),
            axum::routing::post(keys::create_account_key),
        )
        .route(&of("/users"), get(people::members).post(people::add_member))
        .route(
            &of("/users/{user_id}"),
            get(people::member)
                .post(people::update_member)
                .delete(people::remove_member),
        )
        .route("/v1/organization/users", get(people::list).post(people::create))
        .route(
            "/v1/organization/users/{user_id}",
            get(people::retrieve).post(people::update).delete(people::delete),
        )
        .route(
            "/v1/organization/admin_api_keys",
            get(keys::list_admin).post(keys::create_admin),
        )
        .route(
            "/v1/organization/admin_api_keys/{key_id}",
            get(keys::retrieve_admin).delete(keys::delete_admin),
        )
        .route("/v1/organization/audit_logs", get(audit::list))
        .route_layer(from_fn_with_state(Arc::clone(state), in_turn))
}

/// Lets few lists be made at one time: they read whole tables.
async fn in_turn(State(app): State<AppState>, request: Request, next: Next) -> Response {
    if !request.method().is_safe() {
        // Changes wait for each other anyhow, and their bodies may take their time.
        return next.run(request).await;
    }
    let turn = tokio::time::timeout(TURN_WAIT, app.administration.acquire()).await;
    match turn {
        Ok(Ok(_turn)) => next.run(request).await,
        Ok(Err(_)) => ApiError::internal().into_response(),
        Err(_) => {
            app.metrics.reject(Rejection::Administration);
            ApiError::overloaded(1).into_response()
        }
    }
}

/// The database, where the server has one.
fn store(app: &App) -> Result<&Store, ApiError> {
    app.access.store().ok_or_else(ApiError::no_database)
}

fn pairs(query: Pairs) -> Result<Vec<(String, String)>, ApiError> {
    let unreadable = |_| ApiError::invalid("query", "invalid_value", "The query is not readable");
    query.map(|Query(pairs)| pairs).map_err(unreadable)
}

/// What a path names. What is no UTF-8 names nothing, nor does what no database has in a text.
fn named<T: Names>(path: Result<Path<T>, PathRejection>) -> Result<T, ApiError> {
    let nothing = || ApiError::nothing_of_this_name("there is nothing of this name".to_owned());
    let Path(named) = path.map_err(|_| nothing())?;
    if named.all().any(|name| name.contains('\0')) {
        return Err(nothing());
    }
    Ok(named)
}

/// One name in a path, or two.
trait Names {
    fn all(&self) -> impl Iterator<Item = &str>;
}

impl Names for String {
    fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.as_str())
    }
}

impl Names for (String, String) {
    fn all(&self) -> impl Iterator<Item = &str> {
        [self.0.as_str(), self.1.as_str()].into_iter()
    }
}

/// A project of a path, by its identifier.
async fn project(store: &Store, id: &str) -> Result<Project, ApiError> {
    store.project(id).await.map_err(told)
}

/// A project of a path that has not ended.
async fn living(store: &Store, id: &str) -> Result<Project, ApiError> {
    let project = project(store, id).await?;
    if project.archived.is_some() {
        return Err(ApiError::conflicting("the project is archived".to_owned()));
    }
    Ok(project)
}

/// Reads a body, and has it read.
async fn body<T>(
    app: &App,
    request: Request,
    parse: impl FnOnce(&[u8], usize) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let body = limits::read_json(app, request).await?;
    parse(&body.bytes, app.limits.json_depth_max)
}

/// Makes a change as a caller, and has this server know of it.
async fn change<T>(
    app: &App,
    caller: &Caller,
    change: impl AsyncFnOnce(&Store, Actor<'_>) -> Result<T, Error>,
) -> Result<T, ApiError> {
    let store = store(app)?;
    // Where there are keys, nobody comes here without one.
    let key = caller.key().ok_or_else(ApiError::no_key)?;
    let made = change(store, Actor::Key(&key.0)).await;
    let made = made.map_err(|error| match error {
        // Since it was shown.
        Error::Ended => authorize::refuse(app, &Refusal::Key(Denied::Revoked, Some(key.clone()))),
        error => told(error),
    })?;
    // It is made, whether that succeeds now or at the next look.
    app.access.look().await;
    Ok(made)
}

/// An error as a client is told it.
fn told(error: Error) -> ApiError {
    match error {
        Error::Refused(message) => ApiError::conflicting(message),
        Error::Missing(message) => ApiError::nothing_of_this_name(message),
        Error::Forbidden(role) => ApiError::not_grantable(role.name()),
        error => {
            let error = anyhow::Error::new(error);
            tracing::error!(error = format!("{error:#}"), "the database can't be used");
            ApiError::not_ready("the database can't be used")
        }
    }
}

/// In so many seconds, Unix seconds.
fn from_now(seconds: Option<i64>) -> Option<i64> {
    seconds.map(|seconds| rempart_governance::now_s().saturating_add(seconds))
}
