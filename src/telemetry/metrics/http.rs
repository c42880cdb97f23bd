//! HTTP requests on client ports, and the web server behind them.

use prometheus_client::registry::Registry;

use super::OutcomeCounters;
use crate::telemetry::outcome::{RequestRefusal, WebServerError};

/// The metrics of HTTP requests.
pub struct HttpMetrics {
    /// Refused requests.
    pub refused: OutcomeCounters<RequestRefusal>,
    /// What the web server did wrong.
    pub web_server_errors: OutcomeCounters<WebServerError>,
}

impl HttpMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            refused: OutcomeCounters::register(all, "HTTP requests refused for their form, by reason"),
            web_server_errors: OutcomeCounters::register(all, "What the web server did wrong, by reason"),
        }
    }
}
