//! The operations: a path, a method, what is sent and what comes back.

use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, Paths};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::{
    Content, HeaderBuilder, HttpMethod, PathsBuilder, Ref, Required, Response, ResponseBuilder,
};

use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};

use super::schema::{AnySchema, Fields, any_of, event, integer, json, named, string, told, word};
use crate::encoder_thread::RETRY_AFTER_MAX_S;
use crate::http::account::{RECORDED, RECORDED_WORDS};
use crate::http::authorize::{ADMIN_NEEDS, NEEDS, Need};

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

pub(super) const NO_KEY: &str = "There is no key, or none that is good, where the server asks for one; or `OpenAI-Project` names a project that \
    it is not of (`mismatched_project`); or it has ended while an answer was made (`key_ended`, also within a stream).";

/// What errors mean, by their status. All have the same body.
const ERRORS: &[(u16, &str)] = &[
    (
        400,
        "The request is at fault: `param` says where, and `message` what the limit is. `project_required`: the token's person is in \
         several projects, and `OpenAI-Project` names none.",
    ),
    (401, NO_KEY),
    (
        403,
        "The key's role may not do this, the token's person is in no project (`no_project`), or the `Host` header names a host that this server does not answer for.",
    ),
    (
        404,
        "There is no such thing: a model, an answer that is not kept, or not any more, or, without a database, usage and all that is administered.",
    ),
    (408, "The body did not arrive in time."),
    (413, "The body is larger than this server reads."),
    (
        415,
        "The body is not sent as `application/json`, or is compressed.",
    ),
    (429, "A limit of the key, its person or its project is reached."),
    (431, "The head is larger than this server reads."),
    (500, "The server is at fault."),
    (
        503,
        "Not now: a queue is full, the model is not loaded, models are loading, or the server is shutting down.",
    ),
    (504, "The request took longer than this server lets it."),
];

/// Seconds of the longest month.
const MONTH_S: i64 = 31 * 86_400;
/// The names of the ways to say who makes a request.
const SECURITY_SCHEMES: [&str; 3] = ["bearer", "x-api-key", CERTIFICATE_SCHEME];
pub(super) const CERTIFICATE_SCHEME: &str = "certificate";
const CERTIFICATE: &str = "A client's certificate that a key was made for, where the server asks for certificates; without a key beside it.";
/// Which of the projects that its person is in a request is of.
const PROJECT: &str = "A project, by identifier or name. It must be the key's own; of tokens of a login it chooses one of the projects that \
    the person is in.";

/// How a key is sent. Tokens of the company's login go where keys do.
pub(super) fn security_schemes() -> Vec<(&'static str, SecurityScheme)> {
    let [bearer, header, certificate] = SECURITY_SCHEMES;
    let mutual_tls = SecurityScheme::MutualTls {
        description: Some(CERTIFICATE.to_owned()),
        deprecated: None,
        extensions: None,
    };
    vec![
        (bearer, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer))),
        (
            header,
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new(header))),
        ),
        (certificate, mutual_tls),
    ]
}

/// Whose shape errors have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    OpenAi,
    Anthropic,
}

impl Shape {
    const ALL: [Self; 2] = [Self::OpenAi, Self::Anthropic];

    fn schema(self) -> &'static str {
        match self {
            Self::OpenAi => "Error",
            Self::Anthropic => "AnthropicError",
        }
    }

    /// The name of the response of a status.
    fn response(self, status: u16) -> String {
        format!("{}{status}", self.schema())
    }
}

/// The responses that operations refer to.
pub(super) fn errors() -> Vec<(String, Response)> {
    let of = |shape: Shape| {
        ERRORS
            .iter()
            .map(move |(status, what)| error(shape, *status, what))
    };
    Shape::ALL.into_iter().flat_map(of).collect()
}

pub(super) fn error(shape: Shape, status: u16, what: &str) -> (String, Response) {
    let content = Content::new(Some(named(shape.schema())));
    let mut response = ResponseBuilder::new().description(what).content(JSON, content);
    // Of all queues, those of encoders may ask for the longest wait; limits of a month may ask for all of it, or for none.
    let longest = match status {
        429 => Some(MONTH_S),
        503 => Some(i64::try_from(RETRY_AFTER_MAX_S).unwrap_or(i64::MAX)),
        _ => None,
    };
    if let Some(longest) = longest {
        let seconds = HeaderBuilder::new()
            .schema(Some(integer(&(1..=longest))))
            .description(Some("Seconds after which to try again."));
        response = response.header("Retry-After", seconds.build());
    }
    (shape.response(status), response.build())
}

/// One way to call the server.
pub(super) struct Call {
    method: HttpMethod,
    path: &'static str,
    pub(super) operation: OperationBuilder,
    shape: Shape,
    /// Whether it uses a model, so that limits hold for it and it may be recorded.
    metered: bool,
}

impl Call {
    pub(super) fn new(method: HttpMethod, path: &'static str, tag: &str, summary: &str) -> Self {
        let verb = if method == HttpMethod::Get {
            "get"
        } else if method == HttpMethod::Post {
            "post"
        } else {
            "delete"
        };
        let words: String = path
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        let operation = OperationBuilder::new()
            .tag(tag)
            .summary(Some(summary))
            .operation_id(Some(format!("{verb}{}", words.trim_end_matches('_'))));
        let shape = if path.starts_with("/v1/messages") {
            Shape::Anthropic
        } else {
            Shape::OpenAi
        };
        let call = Self {
            method,
            path,
            operation,
            shape,
            metered: false,
        };
        // These can befall any request.
        call.fails(&[400, 403, 431, 500]).asks_for_a_key()
    }

    /// A key, in either header, or a certificate is needed where the server has a database of them.
    fn asks_for_a_key(mut self) -> Self {
        let own = |route: &str| route.replace("{*", "{") == self.path;
        let needs = NEEDS.iter().chain(ADMIN_NEEDS).find(|(route, _)| own(route));
        if needs.is_none_or(|(_, need)| *need == Need::Nothing) {
            return self;
        }
        // Administration has no TLS.
        let ways = if self.path.starts_with("/admin/") {
            2
        } else {
            SECURITY_SCHEMES.len()
        };
        for scheme in SECURITY_SCHEMES.into_iter().take(ways) {
            let requirement = SecurityRequirement::new(scheme, Vec::<String>::new());
            self.operation = self.operation.security(requirement);
        }
        self.operation = self.operation.security(SecurityRequirement::default());
        let project = ParameterBuilder::new()
            .name("OpenAI-Project")
            .parameter_in(ParameterIn::Header)
            .description(Some(PROJECT))
            .schema(Some(string()));
        self.operation = self.operation.parameter(project.build());
        self.fails(&[401, 503])
    }

    pub(super) fn get(path: &'static str, tag: &str, summary: &str) -> Self {
        Self::new(HttpMethod::Get, path, tag, summary)
    }

    pub(super) fn post(path: &'static str, tag: &str, summary: &str, body: &str) -> Self {
        let content = Content::new(Some(named(body)));
        let body = RequestBodyBuilder::new()
            .required(Some(Required::True))
            .content(JSON, content);
        let mut call = Self::new(HttpMethod::Post, path, tag, summary).fails(&[404, 408, 413, 415, 503, 504]);
        call.operation = call.operation.request_body(Some(body.build()));
        call
    }

    /// One that uses a model, as the layer [`account`](crate::http::account::account) is around it.
    fn using(path: &'static str, tag: &str, summary: &str, body: &str) -> Self {
        let call = Self::post(path, tag, summary, body).fails(&[429]);
        Self {
            metered: true,
            ..call
        }
    }

    pub(super) fn fails(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            let reference = Ref::from_response_name(self.shape.response(*status));
            self.operation = self.operation.response(status.to_string(), reference);
        }
        self
    }

    pub(super) fn gives(self, what: &str, content_type: &str, schema: AnySchema) -> Self {
        self.responds(
            "200",
            ResponseBuilder::new()
                .description(what)
                .content(content_type, Content::new(Some(schema))),
        )
    }

    fn responds(mut self, status: &str, mut response: ResponseBuilder) -> Self {
        if self.metered {
            let recorded = HeaderBuilder::new()
                .schema(Some(word(&RECORDED_WORDS)))
                .description(Some(
                    "What of the request is recorded, where its project has that.",
                ));
            response = response.header(RECORDED.as_str(), recorded.build());
        }
        self.operation = self.operation.response(status, response.build());
        self
    }

    pub(super) fn answers(self, schema: &str) -> Self {
        self.gives("The answer.", JSON, named(schema))
    }

    /// With `stream`, events with such data instead of one answer.
    fn streams(self, schema: &str, (what, data): (&str, AnySchema)) -> Self {
        let events = told(event(data), what, None);
        let response = ResponseBuilder::new()
            .description("The answer; with `stream`, as server-sent events.")
            .content(JSON, Content::new(Some(named(schema))))
            .content(EVENTS, Content::new(Some(events)));
        self.responds("200", response)
    }

    fn id(self, what: &str) -> Self {
        self.part_of_path("id", what)
    }

    pub(super) fn part_of_path(self, name: &str, what: &str) -> Self {
        self.kind_of_path(name, what, string())
    }

    pub(super) fn kind_of_path(mut self, name: &str, what: &str, schema: AnySchema) -> Self {
        let id = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(what))
            .schema(Some(schema));
        self.operation = self.operation.parameter(id.build());
        self.fails(&[404])
    }
}

/// All of them.
pub(super) fn paths() -> Paths {
    let usage = super::organization::calls("Usage");
    let administration = super::administration::calls("Administration");
    let calls = [
        generating(),
        encoding(),
        tokens(),
        kept(),
        models(),
        usage,
        administration,
        operating(),
    ];
    paths_of(calls.into_iter().flatten())
}

/// Calls by their paths.
pub(super) fn paths_of(calls: impl IntoIterator<Item = Call>) -> Paths {
    let paths = calls.into_iter().fold(PathsBuilder::new(), |paths, call| {
        let operation: Operation = call.operation.build();
        paths.path(call.path, PathItem::new(call.method, operation))
    });
    paths.build()
}

fn generating() -> Vec<Call> {
    const TAG: &str = "Text";
    let chunks = |name| {
        let what = "One event; the last has `[DONE]` for data, or an error.";
        (
            what,
            any_of([json(any_of([named(name), named("Error")])), word(&["[DONE]"])]),
        )
    };
    let typed = || json(Fields::open().required("type", string()).build());
    let messages = "One event, of Anthropic's: `message_start`, `content_block_start`, `content_block_delta`, `content_block_stop`, \
                    `message_delta`, `message_stop`, or `error` with an `AnthropicError`.";
    let responses = "One event, of OpenAI's, from `response.created` to `response.completed` or `response.incomplete`, or `error`; \
                     each has a `sequence_number`.";
    let count = "How many tokens a request has, without an answer";
    vec![
        Call::using(
            "/v1/chat/completions",
            TAG,
            "An answer in a conversation",
            "ChatRequest",
        )
        .streams("ChatCompletion", chunks("ChatChunk")),
        Call::using(
            "/v1/completions",
            TAG,
            "What follows on a text",
            "CompletionRequest",
        )
        .streams("Completion", chunks("CompletionChunk")),
        Call::using(
            "/v1/responses",
            TAG,
            "An answer made of items, which may be kept",
            "ResponsesRequest",
        )
        .streams("Response", (responses, typed())),
        Call::post("/v1/responses/input_tokens", TAG, count, "ResponsesRequest")
            .answers("ResponseInputTokens"),
        Call::using(
            "/v1/messages",
            TAG,
            "An answer in a conversation, as Anthropic has it",
            "MessagesRequest",
        )
        .streams("Message", (messages, typed())),
        Call::post("/v1/messages/count_tokens", TAG, count, "CountTokensRequest").answers("InputTokens"),
    ]
}

fn encoding() -> Vec<Call> {
    const TAG: &str = "Vectors and ranks";
    let rerank = "Documents in the order of their relevance";
    let score = "How well pairs of texts fit";
    vec![
        Call::using("/v1/embeddings", TAG, "Vectors of texts", "EmbeddingsRequest").answers("Embeddings"),
        Call::using("/v1/rerank", TAG, rerank, "RerankRequest").answers("Reranked"),
        Call::using("/rerank", TAG, rerank, "RerankRequest").answers("Reranked"),
        Call::using("/v2/rerank", TAG, rerank, "RerankV2Request").answers("Reranked"),
        Call::using("/v1/score", TAG, score, "ScoreRequest").answers("Scores"),
        Call::using("/score", TAG, score, "ScoreRequest").answers("Scores"),
    ]
}

fn tokens() -> Vec<Call> {
    const TAG: &str = "Tokens";
    vec![
        Call::post(
            "/tokenize",
            TAG,
            "The tokens of a text or of a conversation",
            "TokenizeRequest",
        )
        .answers("Tokenized"),
        Call::post("/detokenize", TAG, "The text of tokens", "DetokenizeRequest").answers("Detokenized"),
    ]
}

fn kept() -> Vec<Call> {
    const TAG: &str = "Kept answers";
    const ID: &str = "The `id` of a response.";
    const PATH: &str = "/v1/responses/{id}";
    vec![
        Call::get(PATH, TAG, "An answer that is kept")
            .id(ID)
            .answers("Response"),
        Call::new(HttpMethod::Delete, PATH, TAG, "Forgets an answer")
            .id(ID)
            .answers("ResponseDeleted"),
        Call::get(
            "/v1/responses/{id}/input_items",
            TAG,
            "What was sent up to it, the newest first",
        )
        .id(ID)
        .answers("ResponseItems"),
    ]
}

fn models() -> Vec<Call> {
    const TAG: &str = "Models";
    vec![
        Call::get("/v1/models", TAG, "What is served")
            .fails(&[503])
            .answers("ModelList"),
        Call::get("/v1/models/{id}", TAG, "One of them")
            .id("A name that the list has; it may have slashes.")
            .fails(&[503])
            .answers("ModelCard"),
    ]
}

fn operating() -> Vec<Call> {
    const TAG: &str = "Operation";
    let probe = |path: &'static str, summary: &str| {
        let unwell = Content::new(Some(named("Status")));
        Call::get(path, TAG, summary).answers("Status").responds(
            "503",
            ResponseBuilder::new()
                .description("It is not; the reason is told.")
                .content(JSON, unwell),
        )
    };
    vec![
        probe("/livez", "Whether the process should go on"),
        probe("/readyz", "Whether requests are taken"),
        probe("/health", "Another name of `/readyz`"),
        Call::get("/version", TAG, "The version of this server").answers("Version"),
        Call::get("/metrics", TAG, "Metrics for Prometheus").gives("The page.", "text/plain", string()),
        Call::get("/openapi.json", TAG, "This document").gives(
            "The document.",
            JSON,
            super::schema::any_object(),
        ),
        Call::get("/docs", TAG, "This document as a page to read").gives("The page.", "text/html", string()),
    ]
}
