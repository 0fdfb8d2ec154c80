//! The calls that tell what was used.

use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::{HttpMethod, Required};

use super::operations::Call;
use super::schema::{AnySchema, integer, list, string, word};
use crate::openai::usage::{Asked, COST_WIDTHS, NEVER_USED, TIME_MAX, WIDTHS, Width};

/// All of them.
pub(super) fn calls(tag: &str) -> Vec<Call> {
    vec![
        call(
            "/v1/organization/usage/completions",
            tag,
            "What generating text has used",
            Asked::Completions,
        ),
        call(
            "/v1/organization/usage/embeddings",
            tag,
            "What embeddings and ranks have used",
            Asked::Embeddings,
        ),
        of_spans(
            "/v1/organization/usage/{kind}",
            tag,
            "What this server does not have, of which none was used; other parameters are ignored",
            &WIDTHS,
        )
        .kind_of_path("kind", "What was used.", word(&NEVER_USED)),
        call(
            "/v1/organization/costs",
            tag,
            "What that has cost, by the prices that this server was given",
            Asked::Costs,
        ),
    ]
}

/// A call whose answer is divided into spans of time.
fn of_spans(path: &'static str, tag: &str, summary: &str, widths: &[Width]) -> Call {
    let names: Vec<&str> = widths.iter().map(|width| width.name).collect();
    let most = widths.iter().map(|width| width.count_max).max().unwrap_or(1);
    let limits: Vec<String> = widths
        .iter()
        .map(|width| {
            format!(
                "{} and at most {} of {}",
                width.count, width.count_max, width.name
            )
        })
        .collect();
    let spans = format!("How many spans of time; unless asked {}.", limits.join(", "));
    Call::new(HttpMethod::Get, path, tag, summary)
        .asks(
            "start_time",
            true,
            "Unix seconds; the span that holds it is the first.",
            integer(&(0..=TIME_MAX)),
        )
        .asks(
            "end_time",
            false,
            "Unix seconds; spans begin before it. Now, unless asked.",
            integer(&(0..=TIME_MAX)),
        )
        .asks("bucket_width", false, "How long a span is.", word(&names))
        .asks("limit", false, &spans, integer(&(1..=most)))
        .asks("page", false, "The `next_page` of the page before.", string())
        .fails(&[404, 503])
        .answers("UsagePage")
}

fn call(path: &'static str, tag: &str, summary: &str, asked: Asked) -> Call {
    let (widths, model, models): (&[Width], _, _) = match asked {
        Asked::Costs => (&COST_WIDTHS, "line_item", "line_items"),
        Asked::Completions | Asked::Embeddings => (&WIDTHS, "model", "models"),
    };
    let of_people = asked != Asked::Costs;
    let mut groups = vec!["project_id", "api_key_id", model];
    groups.extend(of_people.then_some("user_id"));
    let call = of_spans(path, tag, summary, widths)
        .asks("project_ids", false, "Only these projects.", list(string()))
        .asks("api_key_ids", false, "Only these keys.", list(string()))
        .asks(models, false, "Only these models.", list(string()))
        .asks(
            "group_by",
            false,
            "What results are divided by.",
            list(word(&groups)),
        );
    if of_people {
        call.asks("user_ids", false, "Only these people.", list(string()))
    } else {
        call
    }
}

impl Call {
    /// Has a parameter in its query; lists are written with brackets behind the name, or without.
    pub(super) fn asks(mut self, name: &str, needed: bool, what: &str, schema: AnySchema) -> Self {
        let required = if needed { Required::True } else { Required::False };
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .required(required)
            .description(Some(what))
            .schema(Some(schema));
        self.operation = self.operation.parameter(parameter.build());
        self
    }
}
