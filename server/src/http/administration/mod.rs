//! `/v1/organization/*` but for usage: projects, keys, people, service accounts and the audit chain, in OpenAI's shape.

pub mod audit;
pub mod keys;
pub mod people;
pub mod projects;

use axum::Router;
use axum::extract::Query;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Request};
use axum::routing::get;
use rempart_governance::{Actor, Error, Project, Store};

use super::error::ApiError;
use super::{App, AppState, limits};
use crate::access::Caller;

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;
type Id = Result<Path<String>, PathRejection>;
type Ids = Result<Path<(String, String)>, PathRejection>;

/// The routes.
pub fn routes() -> Router<AppState> {
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
}

/// The database, where the server has one.
fn store(app: &App) -> Result<&Store, ApiError> {
    app.access.store().ok_or_else(ApiError::no_database)
}

fn pairs(query: Pairs) -> Result<Vec<(String, String)>, ApiError> {
    let unreadable = |_| ApiError::invalid("query", "invalid_value", "The query is not readable");
    query.map(|Query(pairs)| pairs).map_err(unreadable)
}

/// What a path names; what is no UTF-8 names nothing.
fn named<T>(path: Result<Path<T>, PathRejection>) -> Result<T, ApiError> {
    path.map(|Path(named)| named)
        .map_err(|_| ApiError::nothing_of_this_name("there is nothing of this name".to_owned()))
}

/// A project of a path, by its identifier.
async fn project(store: &Store, id: &str) -> Result<Project, ApiError> {
    let all = store.projects().await.map_err(told)?;
    let found = all.into_iter().find(|project| project.id == id);
    found.ok_or_else(|| ApiError::nothing_of_this_name("there is no such project".to_owned()))
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
    let name = caller.actor();
    let actor = Actor {
        name: &name,
        role: caller.role(),
    };
    let made = change(store, actor).await.map_err(told)?;
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
