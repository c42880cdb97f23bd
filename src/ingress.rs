//! The ways in, each yielding an [`Arrival`].
//!
//! ```text
//!  listener ── detect ──┬── raw ───────────────────┐
//!     │                 ├── tls ── detect ── raw ──┼── Arrival ── Core
//!  PROXY header         └── http ── tunnel ────────┘
//!                              └── backend (anything that is not the tunnel)
//! ```
//! Every port takes every way in: the first bytes decide.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use ipnet::IpNet;
use tracing::{info, warn};

use crate::{
    limits::{Budget, tally::Place},
    log::Throttle,
    net::{Port, Section},
    runtime::Workers,
    stream::{self, Arrival, Core, Stream, Via},
    telemetry::{
        Telemetry,
        outcome::{Outcome, Refusal, RequestRefusal},
    },
    wire::Transport,
};

pub mod accept;
mod connection;
mod connection_limits;
pub mod detect;
pub mod http;
pub mod tls;
pub mod tunnel;

pub use connection_limits::Limits;
pub use tls::{ClientCertificates, TlsSettings};

/// One listener, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerSettings {
    /// The section that it stands in.
    pub section: Section,
    /// The address or name to listen on; empty: every address, IPv4 and IPv6.
    pub host: String,
    /// The port; 0, which only tests use, takes any free one.
    pub port: u16,
}

/// Settings of the ways in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Every listener, in the file's order.
    pub listeners: Vec<ListenerSettings>,
    /// Whether a port that can't be bound fails the start, whatever its section.
    pub require_all: bool,
    /// Whether other processes of this user may listen on the same ports.
    pub share_ports: bool,
    /// Peers whose PROXY header is believed and required.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Peers whose X-Forwarded-For is believed.
    pub forwarded_for_from: Vec<IpNet>,
    /// Bounds for connections that are no session.
    pub limits: Limits,
    /// From accept to the end of the first frame or request.
    pub login_timeout: Duration,
    /// A connection whose peer is gone without a word is given up after so long; 8 s at the least.
    pub vanished_timeout: Duration,
    /// The most that one frame may hold, in bytes; bounds a tunnel request, too.
    pub max_frame: u32,
    /// The TLS pair.
    pub tls: TlsSettings,
    /// Where other HTTP requests go: scheme and authority of a URL.
    pub http_backend: Option<hyper::Uri>,
    /// Requests that may be on their way there at once.
    pub http_backend_connections: usize,
    /// The HTTP tunnel.
    pub tunnel: tunnel::Settings,
}

/// What all ways in share.
pub struct Ingress {
    settings: ArcSwap<Settings>,
    tls: tls::Acceptor,
    counters: Arc<connection_limits::Counters>,
    budget: Arc<Budget>,
    tunnel: Arc<tunnel::Service>,
    backend: http::Backend,
    core: Arc<dyn Core>,
    workers: Workers,
    telemetry: Arc<Telemetry>,
    troubles: Throttle,
    guesses: Throttle,
    pauses: Throttle,
    accept_errors: Throttle,
    odd_requests: Throttle,
}

impl Ingress {
    /// The ways in to `core`, connections on `workers`. Must be called on a tokio runtime.
    pub fn start(
        settings: Settings,
        tls: tls::Acceptor,
        core: Arc<dyn Core>,
        workers: Workers,
        telemetry: Arc<Telemetry>,
    ) -> Arc<Self> {
        let counters = connection_limits::Counters::new();
        tokio::spawn(connection_limits::sweep(Arc::downgrade(&counters)));
        Arc::new(Self {
            tls,
            tunnel: tunnel::Service::start(settings.tunnel.clone(), Arc::clone(&core)),
            counters,
            budget: core.budget(),
            backend: http::Backend::new(),
            settings: ArcSwap::from_pointee(settings),
            core,
            workers,
            telemetry,
            troubles: Throttle::default(),
            guesses: Throttle::default(),
            pauses: Throttle::default(),
            accept_errors: Throttle::default(),
            odd_requests: Throttle::default(),
        })
    }

    /// Takes up new settings, and a new TLS pair, for connections and requests from now on.
    pub fn reconfigure(&self, settings: Settings, tls: &tls::Acceptor) {
        self.tls.replace(tls);
        self.tunnel.reconfigure(settings.tunnel.clone());
        self.settings.store(Arc::new(settings));
    }

    /// The server's TLS certificate.
    pub fn certificate(&self) -> Arc<tls::Certificate> {
        self.tls.certificate()
    }

    /// Connections at present that are no session.
    pub fn connections(&self) -> usize {
        self.counters.connections()
    }

    /// Tunnel sessions at present, those that have ended but may be asked for still among them.
    pub fn tunnel_sessions(&self) -> usize {
        self.tunnel.sessions()
    }

    /// Notes a connection that waits for its turn.
    fn paused(&self, port: u16) {
        self.telemetry.connections.delayed();
        if let Some(more) = self.pauses.pass() {
            warn!(port, more, "more connections than limits.connection_rate: they wait");
        }
    }

    /// Notes an HTTP request that is refused for its form.
    fn odd_request(&self, reason: RequestRefusal, origin: &Origin) {
        self.telemetry.http.refused.count(reason);
        if let Some(more) = self.odd_requests.pass() {
            info!(client = %origin.client, port = origin.port.number, %reason, more, "HTTP request refused");
        }
    }

    /// Hands frames over to the core, which counts the client from then on, or refuses the client
    /// in its own protocol.
    async fn arrive(&self, stream: Stream, first: Bytes, origin: Origin, transport: Transport, place: Place) {
        let via = Via { client: origin.client, port: origin.port, transport, accepted: origin.accepted };
        if let Err(refused) = self.core.take(Arrival { stream, first, via }) {
            let (refusal, Arrival { stream, first, .. }) = *refused;
            drop(first);
            if let Some(reason) = refusal.policy().farewell() {
                Box::pin(stream::refuse(stream, reason)).await;
            }
        }
        drop(place);
    }

    /// Notes a tunnel session that is refused on this floor.
    fn no_session(&self, refusal: Refusal, client: SocketAddr, port: u16) {
        self.telemetry.sessions.refused.count(refusal);
        if let Some(more) = self.troubles.pass() {
            warn!(%client, port, reason = refusal.name(), sessions = self.tunnel.sessions(), more, "client refused");
        }
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// The client, by PROXY header where that is believed, else the peer.
    client: SocketAddr,
    /// The port that it came to.
    port: Port,
    accepted: Instant,
}
