//! Who was not let in.

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
}
