//! `GET /v1/organization/audit_logs`.

use rempart_governance::{AuditEvent, AuditQuery};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::requests::{PAGE_LIMIT, page_limit};
use crate::http::error::ApiError;
use crate::openai::usage::TIME_MAX;

type Result<T> = std::result::Result<T, ApiError>;

/// Names in one list, and bytes of each.
pub const LIST_MAX: usize = 100;
const NAME_BYTES_MAX: usize = 256;
/// What a page may have.
pub const AUDIT_LIMIT: std::ops::RangeInclusive<i64> = PAGE_LIMIT;
const LIMIT_DEFAULT: usize = 20;
/// What the identifier of a row begins with; its number follows.
const ID: &str = "audit_log-";

/// A checked request.
#[derive(Debug)]
pub struct AuditRequest {
    pub query: AuditQuery,
    /// Addresses of people who did it.
    pub emails: Vec<String>,
    pub limit: usize,
}

impl AuditRequest {
    /// Reads the pairs of a query.
    ///
    /// # Errors
    /// Names the parameter that is wrong.
    pub fn parse(pairs: &[(String, String)]) -> Result<Self> {
        let mut request = Self {
            query: AuditQuery::default(),
            emails: Vec::new(),
            limit: LIMIT_DEFAULT,
        };
        for (name, value) in pairs {
            let query = &mut request.query;
            // Clients write the names of lists with brackets or without.
            match name.trim_end_matches("[]") {
                "actor_ids" => add("actor_ids", &mut query.actors, value)?,
                "actor_emails" => add("actor_emails", &mut request.emails, value)?,
                "event_types" => add("event_types", &mut query.actions, value)?,
                "project_ids" => add("project_ids", &mut query.projects, value)?,
                "resource_ids" => add("resource_ids", &mut query.objects, value)?,
                "limit" => request.limit = page_limit(value)?,
                "after" => query.before = Some(cursor("after", value)?),
                "before" => query.behind = Some(cursor("before", value)?),
                "effective_at[gt]" => from(query, time(name, value)? + 1),
                "effective_at[gte]" => from(query, time(name, value)?),
                "effective_at[lt]" => to(query, time(name, value)?),
                "effective_at[lte]" => to(query, time(name, value)? + 1),
                other => return Err(ApiError::unsupported(short(other))),
            }
        }
        Ok(request)
    }
}

/// From this second on.
fn from(query: &mut AuditQuery, second: i64) {
    query.from_ms = query.from_ms.max(Some(second * 1_000));
}

/// Before this second.
fn to(query: &mut AuditQuery, second: i64) {
    let last_ms = second * 1_000 - 1;
    query.to_ms = Some(query.to_ms.map_or(last_ms, |other| other.min(last_ms)));
}

fn time(name: &str, value: &str) -> Result<i64> {
    let number: Option<i64> = value.parse().ok();
    let within = number.filter(|time| (0..=TIME_MAX).contains(time));
    within.ok_or_else(|| {
        let message = format!("`{name}` must be a time in Unix seconds, from 0 to {TIME_MAX}");
        ApiError::invalid(name, "out_of_range", message)
    })
}

fn cursor(name: &str, value: &str) -> Result<i64> {
    let number = value.strip_prefix(ID).and_then(|number| number.parse().ok());
    number.ok_or_else(|| {
        let message = format!("`{name}` is the `id` of a row, such as {ID}17");
        ApiError::invalid(name, "invalid_value", message)
    })
}

fn add(name: &str, names: &mut Vec<String>, value: &str) -> Result<()> {
    // No database has a NUL in a text.
    if names.len() >= LIST_MAX || value.len() > NAME_BYTES_MAX || value.contains('\0') {
        let message = format!("`{name}` can have up to {LIST_MAX} names of up to {NAME_BYTES_MAX} bytes");
        return Err(ApiError::invalid(name, "out_of_range", message));
    }
    names.push(value.to_owned());
    Ok(())
}

/// A name that is told back only if it looks like one.
pub(super) fn short(name: &str) -> &str {
    let sane = name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_[]".contains(&byte));
    if sane { name } else { "query" }
}

/// A row of the audit chain. A field with the name of its `type` tells what it was done to.
#[derive(Serialize, ToSchema)]
pub struct AuditLog {
    pub id: String,
    #[serde(rename = "type")]
    kind: String,
    /// Unix seconds.
    effective_at: i64,
    actor: Actor,
    /// The row's number and hash in the chain.
    chain: Chain,
    #[serde(flatten)]
    #[schema(value_type = Object)]
    done: Map<String, Value>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AuditChain)]
struct Chain {
    seq: i64,
    hash: String,
}

/// Who did it: a key, or a person at the server itself, or the server.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditActor)]
struct Actor {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<Identified>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<Session>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AuditIdentified)]
struct Identified {
    id: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AuditSession)]
struct Session {
    user: Identified,
}

impl From<AuditEvent> for AuditLog {
    fn from(event: AuditEvent) -> Self {
        let detail: Value = serde_json::from_str(&event.detail).unwrap_or(Value::Null);
        let mut done = Map::new();
        if let Some(project) = detail.get("project") {
            done.insert("project".to_owned(), json!({"id": project}));
        }
        // No field of a row itself has a point in its name, which all types have.
        if event.action.contains('.') {
            let what = json!({"id": event.object, "data": detail});
            done.insert(event.action.clone(), what);
        }
        Self {
            id: format!("{ID}{}", event.seq),
            kind: event.action,
            effective_at: event.at_ms / 1_000,
            actor: Actor::of(&event.actor),
            chain: Chain {
                seq: event.seq,
                hash: event.hash,
            },
            done,
        }
    }
}

impl Actor {
    fn of(name: &str) -> Self {
        let identified = |id: &str| Identified { id: id.to_owned() };
        match name.strip_prefix("key:") {
            Some(key) => Self {
                kind: "api_key",
                api_key: Some(identified(key)),
                session: None,
            },
            None => Self {
                kind: "session",
                api_key: None,
                session: Some(Session {
                    user: identified(name),
                }),
            },
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct AuditLogList {
    object: &'static str,
    data: Vec<AuditLog>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl AuditLogList {
    pub fn new(data: Vec<AuditLog>, has_more: bool) -> Self {
        let id = |log: Option<&AuditLog>| log.map(|log| log.id.clone());
        Self {
            object: "list",
            first_id: id(data.first()),
            last_id: id(data.last()),
            data,
            has_more,
        }
    }
}
