//! What projects have used in the last minutes: metrics do not tell, so the server's records are asked.

use std::collections::BTreeMap;

use rempart_client::{Accept, Client, Failure, ServerError};
use serde::Deserialize;

use crate::visible::line;

/// Whole minutes that are looked at, beside the one that runs.
const MINUTES: u64 = 5;
const MINUTE_S: u64 = 60;
const BODY_BYTES_MAX: usize = 8 << 20;
const PROJECTS_MAX: usize = 10_000;
const NAME_CHARS_MAX: usize = 60;

/// What projects have used, of requests that have ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// How long ago it begins.
    pub seconds: f64,
    pub projects: BTreeMap<String, Used>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Used {
    pub requests: f64,
    pub input_tokens: f64,
    pub cached_tokens: f64,
    pub output_tokens: f64,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Span>,
}

#[derive(Deserialize)]
struct Span {
    #[serde(default)]
    results: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    project_id: Option<String>,
    #[serde(default)]
    num_model_requests: f64,
    #[serde(default)]
    input_tokens: f64,
    #[serde(default)]
    input_cached_tokens: f64,
    #[serde(default)]
    output_tokens: f64,
}

#[derive(Deserialize)]
struct Projects {
    data: Vec<Project>,
}

#[derive(Deserialize)]
struct Project {
    id: String,
    name: String,
}

/// Asks what was used until now, in Unix seconds, with the projects' names where the key may read them.
///
/// # Errors
/// Why the server does not tell.
pub(crate) async fn ask(client: &Client, now_s: u64) -> Result<Usage, Failure> {
    let from = (now_s / MINUTE_S).saturating_sub(MINUTES) * MINUTE_S;
    let mut usage = Usage {
        seconds: now_s.saturating_sub(from) as f64,
        projects: BTreeMap::new(),
    };
    for kind in ["completions", "embeddings"] {
        let route = format!(
            "organization/usage/{kind}?start_time={from}&bucket_width=1m&limit={}&group_by=project_id",
            MINUTES + 1
        );
        let page: Page = document(client, &route).await?;
        usage.add(page);
    }
    let names = document::<Projects>(client, "organization/projects?limit=100").await;
    if let Ok(names) = names {
        usage.name(&names.data);
    }
    Ok(usage)
}

async fn document<T: for<'de> Deserialize<'de>>(client: &Client, route: &str) -> Result<T, Failure> {
    let path = client.target().path(route);
    let document = client.get(&path, Accept::Json, BODY_BYTES_MAX).await?;
    if document.status != 200 {
        return Err(Failure::Status {
            status: document.status,
            code: ServerError::in_body(&document.body).code,
        });
    }
    serde_json::from_slice(&document.body).map_err(|_| Failure::BadBody)
}

impl Usage {
    fn add(&mut self, page: Page) {
        for row in page.data.into_iter().flat_map(|span| span.results) {
            let project = row.project_id.unwrap_or_else(|| "(none)".to_owned());
            let project = line(&project, NAME_CHARS_MAX);
            if self.projects.len() >= PROJECTS_MAX && !self.projects.contains_key(&project) {
                continue;
            }
            let used = self.projects.entry(project).or_default();
            used.requests += row.num_model_requests;
            used.input_tokens += row.input_tokens;
            used.cached_tokens += row.input_cached_tokens;
            used.output_tokens += row.output_tokens;
        }
    }

    /// Names stand for identifiers; where two projects have one name, both keep their identifier behind it.
    fn name(&mut self, names: &[Project]) {
        for project in names {
            let id = line(&project.id, NAME_CHARS_MAX);
            let name = line(&project.name, NAME_CHARS_MAX);
            let taken = names.iter().filter(|other| other.name == project.name).count() > 1;
            if let Some(used) = self.projects.remove(&id) {
                let shown = if taken || self.projects.contains_key(&name) {
                    format!("{name} ({id})")
                } else {
                    name
                };
                self.projects.insert(shown, used);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_added_and_projects_named() {
        let page = |project: &str, output: u32| -> Page {
            serde_json::from_value(serde_json::json!({ "object": "page", "data": [
                { "results": [] },
                { "results": [{ "project_id": project, "num_model_requests": 2, "input_tokens": 5, "input_cached_tokens": 1, "output_tokens": output }] },
                { "results": [{ "project_id": project, "num_model_requests": 1, "output_tokens": 3 }] },
            ]}))
            .unwrap()
        };
        let mut usage = Usage::default();
        usage.add(page("proj_a", 7));
        usage.add(page("proj_b", 1));
        usage.add(page("proj_c", 1));
        let named = |id: &str, name: &str| Project {
            id: id.to_owned(),
            name: name.to_owned(),
        };
        usage.name(&[
            named("proj_a", "sales\u{1b}[2J"),
            named("proj_b", "two"),
            named("proj_c", "two"),
        ]);
        let names: Vec<&str> = usage.projects.keys().map(String::as_str).collect();
        assert_eq!(names, ["sales␛[2J", "two (proj_b)", "two (proj_c)"]);
        let used = usage.projects["sales␛[2J"];
        assert_eq!((used.requests, used.input_tokens), (3.0, 5.0));
        assert_eq!((used.cached_tokens, used.output_tokens), (1.0, 10.0));
    }
}
