//! The description of the administrative interface, which is on an address of its own.

use utoipa::openapi::{ComponentsBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, Tag};

use super::operations::{Call, NO_KEY, Shape, error, paths_of};
use super::schema::any_object;
use super::{add, license, with_keys};
use crate::http::admin::Snapshots;
use crate::http::error::ErrorBody;
use crate::registry::Snapshot;

const ABOUT: &str = "Which models there are, and their loading and unloading while others serve. Answers come when the work is \
    done; it goes on if the client leaves.";
const TAG: &str = "Models";
const NAME: &str = "A name that the list has or, to load it, the folder of a model in the store.";

const ERRORS: &[(u16, &str)] = &[
    (
        400,
        "The request is at fault. `project_required`: the token's person is in several projects, and `OpenAI-Project` names none.",
    ),
    (401, NO_KEY),
    (
        403,
        "The key's role may not do this, the `Host` header names a host that this server does not answer for, or an `Origin` header shows that the request \
         comes from a page of the web.",
    ),
    (404, "There is no such model."),
    (409, "The model is being loaded or unloaded."),
    (
        422,
        "The model could not be loaded, and `message` says why. Other models are as they were.",
    ),
    (431, "The head is larger than this server reads."),
    (500, "The server is at fault."),
    (
        503,
        "Not now: models are loading for the first time, or the server is shutting down.",
    ),
];

/// The document.
pub fn admin_document() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Rempart administration")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(license()));
    let mut answers = Vec::new();
    add::<Snapshots>(&mut answers);
    add::<Snapshot>(&mut answers);
    add::<ErrorBody<'_>>(&mut answers);
    let errors = ERRORS
        .iter()
        .map(|(status, what)| error(Shape::OpenAi, *status, what));
    let components = with_keys(ComponentsBuilder::new(), false)
        .schemas_from_iter(answers)
        .responses_from_iter(errors);
    OpenApiBuilder::new()
        .info(info.build())
        .paths(paths_of(calls()))
        .components(Some(components.build()))
        .tags(Some([Tag::new(TAG)]))
        .build()
}

fn calls() -> Vec<Call> {
    let change = |path: &'static str, summary: &str| {
        Call::new(HttpMethod::Post, path, TAG, summary)
            .part_of_path("name", NAME)
            .fails(&[409, 422, 503])
            .answers("AdminModel")
    };
    vec![
        Call::get("/admin/models", TAG, "All models and their states").answers("AdminModelList"),
        change("/admin/models/{name}/load", "Loads a model"),
        change(
            "/admin/models/{name}/unload",
            "Unloads a model, when its requests have ended or their time is over",
        ),
        change(
            "/admin/models/{name}/reload",
            "Unloads a model, and loads it again from its files; requests for it wait",
        ),
        Call::get("/openapi.json", TAG, "This document").gives(
            "The document.",
            "application/json",
            any_object(),
        ),
    ]
}
