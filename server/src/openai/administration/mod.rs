//! `/v1/organization/*` on the wire, but for usage: projects, keys, people, service accounts and the audit chain.

mod audit;
mod objects;
mod requests;

pub use audit::{AUDIT_LIMIT, AuditLog, AuditLogList, AuditRequest, LIST_MAX};
pub use objects::{
    AdminKey, AdminKeyList, Deleted, Key, KeyList, ModelPermissions, ModelPermissionsDeleted, NewAdminKey,
    NewKey, NewServiceAccount, ProjectList, ProjectObject, ProjectUser, ProjectUserList, RateLimit,
    RateLimitList, ServiceAccountKey, ServiceAccountList, ServiceAccountObject, User, UserList,
};
pub use requests::{
    EXPIRES_MAX_S, KeyRequest, KeyUpdate, ListRequest, MODELS_MAX, MemberRequest, ModelsRequest, Named,
    PAGE_LIMIT, PERSON_ROLES, Page, RateRequest, RoleRequest, ServiceAccountRequest, UserRequest, empty,
};
