//! The description of the HTTP interface for programs: OpenAPI 3.1. Numbers come from the constants and limits that requests
//! are checked with, words from docs/api.md.

mod admin;
mod administration;
mod codes;
mod encoders;
mod generate;
mod messages;
mod operations;
mod organization;
mod parts;
mod responses;
mod schema;
mod words;

use utoipa::openapi::{
    Components, ComponentsBuilder, InfoBuilder, License, LicenseBuilder, OpenApi, OpenApiBuilder, RefOr,
    Schema, Tag,
};
use utoipa::{PartialSchema, ToSchema};

use crate::config::RequestLimits;
use crate::http::error::ErrorBody;
use crate::http::health::{Status, Version};
use crate::http::models::{ModelCard, ModelList};
use crate::openai::chat::{ChatChunk, ChatCompletion};
use crate::openai::completions::{Completion, CompletionChunk};
use crate::openai::embeddings::Embeddings;
use crate::openai::rank::{Reranked, Scores};
use crate::openai::tokenize::{Detokenized, Tokenized};
use crate::openai::usage::UsagePage;
pub use admin::admin_document;
pub(crate) use codes::code;
use schema::AnySchema;

const ABOUT: &str = "What this server takes and gives, with the limits that it was started with. Requests that have a field \
    which is not described here are refused; `null` stands for a field that is not there. Every answer has an \
    `x-request-id`, which a client can choose by sending one.";
const TAGS: &[&str] = &[
    "Text",
    "Vectors and ranks",
    "Tokens",
    "Kept answers",
    "Models",
    "Usage",
    "Administration",
    "Operation",
];

/// The document of a server with these limits.
pub fn document(limits: &RequestLimits) -> OpenApi {
    let info = InfoBuilder::new()
        .title("Rempart")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(license()));
    OpenApiBuilder::new()
        .info(info.build())
        .paths(operations::paths())
        .components(Some(components(limits)))
        .tags(Some(TAGS.iter().map(Tag::new)))
        .build()
}

fn license() -> License {
    let license = LicenseBuilder::new().name("Apache-2.0");
    license.identifier(Some("Apache-2.0")).build()
}

fn components(limits: &RequestLimits) -> Components {
    let requests: Vec<(&str, AnySchema)> = vec![
        ("ChatRequest", generate::chat(limits)),
        ("CompletionRequest", generate::completion(limits)),
        ("TokenizeRequest", generate::tokenize(limits)),
        ("DetokenizeRequest", generate::detokenize()),
        ("EmbeddingsRequest", encoders::embeddings(limits)),
        ("RerankRequest", encoders::rerank(limits, true)),
        ("RerankV2Request", encoders::rerank(limits, false)),
        ("ScoreRequest", encoders::score(limits)),
    ];
    with_keys(ComponentsBuilder::new(), true)
        .schemas_from_iter(answers())
        .schemas_from_iter(requests)
        .schemas_from_iter(parts::all(limits))
        .schemas_from_iter(responses::all(limits))
        .schemas_from_iter(messages::all(limits))
        .schemas_from_iter(administration::requests())
        .responses_from_iter(operations::errors())
        .build()
}

/// The ways to send a key, and a client's certificate where there is TLS.
fn with_keys(components: ComponentsBuilder, tls: bool) -> ComponentsBuilder {
    operations::security_schemes()
        .into_iter()
        .filter(|(name, _)| tls || *name != operations::CERTIFICATE_SCHEME)
        .fold(components, |components, (name, scheme)| {
            components.security_scheme(name, scheme)
        })
}

/// Answers whose schemas are derived from their types.
fn answers() -> Vec<(String, RefOr<Schema>)> {
    let mut all = Vec::new();
    add::<ChatCompletion>(&mut all);
    add::<ChatChunk<'_>>(&mut all);
    add::<Completion>(&mut all);
    add::<CompletionChunk<'_>>(&mut all);
    add::<Embeddings>(&mut all);
    add::<Reranked>(&mut all);
    add::<Scores>(&mut all);
    add::<Tokenized>(&mut all);
    add::<Detokenized>(&mut all);
    add::<ModelList>(&mut all);
    add::<ModelCard>(&mut all);
    add::<Status>(&mut all);
    add::<Version>(&mut all);
    add::<UsagePage>(&mut all);
    administration::answers(&mut all);
    add::<ErrorBody<'_>>(&mut all);
    all
}

fn add<T: ToSchema + PartialSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    all.push((T::name().into_owned(), T::schema()));
    T::schemas(all);
}
