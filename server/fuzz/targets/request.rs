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

/// Names in paths may be the client's; messages are ours, with a few of such names.
const MESSAGE_MAX: usize = 1_000;

fuzz_target!(|data: &[u8]| {
    let Some((endpoint, body)) = data.split_first() else {
        return;
    };
    if let Err(error) = parse(*endpoint, body) {
        assert!(error.status.is_client_error(), "{error:?}");
        assert!(error.message.len() <= MESSAGE_MAX, "{error:?}");
    }
});

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
