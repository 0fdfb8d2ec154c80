//! What each project uses, where the operator has asked for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusRecorder;
use rempart_governance::UsageEvent;

use super::Series;

/// Projects that have series of their own: those that come later share one, as labels must stay few.
const PROJECTS_MAX: usize = 200;
/// The same of a project's models, which may come and go while a server runs.
const MODELS_MAX: usize = 32;
/// What the later ones are called together. No identifier of a project is so.
const OTHERS: &str = "others";

/// Counters of rows of usage, by project and model.
pub(super) struct ProjectMetrics {
    recorder: Arc<PrometheusRecorder>,
    seen: BTreeMap<String, BTreeSet<String>>,
}

impl ProjectMetrics {
    pub(super) fn new(recorder: Arc<PrometheusRecorder>) -> Self {
        Self {
            recorder,
            seen: BTreeMap::new(),
        }
    }

    /// A row was written.
    pub(super) fn written(&mut self, row: &UsageEvent) {
        let (project, model) = self.place(row);
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        let series = series.with("project", &project).with("model_name", &model);
        series
            .with("outcome", &row.outcome)
            .counter("rempart_project_requests_total")
            .increment(1);
        for (name, tokens) in [
            ("rempart_project_prompt_tokens_total", row.input),
            ("rempart_project_prompt_tokens_cached_total", row.cached),
            ("rempart_project_generation_tokens_total", row.output),
        ] {
            series
                .counter(name)
                .increment(u64::try_from(tokens).unwrap_or_default());
        }
    }

    /// The labels of a row.
    fn place(&mut self, row: &UsageEvent) -> (String, String) {
        if !self.seen.contains_key(&row.project) && self.seen.len() >= PROJECTS_MAX {
            return (OTHERS.to_owned(), String::new());
        }
        let models = self.seen.entry(row.project.clone()).or_default();
        if !models.contains(&row.model) && models.len() >= MODELS_MAX {
            return (row.project.clone(), OTHERS.to_owned());
        }
        models.insert(row.model.clone());
        (row.project.clone(), row.model.clone())
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn later_projects_and_models_share_their_series() {
        let recorder = Arc::new(PrometheusBuilder::new().build_recorder());
        let mut metrics = ProjectMetrics::new(Arc::clone(&recorder));
        let row = |project: usize, model: usize| UsageEvent {
            project: format!("proj_{project}"),
            model: format!("m{model}"),
            outcome: "completed".to_owned(),
            input: 3,
            output: 2,
            ..UsageEvent::default()
        };
        for at in 0..PROJECTS_MAX + 50 {
            metrics.written(&row(at, 0));
        }
        for at in 0..MODELS_MAX + 50 {
            metrics.written(&row(0, at));
        }
        let told = recorder.handle().render();
        let value = |labels: &str| {
            let line = told.lines().find(|line| line.contains(labels));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        };
        let requests = |project: &str, model: &str| {
            value(&format!(
                "rempart_project_requests_total{{project=\"{project}\",model_name=\"{model}\",outcome=\"completed\"}}"
            ))
        };
        assert_eq!(requests("proj_1", "m0"), Some(1));
        assert_eq!(requests(OTHERS, ""), Some(50));
        assert_eq!(requests("proj_0", OTHERS), Some(50));
        let prompts = format!("rempart_project_prompt_tokens_total{{project=\"{OTHERS}\"");
        assert_eq!(value(&prompts), Some(150));
        let series = told
            .lines()
            .filter(|line| line.starts_with("rempart_project_requests_total{"));
        assert_eq!(series.count(), PROJECTS_MAX + MODELS_MAX + 1);
    }
}
