//! The first byte is an endpoint, the rest a body: reading it ends in a request or in a refusal that says nothing back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rempart::anthropic::MessagesRequest;
use rempart::http::error::ApiError;
use rempart::openai::chat::ChatRequest;
use rempart::openai::completions::CompletionRequest;
use rempart::openai::embeddings::EmbeddingsRequest;
use rempart::openai::rank::{RerankRequest, ScoreRequest};
use rempart::openai::responses::ResponsesRequest;
use rempart::openai::tokenize::{DetokenizeRequest, TokenizeRequest};
use serde_json::Value;

/// Names of parameters may be the client's; nothing else that it sent is told back.
const MESSAGE_MAX: usize = 1_000;
/// Put into every string that is no name: it may come back nowhere.
const CANARY: &str = "cAnArY";

fuzz_target!(|data: &[u8]| {
    let Some((endpoint, body)) = data.split_first() else {
        return;
    };
    for body in [Some(body.to_vec()), with_canaries(body)].into_iter().flatten() {
        if let Err(error) = parse(*endpoint, &body) {
            assert!(error.status.is_client_error(), "{error:?}");
            assert!(error.message.len() <= MESSAGE_MAX, "{error:?}");
            assert!(!error.message.contains(CANARY), "{error:?}");
        }
    }
});

/// The same body with other strings, if it is JSON: what a client says, but not the words of the interface.
fn with_canaries(body: &[u8]) -> Option<Vec<u8>> {
    fn put(value: &mut Value) {
        match value {
            Value::String(text) if text.contains(' ') || text.is_empty() => {
                *text = format!("{CANARY} {text}");
            }
            Value::Array(items) => items.iter_mut().for_each(put),
            Value::Object(fields) => fields.iter_mut().for_each(|(_, value)| put(value)),
            _ => {}
        }
    }
    let mut value = serde_json::from_slice(body).ok()?;
    put(&mut value);
    serde_json::to_vec(&value).ok()
}

fn parse(endpoint: u8, body: &[u8]) -> Result<(), ApiError> {
    let limits = rempart_fuzz::limits();
    match endpoint {
        b'c' => ChatRequest::parse(body, limits).map(drop),
        b'p' => CompletionRequest::parse(body, limits).map(drop),
        b'r' => ResponsesRequest::parse(body, limits, |_| None).map(drop),
        b'm' => MessagesRequest::parse(body, limits, true).map(drop),
        b'e' => EmbeddingsRequest::parse(body, limits).map(drop),
        b'k' => RerankRequest::parse(body, limits, true).map(drop),
        b's' => ScoreRequest::parse(body, limits).map(drop),
        b't' => TokenizeRequest::parse(body, limits).map(drop),
        b'd' => DetokenizeRequest::parse(body, limits).map(drop),
        _ => Ok(()),
    }
}
