//! Keys, and the programs that have some.

use axum::extract::{Request, State};
use axum::{Extension, Json};
use rempart_governance::{KeyRecord, NewKey as MadeKey, NewKeyRequest, Role, Scope, ServiceAccount, now_s};

use super::{Id, Ids, Pairs, body, change, from_now, living, named, pairs, project, store, told};
use crate::access::Caller;
use crate::http::AppState;
use crate::http::error::ApiError;
use crate::openai::administration::{
    AdminKey, AdminKeyList, Deleted, Key, KeyList, KeyRequest, KeyUpdate, ListRequest, NewAdminKey, NewKey,
    NewServiceAccount, ServiceAccountKey, ServiceAccountList, ServiceAccountObject, ServiceAccountRequest,
    empty,
};

type Answer<T> = Result<Json<T>, ApiError>;

fn no_key() -> ApiError {
    ApiError::nothing_of_this_name("there is no such key that is not revoked".to_owned())
}

/// Keys that were not revoked, of a project or of all.
async fn records(app: &AppState, project: Option<&str>) -> Result<Vec<KeyRecord>, ApiError> {
    let all = store(app)?.sound_keys().await.map_err(told)?.into_iter();
    let own = |key: &KeyRecord| project.is_none_or(|project| key.project == project) && key.revoked.is_none();
    Ok(all.filter(own).collect())
}

async fn keys_of(app: &AppState, project: &str) -> Result<Vec<Key>, ApiError> {
    let store = store(app)?;
    let members = store.members(project).await.map_err(told)?;
    let accounts = store.accounts(project).await.map_err(told)?;
    let own = records(app, Some(project)).await?.into_iter();
    Ok(own.map(|key| Key::new(key, &members, &accounts)).collect())
}

async fn key_of(app: &AppState, project: &str, id: &str) -> Result<Key, ApiError> {
    let own = keys_of(app, project).await?;
    own.into_iter().find(|key| key.id == id).ok_or_else(no_key)
}

pub async fn list(State(app): State<AppState>, id: Id, query: Pairs) -> Answer<KeyList> {
    let id = living(store(&app)?, &named(id)?).await?.id;
    let asked = ListRequest::parse(&pairs(query)?, false)?;
    let page = asked.page(keys_of(&app, &id).await?, |key| &key.id)?;
    Ok(Json(page.into()))
}

pub async fn create(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Answer<NewKey> {
    let id = living(store(&app)?, &named(id)?).await?.id;
    let asked = body(&app, request, KeyRequest::of_project).await?;
    let wanted = NewKeyRequest {
        project: &id,
        role: asked.role.unwrap_or(match &asked.owner {
            Some(owner) if ServiceAccount::is_one(owner) => Role::Service,
            _ => Role::Member,
        }),
        name: &asked.name,
        expires: from_now(asked.expires_in_s),
        owner: asked.owner.as_deref(),
    };
    let made = change(&app, &caller, async |store, actor| {
        store.create_key(actor, &wanted).await
    })
    .await?;
    let told = key_of(&app, &id, &made.id.0).await;
    let key = or_revoked(&app, &caller, &made, told).await?;
    Ok(Json(NewKey::new(key, &made)))
}

pub async fn retrieve(State(app): State<AppState>, ids: Ids, query: Pairs) -> Answer<Key> {
    let (id, key) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    empty(&pairs(query)?)?;
    Ok(Json(key_of(&app, &id, &key).await?))
}

pub async fn update(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    ids: Ids,
    request: Request,
) -> Answer<Key> {
    let (id, key) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    let key = key_of(&app, &id, &key).await?.id;
    let KeyUpdate { expires_in_s } = body(&app, request, KeyUpdate::parse).await?;
    let expires = now_s().saturating_add(expires_in_s);
    change(&app, &caller, async |store, actor| {
        store.set_expiry(actor, &key, expires).await
    })
    .await?;
    Ok(Json(key_of(&app, &id, &key).await?))
}

pub async fn delete(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    ids: Ids,
) -> Answer<Deleted> {
    let (id, key) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    let key = key_of(&app, &id, &key).await?.id;
    revoke(&app, &caller, &key).await?;
    Ok(Json(Deleted::new("organization.project.api_key.deleted", key)))
}

async fn revoke(app: &AppState, caller: &Caller, key: &str) -> Result<(), ApiError> {
    change(app, caller, async |store, actor| {
        store.revoke_key(actor, key).await
    })
    .await
}

/// What is told of a key that was made; one that can't be shown has been seen by nobody, and is revoked.
async fn or_revoked<T>(
    app: &AppState,
    caller: &Caller,
    made: &MadeKey,
    told: Result<T, ApiError>,
) -> Result<T, ApiError> {
    if told.is_err() {
        revoke(app, caller, &made.id.0).await?;
    }
    told
}

/// Keys of roles that govern or review.
async fn admin_keys(app: &AppState) -> Result<Vec<AdminKey>, ApiError> {
    let all = records(app, None).await?.into_iter();
    let own = all.filter(|key| key.role.allows(Scope::Review));
    Ok(own.map(AdminKey::from).collect())
}

async fn admin_key(app: &AppState, id: &str) -> Result<AdminKey, ApiError> {
    let all = admin_keys(app).await?;
    all.into_iter().find(|key| key.id == id).ok_or_else(no_key)
}

pub async fn list_admin(State(app): State<AppState>, query: Pairs) -> Answer<AdminKeyList> {
    let asked = ListRequest::parse(&pairs(query)?, false)?;
    let page = asked.page(admin_keys(&app).await?, |key| &key.id)?;
    Ok(Json(page.into()))
}

pub async fn create_admin(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer<NewAdminKey> {
    store(&app)?;
    let asked = body(&app, request, KeyRequest::of_administration).await?;
    // In the project of whoever makes it.
    let project = caller.project().ok_or_else(ApiError::no_database)?;
    let wanted = NewKeyRequest {
        project,
        role: asked.role.unwrap_or(Role::Admin),
        name: &asked.name,
        expires: from_now(asked.expires_in_s),
        owner: None,
    };
    let made = change(&app, &caller, async |store, actor| {
        store.create_key(actor, &wanted).await
    })
    .await?;
    let told = admin_key(&app, &made.id.0).await;
    let key = or_revoked(&app, &caller, &made, told).await?;
    Ok(Json(NewAdminKey::new(key, &made)))
}

pub async fn retrieve_admin(State(app): State<AppState>, id: Id, query: Pairs) -> Answer<AdminKey> {
    store(&app)?;
    empty(&pairs(query)?)?;
    Ok(Json(admin_key(&app, &named(id)?).await?))
}

pub async fn delete_admin(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Answer<Deleted> {
    let key = admin_key(&app, &named(id)?).await?.id;
    revoke(&app, &caller, &key).await?;
    Ok(Json(Deleted::new("organization.admin_api_key.deleted", key)))
}

async fn account_of(app: &AppState, project: &str, id: &str) -> Result<ServiceAccount, ApiError> {
    let all = store(app)?.accounts(project).await.map_err(told)?;
    let missing = || ApiError::nothing_of_this_name("the project has no such service account".to_owned());
    all.into_iter()
        .find(|account| account.id == id)
        .ok_or_else(missing)
}

pub async fn accounts(State(app): State<AppState>, id: Id, query: Pairs) -> Answer<ServiceAccountList> {
    let store = store(&app)?;
    let id = project(store, &named(id)?).await?.id;
    let asked = ListRequest::parse(&pairs(query)?, false)?;
    let all = store.accounts(&id).await.map_err(told)?.into_iter();
    let page = asked.page(all.map(ServiceAccountObject::from).collect(), |account| {
        &account.id
    })?;
    Ok(Json(page.into()))
}

pub async fn create_account(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Answer<NewServiceAccount> {
    let id = living(store(&app)?, &named(id)?).await?.id;
    let asked = body(&app, request, ServiceAccountRequest::parse).await?;
    let expires = from_now(asked.expires_in_s);
    let key = asked.with_key.then_some(expires);
    let (account, made) = change(&app, &caller, async |store, actor| {
        store.create_account(actor, &id, &asked.name, key).await
    })
    .await?;
    let created = account.created;
    Ok(Json(NewServiceAccount {
        account: account.into(),
        api_key: made.map(|made| ServiceAccountKey::new(&made, asked.name, created, expires)),
    }))
}

pub async fn account(State(app): State<AppState>, ids: Ids, query: Pairs) -> Answer<ServiceAccountObject> {
    let (id, account) = named(ids)?;
    let id = project(store(&app)?, &id).await?.id;
    empty(&pairs(query)?)?;
    Ok(Json(account_of(&app, &id, &account).await?.into()))
}

pub async fn rename_account(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    ids: Ids,
    request: Request,
) -> Answer<ServiceAccountObject> {
    let (id, account) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    let name = body(&app, request, ServiceAccountRequest::rename).await?;
    change(&app, &caller, async |store, actor| {
        store.rename_account(actor, &id, &account, &name).await
    })
    .await?;
    Ok(Json(account_of(&app, &id, &account).await?.into()))
}

pub async fn delete_account(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    ids: Ids,
) -> Answer<Deleted> {
    let (id, account) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    change(&app, &caller, async |store, actor| {
        store.end_account(actor, &id, &account).await
    })
    .await?;
    let what = "organization.project.service_account.deleted";
    Ok(Json(Deleted::new(what, account)))
}

pub async fn create_account_key(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    ids: Ids,
    request: Request,
) -> Answer<ServiceAccountKey> {
    let (id, account) = named(ids)?;
    let id = living(store(&app)?, &id).await?.id;
    let account = account_of(&app, &id, &account).await?;
    let (name, expires_in_s) = body(&app, request, KeyRequest::of_account).await?;
    let (name, expires) = (name.unwrap_or(account.name), from_now(expires_in_s));
    let wanted = NewKeyRequest {
        project: &id,
        role: Role::Service,
        name: &name,
        expires,
        owner: Some(&account.id),
    };
    let made = change(&app, &caller, async |store, actor| {
        store.create_key(actor, &wanted).await
    })
    .await?;
    Ok(Json(ServiceAccountKey::new(&made, name, now_s(), expires)))
}
