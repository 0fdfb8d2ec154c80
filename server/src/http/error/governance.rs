//! What is told to those who may not, or not so much.

use axum::http::StatusCode;
use rempart_governance::{Exceeded, Metric};

use super::{ApiError, Kind};

/// Who must wait longer should not be asked again by a program that waits for an answer.
const PATIENCE_S: u64 = 60;

impl ApiError {
    /// 401: the request has no key.
    pub fn no_key() -> Self {
        let message =
            "This server needs a key, in the header `Authorization: Bearer KEY` or `x-api-key: KEY`";
        let status = StatusCode::UNAUTHORIZED;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("missing_api_key"),
            message,
        )
    }

    /// 401: its key opens nothing.
    pub fn wrong_key() -> Self {
        let message = "The key is not valid here: it may be mistyped, revoked, expired, or of another server";
        let status = StatusCode::UNAUTHORIZED;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("invalid_api_key"),
            message,
        )
    }

    /// 401: its key has ended while the answer was made.
    pub fn key_ended() -> Self {
        let message = "What was shown for this answer is not valid any more: the key or token has ended, or its person or project has; the answer is not whole";
        let status = StatusCode::UNAUTHORIZED;
        Self::new(status, Kind::InvalidRequestError, Some("key_ended"), message)
    }

    /// 401: the project that it names is not its key's, as OpenAI answers, or not its person's.
    pub fn other_project() -> Self {
        let message = "The header `OpenAI-Project` names a project that this key is not of, or this person is not in: leave it out, or use a key of that project";
        let status = StatusCode::UNAUTHORIZED;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("mismatched_project"),
            message,
        )
    }

    /// 400: its person is in several projects, one of which it must name.
    pub fn which_project(projects: &[String]) -> Self {
        let message = format!(
            "You are in several projects: name one in the header `OpenAI-Project`, which is `project` of the official client: {}",
            projects.join(", ")
        );
        let status = StatusCode::BAD_REQUEST;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("project_required"),
            message,
        )
    }

    /// 403: its person is in no project.
    pub fn no_project() -> Self {
        let status = StatusCode::FORBIDDEN;
        let message = "You are in no project of this server: ask who runs it to add you to one";
        Self::new(status, Kind::InvalidRequestError, Some("no_project"), message)
    }

    /// 403: its key is for something else.
    pub fn not_permitted(role: &str) -> Self {
        let message = format!("A key of the role \"{role}\" may not do this");
        let status = StatusCode::FORBIDDEN;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("insufficient_permissions"),
            message,
        )
    }

    /// 403: it would give, or take away, more than the key's role may do.
    pub fn not_grantable(role: &str) -> Self {
        let message = format!("What has the role \"{role}\" is for keys of that role to give and to take");
        let status = StatusCode::FORBIDDEN;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("insufficient_permissions"),
            message,
        )
    }

    /// 404: a path names nothing that there is.
    pub fn nothing_of_this_name(message: String) -> Self {
        let status = StatusCode::NOT_FOUND;
        Self::new(status, Kind::InvalidRequestError, Some("not_found"), message)
    }

    /// 400: what is asked for can't be done with what there is.
    pub fn conflicting(message: String) -> Self {
        let status = StatusCode::BAD_REQUEST;
        Self::new(status, Kind::InvalidRequestError, Some("invalid_value"), message)
    }

    /// 404: the server asks nobody for a key, and so records nothing.
    pub fn no_database() -> Self {
        let message =
            "This server has no database: start it with --database to have keys and a record of usage";
        let status = StatusCode::NOT_FOUND;
        Self::new(status, Kind::InvalidRequestError, Some("no_database"), message)
    }

    /// 403: to go before all others is for those who run the server.
    pub fn priority_not_permitted() -> Self {
        let message = "`priority` can be below 0 only with a key whose role may operate this server";
        let status = StatusCode::FORBIDDEN;
        Self {
            param: Some("priority".to_owned()),
            ..Self::new(
                status,
                Kind::InvalidRequestError,
                Some("insufficient_permissions"),
                message,
            )
        }
    }

    /// 429: a limit of the key or its project is reached.
    pub fn over_limit(exceeded: &Exceeded) -> Self {
        let retry_after_s = exceeded
            .retry_after_ms
            .map(|wait_ms| wait_ms.unsigned_abs().div_ceil(1_000));
        let what = match (exceeded.metric, retry_after_s) {
            (_, Some(wait_s)) => format!("Rate limit reached: {exceeded}; try again in {wait_s} s"),
            (_, None) => format!("The request is larger than its limit: {exceeded}; ask for fewer tokens"),
        };
        let kind = match exceeded.metric {
            Metric::RequestsPerMinute | Metric::Parallel => Kind::Requests,
            Metric::TokensPerMinute | Metric::TokensPerDay | Metric::TokensPerMonth => Kind::Tokens,
        };
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self {
            retry_after_s,
            retry: Some(retry_after_s.is_some_and(|wait_s| wait_s <= PATIENCE_S)),
            ..Self::new(status, kind, Some("rate_limit_exceeded"), what)
        }
    }
}
