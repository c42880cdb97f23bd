//! Listeners: which of them are bound, and their errors.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeCounters, registered};
use crate::{
    net::Section,
    telemetry::outcome::{AcceptError, ListenerFailure},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    section: &'static str,
    port: u32,
}

/// The metrics of listeners.
pub struct ListenerMetrics {
    up: Family<ListenerLabels, Gauge>,
    /// Times that a listener could not be bound.
    pub failures: OutcomeCounters<ListenerFailure>,
    /// Times that a listener could not accept a connection.
    pub accept_errors: OutcomeCounters<AcceptError>,
}

impl ListenerMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            up: registered(all, "listener_up", "Whether a port is bound", Family::default()),
            failures: OutcomeCounters::register(all, "Times that a port could not be bound, by reason"),
            accept_errors: OutcomeCounters::register(all, "Errors of accept, by class"),
        }
    }

    /// Sets whether a port is bound.
    pub fn set(&self, section: Section, port: u16, up: bool) {
        self.up.get_or_create(&ListenerLabels { section: section.name(), port: port.into() }).set(up.into());
    }

    /// Removes a port that is no longer in the configuration.
    pub fn remove(&self, section: Section, port: u16) {
        self.up.remove(&ListenerLabels { section: section.name(), port: port.into() });
    }
}
