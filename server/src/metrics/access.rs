//! Who was not let in, and whether what was done is proven elsewhere.

use metrics::Counter;
use rempart_governance::Deleted;

use super::{Metrics, Series};

/// Counters that are there before they count, so that their first event is an increase.
pub(super) fn begin_at_zero(series: &Series<'_>) {
    for result in ["success", "failure"] {
        series
            .with("result", result)
            .counter("rempart_oidc_reloads_total")
            .increment(0);
    }
    series
        .counter("rempart_audit_checkpoint_failures_total")
        .increment(0);
    series.counter("rempart_retention_failures_total").increment(0);
}

impl Metrics {
    /// Why a request may not be let in.
    pub fn may_deny(&self, reasons: impl Iterator<Item = &'static str>) {
        for reason in reasons {
            self.denials(reason).increment(0);
        }
    }

    fn denials(&self, reason: &'static str) -> Counter {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        series
            .with("reason", reason)
            .counter("rempart_access_denied_total")
    }

    /// A request's key did not let it in, for this kind of reason.
    pub fn denied(&self, reason: &'static str) {
        self.denials(reason).increment(1);
    }

    /// The keys that verify tokens of the login were read again, and are used if they were `good`.
    pub fn oidc_reloaded(&self, good: bool) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        let result = if good { "success" } else { "failure" };
        series
            .with("result", result)
            .counter("rempart_oidc_reloads_total")
            .increment(1);
    }

    /// A checkpoint of the audit chain could not be kept.
    pub fn checkpoint_failed(&self) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        series
            .counter("rempart_audit_checkpoint_failures_total")
            .increment(1);
    }

    /// What was kept for long enough was deleted: so much so far, of which some was told before.
    pub fn deleted(&self, told: Deleted, so_far: Deleted) {
        for (kind, before, rows) in [
            ("usage", told.usage, so_far.usage),
            ("audit", told.audit, so_far.audit),
            ("sums", told.sums, so_far.sums),
            ("people", told.people, so_far.people),
            ("content", told.content, so_far.content),
        ] {
            let series = Series {
                recorder: &self.recorder,
                labels: Vec::new(),
            };
            series
                .with("kind", kind)
                .counter("rempart_retention_deleted_total")
                .increment(rows.saturating_sub(before));
        }
    }

    /// What was kept for long enough could not all be deleted.
    pub fn retention_failed(&self) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        series.counter("rempart_retention_failures_total").increment(1);
    }
}
