//! Who was not let in, and whether what was done is proven elsewhere.

use rempart_governance::Deleted;

use super::{Metrics, Series};

impl Metrics {
    /// A request's key did not let it in, for this kind of reason.
    pub fn denied(&self, reason: &'static str) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        series
            .with("reason", reason)
            .counter("rempart_access_denied_total")
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

    /// What was kept for long enough was deleted.
    pub fn deleted(&self, deleted: Deleted) {
        let Deleted {
            usage,
            audit,
            sums,
            people,
        } = deleted;
        for (kind, rows) in [
            ("usage", usage),
            ("audit", audit),
            ("sums", sums),
            ("people", people),
        ] {
            let series = Series {
                recorder: &self.recorder,
                labels: Vec::new(),
            };
            series
                .with("kind", kind)
                .counter("rempart_retention_deleted_total")
                .increment(rows);
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
