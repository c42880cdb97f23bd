//! TLS handshakes and the server's certificate.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

use super::{OutcomeCounters, registered_seconds};
use crate::telemetry::outcome::TlsOutcome;

/// The metrics of TLS.
pub struct TlsMetrics {
    /// Handshakes, by outcome.
    pub handshakes: OutcomeCounters<TlsOutcome>,
    /// When the certificate expires, in seconds since 1970; 0 until it is set.
    certificate_expires: AtomicI64,
    certificate_expiry: Gauge<f64, AtomicU64>,
}

impl TlsMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            handshakes: OutcomeCounters::register(all, "TLS handshakes, by outcome"),
            certificate_expires: AtomicI64::new(0),
            certificate_expiry: registered_seconds(
                all,
                "tls_certificate_expiry",
                "Until the server's TLS certificate expires",
                Gauge::default(),
            ),
        }
    }

    /// Sets when the certificate expires, in seconds since 1970.
    pub fn set_certificate_expires(&self, unix: i64) {
        self.certificate_expires.store(unix, Relaxed);
    }

    pub(in crate::telemetry) fn refresh(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        #[allow(clippy::cast_precision_loss)]
        self.certificate_expiry.set(self.certificate_expires.load(Relaxed) as f64 - now.as_secs_f64());
    }
}
