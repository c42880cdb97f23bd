//! Connections that are not a session: they have not shown their protocol yet, never become a session, or carry HTTP.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeCounters, as_gauge, registered};
use crate::telemetry::outcome::ConnectionDrop;

/// The metrics of connections that are not a session.
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

    /// Counts a connection that waits because more arrive than `limits.connection_rate` allows.
    pub fn delayed(&self) {
        self.delayed.inc();
    }

    /// Sets how many there are at present.
    pub fn set_present(&self, connections: usize) {
        self.present.set(as_gauge(connections));
    }
}
