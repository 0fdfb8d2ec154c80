//! Why a request failed, in words that hold nothing of what was asked or answered.

use std::io;

use crate::sse::TooLong;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("could not connect: {0}")]
    Connect(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no connection within --connect-timeout-s")]
    ConnectTimeout,
    #[error("nothing came for --idle-timeout-s")]
    IdleTimeout,
    #[error("not done within --timeout-s")]
    RequestTimeout,
    #[error("connection lost: {0}")]
    Lost(String),
    #[error("not HTTP/1.1: {0}")]
    Protocol(String),
    #[error("HTTP {status}{}", code.as_ref().map_or_else(String::new, |code| format!(" ({code})")))]
    Status { status: u16, code: Option<String> },
    #[error("the server reported an error within the stream{}", .0.as_ref().map_or_else(String::new, |code| format!(" ({code})")))]
    InStream(Option<String>),
    #[error("a JSON document instead of server-sent events")]
    NotAStream,
    #[error("an event that is not a JSON object of the API")]
    BadEvent,
    #[error("an answer that is not a JSON object of the API")]
    BadBody,
    #[error("an event of more than {} bytes", crate::limits::EVENT_BYTES_MAX)]
    EventTooLong,
    #[error("an answer of more bytes than the limit")]
    TooLong,
    #[error("the stream ended before the answer did")]
    ClosedEarly,
}

impl Failure {
    pub(crate) fn connect(error: &io::Error) -> Self {
        Self::Connect(error.kind().to_string())
    }

    /// What hyper says, without what a peer sent.
    pub(crate) fn http(error: &hyper::Error) -> Self {
        if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
            return Self::Protocol(error.to_string());
        }
        Self::Lost(error.to_string())
    }
}

impl From<TooLong> for Failure {
    fn from(_: TooLong) -> Self {
        Self::EventTooLong
    }
}

/// An error as OpenAI has it. Its message is for the person who asked, and no part of a [`Failure`], since it may repeat
/// what was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    pub code: Option<String>,
    pub message: Option<String>,
}

impl ServerError {
    /// Reads what stands under `error`: an object, or in some servers a sentence.
    pub fn of(error: &serde_json::Value) -> Self {
        let text = |name: &str| error.get(name).and_then(serde_json::Value::as_str);
        let number = |name: &str| error.get(name).filter(|value| value.is_number());
        let named = |name: &str| {
            text(name)
                .and_then(code)
                .or_else(|| number(name).map(ToString::to_string))
        };
        Self {
            code: named("code").or_else(|| named("type")),
            message: text("message").or(error.as_str()).map(str::to_owned),
        }
    }

    /// Reads the body of an answer that is an error.
    pub fn in_body(body: &[u8]) -> Self {
        let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        body.get("error").map(Self::of).unwrap_or_default()
    }
}

/// A code that a server gave its error, where it looks like one and not like a text that might repeat a prompt.
pub(crate) fn code(text: &str) -> Option<String> {
    const BYTES_MAX: usize = 48;
    let like_code = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!text.is_empty() && text.len() <= BYTES_MAX && text.chars().all(like_code)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_and_sentences_are_not() {
        assert_eq!(
            code("rate_limit_exceeded").as_deref(),
            Some("rate_limit_exceeded")
        );
        assert_eq!(code("your prompt was: secret"), None);
        assert_eq!(code(&"a".repeat(49)), None);
        let failure = Failure::Status {
            status: 429,
            code: code("slow_down"),
        };
        assert_eq!(failure.to_string(), "HTTP 429 (slow_down)");
    }

    #[test]
    fn errors_are_read_in_the_shapes_that_servers_have() {
        let read = |body: &str| {
            let ServerError { code, message } = ServerError::in_body(body.as_bytes());
            (code, message)
        };
        let of =
            |code: Option<&str>, message: Option<&str>| (code.map(str::to_owned), message.map(str::to_owned));
        assert_eq!(
            read(
                r#"{"error":{"message":"No such model","type":"invalid_request_error","code":"model_not_found"}}"#
            ),
            of(Some("model_not_found"), Some("No such model"))
        );
        assert_eq!(
            read(r#"{"error":{"message":"Full","type":"server_error","code":null}}"#),
            of(Some("server_error"), Some("Full"))
        );
        assert_eq!(read(r#"{"error":{"code":429}}"#), of(Some("429"), None));
        assert_eq!(read(r#"{"error":"loading"}"#), of(None, Some("loading")));
        for other in ["", "garbage", "[]", "{}", "{\"error\":7}"] {
            assert_eq!(read(other), of(None, None), "{other}");
        }
    }
}
