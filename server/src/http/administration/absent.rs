//! What OpenAI's administration has and this server has not: a client is told what there is in its stead.

use axum::http::Uri;

use crate::http::error::ApiError;

/// Parts of paths, and what there is instead. Identifiers that the server gives are none of these.
const ABSENT: [(&str, &str); 12] = [
    (
        "invites",
        "There are no invitations: POST /v1/organization/users adds a person at once",
    ),
    (
        "groups",
        "There are no groups: people are in projects, /v1/organization/projects/{project_id}/users",
    ),
    (
        "roles",
        "Roles are fixed and can't be combined: a person is owner, admin, auditor or member; a key may be a service's, too",
    ),
    (
        "certificates",
        "Certificates are not uploaded: --tls-client-ca names who signs those that may connect",
    ),
    (
        "data_retention",
        "An operator sets how long things are kept: `rempart retention` and `rempart content record --days`",
    ),
    (
        "external_keys",
        "Keys of other systems are not used: `rempart content record` seals what is said for a reader's key",
    ),
    (
        "external_storage",
        "Nothing is stored elsewhere: `rempart content export` and `rempart backup` write files",
    ),
    ("hosted_tool_permissions", "The server calls no tools"),
    (
        "service_tier_settings",
        "There are no tiers of service: `rempart project weight` sets a project's share",
    ),
    (
        "spend_limit",
        "There are limits of tokens, not of money: `rempart limit set --project NAME tokens-per-month=N`",
    ),
    (
        "spend_alerts",
        "Spending sends no messages: GET /v1/organization/costs tells it",
    ),
    (
        "workload_identity_providers",
        "Tokens of a login are taken as --oidc-issuer, --oidc-audience and --oidc-keys say",
    ),
];

/// 404 of a path that is no route.
pub async fn not_found(uri: Uri) -> ApiError {
    let below = below(uri.path()).unwrap_or_default();
    let told = below.split('/').find_map(|part| {
        let (_, told) = ABSENT.iter().find(|(absent, _)| *absent == part)?;
        Some(*told)
    });
    told.map_or_else(ApiError::route_not_found, ApiError::unknown_url)
}

/// The rest of a path behind a root of administration.
pub fn below(path: &str) -> Option<&str> {
    let roots = ["/v1/organization/", "/v1/projects/"];
    roots.iter().find_map(|root| path.strip_prefix(root))
}
