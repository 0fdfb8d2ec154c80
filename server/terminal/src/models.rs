//! The models that a server lists.

use anyhow::{Context as _, bail};
use rempart_client::{Accept, Client, ServerError};
use serde::Deserialize;

use crate::visible::line;

/// Of a list of models.
const LIST_BYTES_MAX: usize = 4 << 20;
const MODELS_MAX: usize = 10_000;
/// Of what a server says of an error, in a message.
pub(crate) const SAID_CHARS_MAX: usize = 600;

/// The names of the models, in the server's order.
///
/// # Errors
/// Why the server tells none, and what to do.
pub(crate) async fn list(client: &Client) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Entry {
        id: String,
    }
    #[derive(Deserialize)]
    struct List {
        data: Vec<Entry>,
    }
    let path = client.target().path("models");
    let document = client
        .get(&path, Accept::Json, LIST_BYTES_MAX)
        .await
        .with_context(|| {
            format!(
                "{}: is the server running, and is --base-url right?",
                client.target().authority()
            )
        })?;
    if document.status != 200 {
        bail!(
            "{path}: {}",
            refusal(document.status, &ServerError::in_body(&document.body))
        );
    }
    let list: List = serde_json::from_slice(&document.body).ok().with_context(|| {
        format!("{path}: no list of models; --base-url ends with the API's version, like /v1")
    })?;
    Ok(list
        .data
        .into_iter()
        .take(MODELS_MAX)
        .map(|entry| entry.id)
        .collect())
}

/// What a server that refused has said, and what to do about it.
pub(crate) fn refusal(status: u16, error: &ServerError) -> String {
    let code = error.code.as_deref().map(|code| format!(" ({code})"));
    let said = error
        .message
        .as_deref()
        .map(|message| format!(": {}", line(message, SAID_CHARS_MAX)));
    let hint = match status {
        401 | 403 => ". Give a key that may do this in OPENAI_API_KEY",
        404 => ". --base-url ends with the API's version, like http://host:8080/v1",
        429 | 503 => ". The server has too much to do, or a limit for this key",
        _ => "",
    };
    format!(
        "HTTP {status}{}{}{hint}",
        code.unwrap_or_default(),
        said.unwrap_or_default()
    )
}
