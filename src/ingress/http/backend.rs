//! The web server behind this port, which gets all requests that are not the tunnel's.
//!
//! ```text
//!  request ── loop? ── forward ── client ─┬─ connector ── web server
//!             (Via)    (rewrites)         │
//!  response ◀─────────────────────────────┴─ response_body
//! ```
//! [`forward`] rewrites a request and its response; it knows no socket. [`client`] exchanges them, with a pool of
//! connections, timeouts and a bound on the requests at once. What the web server does wrong is reported by [`failures`].

use std::net::SocketAddr;

use hyper::{
    Request, Response, StatusCode, Uri, Version,
    body::Incoming,
    header::{self, HeaderValue},
};

mod client;
mod connector;
mod failures;
mod forward;
mod origin_headers;
mod request_body;
mod response_body;

pub(super) use client::WebServerClient;
pub(super) use origin_headers::RequestOrigin;
pub(super) use response_body::WebServerBody;

use super::{
    HttpSettings,
    response::{PortResponse, status_of},
};
use crate::{
    net::loop_guard::LoopGuard,
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
    /// This program has passed the request on already, or the web server is this program.
    Loop,
    /// As many requests are at the web server as `http_backend.connections` allows.
    Busy,
    /// The body did not come to its end.
    Body(BodyError),
}

/// Why there is no response of the web server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BackendError {
    Refused(BackendRefusal),
    /// The web server gave no response that can be passed back. Its own fault.
    WebServer(WebServerError),
}

impl BackendRefusal {
    /// How it is counted and logged.
    pub(super) fn outcome(self) -> RequestRefusal {
        match self {
            Self::Method => RequestRefusal::Method,
            Self::Target => RequestRefusal::Target,
            Self::Host => RequestRefusal::Host,
            Self::Expectation => RequestRefusal::Expectation,
            Self::Loop => RequestRefusal::Loop,
            Self::Busy => RequestRefusal::Backend,
            Self::Body(BodyError::TooSlow) => RequestRefusal::BodyTooSlow,
            Self::Body(BodyError::Broken) => RequestRefusal::BodyCutOff,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Method => "This method is not passed on.\n",
            Self::Target => "The request's target can't be passed on.\n",
            Self::Host => "The request needs one Host, and a legal one.\n",
            Self::Expectation => "No expectation but 100-continue is known.\n",
            Self::Loop => "The request has come back: the web server behind this port passes it on to this port.\n",
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
            Self::Refused(refusal) => Some(refusal.outcome()),
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
        let status = status_of(refusal.outcome());
        let page = if status == StatusCode::METHOD_NOT_ALLOWED {
            Self::web_method_not_allowed(refusal.text())
        } else {
            Self::page(status, refusal.text())
        };
        // The rest of the request is not read.
        page.closing()
    }
}

impl From<WebServerError> for PortResponse {
    fn from(failure: WebServerError) -> Self {
        let text = match failure {
            WebServerError::Shortage => "No room for this request now.\n",
            WebServerError::Unreachable | WebServerError::NoResponse => {
                "The web server behind this port does not answer.\n"
            }
            WebServerError::TooSlow => "The web server behind this port takes too long.\n",
            WebServerError::SwitchedProtocols => "The web server behind this port gave no answer of HTTP.\n",
            // Their response has begun.
            WebServerError::Stalled | WebServerError::CutOff => "",
        };
        Self::page(status_of(failure), text)
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

/// Passes a request on and its response back, and streams both bodies. `origin` is where the request came from. `client`
/// is the client behind trusted proxies, and `port` the listener's, for the log.
///
/// # Errors
/// The request is refused, or the web server has failed.
pub(super) async fn pass_on(
    (web_server, guard): (&WebServerClient, Option<&LoopGuard>),
    url: &Uri,
    mut request: Request<Incoming>,
    origin: &RequestOrigin,
    (client, port): (SocketAddr, u16),
    settings: &HttpSettings,
) -> Result<Response<WebServerBody>, BackendError> {
    let passed = request.headers().get_all(header::VIA).iter().map(HeaderValue::as_bytes);
    if guard.is_some_and(|guard| guard.has_passed(passed)) {
        return Err(BackendRefusal::Loop.into());
    }
    let via = guard.map(|guard| guard.via(request.version() == Version::HTTP_11));
    forward::rewrite_request(&mut request, url, origin, via)?;
    let mut response = web_server.exchange(request, url, client, port, settings).await?;
    forward::rewrite_response(&mut response);
    Ok(response)
}

/// Every error, for tests.
#[cfg(test)]
pub(super) fn every_error() -> Vec<BackendError> {
    use BackendRefusal::*;
    let refusals = [Method, Target, Host, Expectation, Loop, Busy, Body(BodyError::Broken), Body(BodyError::TooSlow)];
    let errors = [
        WebServerError::Shortage,
        WebServerError::Unreachable,
        WebServerError::NoResponse,
        WebServerError::TooSlow,
        WebServerError::SwitchedProtocols,
    ];
    refusals.map(BackendError::from).into_iter().chain(errors.map(BackendError::from)).collect()
}
