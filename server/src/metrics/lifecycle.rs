//! What is told of a model's loads.

use metrics::{Counter, Gauge, Label};

use super::{Metrics, ModelMetrics, Series};

/// The series of one model that may be loaded. Names come from the command line and from the store's folders only.
pub struct LifecycleMetrics {
    loaded: Gauge,
    bytes: Gauge,
    loads: Counter,
    failures: Counter,
}

impl Metrics {
    /// The series of a model of this name.
    pub fn lifecycle(&self, name: &str) -> LifecycleMetrics {
        let series = Series {
            recorder: &self.recorder,
            labels: vec![Label::new("model_name", name.to_owned())],
        };
        LifecycleMetrics {
            loaded: series.gauge("rempart_model_loaded"),
            bytes: series.gauge("rempart_model_bytes"),
            loads: series.counter("rempart_model_loads_total"),
            failures: series.counter("rempart_model_load_failures_total"),
        }
    }
}

impl LifecycleMetrics {
    /// The model is in memory, and takes at most so much of it.
    pub fn loaded(&self, bytes: u64) {
        self.loads.increment(1);
        self.loaded.set(1.0);
        self.bytes.set(bytes as f64);
    }

    /// The model is out of memory.
    pub fn unloaded(&self) {
        self.loaded.set(0.0);
        self.bytes.set(0.0);
    }

    /// It could not be loaded.
    pub fn failed(&self) {
        self.failures.increment(1);
    }
}

impl ModelMetrics {
    /// The model is no longer in memory: what is told of its present must not outlive it.
    pub fn retire(&self) {
        let gauges = [
            &self.running,
            &self.waiting,
            &self.queue_requests,
            &self.queue_tokens,
            &self.kv_usage,
            &self.kv_used,
            &self.kv_cached,
            &self.kv_total,
            &self.drain_rate,
            &self.info,
            &self.prefill_budget,
        ];
        for gauge in gauges {
            gauge.set(0.0);
        }
    }
}
