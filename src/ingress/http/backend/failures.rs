//! Counts and logs what the web server does wrong.

use std::{fmt, net::SocketAddr, sync::Arc};

use hyper::Uri;
use tracing::warn;

use crate::{
    log::Throttles,
    telemetry::{
        Telemetry,
        outcome::{Outcome, WebServerError},
    },
};

/// Where the failures of the web server are reported.
pub(super) struct FailureReports {
    telemetry: Arc<Telemetry>,
    lines: Throttles,
}

/// The request that a failure is about.
#[derive(Debug, Clone)]
pub(super) struct FailedRequest {
    /// The client behind trusted proxies.
    pub(super) client: SocketAddr,
    /// The listener's port.
    pub(super) port: u16,
    /// `http_backend.url`.
    pub(super) url: Uri,
}

impl FailureReports {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, lines: Throttles::new(WebServerError::ALL.len()) }
    }

    /// Counts a failure, and logs it at most once per second.
    pub(super) fn report(&self, failure: WebServerError, request: &FailedRequest, detail: Option<&dyn fmt::Display>) {
        self.telemetry.http.web_server_errors.count(failure);
        if let Some(more) = self.lines.pass(failure.index()) {
            let (detail, FailedRequest { client, port, url }) = (detail.map(ToString::to_string), request);
            warn!(%client, port, %url, reason = failure.name(), detail, more, "web back end failed");
        }
    }
}
