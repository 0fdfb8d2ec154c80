//! What was done, by whom.

use axum::Json;
use axum::extract::State;
use rempart_governance::Error;

use super::{Pairs, pairs, store, told};
use crate::http::AppState;
use crate::http::error::ApiError;
use crate::openai::administration::{AuditLog, AuditLogList, AuditRequest};

pub async fn list(State(app): State<AppState>, query: Pairs) -> Result<Json<AuditLogList>, ApiError> {
    let store = store(&app)?;
    let mut asked = AuditRequest::parse(&pairs(query)?)?;
    let by_address = !asked.emails.is_empty();
    if by_address {
        store.secret().map_err(told)?;
    }
    for email in &asked.emails {
        match store.person(email).await {
            Ok(person) => asked.query.actors.push(person.id),
            // Nobody of this address has done anything.
            Err(Error::Missing(_) | Error::Refused(_)) => {}
            Err(error) => return Err(told(error)),
        }
    }
    if by_address && asked.query.actors.is_empty() {
        return Ok(Json(AuditLogList::new(Vec::new(), false)));
    }
    let limit = i64::try_from(asked.limit).unwrap_or(i64::MAX - 1);
    let mut rows = store.find_audit(&asked.query, limit + 1).await.map_err(told)?;
    let has_more = rows.len() > asked.limit;
    if has_more && asked.query.behind.is_some() && asked.query.before.is_none() {
        // These come next behind the one that was named: the newest is one too many.
        rows.remove(0);
    }
    rows.truncate(asked.limit);
    let data = rows.into_iter().map(AuditLog::from).collect();
    Ok(Json(AuditLogList::new(data, has_more)))
}
