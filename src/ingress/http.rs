//! HTTP on the client ports: requests of the tunnel, and all other requests, which go to the web server.
//!
//! ```text
//!               ┌── fast_path ─── framing ────────────┐           ┌── tunnel_request ── ingress/tunnel
//!  connection ──┤                                     ├── route ──┼── a page of this port
//!   (idle)      └── hyper_path ── guard ── framing ───┘           └── backend ── web server
//! ```
//! The fast path takes only requests of the tunnel that have exactly the form in which nearly every client writes
//! them. hyper reads every other request. Between two requests a connection keeps nothing but its stream. A connection
//! with a streaming client's GET request goes to the core, see [`streaming`].

use std::{
    error::Error,
    iter,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use hyper::{StatusCode, Uri};
use ipnet::IpNet;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tracing::{Level, debug, info, warn};

mod backend;
mod connection;
mod fast_path;
mod forwarded;
pub mod framing;
mod guard;
mod hyper_path;
mod passing;
mod response;
mod route;
mod streaming;
mod tunnel_request;

pub(super) use connection::serve;

use super::{IngressSettings, Origin, connection_limits::ConnectionCounters, tunnel::Service};
use crate::{
    cluster::Cluster,
    limits::Budget,
    log::{Throttle, Throttles},
    net::{loop_guard::LoopGuard, own::OwnListeners},
    stream::{ClosingBounds, close_in_stages, peer_has_left},
    telemetry::{
        Telemetry,
        outcome::{ConnectionDrop, Outcome, Refusal, RequestRefusal},
    },
};
use backend::WebServerClient;
use response::PortResponse;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How much longer than the longest request of the tunnel a request may take that is passed to another node.
const PASSED_MARGIN: Duration = Duration::from_secs(10);
/// How long a client that is refused unread may take to receive the response.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What HTTP needs of the ingress's settings.
#[derive(Debug)]
struct HttpSettings {
    /// Proxies whose X-Forwarded-For is trusted.
    trusted_proxies: Vec<IpNet>,
    /// `limits.login_timeout`: how long the client may take for a request's head, may pause in its body, and may take
    /// nothing of a response.
    timeout: Duration,
    /// The longest body of a tunnel request, in bytes.
    max_tunnel_request: usize,
    /// Where requests go that are not for the tunnel: scheme and authority of a URL.
    web_server: Option<Uri>,
    /// How many requests may be at the web server at once.
    max_web_server_requests: usize,
    /// How long the web server may take to begin its response, and may pause in it.
    web_server_timeout: Duration,
    /// The longest response of another node of the cluster, in bytes.
    longest_passed: usize,
    /// How long another node may take to respond: as long as the longest request of the tunnel.
    passed_timeout: Duration,
}

impl From<&IngressSettings> for HttpSettings {
    fn from(settings: &IngressSettings) -> Self {
        Self {
            trusted_proxies: settings.forwarded_for_from.clone(),
            timeout: settings.login_timeout,
            // A request carries frames in the tunnel's envelope, and may carry several.
            max_tunnel_request: 2 * settings.max_frame as usize + 64 * 1024,
            web_server: settings.http_backend.clone(),
            max_web_server_requests: settings.http_backend_connections,
            web_server_timeout: settings.http_backend_response_timeout,
            // A response carries a window of bytes in the tunnel's envelope.
            longest_passed: 2 * settings.tunnel.window + 2 * settings.max_frame as usize + 64 * 1024,
            passed_timeout: settings.tunnel.hold.max(settings.tunnel.session_timeout) + PASSED_MARGIN,
        }
    }
}

/// Tells whether clients can be served at present.
pub(super) type Readiness = Box<dyn Fn() -> bool + Send + Sync>;

/// Everything that HTTP on the client ports works with. Nothing in this room sees the rest of the ingress.
pub(super) struct HttpContext {
    settings: ArcSwap<HttpSettings>,
    tunnel: Arc<Service>,
    web_server: WebServerClient,
    /// `None`: the system has no random numbers.
    loop_guard: Option<LoopGuard>,
    budget: Arc<Budget>,
    /// For the rate of requests for tunnel sessions that do not exist.
    counters: Arc<ConnectionCounters>,
    telemetry: Arc<Telemetry>,
    /// The nodes that act as one with this one.
    cluster: Option<Arc<Cluster>>,
    /// Tells whether clients can be served.
    readiness: OnceLock<Readiness>,
    /// For log lines about refused clients, by [`Refusal`].
    refused_clients: Throttles,
    delayed_guesses: Throttle,
    /// For log lines about refused requests, by [`RequestRefusal`].
    refused_requests: Throttles,
}

impl HttpContext {
    pub(super) fn new(
        settings: &IngressSettings,
        tunnel: Arc<Service>,
        budget: Arc<Budget>,
        counters: Arc<ConnectionCounters>,
        telemetry: Arc<Telemetry>,
        own: OwnListeners,
        cluster: Option<Arc<Cluster>>,
    ) -> Arc<Self> {
        let loop_guard = LoopGuard::new();
        if let Err(error) = &loop_guard {
            warn!(%error, "the system has no random numbers: a web back end that leads back to this program is not noticed");
        }
        Arc::new(Self {
            settings: ArcSwap::from_pointee(settings.into()),
            tunnel,
            web_server: WebServerClient::new(own, Arc::clone(&telemetry)),
            loop_guard: loop_guard.ok(),
            budget,
            counters,
            telemetry,
            cluster,
            readiness: OnceLock::new(),
            refused_clients: Throttles::new(Refusal::ALL.len()),
            delayed_guesses: Throttle::default(),
            refused_requests: Throttles::new(RequestRefusal::ALL.len()),
        })
    }

    /// Uses new settings for every request that is read from now on.
    pub(super) fn reconfigure(&self, settings: &IngressSettings) {
        self.settings.store(Arc::new(settings.into()));
    }

    /// Sets what tells whether clients can be served. It is set once; until then they can.
    pub(super) fn set_readiness(&self, readiness: Readiness) {
        let _ = self.readiness.set(readiness);
    }

    fn is_ready(&self) -> bool {
        self.readiness.get().is_none_or(|is_ready| is_ready())
    }

    /// Counts and logs a request that is refused.
    fn record_refused_request(&self, reason: RequestRefusal, origin: &Origin) {
        self.telemetry.http.refused.count(reason);
        let Some(more) = self.refused_requests.pass(reason.index()) else { return };
        let (client, port) = (origin.client, origin.port.number);
        if reason.policy().level == Some(Level::WARN) {
            warn!(%client, port, %reason, more, "HTTP request refused");
        } else {
            info!(%client, port, %reason, more, "HTTP request refused");
        }
    }

    /// Counts and logs a tunnel session that is refused because there are too many.
    fn record_refused_session(&self, refusal: Refusal, client: SocketAddr, port: u16) {
        self.telemetry.sessions.refused.count(refusal);
        if let Some(more) = self.refused_clients.pass(refusal.index()) {
            warn!(%client, port, reason = refusal.name(), sessions = self.tunnel.sessions(), more, "client refused");
        }
    }

    /// Counts a request that is answered late, because this address sends very many for sessions that do not exist.
    fn record_delayed_guess(&self, client: SocketAddr, port: u16) {
        self.telemetry.tunnel.guess_delayed();
        if let Some(more) = self.delayed_guesses.pass() {
            warn!(%client, port, more, "very many requests for unknown tunnel sessions: responses are delayed");
        }
    }

    /// Counts a connection that ended with an error.
    fn record_dropped(&self, origin: &Origin, error: &(dyn Error + 'static)) {
        let causes = iter::successors(Some(error), |&error| error.source());
        let has_left = causes.filter_map(|cause| cause.downcast_ref()).any(peer_has_left);
        let reason = if has_left { ConnectionDrop::ClosedEarly } else { ConnectionDrop::Http };
        self.telemetry.connections.dropped.count(reason);
        debug!(client = %origin.client, port = origin.port.number, %error, "HTTP connection ended");
    }
}

/// The response to a connection that is refused before its request is read.
fn unread_refusal(reason: ConnectionDrop) -> PortResponse {
    let (status, text) = match reason {
        ConnectionDrop::NoCertificate => {
            (StatusCode::FORBIDDEN, "This port takes TLS only, from clients with a certificate.\n")
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, "No room for this client now.\n"),
    };
    PortResponse::page(status, text).closing()
}

/// Refuses a connection before its request is read: writes a response and closes.
pub(super) async fn refuse(mut tcp: TcpStream, reason: ConnectionDrop) {
    let response = unread_refusal(reason).to_bytes();
    if let Ok(Ok(())) = timeout(REFUSE_TIMEOUT, tcp.write_all(&response)).await {
        close_in_stages(tcp, ClosingBounds::RESPONSE).await;
    }
}

#[cfg(test)]
mod tests;
