//! What is asked for.

use std::ops::RangeInclusive;

use rempart_governance::{LIMIT_MAX, Metric, Role};
use serde_json::value::RawValue;

use crate::http::error::ApiError;
use crate::openai::json::{self, Object};

type Result<T> = std::result::Result<T, ApiError>;

/// What a page may have, and what it has unless asked.
pub const PAGE_LIMIT: RangeInclusive<i64> = 1..=100;
const PAGE_DEFAULT: usize = 20;
/// How long a key may be good, where it is not good until it is revoked: ten years.
pub const EXPIRES_MAX_S: i64 = 10 * 366 * 86_400;
/// Models in a list of what a project may use.
pub const MODELS_MAX: usize = 1_000;

/// Which part of a list is asked for.
#[derive(Debug)]
pub struct ListRequest {
    after: Option<String>,
    limit: usize,
    /// Projects that have ended, too.
    pub archived: bool,
}

/// A part of a list.
pub struct Page<T> {
    pub data: Vec<T>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

impl ListRequest {
    /// Reads the pairs of a query; `include_archived` where a list has such.
    ///
    /// # Errors
    /// Names the parameter that is wrong.
    pub fn parse(query: &[(String, String)], with_archived: bool) -> Result<Self> {
        let (mut after, mut limit, mut archived) = (None, PAGE_DEFAULT, false);
        for (name, value) in query {
            match name.as_str() {
                "after" => after = Some(value.clone()),
                "limit" => limit = page_limit(value)?,
                "include_archived" if with_archived => archived = flag("include_archived", value)?,
                other => return Err(ApiError::unsupported(super::audit::short(other))),
            }
        }
        Ok(Self {
            after,
            limit,
            archived,
        })
    }

    /// The page of all there is, behind what the request names.
    ///
    /// # Errors
    /// Where there is no such thing.
    pub fn page<T>(&self, all: Vec<T>, id: impl Fn(&T) -> &str) -> Result<Page<T>> {
        let from = match &self.after {
            None => 0,
            Some(after) => {
                let at = all.iter().position(|one| id(one) == after);
                let missing = || {
                    let message = "`after` is the identifier of nothing in this list";
                    ApiError::invalid("after", "invalid_value", message)
                };
                at.ok_or_else(missing)? + 1
            }
        };
        let has_more = all.len() > from + self.limit;
        let data: Vec<T> = all.into_iter().skip(from).take(self.limit).collect();
        let id_of = |one: Option<&T>| one.map(|one| id(one).to_owned());
        Ok(Page {
            first_id: id_of(data.first()),
            last_id: id_of(data.last()),
            data,
            has_more,
        })
    }
}

pub(super) fn page_limit(value: &str) -> Result<usize> {
    let limit: Option<i64> = value.parse().ok();
    let within = limit.filter(|limit| PAGE_LIMIT.contains(limit));
    within
        .and_then(|limit| usize::try_from(limit).ok())
        .ok_or_else(|| {
            let message = format!(
                "`limit` must be from {} to {}",
                PAGE_LIMIT.start(),
                PAGE_LIMIT.end()
            );
            ApiError::invalid("limit", "out_of_range", message)
        })
}

pub(super) fn flag(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "True" => Ok(true),
        "false" | "False" => Ok(false),
        _ => Err(ApiError::invalid(
            name,
            "invalid_value",
            format!("`{name}` is true or false"),
        )),
    }
}

/// Refuses a query where none has an effect.
///
/// # Errors
/// Names its first parameter.
pub fn empty(query: &[(String, String)]) -> Result<()> {
    query.first().map_or(Ok(()), |(name, _)| {
        Err(ApiError::unsupported(super::audit::short(name)))
    })
}

fn required(object: &mut Object<'_>, name: &str) -> Result<String> {
    optional(object, name)?.ok_or_else(|| object.missing(name))
}

/// A text that a database can have.
fn optional(object: &mut Object<'_>, name: &str) -> Result<Option<String>> {
    let text = object.string(name)?;
    if text.as_ref().is_some_and(|text| text.contains('\0')) {
        let message = format!("`{name}` has a character that no name has");
        return Err(ApiError::invalid(name, "invalid_value", message));
    }
    Ok(text)
}

fn role(object: &mut Object<'_>, among: &[Role]) -> Result<Option<Role>> {
    let names: Vec<&'static str> = among.iter().map(|role| role.name()).collect();
    let named = object.choice("role", &names)?;
    Ok(named.and_then(|name| among.iter().copied().find(|role| role.name() == name)))
}

fn expiry(object: &mut Object<'_>) -> Result<Option<i64>> {
    object.integer("expires_in_seconds", &(1..=EXPIRES_MAX_S))
}

/// A project that is made or renamed.
pub struct Named {
    pub name: String,
}

impl Named {
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(body: &[u8], depth_max: usize) -> Result<Self> {
        let mut object = Object::from_body(body, depth_max)?;
        let name = required(&mut object, "name")?;
        object.finish(&["name"], &["external_key_id", "geography", "residency"])?;
        Ok(Self { name })
    }
}

/// A key that is to be made.
pub struct KeyRequest {
    pub name: String,
    pub role: Option<Role>,
    /// The identifier of a person or a service account.
    pub owner: Option<String>,
    pub expires_in_s: Option<i64>,
}

impl KeyRequest {
    /// Of a project, for a person or a service account or nobody.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn of_project(body: &[u8], depth_max: usize) -> Result<Self> {
        const KNOWN: &[&str] = &["expires_in_seconds", "name", "role", "user_id"];
        let mut object = Object::from_body(body, depth_max)?;
        let request = Self {
            name: required(&mut object, "name")?,
            role: role(&mut object, &Role::ALL)?,
            owner: optional(&mut object, "user_id")?,
            expires_in_s: expiry(&mut object)?,
        };
        object.finish(KNOWN, &["scopes"])?;
        Ok(request)
    }

    /// Of a role that governs or reviews.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn of_administration(body: &[u8], depth_max: usize) -> Result<Self> {
        let mut object = Object::from_body(body, depth_max)?;
        let request = Self {
            name: required(&mut object, "name")?,
            role: role(&mut object, &[Role::Owner, Role::Admin, Role::Auditor])?,
            owner: None,
            expires_in_s: expiry(&mut object)?,
        };
        object.finish(&["expires_in_seconds", "name", "role"], &[])?;
        Ok(request)
    }

    /// Of a service account; it is called as that is, unless it has a name.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn of_account(body: &[u8], depth_max: usize) -> Result<(Option<String>, Option<i64>)> {
        let mut object = Object::from_body(body, depth_max)?;
        let request = (optional(&mut object, "name")?, expiry(&mut object)?);
        object.finish(&["expires_in_seconds", "name"], &["scopes"])?;
        Ok(request)
    }
}

/// A change of a key: when it ends.
pub struct KeyUpdate {
    pub expires_in_s: i64,
}

impl KeyUpdate {
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(body: &[u8], depth_max: usize) -> Result<Self> {
        let mut object = Object::from_body(body, depth_max)?;
        let expires_in_s = expiry(&mut object)?.ok_or_else(|| object.missing("expires_in_seconds"))?;
        object.finish(&["expires_in_seconds"], &["scopes"])?;
        Ok(Self { expires_in_s })
    }
}

/// A service account that is to be made.
pub struct ServiceAccountRequest {
    pub name: String,
    pub with_key: bool,
    pub expires_in_s: Option<i64>,
}

impl ServiceAccountRequest {
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(body: &[u8], depth_max: usize) -> Result<Self> {
        const KNOWN: &[&str] = &["create_service_account_only", "expires_in_seconds", "name"];
        let mut object = Object::from_body(body, depth_max)?;
        let request = Self {
            name: required(&mut object, "name")?,
            with_key: object.boolean("create_service_account_only")? != Some(true),
            expires_in_s: expiry(&mut object)?,
        };
        if !request.with_key && request.expires_in_s.is_some() {
            let message = "`expires_in_seconds` is of a key, and `create_service_account_only` asks for none";
            return Err(ApiError::invalid("expires_in_seconds", "invalid_value", message));
        }
        object.finish(KNOWN, &[])?;
        Ok(request)
    }

    /// The new name of one that there is.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn rename(body: &[u8], depth_max: usize) -> Result<String> {
        let mut object = Object::from_body(body, depth_max)?;
        let name = required(&mut object, "name")?;
        // It is what all of them have.
        object.choice("role", &["member"])?;
        object.finish(&["name", "role"], &[])?;
        Ok(name)
    }
}

/// A person that is added.
pub struct UserRequest {
    pub email: String,
    pub name: String,
    pub role: Role,
}

/// What a person may be.
pub const PERSON_ROLES: [Role; 4] = [Role::Owner, Role::Admin, Role::Auditor, Role::Member];

impl UserRequest {
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(body: &[u8], depth_max: usize) -> Result<Self> {
        let mut object = Object::from_body(body, depth_max)?;
        let request = Self {
            email: required(&mut object, "email")?,
            name: required(&mut object, "name")?,
            role: role(&mut object, &PERSON_ROLES)?.unwrap_or(Role::Member),
        };
        object.finish(&["email", "name", "role"], &[])?;
        Ok(request)
    }
}

/// Another role of a person.
pub struct RoleRequest {
    pub role: Role,
}

impl RoleRequest {
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(body: &[u8], depth_max: usize) -> Result<Self> {
        let mut object = Object::from_body(body, depth_max)?;
        let role = role(&mut object, &PERSON_ROLES)?.ok_or_else(|| object.missing("role"))?;
        object.finish(&["role"], &["developer_persona", "role_id", "technical_level"])?;
        Ok(Self { role })
    }
}

/// A person who is to be in a project, by identifier or address.
pub struct MemberRequest {
    pub whom: String,
}

impl MemberRequest {
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(body: &[u8], depth_max: usize) -> Result<Self> {
        let mut object = Object::from_body(body, depth_max)?;
        object.choice("role", &["member"])?;
        let (id, email) = (optional(&mut object, "user_id")?, optional(&mut object, "email")?);
        let whom = match (id, email) {
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return Err(object.missing("user_id")),
            (Some(_), Some(_)) => {
                let message = "`email` and `user_id` each name a person: send one of them";
                return Err(ApiError::invalid("email", "invalid_value", message));
            }
        };
        object.finish(&["email", "role", "user_id"], &[])?;
        Ok(Self { whom })
    }

    /// Checks what can be changed of a person in a project, which is nothing.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn check_update(body: &[u8], depth_max: usize) -> Result<()> {
        let mut object = Object::from_body(body, depth_max)?;
        object.choice("role", &["member"])?;
        object.finish(&["role"], &[])
    }
}

/// Limits of a project.
pub struct RateRequest {
    pub changes: Vec<(Metric, Option<i64>)>,
}

impl RateRequest {
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(body: &[u8], depth_max: usize) -> Result<Self> {
        const KNOWN: &[&str] = &["max_requests_per_1_minute", "max_tokens_per_1_minute"];
        const UNSUPPORTED: &[&str] = &[
            "batch_1_day_max_input_tokens",
            "max_audio_megabytes_per_1_minute",
            "max_images_per_1_minute",
            "max_requests_per_1_day",
        ];
        let mut object = Object::from_body(body, depth_max)?;
        let mut changes = Vec::new();
        for (name, metric) in KNOWN
            .iter()
            .zip([Metric::RequestsPerMinute, Metric::TokensPerMinute])
        {
            if let Some(value) = object.integer(name, &(1..=LIMIT_MAX))? {
                changes.push((metric, Some(value)));
            }
        }
        object.finish(KNOWN, UNSUPPORTED)?;
        if changes.is_empty() {
            let message = "`max_requests_per_1_minute` or `max_tokens_per_1_minute` is required";
            return Err(ApiError::invalid(KNOWN[0], "missing_required_parameter", message));
        }
        Ok(Self { changes })
    }
}

/// The models that a project may use; none: all.
pub struct ModelsRequest {
    pub models: Vec<String>,
}

impl ModelsRequest {
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(body: &[u8], depth_max: usize) -> Result<Self> {
        let mut object = Object::from_body(body, depth_max)?;
        let mode = object.require_choice("mode", &["allow_list", "deny_list"])?;
        let raw: &RawValue = object.require("model_ids")?;
        let models = json::array(raw, "model_ids", MODELS_MAX)?
            .into_iter()
            .enumerate()
            .map(|(at, raw)| json::typed(raw, &format!("model_ids[{at}]"), "a string"))
            .collect::<Result<Vec<String>>>()?;
        // A model that comes later would be allowed where only some are denied.
        if models.is_empty() != (mode == "deny_list") {
            let message =
                "`model_ids` has one or more in an `allow_list`, and none in a `deny_list`, which allows all";
            return Err(ApiError::invalid("model_ids", "invalid_value", message));
        }
        object.finish(&["mode", "model_ids"], &[])?;
        Ok(Self { models })
    }
}
