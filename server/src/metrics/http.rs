//! Connections, and requests on them.

use std::time::Duration;

use metrics::Gauge;

use super::{Metrics, Series};

impl Metrics {
    /// The most connections of clients at a time.
    pub fn connections_limit(&self, limit: usize) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        let gauge = series.gauge("rempart_http_connections_limit");
        gauge.set(limit as f64);
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connection(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connections)
    }

    /// An answer's head was sent. `route` is the pattern of the route, never the path a client sent.
    pub fn answered(&self, route: &'static str, method: &'static str, status: u16, took: Duration) {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        let series = series.with("handler", route).with("method", method);
        series
            .histogram("http_request_duration_seconds")
            .record(took.as_secs_f64());
        series
            .with("status", &status.to_string())
            .counter("http_requests_total")
            .increment(1);
    }
}

/// Adds one to a gauge while it lives.
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
