//! HTTP requests on client ports.

use prometheus_client::registry::Registry;

use super::OutcomeCounters;
use crate::telemetry::outcome::RequestRefusal;

/// The metrics of HTTP requests.
pub struct HttpMetrics {
    /// Refused requests.
    pub refused: OutcomeCounters<RequestRefusal>,
}

impl HttpMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self { refused: OutcomeCounters::register(all, "HTTP requests refused for their form, by reason") }
    }
}
