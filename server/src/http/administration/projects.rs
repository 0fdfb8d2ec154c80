//! Projects, what they may use and how much.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use rempart_governance::{Limits, Subject};

use super::{Id, Ids, Pairs, body, change, living, named, pairs, project, store, told};
use crate::access::Caller;
use crate::http::AppState;
use crate::http::error::ApiError;
use crate::openai::administration::{
    ListRequest, ModelPermissions, ModelPermissionsDeleted, ModelsRequest, Named, ProjectList, ProjectObject,
    RateLimit, RateLimitList, RateRequest, empty,
};

type Answer<T> = Result<Json<T>, ApiError>;

pub async fn list(State(app): State<AppState>, query: Pairs) -> Answer<ProjectList> {
    let store = store(&app)?;
    let asked = ListRequest::parse(&pairs(query)?, true)?;
    let all = store.projects().await.map_err(told)?.into_iter();
    let wanted = all.filter(|project| asked.archived || project.archived.is_none());
    let page = asked.page(wanted.map(ProjectObject::from).collect(), |project| &project.id)?;
    Ok(Json(page.into()))
}

pub async fn create(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer<ProjectObject> {
    store(&app)?;
    let Named { name } = body(&app, request, Named::parse).await?;
    let made = change(&app, &caller, async |store, actor| {
        store.create_project(actor, &name, &[]).await
    });
    Ok(Json(made.await?.into()))
}

pub async fn retrieve(State(app): State<AppState>, id: Id, query: Pairs) -> Answer<ProjectObject> {
    let store = store(&app)?;
    empty(&pairs(query)?)?;
    Ok(Json(project(store, &named(id)?).await?.into()))
}

pub async fn update(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Answer<ProjectObject> {
    let id = living(store(&app)?, &named(id)?).await?.id;
    let Named { name } = body(&app, request, Named::parse).await?;
    change(&app, &caller, async |store, actor| {
        store.rename_project(actor, &id, &name).await
    })
    .await?;
    Ok(Json(project(store(&app)?, &id).await?.into()))
}

pub async fn archive(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Answer<ProjectObject> {
    let id = living(store(&app)?, &named(id)?).await?.id;
    change(&app, &caller, async |store, actor| {
        store.archive_project(actor, &id).await
    })
    .await?;
    Ok(Json(project(store(&app)?, &id).await?.into()))
}

pub async fn models(State(app): State<AppState>, id: Id, query: Pairs) -> Answer<ModelPermissions> {
    let store = store(&app)?;
    empty(&pairs(query)?)?;
    Ok(Json(project(store, &named(id)?).await?.models.into()))
}

pub async fn set_models(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Answer<ModelPermissions> {
    let id = living(store(&app)?, &named(id)?).await?.id;
    let ModelsRequest { models } = body(&app, request, ModelsRequest::parse).await?;
    change(&app, &caller, async |store, actor| {
        store.set_rights(actor, &id, &models).await
    })
    .await?;
    Ok(Json(project(store(&app)?, &id).await?.models.into()))
}

pub async fn allow_all(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Answer<ModelPermissionsDeleted> {
    let id = living(store(&app)?, &named(id)?).await?.id;
    change(&app, &caller, async |store, actor| {
        store.set_rights(actor, &id, &[]).await
    })
    .await?;
    Ok(Json(ModelPermissionsDeleted::default()))
}

pub async fn rates(State(app): State<AppState>, id: Id, query: Pairs) -> Answer<RateLimitList> {
    let store = store(&app)?;
    let asked = ListRequest::parse(&pairs(query)?, false)?;
    let id = project(store, &named(id)?).await?.id;
    let page = asked.page(vec![rate_limit(&app, id).await?], |limit| &limit.id)?;
    Ok(Json(page.into()))
}

pub async fn set_rates(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    ids: Ids,
    request: Request,
) -> Answer<RateLimit> {
    let (id, limit) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    let own = rate_limit(&app, id.clone()).await?;
    if own.id != limit {
        let message = format!("a project has one set of limits, whose id is {}", own.id);
        return Err(ApiError::nothing_of_this_name(message));
    }
    let RateRequest { changes } = body(&app, request, RateRequest::parse).await?;
    let whose = Subject::Project(id.clone());
    change(&app, &caller, async |store, actor| {
        store.set_limits(actor, &whose, &changes).await
    })
    .await?;
    Ok(Json(rate_limit(&app, id).await?))
}

async fn rate_limit(app: &AppState, project: String) -> Result<RateLimit, ApiError> {
    let all = store(app)?.limits().await.map_err(told)?;
    let own = all.get(&Subject::Project(project));
    Ok(RateLimit::new(own.unwrap_or(&Limits::default())))
}
