//! People, and the projects that they are in.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use rempart_governance::{Member, Person};

use super::{Id, Ids, Pairs, body, change, living, named, pairs, project, store, told};
use crate::access::Caller;
use crate::http::AppState;
use crate::http::error::ApiError;
use crate::openai::administration::{
    Deleted, ListRequest, MemberRequest, ProjectUser, ProjectUserList, RoleRequest, User, UserList,
    UserRequest, empty,
};

type Answer<T> = Result<Json<T>, ApiError>;

fn nobody() -> ApiError {
    ApiError::nothing_of_this_name("there is no such person".to_owned())
}

/// A person who has not left. (Who left is told by commands alone.)
async fn person(app: &AppState, id: &str) -> Result<Person, ApiError> {
    let found = store(app)?.person(id).await.map_err(told)?;
    if found.ended.is_some() || found.id != id {
        return Err(nobody());
    }
    Ok(found)
}

pub async fn list(State(app): State<AppState>, query: Pairs) -> Answer<UserList> {
    let store = store(&app)?;
    let (emails, rest): (Vec<_>, Vec<_>) = pairs(query)?
        .into_iter()
        .partition(|(name, _)| name.trim_end_matches("[]") == "emails");
    let asked = ListRequest::parse(&rest, false)?;
    let mut all = store.people().await.map_err(told)?;
    all.retain(|person| person.ended.is_none());
    if !emails.is_empty() {
        store.secret().map_err(told)?;
        let wanted: Vec<String> = emails
            .into_iter()
            .map(|(_, email)| email.to_lowercase())
            .collect();
        all.retain(|person| {
            let named = person.named.as_ref();
            named.is_some_and(|named| wanted.contains(&named.email))
        });
    }
    let page = asked.page(all.into_iter().map(User::from).collect(), |user| &user.id)?;
    Ok(Json(page.into()))
}

pub async fn create(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer<User> {
    store(&app)?;
    let asked = body(&app, request, UserRequest::parse).await?;
    let added = change(&app, &caller, async |store, actor| {
        store
            .add_person(actor, &asked.email, &asked.name, asked.role)
            .await
    });
    Ok(Json(added.await?.into()))
}

pub async fn retrieve(State(app): State<AppState>, id: Id, query: Pairs) -> Answer<User> {
    store(&app)?;
    empty(&pairs(query)?)?;
    Ok(Json(person(&app, &named(id)?).await?.into()))
}

pub async fn update(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Answer<User> {
    let id = person(&app, &named(id)?).await?.id;
    let RoleRequest { role } = body(&app, request, RoleRequest::parse).await?;
    change(&app, &caller, async |store, actor| {
        store.set_person_role(actor, &id, role).await
    })
    .await?;
    Ok(Json(person(&app, &id).await?.into()))
}

pub async fn delete(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Answer<Deleted> {
    let id = person(&app, &named(id)?).await?.id;
    change(&app, &caller, async |store, actor| {
        store.end_person(actor, &id).await
    })
    .await?;
    Ok(Json(Deleted::new("organization.user.deleted", id)))
}

async fn member_of(app: &AppState, project: &str, id: &str) -> Result<Member, ApiError> {
    let all = store(app)?.members(project).await.map_err(told)?;
    let found = all.into_iter().find(|member| member.person.id == id);
    found.ok_or_else(|| ApiError::nothing_of_this_name("this person is not in the project".to_owned()))
}

pub async fn members(State(app): State<AppState>, id: Id, query: Pairs) -> Answer<ProjectUserList> {
    let store = store(&app)?;
    let id = project(store, &named(id)?).await?.id;
    let asked = ListRequest::parse(&pairs(query)?, false)?;
    let all = store.members(&id).await.map_err(told)?.into_iter();
    let page = asked.page(all.map(ProjectUser::from).collect(), |user| &user.id)?;
    Ok(Json(page.into()))
}

pub async fn add_member(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Answer<ProjectUser> {
    let id = living(store(&app)?, &named(id)?).await?.id;
    let MemberRequest { whom } = body(&app, request, MemberRequest::parse).await?;
    let added = change(&app, &caller, async |store, actor| {
        store.add_member(actor, &id, &whom).await
    });
    Ok(Json(added.await?.into()))
}

pub async fn member(State(app): State<AppState>, ids: Ids, query: Pairs) -> Answer<ProjectUser> {
    let (id, user) = named(ids)?;
    let id = project(store(&app)?, &id).await?.id;
    empty(&pairs(query)?)?;
    Ok(Json(member_of(&app, &id, &user).await?.into()))
}

pub async fn update_member(State(app): State<AppState>, ids: Ids, request: Request) -> Answer<ProjectUser> {
    let (id, user) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    let member = member_of(&app, &id, &user).await?;
    body(&app, request, MemberRequest::check_update).await?;
    Ok(Json(member.into()))
}

pub async fn remove_member(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    ids: Ids,
) -> Answer<Deleted> {
    let (id, user) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    change(&app, &caller, async |store, actor| {
        store.remove_member(actor, &id, &user).await
    })
    .await?;
    Ok(Json(Deleted::new("organization.project.user.deleted", user)))
}
