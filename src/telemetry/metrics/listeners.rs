//! Listeners: which are up, and what went wrong.

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
struct Labels {
    section: &'static str,
    port: u32,
}

/// See the module's page.
pub struct ListenerMetrics {
    up: Family<Labels, Gauge>,
    /// How often a listener could not be bound.
    pub failures: OutcomeCounters<ListenerFailure>,
    /// How often a listener could not accept a connection.
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

    /// A port is bound or not.
    pub fn set(&self, section: Section, port: u16, up: bool) {
        self.up.get_or_create(&Labels { section: section.name(), port: port.into() }).set(up.into());
    }

    /// A port is no longer in the configuration.
    pub fn remove(&self, section: Section, port: u16) {
        self.up.remove(&Labels { section: section.name(), port: port.into() });
    }
}
