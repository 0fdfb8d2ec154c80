//! `prediction`: what a client expects to be answered, which makes the answer faster where it comes true.

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::Object;
use crate::openai::messages;

/// The only kind there is.
pub const TYPES: &[&str] = &["content"];

/// Takes `prediction`.
pub fn read(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Option<String>, ApiError> {
    let Some(raw) = object.take("prediction") else {
        return Ok(None);
    };
    let mut prediction = Object::from_raw(raw, "prediction")?;
    prediction.require_choice("type", TYPES)?;
    let path = prediction.path("content");
    let content = messages::content_text(prediction.require("content")?, &path, limits)?;
    prediction.finish(&["type", "content"], &[])?;
    Ok(Some(content))
}
