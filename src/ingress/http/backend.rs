//! The web server behind this port, which gets all requests that are not the tunnel's.
//!
//! [`forward`] rewrites a request and its response; it knows no socket. [`client`] exchanges them, with a pool of
//! connections, timeouts and a bound on the requests at once.

use std::net::SocketAddr;

use hyper::{Request, Response, StatusCode, Uri, body::Incoming};

mod client;
mod forward;
mod request_body;

pub(super) use client::{WebServerBody, WebServerClient};

use super::{
    HttpSettings,
    response::{PortResponse, status_of},
};
use crate::{
    net::address::lies_in,
    telemetry::outcome::{RequestRefusal, WebServerError},
};
use request_body::BodyError;

/// Why a request is not passed on, or not to its end. The client's fault, or a limit of this multiplexer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BackendRefusal {
    /// CONNECT makes a tunnel. TRACE and TRACK echo what a script in a browser must not see.
    Method,
    /// Neither a path nor `http://host/path`.
    Target,
    /// Not exactly one Host of legal characters.
    Host,
    /// An expectation other than 100-continue.
    Expectation,
    /// The request asks for another protocol.
    Upgrade,
    /// As many requests are at the web server as `http_backend.connections` allows.
    Busy,
    /// The body did not come to its end.
    Body(BodyError),
}

/// Why there is no response of the web server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BackendError {
    Refused(BackendRefusal),
    WebServer(WebServerError),
}

impl BackendRefusal {
    /// How it is counted and logged. `None` for a broken body: the framing guard counted it when it was read, or the
    /// client closed.
    pub(super) fn outcome(self) -> Option<RequestRefusal> {
        Some(match self {
            Self::Method => RequestRefusal::Method,
            Self::Target => RequestRefusal::Target,
            Self::Host => RequestRefusal::Host,
            Self::Expectation => RequestRefusal::Expectation,
            Self::Upgrade => RequestRefusal::Upgrade,
            Self::Busy => RequestRefusal::Backend,
            Self::Body(BodyError::TooSlow) => RequestRefusal::BodyTooSlow,
            Self::Body(BodyError::Broken) => return None,
        })
    }

    fn text(self) -> &'static str {
        match self {
            Self::Method => "This method is not passed on.\n",
            Self::Target => "The request's target can't be passed on.\n",
            Self::Host => "The request needs one Host, and a legal one.\n",
            Self::Expectation => "No expectation but 100-continue is known.\n",
            Self::Upgrade => "Upgrades are not passed on.\n",
            Self::Busy => "The web server behind this port is busy.\n",
            Self::Body(BodyError::Broken) => "The request's body is broken.\n",
            Self::Body(BodyError::TooSlow) => "The request's body did not come in time.\n",
        }
    }
}

impl BackendError {
    /// How it is counted as a refused request, if it is.
    pub(super) fn refusal(self) -> Option<RequestRefusal> {
        match self {
            Self::Refused(refusal) => refusal.outcome(),
            Self::WebServer(_) => None,
        }
    }
}

impl From<BackendRefusal> for BackendError {
    fn from(refusal: BackendRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<WebServerError> for BackendError {
    fn from(error: WebServerError) -> Self {
        Self::WebServer(error)
    }
}

impl From<BackendRefusal> for PortResponse {
    fn from(refusal: BackendRefusal) -> Self {
        let status = refusal.outcome().map_or(StatusCode::BAD_REQUEST, status_of);
        // The rest of the request is not read.
        Self::page(status, refusal.text()).closing()
    }
}

impl From<WebServerError> for PortResponse {
    fn from(error: WebServerError) -> Self {
        let text = match error {
            WebServerError::Shortage => "No room for this request now.\n",
            WebServerError::NoResponse => "The web server behind this port does not answer.\n",
            WebServerError::TooSlow => "The web server behind this port takes too long.\n",
            WebServerError::SwitchedProtocols => "The web server behind this port gave no answer of HTTP.\n",
        };
        Self::page(status_of(error), text)
    }
}

impl From<BackendError> for PortResponse {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Refused(refusal) => refusal.into(),
            BackendError::WebServer(error) => error.into(),
        }
    }
}

/// Passes a request on and its response back, and streams both bodies. `peer` is the connection's other end, and
/// `client` the client behind trusted proxies, for the log.
pub(super) async fn pass_on(
    web_server: &WebServerClient,
    url: &Uri,
    mut request: Request<Incoming>,
    peer: SocketAddr,
    client: SocketAddr,
    settings: &HttpSettings,
) -> Result<Response<WebServerBody>, BackendError> {
    forward::rewrite_request(&mut request, url, peer, lies_in(&settings.trusted_proxies, peer.ip()))?;
    let mut response = web_server.exchange(request, url, client, settings).await?;
    forward::rewrite_response(&mut response);
    Ok(response)
}

/// Every error, for tests.
#[cfg(test)]
pub(super) fn every_error() -> Vec<BackendError> {
    use crate::telemetry::outcome::Outcome;
    use BackendRefusal::*;
    let refusals =
        [Method, Target, Host, Expectation, Upgrade, Busy, Body(BodyError::Broken), Body(BodyError::TooSlow)];
    let errors = WebServerError::ALL.iter().map(|error| BackendError::from(*error));
    refusals.map(BackendError::from).into_iter().chain(errors).collect()
}
