//! HTTP requests on client ports.

use prometheus_client::registry::Registry;

use super::OutcomeCounters;
use crate::telemetry::outcome::{RequestRefusal, WebServerError};

/// The metrics of HTTP requests.
pub struct HttpMetrics {
    /// Refused requests.
    pub refused: OutcomeCounters<RequestRefusal>,
    /// Requests without a response of the web server, by its error.
    pub web_server_errors: OutcomeCounters<WebServerError>,
}

impl HttpMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            refused: OutcomeCounters::register(all, "HTTP requests refused for their form, by reason"),
            web_server_errors: OutcomeCounters::register(
                all,
                "HTTP requests to which the web server gave no response that can be passed back, by reason",
            ),
        }
    }
}
