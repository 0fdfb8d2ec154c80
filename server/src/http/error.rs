//! What a client is told when something goes wrong: one type, one shape, one table.

mod governance;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::openapi::code;

/// When a client may ask again for a model that is not loaded, in seconds.
const UNLOADED_RETRY_AFTER_S: u64 = 10;
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Names of models in a message.
const NAMES_TOLD: usize = 16;

/// An answer other than success, in OpenAI's shape. The message is written for the client and never holds text that
/// the client sent; what only the operator may know goes to the log where the error is made.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    pub kind: Kind,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Seconds for `Retry-After`.
    pub retry_after_s: Option<u64>,
    /// Whether a client should try again by itself; `None`: as it usually does.
    pub retry: Option<bool>,
    /// Whether the connection is closed after the answer.
    pub close: bool,
}

/// The `type` of an error object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ErrorType)]
pub enum Kind {
    InvalidRequestError,
    TimeoutError,
    ServerError,
    /// A limit of requests is reached.
    Requests,
    /// A limit of tokens is reached.
    Tokens,
}

/// The body of every error, also inside a stream.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize, ToSchema)]
struct ErrorObject<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: Kind,
    param: Option<&'a str>,
    #[schema(schema_with = code)]
    code: Option<&'a str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: Kind, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            kind,
            message,
            param: None,
            code,
            retry_after_s: None,
            retry: None,
            close: false,
        }
    }

    /// 400: the request is at fault, and `param` is where.
    pub fn invalid(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(
            StatusCode::BAD_REQUEST,
            Kind::InvalidRequestError,
            Some(code),
            message,
        );
        Self {
            param: Some(param.into()),
            ..error
        }
    }

    /// 400: the body is not the JSON that was expected.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            Kind::InvalidRequestError,
            Some("invalid_json"),
            message,
        )
    }

    /// 400: a parameter of the OpenAI API, or of another server, that has no effect here.
    pub fn unsupported(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("`{param}` is not supported by this server");
        Self::invalid(param, "unsupported_parameter", message)
    }

    /// 400: HTTP/1.1 without a host.
    pub fn no_host() -> Self {
        let message = "The request has no `Host` header";
        let status = StatusCode::BAD_REQUEST;
        Self::new(status, Kind::InvalidRequestError, Some("no_host"), message)
    }

    /// 400: plain HTTP, where there is TLS alone.
    pub fn tls_required() -> Self {
        let message = "This port speaks HTTPS: write https:// in the address";
        let status = StatusCode::BAD_REQUEST;
        Self::new(status, Kind::InvalidRequestError, Some("tls_required"), message)
    }

    /// 403: a page of the web may have sent this through its visitor's browser.
    pub fn host_not_allowed() -> Self {
        let message = "The `Host` header names a host that this server does not answer for; its operator can allow a \
                       name with --allowed-host";
        let status = StatusCode::FORBIDDEN;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("host_not_allowed"),
            message,
        )
    }

    /// 404: no such path.
    pub fn route_not_found() -> Self {
        Self::unknown_url("Unknown request URL. See /v1/models for what is served")
    }

    /// The same in other words, where there are better ones.
    pub fn unknown_url(message: &'static str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Kind::InvalidRequestError,
            Some("unknown_url"),
            message,
        )
    }

    /// 404: no such model. The name is the client's own and is told back only if it looks like a model name. `served` are
    /// the names that there are, of which a message has room for some.
    pub fn model_not_found(name: &str, served: &[String]) -> Self {
        let sane = (1..=128).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b));
        let shown = if sane { format!("`{name}` ") } else { String::new() };
        let mut message = format!("The model {shown}does not exist on this server");
        if !served.is_empty() {
            let told: Vec<String> = served
                .iter()
                .take(NAMES_TOLD)
                .map(|name| format!("`{name}`"))
                .collect();
            let more = if served.len() > NAMES_TOLD {
                " and more"
            } else {
                ""
            };
            message = format!("{message}; it serves {}{more}", told.join(", "));
        }
        let error = Self::new(
            StatusCode::NOT_FOUND,
            Kind::InvalidRequestError,
            Some("model_not_found"),
            message,
        );
        Self {
            param: Some("model".to_owned()),
            ..error
        }
    }

    /// 503: the model is known, and not in memory.
    pub fn model_unloaded() -> Self {
        let message = "The model is not loaded; the operator of this server can load it";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let error = Self::new(status, Kind::ServerError, Some("model_unloaded"), message);
        Self {
            param: Some("model".to_owned()),
            retry_after_s: Some(UNLOADED_RETRY_AFTER_S),
            ..error
        }
    }

    /// 409: the model is being loaded or unloaded.
    pub fn model_busy(state: &str) -> Self {
        let message = format!("The model is {state}: try again when that has ended");
        Self::new(
            StatusCode::CONFLICT,
            Kind::InvalidRequestError,
            Some("model_busy"),
            message,
        )
    }

    /// 422: a model could not be loaded. The reason is for the operator, who alone is told it.
    pub fn load_failed(why: &str) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, Kind::InvalidRequestError, Some("model_load_failed"), why)
    }

    /// 403: a page of the web has sent this through its visitor's browser.
    pub fn origin_not_allowed() -> Self {
        let message = "This interface is not for pages of the web: send no `Origin` header";
        let status = StatusCode::FORBIDDEN;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("origin_not_allowed"),
            message,
        )
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "This method is not allowed for this URL";
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("method_not_allowed"),
            message,
        )
    }

    /// 408: the body did not arrive in time.
    pub fn body_timeout(seconds: u64) -> Self {
        let message = format!("The request body did not arrive within {seconds} seconds");
        let error = Self::new(
            StatusCode::REQUEST_TIMEOUT,
            Kind::TimeoutError,
            Some("body_timeout"),
            message,
        );
        Self { close: true, ..error }
    }

    /// 413: the body is over its limit. The rest of it is not read, so the connection cannot be used again.
    pub fn body_too_large(limit_bytes: usize) -> Self {
        let message = format!("The request body is larger than the limit of {limit_bytes} bytes");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let error = Self::new(status, Kind::InvalidRequestError, Some("body_too_large"), message);
        Self { close: true, ..error }
    }

    /// 415.
    pub fn not_json() -> Self {
        let message = "The request body must be sent with `Content-Type: application/json`";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("unsupported_media_type"),
            message,
        )
    }

    /// 415: decompressing would let a small body stand for a large one.
    pub fn compressed() -> Self {
        let message =
            "The request body must be sent without `Content-Encoding`: compressed bodies are not read";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(
            status,
            Kind::InvalidRequestError,
            Some("unsupported_content_encoding"),
            message,
        )
    }

    /// 431.
    pub fn head_too_large(limit_bytes: usize) -> Self {
        let message = format!("The request's head is larger than the limit of {limit_bytes} bytes");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let error = Self::new(status, Kind::InvalidRequestError, Some("head_too_large"), message);
        Self { close: true, ..error }
    }

    /// 400: the prompt, or the prompt and the tokens asked for, do not fit the context.
    pub fn context_exceeded(param: &str, context: usize, prompt: usize, wanted: Option<usize>) -> Self {
        let message = match wanted {
            None => format!(
                "This model's maximum context length is {context} tokens, but the prompt has {prompt} tokens and \
                 an answer needs at least one"
            ),
            Some(wanted) => format!(
                "This model's maximum context length is {context} tokens, but {} tokens were requested ({prompt} in \
                 the prompt, {wanted} in the completion)",
                prompt.saturating_add(wanted)
            ),
        };
        Self::invalid(param, "context_length_exceeded", message)
    }

    /// 400: the prompt is so far over the context that its tokens were not counted to the end.
    pub fn context_exceeded_at_least(param: &str, context: usize, at_least: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens, but the prompt has at least {at_least} tokens"
        );
        Self::invalid(param, "context_length_exceeded", message)
    }

    /// 503: every queue has its limit, and this one is reached.
    pub fn overloaded(retry_after_s: u64) -> Self {
        let message = format!("The server is overloaded; try again in {retry_after_s} s");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let error = Self::new(status, Kind::ServerError, Some("server_is_overloaded"), message);
        Self {
            retry_after_s: Some(retry_after_s),
            ..error
        }
    }

    /// 503: the process is ending.
    pub fn draining() -> Self {
        let message = "The server is shutting down and takes no new requests";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let error = Self::new(status, Kind::ServerError, Some("server_is_draining"), message);
        Self {
            retry_after_s: Some(1),
            close: true,
            ..error
        }
    }

    /// 503: not yet, or no longer, able to answer.
    pub fn not_ready(why: &str) -> Self {
        let message = format!("The server is not ready: {why}");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let error = Self::new(status, Kind::ServerError, Some("server_not_ready"), message);
        Self {
            retry_after_s: Some(1),
            ..error
        }
    }

    /// 504: the request's own time is over.
    pub fn deadline() -> Self {
        let message = "The request did not finish within the server's time limit";
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            Kind::TimeoutError,
            Some("deadline_exceeded"),
            message,
        )
    }

    /// 400: an answer came to a place of its format that it can't leave.
    pub fn format_stuck() -> Self {
        let message = "the format that was asked for leads to a place that no token of this model continues, or that is more \
                       complex than this server follows: simplify it";
        Self {
            param: None,
            ..Self::invalid("response_format", "format_stuck", message)
        }
    }

    /// 400: an encoder's input has more tokens than it takes, at least so many.
    pub fn input_too_long(param: &str, limit: usize, at_least: usize) -> Self {
        let message = format!(
            "`{param}` has at least {at_least} tokens, but this model takes {limit}; `truncate_prompt_tokens` cuts it"
        );
        Self::invalid(param, "context_length_exceeded", message)
    }

    /// 404, or 400 where a parameter names it: an answer that is not kept, or not any more.
    pub fn response_not_found(param: Option<&str>) -> Self {
        let message = "No response of this id is kept: it may have passed its retention, which the operator sets by \
                       --responses-retention-s";
        let status = param.map_or(StatusCode::NOT_FOUND, |_| StatusCode::BAD_REQUEST);
        let error = Self::new(
            status,
            Kind::InvalidRequestError,
            Some("response_not_found"),
            message,
        );
        Self {
            param: param.map(str::to_owned),
            ..error
        }
    }

    /// The same for a parameter that has another name where the client sent it.
    #[must_use]
    pub fn renamed(mut self, name: &str, theirs: &str) -> Self {
        let inside = self.param.as_deref().and_then(|param| param.strip_prefix(name));
        let rest = inside.filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        if let Some(rest) = rest.map(str::to_owned) {
            self.message = self
                .message
                .replace(&format!("`{name}{rest}`"), &format!("`{theirs}{rest}`"));
            self.param = Some(format!("{theirs}{rest}"));
        }
        self
    }

    /// 500: our fault.
    pub fn internal() -> Self {
        let message = "The server failed while it worked on this request";
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Kind::ServerError,
            Some("internal_error"),
            message,
        )
    }

    /// The JSON body.
    pub fn body(&self) -> ErrorBody<'_> {
        let error = ErrorObject {
            message: &self.message,
            kind: self.kind,
            param: self.param.as_deref(),
            code: self.code,
        };
        ErrorBody { error }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        // An outer layer may write it in another interface's shape.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(retry) = self.retry {
            // OpenAI's and Anthropic's clients go by it.
            let told = if retry { "true" } else { "false" };
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(told));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
