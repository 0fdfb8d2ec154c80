//! Rows of usage.

use std::sync::Arc;

use metrics::Counter;
use rempart_governance::{Metric, UsageEvent};

use super::projects::ProjectMetrics;
use super::{Metrics, Series};

/// Counters that are there before they count, so that their first event is an increase.
pub(super) fn begin_at_zero(series: &Series<'_>) {
    for limit in Metric::ALL {
        series
            .with("limit", limit.name())
            .counter("rempart_limited_total")
            .increment(0);
    }
}

/// What is known of the writing of rows.
pub struct UsageMetrics {
    rows: Counter,
    failures: Counter,
    chain_failures: Counter,
    projects: Option<ProjectMetrics>,
}

/// What is known of the leases of limits.
pub struct LeaseMetrics {
    asks: Counter,
    failures: Counter,
    waits: Counter,
}

impl Metrics {
    /// A request was over a limit of this name.
    pub fn limited(&self, limit: &'static str) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        let series = series.with("limit", limit);
        series.counter("rempart_limited_total").increment(1);
    }

    /// The metrics of the task that writes what was used, and whether it counts by project, too.
    pub fn usage(&self, by_project: bool) -> UsageMetrics {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        UsageMetrics {
            rows: series.counter("rempart_usage_rows_total"),
            failures: series.counter("rempart_usage_write_failures_total"),
            chain_failures: series.counter("rempart_usage_chain_failures_total"),
            projects: by_project.then(|| ProjectMetrics::new(Arc::clone(&self.recorder))),
        }
    }
}

impl Metrics {
    /// The metrics of what this server leases of limits.
    pub fn leases(&self) -> LeaseMetrics {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        LeaseMetrics {
            asks: series.counter("rempart_lease_asks_total"),
            failures: series.counter("rempart_lease_failures_total"),
            waits: series.counter("rempart_lease_waits_total"),
        }
    }
}

impl LeaseMetrics {
    /// The database was asked, and has answered.
    pub fn asked(&self) {
        self.asks.increment(1);
    }

    /// It was asked and has not.
    pub fn failed(&self) {
        self.failures.increment(1);
    }

    /// A request waits for the database, as not enough is leased.
    pub fn waits(&self) {
        self.waits.increment(1);
    }
}

impl UsageMetrics {
    /// Rows were written.
    pub fn written(&mut self, rows: &[UsageEvent]) {
        self.rows.increment(rows.len() as u64);
        for row in rows {
            if let Some(projects) = &mut self.projects {
                projects.written(row);
            }
        }
    }

    /// A batch could not be written.
    pub fn failed(&self) {
        self.failures.increment(1);
    }

    /// A try to chain rows has failed.
    pub fn not_chained(&self) {
        self.chain_failures.increment(1);
    }
}
