//! What an encoder's thread reports.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Label};

use super::{Metrics, Series};

/// The metrics of one encoder.
pub struct EncoderMetrics {
    requests: Counter,
    rejected: Counter,
    tokens: Counter,
    queue_tokens: Gauge,
    batch_s: Histogram,
}

impl Metrics {
    /// The series of an encoder of this name.
    pub fn encoder(&self, name: &str) -> EncoderMetrics {
        let series = Series {
            recorder: &self.recorder,
            labels: vec![Label::new("model_name", name.to_owned())],
        };
        EncoderMetrics {
            requests: series.counter("rempart_encoder_requests_total"),
            rejected: series.counter("rempart_encoder_rejections_total"),
            tokens: series.counter("rempart_encoder_tokens_total"),
            queue_tokens: series.gauge("rempart_encoder_queue_tokens"),
            batch_s: series.histogram("rempart_encoder_batch_duration_seconds"),
        }
    }
}

impl EncoderMetrics {
    /// A request was queued.
    pub fn request(&self) {
        self.requests.increment(1);
    }

    /// A request found the queue full.
    pub fn rejected(&self) {
        self.rejected.increment(1);
    }

    /// So many tokens wait.
    pub fn queued(&self, tokens: usize) {
        self.queue_tokens.set(tokens as f64);
    }

    /// A batch was computed.
    pub fn batch(&self, tokens: usize, took: Duration) {
        self.tokens.increment(tokens as u64);
        self.batch_s.record(took.as_secs_f64());
    }
}
