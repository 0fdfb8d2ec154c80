//! Why a request failed, in words that hold nothing of what was asked or answered.

use std::io;

/// Why a request failed. Its text is the reason that results count by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
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
    #[error("more events than the answer can have tokens")]
    TooManyEvents,
    #[error("an answer of more bytes than the limit")]
    TooLong,
    #[error("the stream ended before the answer did")]
    ClosedEarly,
    #[error("the answer held no token")]
    NoToken,
    #[error("more than --in-flight-max requests in flight")]
    InFlight,
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
}
