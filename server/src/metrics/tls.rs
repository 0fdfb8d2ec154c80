//! The certificate, and the connections that it could not protect.

use std::time::Duration;

use metrics::{Counter, Gauge};

use super::{Metrics, Series};

/// What TLS records. Its series are there only where there is TLS.
#[derive(Clone)]
pub struct TlsMetrics {
    expiry: Gauge,
    reloaded: Counter,
    kept: Counter,
    handshakes_failed: Counter,
}

impl Metrics {
    /// The series of TLS, from now on.
    pub fn tls(&self) -> TlsMetrics {
        let series = Series {
            recorder: &self.recorder,
            labels: Vec::new(),
        };
        let reloads = |result| series.with("result", result).counter("rempart_tls_reloads_total");
        TlsMetrics {
            expiry: series.gauge("rempart_tls_certificate_expiry_seconds"),
            reloaded: reloads("success"),
            kept: reloads("failure"),
            handshakes_failed: series.counter("rempart_tls_handshakes_failed_total"),
        }
    }
}

impl TlsMetrics {
    /// When the certificate that is shown ends, since 1970.
    pub fn expires(&self, at: Duration) {
        self.expiry.set(at.as_secs_f64());
    }

    /// The files were read again, and are used if they were `good`.
    pub fn reloaded(&self, good: bool) {
        let counter = if good { &self.reloaded } else { &self.kept };
        counter.increment(1);
    }

    /// A connection ended before it was protected.
    pub fn handshake_failed(&self) {
        self.handshakes_failed.increment(1);
    }
}
