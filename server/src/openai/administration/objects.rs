//! What is told.

use rempart_governance::{
    KeyRecord, Limits, Member, Metric, NewKey as MadeKey, Person, Project, Role, ServiceAccount,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::requests::Page;

/// The one set of limits that a project has: they hold for all models together.
const ALL_MODELS: &str = "*";

/// Declares the list of an object.
macro_rules! list {
    ($list:ident, $object:ty) => {
        #[derive(Serialize, ToSchema)]
        pub struct $list {
            object: &'static str,
            data: Vec<$object>,
            first_id: Option<String>,
            last_id: Option<String>,
            has_more: bool,
        }

        impl From<Page<$object>> for $list {
            fn from(page: Page<$object>) -> Self {
                Self {
                    object: "list",
                    data: page.data,
                    first_id: page.first_id,
                    last_id: page.last_id,
                    has_more: page.has_more,
                }
            }
        }
    };
}

list!(ProjectList, ProjectObject);
list!(KeyList, Key);
list!(AdminKeyList, AdminKey);
list!(ServiceAccountList, ServiceAccountObject);
list!(UserList, User);
list!(ProjectUserList, ProjectUser);
list!(RateLimitList, RateLimit);

/// Times are Unix seconds.
#[derive(Serialize, ToSchema)]
#[schema(as = Project)]
pub struct ProjectObject {
    object: &'static str,
    pub id: String,
    name: String,
    created_at: i64,
    archived_at: Option<i64>,
    /// `active` or `archived`.
    status: &'static str,
}

impl From<Project> for ProjectObject {
    fn from(project: Project) -> Self {
        Self {
            object: "organization.project",
            status: project.archived.map_or("active", |_| "archived"),
            id: project.id,
            name: project.name,
            created_at: project.created,
            archived_at: project.archived,
        }
    }
}

/// A key; its secret part is told once, to whoever made it.
#[derive(Serialize, ToSchema)]
#[schema(as = ProjectKey)]
pub struct Key {
    object: &'static str,
    pub id: String,
    name: String,
    redacted_value: String,
    role: &'static str,
    created_at: i64,
    expires_at: Option<i64>,
    owner: Owner,
    owner_project_access: &'static str,
}

/// Whose a key is.
#[derive(Serialize, ToSchema)]
#[schema(as = KeyOwner)]
pub(super) struct Owner {
    #[serde(rename = "type")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<ProjectUser>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<ServiceAccountObject>,
}

impl Owner {
    /// Of what is known of the people and service accounts of the key's project.
    fn of(id: Option<&str>, members: &[Member], accounts: &[ServiceAccount]) -> Self {
        let user = members
            .iter()
            .find(|member| Some(member.person.id.as_str()) == id);
        let account = accounts.iter().find(|account| Some(account.id.as_str()) == id);
        Self {
            kind: user.map(|_| "user").or(account.map(|_| "service_account")),
            user: user.cloned().map(ProjectUser::from),
            service_account: account.cloned().map(ServiceAccountObject::from),
        }
    }
}

fn redacted(id: &str) -> String {
    format!("sk-rempart-{id}-...")
}

impl Key {
    pub fn new(key: KeyRecord, members: &[Member], accounts: &[ServiceAccount]) -> Self {
        Self {
            object: "organization.project.api_key",
            redacted_value: redacted(&key.id.0),
            owner: Owner::of(key.owner.as_deref(), members, accounts),
            id: key.id.0,
            name: key.name,
            role: key.role.name(),
            created_at: key.created,
            expires_at: key.expires,
            // Keys end when their owner does.
            owner_project_access: "active",
        }
    }
}

/// A key that was made just now.
#[derive(Serialize, ToSchema)]
#[schema(as = NewProjectKey)]
pub struct NewKey {
    #[serde(flatten)]
    key: Key,
    /// The key itself. It is not told again.
    value: String,
}

impl NewKey {
    pub fn new(key: Key, made: &MadeKey) -> Self {
        Self {
            key,
            value: made.reveal().to_owned(),
        }
    }
}

/// A key of a role that governs or reviews.
#[derive(Serialize, ToSchema)]
pub struct AdminKey {
    object: &'static str,
    pub id: String,
    name: String,
    redacted_value: String,
    created_at: i64,
    expires_at: Option<i64>,
    owner: AdminOwner,
}

/// Whose it is, as far as it is anybody's, and what it may do.
#[derive(Serialize, ToSchema)]
pub(super) struct AdminOwner {
    id: Option<String>,
    role: &'static str,
}

impl From<KeyRecord> for AdminKey {
    fn from(key: KeyRecord) -> Self {
        Self {
            object: "organization.admin_api_key",
            redacted_value: redacted(&key.id.0),
            id: key.id.0,
            name: key.name,
            created_at: key.created,
            expires_at: key.expires,
            owner: AdminOwner {
                id: key.owner,
                role: key.role.name(),
            },
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct NewAdminKey {
    #[serde(flatten)]
    key: AdminKey,
    /// The key itself. It is not told again.
    value: String,
}

impl NewAdminKey {
    pub fn new(key: AdminKey, made: &MadeKey) -> Self {
        Self {
            key,
            value: made.reveal().to_owned(),
        }
    }
}

/// A program that has keys of a project.
#[derive(Serialize, ToSchema)]
#[schema(as = ServiceAccount)]
pub struct ServiceAccountObject {
    object: &'static str,
    pub id: String,
    name: String,
    role: &'static str,
    created_at: i64,
}

impl From<ServiceAccount> for ServiceAccountObject {
    fn from(account: ServiceAccount) -> Self {
        Self {
            object: "organization.project.service_account",
            id: account.id,
            name: account.name,
            role: Role::Member.name(),
            created_at: account.created,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct NewServiceAccount {
    #[serde(flatten)]
    pub account: ServiceAccountObject,
    pub api_key: Option<ServiceAccountKey>,
}

/// A key of a service account that was made just now.
#[derive(Serialize, ToSchema)]
pub struct ServiceAccountKey {
    object: &'static str,
    id: String,
    name: String,
    created_at: i64,
    expires_at: Option<i64>,
    /// The key itself. It is not told again.
    value: String,
}

impl ServiceAccountKey {
    pub fn new(made: &MadeKey, name: String, created_at: i64, expires_at: Option<i64>) -> Self {
        Self {
            object: "organization.project.service_account.api_key",
            id: made.id.0.clone(),
            name,
            created_at,
            expires_at,
            value: made.reveal().to_owned(),
        }
    }
}

/// A person; without the secret of the database they have no name here.
#[derive(Serialize, ToSchema)]
pub struct User {
    object: &'static str,
    pub id: String,
    email: Option<String>,
    name: Option<String>,
    role: &'static str,
    added_at: i64,
}

impl From<Person> for User {
    fn from(person: Person) -> Self {
        let (email, name) = person.named.map(|named| (named.email, named.name)).unzip();
        Self {
            object: "organization.user",
            id: person.id,
            email,
            name,
            role: person.role.name(),
            added_at: person.created,
        }
    }
}

/// A person in a project.
#[derive(Serialize, ToSchema)]
pub struct ProjectUser {
    object: &'static str,
    pub id: String,
    email: Option<String>,
    name: Option<String>,
    role: &'static str,
    added_at: i64,
}

impl From<Member> for ProjectUser {
    fn from(member: Member) -> Self {
        let named = member.person.named;
        let (email, name) = named.map(|named| (named.email, named.name)).unzip();
        Self {
            object: "organization.project.user",
            id: member.person.id,
            email,
            name,
            role: Role::Member.name(),
            added_at: member.added,
        }
    }
}

/// Limits of a project, for all models together.
#[derive(Serialize, ToSchema)]
pub struct RateLimit {
    object: &'static str,
    pub id: String,
    model: &'static str,
    /// `null`: there is no such limit.
    max_requests_per_1_minute: Option<i64>,
    max_tokens_per_1_minute: Option<i64>,
}

impl RateLimit {
    pub fn new(limits: &Limits) -> Self {
        Self {
            object: "project.rate_limit",
            id: ALL_MODELS.to_owned(),
            model: ALL_MODELS,
            max_requests_per_1_minute: limits.get(Metric::RequestsPerMinute),
            max_tokens_per_1_minute: limits.get(Metric::TokensPerMinute),
        }
    }
}

/// The models that a project may use.
#[derive(Serialize, ToSchema)]
pub struct ModelPermissions {
    object: &'static str,
    /// `allow_list`, or where all may be used a `deny_list` of none.
    mode: &'static str,
    model_ids: Vec<String>,
}

impl From<Vec<String>> for ModelPermissions {
    fn from(model_ids: Vec<String>) -> Self {
        Self {
            object: "project.model_permissions",
            mode: if model_ids.is_empty() {
                "deny_list"
            } else {
                "allow_list"
            },
            model_ids,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct ModelPermissionsDeleted {
    object: &'static str,
    deleted: bool,
}

impl Default for ModelPermissionsDeleted {
    fn default() -> Self {
        Self {
            object: "project.model_permissions.deleted",
            deleted: true,
        }
    }
}

/// Something that was ended.
#[derive(Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "they are OpenAI's")]
pub struct Deleted {
    object: &'static str,
    id: String,
    deleted: bool,
}

impl Deleted {
    pub fn new(object: &'static str, id: String) -> Self {
        Self {
            object,
            id,
            deleted: true,
        }
    }
}
