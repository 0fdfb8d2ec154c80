//! The calls that administer projects, keys and people, and read the audit chain.

use utoipa::openapi::{HttpMethod, RefOr, Schema};

use rempart_governance::{LIMIT_MAX, Role};

use super::add;
use super::operations::Call;
use super::schema::{AnySchema, Fields, any_of, array, boolean, integer, list, pattern, string, told, word};
use crate::openai::administration::{
    AUDIT_LIMIT, AdminKey, AdminKeyList, AuditLogList, Deleted, EXPIRES_MAX_S, Key, KeyList, LIST_MAX,
    MODELS_MAX, ModelPermissions, ModelPermissionsDeleted, NewAdminKey, NewKey, NewServiceAccount,
    PAGE_LIMIT, PERSON_ROLES, ProjectList, ProjectObject, ProjectUser, ProjectUserList, RateLimit,
    RateLimitList, ServiceAccountKey, ServiceAccountList, ServiceAccountObject, User, UserList,
};
use crate::openai::usage::TIME_MAX;

const PROJECT: &str = "/v1/organization/projects/{project_id}";
const RATE: &str = "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}";
const MODELS: &str = "/v1/organization/projects/{project_id}/model_permissions";
const KEYS: &str = "/v1/organization/projects/{project_id}/api_keys";
const KEY: &str = "/v1/organization/projects/{project_id}/api_keys/{key_id}";
const ACCOUNTS: &str = "/v1/organization/projects/{project_id}/service_accounts";
const ACCOUNT: &str = "/v1/organization/projects/{project_id}/service_accounts/{account_id}";
const ACCOUNT_KEYS: &str = "/v1/organization/projects/{project_id}/service_accounts/{account_id}/api_keys";
const MEMBERS: &str = "/v1/organization/projects/{project_id}/users";
const MEMBER: &str = "/v1/organization/projects/{project_id}/users/{user_id}";
const ADMIN_KEYS: &str = "/v1/organization/admin_api_keys";
const ADMIN_KEY: &str = "/v1/organization/admin_api_keys/{key_id}";
const USERS: &str = "/v1/organization/users";
const USER: &str = "/v1/organization/users/{user_id}";

/// What the parts of paths are.
const PARTS: &[(&str, &str)] = &[
    ("project_id", "The identifier of a project."),
    ("rate_limit_id", "The identifier of a project's limits."),
    (
        "key_id",
        "The identifier of a key: the eight characters after `sk-rempart-`.",
    ),
    (
        "account_id",
        "The identifier of a service account of the project.",
    ),
    ("user_id", "The identifier of a person."),
];

/// All of them.
pub(super) fn calls(tag: &str) -> Vec<Call> {
    let of = Of(tag);
    [of.projects(), of.keys(), of.accounts(), of.people(), of.audit()]
        .into_iter()
        .flatten()
        .collect()
}

/// Calls with a tag.
struct Of<'a>(&'a str);

impl Of<'_> {
    fn get(&self, path: &'static str, summary: &str, answer: &str) -> Call {
        parts(Call::get(path, self.0, summary), path)
            .fails(&[404, 503])
            .answers(answer)
    }

    fn list(&self, path: &'static str, summary: &str, answer: &str) -> Call {
        self.get(path, summary, answer)
            .asks("after", false, "The `last_id` of the page before.", string())
            .asks(
                "limit",
                false,
                "How many a page has; unless asked 20.",
                integer(&PAGE_LIMIT),
            )
    }

    fn post(&self, path: &'static str, summary: &str, (body, answer): (&str, &str)) -> Call {
        parts(Call::post(path, self.0, summary, body), path).answers(answer)
    }

    fn delete(&self, path: &'static str, summary: &str, answer: &str) -> Call {
        parts(Call::new(HttpMethod::Delete, path, self.0, summary), path)
            .fails(&[404, 503])
            .answers(answer)
    }

    fn projects(&self) -> Vec<Call> {
        let archive = "/v1/organization/projects/{project_id}/archive";
        let all = "/v1/organization/projects";
        let archived = "Those that were archived, too.";
        vec![
            self.list(all, "The projects", "ProjectList").asks(
                "include_archived",
                false,
                archived,
                boolean(),
            ),
            self.post(all, "Makes a project", ("ProjectRequest", "Project")),
            self.get(PROJECT, "A project", "Project"),
            self.post(
                PROJECT,
                "Gives a project another name",
                ("ProjectRequest", "Project"),
            ),
            parts(
                Call::new(
                    HttpMethod::Post,
                    archive,
                    self.0,
                    "Ends a project with all its keys",
                ),
                archive,
            )
            .fails(&[404, 503])
            .answers("Project"),
            self.get(MODELS, "The models that a project may use", "ModelPermissions"),
            self.post(
                MODELS,
                "Lets a project use some models alone",
                ("ModelPermissionsRequest", "ModelPermissions"),
            ),
            self.delete(MODELS, "Lets a project use all models", "ModelPermissionsDeleted"),
            self.list(
                "/v1/organization/projects/{project_id}/rate_limits",
                "The limits of a project, which hold for all models together",
                "RateLimitList",
            ),
            self.post(
                RATE,
                "Sets limits of a project",
                ("RateLimitRequest", "RateLimit"),
            ),
        ]
    }

    fn keys(&self) -> Vec<Call> {
        vec![
            self.list(KEYS, "The keys of a project", "KeyList"),
            self.post(KEYS, "Makes a key", ("KeyRequest", "NewProjectKey")),
            self.get(KEY, "A key", "ProjectKey"),
            self.post(
                KEY,
                "Has a key end at another time",
                ("KeyUpdateRequest", "ProjectKey"),
            ),
            self.delete(KEY, "Ends a key", "Deleted"),
            self.list(ADMIN_KEYS, "The keys that govern or review", "AdminKeyList"),
            self.post(
                ADMIN_KEYS,
                "Makes a key that governs or reviews, in the project of the key that asks",
                ("AdminKeyRequest", "NewAdminKey"),
            ),
            self.get(ADMIN_KEY, "One of them", "AdminKey"),
            self.delete(ADMIN_KEY, "Ends one of them", "Deleted"),
        ]
    }

    fn accounts(&self) -> Vec<Call> {
        vec![
            self.list(
                ACCOUNTS,
                "The service accounts of a project",
                "ServiceAccountList",
            ),
            self.post(
                ACCOUNTS,
                "Makes a service account, with a key unless it is to have none",
                ("ServiceAccountRequest", "NewServiceAccount"),
            ),
            self.get(ACCOUNT, "A service account", "ServiceAccount"),
            self.post(
                ACCOUNT,
                "Gives a service account another name",
                ("ServiceAccountUpdateRequest", "ServiceAccount"),
            ),
            self.delete(ACCOUNT, "Ends a service account with all its keys", "Deleted"),
            self.post(
                ACCOUNT_KEYS,
                "Makes a key of a service account",
                ("ServiceAccountKeyRequest", "ServiceAccountKey"),
            ),
        ]
    }

    fn people(&self) -> Vec<Call> {
        vec![
            self.list(USERS, "The people", "UserList").asks(
                "emails",
                false,
                "Only those with these addresses.",
                list(string()),
            ),
            self.post(USERS, "Adds a person", ("UserRequest", "User")),
            self.get(USER, "A person", "User"),
            self.post(USER, "Gives a person another role", ("UserRoleRequest", "User")),
            self.delete(USER, "Has a person leave; their keys end", "Deleted"),
            self.list(MEMBERS, "The people of a project", "ProjectUserList"),
            self.post(
                MEMBERS,
                "Lets a person have keys of a project",
                ("ProjectUserRequest", "ProjectUser"),
            ),
            self.get(MEMBER, "A person of a project", "ProjectUser"),
            self.post(
                MEMBER,
                "Changes nothing: what a person may do is a matter of their keys",
                ("ProjectUserUpdateRequest", "ProjectUser"),
            ),
            self.delete(
                MEMBER,
                "Takes a person out of a project; their keys of it end",
                "Deleted",
            ),
        ]
    }

    fn audit(&self) -> Vec<Call> {
        let path = "/v1/organization/audit_logs";
        let names = || array(string(), &(0..=LIST_MAX));
        let mut call = self.get(path, "What was done, the newest first", "AuditLogList");
        for (name, what) in [
            ("actor_ids", "Done by these keys, people or service accounts."),
            ("actor_emails", "Done by people with these addresses."),
            ("event_types", "Of these types, such as `api_key.created`."),
            ("project_ids", "Done to these projects or what they have."),
            ("resource_ids", "Done to what has these identifiers."),
        ] {
            call = call.asks(name, false, what, names());
        }
        for name in ["gt", "gte", "lt", "lte"] {
            let name = format!("effective_at[{name}]");
            call = call.asks(&name, false, "When, Unix seconds.", integer(&(0..=TIME_MAX)));
        }
        let cursor = || pattern("^audit_log-[0-9]{1,18}$".to_owned());
        vec![
            call.asks("after", false, "What is older than this row.", cursor())
                .asks("before", false, "What is newer than this row.", cursor())
                .asks(
                    "limit",
                    false,
                    "How many; unless asked 20.",
                    integer(&AUDIT_LIMIT),
                ),
        ]
    }
}

fn parts(call: Call, path: &str) -> Call {
    let own = PARTS
        .iter()
        .filter(|(name, _)| path.contains(&format!("{{{name}}}")));
    own.fold(call, |call, (name, what)| call.part_of_path(name, what))
}

fn roles(roles: &[Role]) -> AnySchema {
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    word(&names)
}

fn expiry() -> AnySchema {
    told(
        integer(&(1..=EXPIRES_MAX_S)),
        "Seconds after which the key ends.",
        None,
    )
}

/// The bodies of requests, by their names.
pub(super) fn requests() -> Vec<(&'static str, AnySchema)> {
    let named = || Fields::new().required("name", string());
    let rate = || integer(&(1..=LIMIT_MAX));
    let member = |name: &str| {
        Fields::new()
            .required(name, string())
            .optional("role", word(&["member"]))
            .build()
    };
    let models = |mode: &str, items: AnySchema| {
        Fields::new()
            .required("mode", word(&[mode]))
            .required("model_ids", items)
            .build()
    };
    let limit = |first: &str, second: &str| Fields::new().required(first, rate()).optional(second, rate());
    let (requests, tokens) = ("max_requests_per_1_minute", "max_tokens_per_1_minute");
    let key = named()
        .optional("role", roles(&Role::ALL))
        .optional("user_id", string())
        .optional("expires_in_seconds", expiry());
    let admin_key = named()
        .optional("role", roles(&[Role::Owner, Role::Admin, Role::Auditor]))
        .optional("expires_in_seconds", expiry());
    let account = named()
        .optional("create_service_account_only", boolean())
        .optional("expires_in_seconds", expiry());
    let account_key = Fields::new()
        .optional("name", string())
        .optional("expires_in_seconds", expiry());
    let user = Fields::new()
        .required("email", string())
        .required("name", string())
        .optional("role", roles(&PERSON_ROLES));
    vec![
        ("ProjectRequest", named().build()),
        (
            "ModelPermissionsRequest",
            any_of([
                models("allow_list", array(string(), &(1..=MODELS_MAX))),
                models("deny_list", array(string(), &(0..=0))),
            ]),
        ),
        (
            "RateLimitRequest",
            any_of([limit(requests, tokens).build(), limit(tokens, requests).build()]),
        ),
        ("KeyRequest", key.build()),
        (
            "KeyUpdateRequest",
            Fields::new().required("expires_in_seconds", expiry()).build(),
        ),
        ("AdminKeyRequest", admin_key.build()),
        ("ServiceAccountRequest", account.build()),
        (
            "ServiceAccountUpdateRequest",
            named().optional("role", word(&["member"])).build(),
        ),
        ("ServiceAccountKeyRequest", account_key.build()),
        ("UserRequest", user.build()),
        (
            "UserRoleRequest",
            Fields::new().required("role", roles(&PERSON_ROLES)).build(),
        ),
        ("ProjectUserRequest", any_of([member("user_id"), member("email")])),
        (
            "ProjectUserUpdateRequest",
            Fields::new().optional("role", word(&["member"])).build(),
        ),
    ]
}

/// What is answered.
pub(super) fn answers(all: &mut Vec<(String, RefOr<Schema>)>) {
    add::<ProjectList>(all);
    add::<ProjectObject>(all);
    add::<ModelPermissions>(all);
    add::<ModelPermissionsDeleted>(all);
    add::<RateLimitList>(all);
    add::<RateLimit>(all);
    add::<KeyList>(all);
    add::<Key>(all);
    add::<NewKey>(all);
    add::<AdminKeyList>(all);
    add::<AdminKey>(all);
    add::<NewAdminKey>(all);
    add::<ServiceAccountList>(all);
    add::<ServiceAccountObject>(all);
    add::<NewServiceAccount>(all);
    add::<ServiceAccountKey>(all);
    add::<UserList>(all);
    add::<User>(all);
    add::<ProjectUserList>(all);
    add::<ProjectUser>(all);
    add::<Deleted>(all);
    add::<AuditLogList>(all);
}
