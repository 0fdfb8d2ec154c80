//! What became of the spans of traces.

use rempart_traces::Counts;

use super::{Metrics, Series};

impl Metrics {
    /// Tells of the spans so far. The series are there only where requests are traced.
    pub fn traced(&self, counts: Counts) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        series.counter("rempart_trace_spans_total").absolute(counts.ended);
        let written = series.counter("rempart_trace_spans_written_total");
        written.absolute(counts.written);
    }
}
