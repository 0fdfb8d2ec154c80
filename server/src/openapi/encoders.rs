//! The requests of `/v1/embeddings`, `/v1/rerank` and `/v1/score`.

use super::generate::truncate;
use super::schema::{AnySchema, Fields, any_of, array, boolean, count, string, text, token, word};
use super::words::Section;
use crate::config::RequestLimits;
use crate::openai::embeddings::{DIMENSIONS_MAX, ENCODINGS};
use crate::openai::rank::TOP_N_MAX;
use crate::openai::shared::TOKENS_MAX;

pub(super) fn embeddings(limits: &RequestLimits) -> AnySchema {
    let text = || text(1..=limits.prompt_bytes_max);
    let tokens = || array(token(), &(1..=usize::MAX));
    let inputs = 1..=limits.inputs_max;
    let input = any_of([text(), array(text(), &inputs), tokens(), array(tokens(), &inputs)]);
    Fields::of(Section::of("/v1/embeddings"))
        .required("model", string())
        .required("input", input)
        .optional("dimensions", count(1..=DIMENSIONS_MAX))
        .defaults("encoding_format", word(ENCODINGS), "float")
        .optional("truncate_prompt_tokens", truncate())
        .without_effect(&["user"])
        .build()
}

/// A text, or an object with one.
fn document(limits: &RequestLimits) -> AnySchema {
    let text = || text(1..=limits.prompt_bytes_max);
    any_of([text(), Fields::new().required("text", text()).build()])
}

/// One text, or several.
fn texts(limits: &RequestLimits) -> AnySchema {
    any_of([
        document(limits),
        array(document(limits), &(1..=limits.inputs_max)),
    ])
}

/// `returns_documents` is what happens unless the client says.
pub(super) fn rerank(limits: &RequestLimits, returns_documents: bool) -> AnySchema {
    Fields::of(Section::of("/v1/rerank"))
        .required("model", string())
        .required("query", document(limits))
        .required("documents", texts(limits))
        .defaults("top_n", count(0..=TOP_N_MAX), 0)
        .defaults("return_documents", boolean(), returns_documents)
        .optional("max_tokens_per_doc", count(1..=TOKENS_MAX))
        .optional("truncate_prompt_tokens", truncate())
        .without_effect(&["user"])
        .build()
}

/// The texts have two names each; the document has them as alternatives.
pub(super) fn score(limits: &RequestLimits) -> AnySchema {
    let pair = |first: &str, second: &str| {
        Fields::of(Section::of("/v1/score"))
            .required("model", string())
            .required(first, texts(limits))
            .required(second, texts(limits))
            .optional("truncate_prompt_tokens", truncate())
            .without_effect(&["user"])
            .build()
    };
    any_of([
        pair("text_1", "text_2"),
        pair("queries", "documents"),
        pair("text_1", "documents"),
        pair("queries", "text_2"),
    ])
}
