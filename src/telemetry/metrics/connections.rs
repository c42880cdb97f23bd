//! Connections that are not a session: not yet, never, or HTTP.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeCounters, as_gauge, registered};
use crate::telemetry::outcome::ConnectionDrop;

/// See the module's page.
pub struct ConnectionMetrics {
    /// Connections that never became a session.
    pub dropped: OutcomeCounters<ConnectionDrop>,
    delayed: Counter,
    present: Gauge,
}

impl ConnectionMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            dropped: OutcomeCounters::register(all, "Connections that never became a session, by reason"),
            delayed: registered(
                all,
                "connections_delayed",
                "Connections that waited because of limits.connection_rate",
                Counter::default(),
            ),
            present: registered(
                all,
                "connections",
                "Connections at present that are not a session: not yet, or HTTP",
                Gauge::default(),
            ),
        }
    }

    /// A connection waits, because more arrive than may be served in a second.
    pub fn delayed(&self) {
        self.delayed.inc();
    }

    /// How many there are at present.
    pub fn set_present(&self, connections: usize) {
        self.present.set(as_gauge(connections));
    }
}
