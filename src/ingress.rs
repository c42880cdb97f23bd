//! Ingress: accepts connections on the ports, and turns every client into an [`Arrival`] for the core.
//!
//! ```text
//!  listener ── identify ──┬── Sametime ──────────────────────┐
//!     │                   ├── TLS ── identify ── Sametime ───┼── Arrival ── Core
//!  PROXY header           └── HTTP ──┬── tunnel ─────────────┘
//!                                    └── web server (any request that is not the tunnel's)
//! ```
//! Every port accepts every transport: the first bytes decide. HTTP may be inside TLS, too.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use ipnet::IpNet;

use crate::{
    cluster::Cluster,
    log::Throttles,
    net::{Port, Section, own::OwnListeners},
    runtime::Workers,
    stream::{Arrival, Core, Stream, Via},
    telemetry::{
        Telemetry,
        outcome::{ConnectionDrop, Outcome},
    },
    trunk::{FarEnd, TrunkListenerSettings},
    wire::{Transport, reason::Reason},
};

pub mod accept;
mod connection;
mod connection_limits;
pub mod detect;
pub mod http;
pub mod identify;
pub mod peers;
pub mod tls;
mod trunk_listener;
pub mod tunnel;

pub use connection_limits::ConnectionLimits;
pub use tls::{ClientCertificates, TlsSettings};

/// One listener, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerSettings {
    /// The section of the configuration database that contains it.
    pub section: Section,
    /// The address or name to listen on; empty: all addresses, IPv4 and IPv6.
    pub host: String,
    /// The port. Only tests use 0, which binds any free port.
    pub port: u16,
}

/// Settings of the ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressSettings {
    /// The listeners, in the order of the file.
    pub listeners: Vec<ListenerSettings>,
    /// Whether the start fails if any port can't be bound. Without this it fails only for a Community port.
    pub require_all: bool,
    /// Whether other processes of this user may listen on the same ports.
    pub share_ports: bool,
    /// Trusted proxies, which have to send a PROXY header.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Trusted proxies, whose X-Forwarded-For names the client.
    pub forwarded_for_from: Vec<IpNet>,
    /// Limits of connections that are not a session.
    pub limits: ConnectionLimits,
    /// How long a client may take from accept until its first frame, or its first request, is complete.
    pub login_timeout: Duration,
    /// After how long without an answer of the peer's system a connection is closed; 8 s or more.
    pub vanished_timeout: Duration,
    /// The longest frame of a client in bytes. It bounds a tunnel request, too.
    pub max_frame: u32,
    /// The certificate and its key, and client certificates.
    pub tls: TlsSettings,
    /// The far end of trunks.
    pub trunk_listener: TrunkListenerSettings,
    /// The web server for requests that are not the tunnel's: scheme and authority of a URL.
    pub http_backend: Option<hyper::Uri>,
    /// How many requests may be at the web server at once.
    pub http_backend_connections: usize,
    /// How long the web server may take to begin its response, and may pause in it.
    pub http_backend_response_timeout: Duration,
    /// The HTTP tunnel.
    pub tunnel: tunnel::TunnelSettings,
}

/// Accepts connections and hands clients to the core. All ports share it.
pub struct Ingress {
    settings: ArcSwap<IngressSettings>,
    core: Arc<dyn Core>,
    telemetry: Arc<Telemetry>,
    /// For `accept`.
    accepting: accept::Accepting,
    /// For `connection`.
    tls: tls::Acceptor,
    /// For `accept`, `connection` and `http`.
    counters: Arc<connection_limits::ConnectionCounters>,
    /// For log lines about connections that are dropped, by [`ConnectionDrop`].
    dropped: Throttles,
    tunnel: Arc<tunnel::Service>,
    /// For `trunk_listener`.
    trunk: Arc<FarEnd>,
    http: Arc<http::HttpContext>,
}

impl Ingress {
    /// An ingress that hands clients to `core` and serves connections on `workers`. Its web server is not one of `own`.
    /// Requests for sessions of other nodes of `cluster` are passed to them.
    /// It has to be called on a tokio runtime, which the ingress's own tasks run on.
    pub fn start(
        settings: IngressSettings,
        tls: tls::Acceptor,
        core: Arc<dyn Core>,
        workers: Workers,
        telemetry: Arc<Telemetry>,
        own: OwnListeners,
        cluster: Option<Arc<Cluster>>,
    ) -> Arc<Self> {
        let counters = connection_limits::ConnectionCounters::new();
        tokio::spawn(connection_limits::sweep(Arc::downgrade(&counters)));
        let tunnel = tunnel::Service::start_on_node(
            settings.tunnel.clone(),
            Arc::clone(&core),
            cluster.as_ref().map(|cluster| cluster.tag()),
        );
        let http = http::HttpContext::new(
            &settings,
            Arc::clone(&tunnel),
            core.budget(),
            Arc::clone(&counters),
            Arc::clone(&telemetry),
            own,
            cluster,
        );
        Arc::new(Self {
            accepting: accept::Accepting::new(workers),
            tls,
            counters,
            dropped: Throttles::new(ConnectionDrop::ALL.len()),
            tunnel,
            trunk: FarEnd::new(settings.trunk_listener.clone(), Arc::clone(&telemetry)),
            http,
            settings: ArcSwap::from_pointee(settings),
            core,
            telemetry,
        })
    }

    /// Uses new settings and a new certificate for connections and requests from now on.
    pub fn reconfigure(&self, settings: IngressSettings, tls: &tls::Acceptor) {
        self.tls.replace(tls);
        self.tunnel.reconfigure(settings.tunnel.clone());
        self.trunk.reconfigure(settings.trunk_listener.clone());
        self.http.reconfigure(&settings);
        self.settings.store(Arc::new(settings));
    }

    /// Sets what tells whether clients can be served, which health checks ask for over HTTP. It is set once.
    pub fn set_readiness(&self, is_ready: impl Fn() -> bool + Send + Sync + 'static) {
        self.http.set_readiness(Box::new(is_ready));
    }

    /// The server's TLS certificate.
    pub fn certificate(&self) -> Arc<tls::Certificate> {
        self.tls.certificate()
    }

    /// The workers that serve connections.
    pub fn workers(&self) -> &Workers {
        self.accepting.workers()
    }

    /// How many connections there are that are not a session.
    pub fn connections(&self) -> usize {
        self.counters.connections()
    }

    /// How many of them may still become a session: they have not been served a request.
    pub fn unsettled_connections(&self) -> usize {
        self.counters.unsettled()
    }

    /// Waits until the streams of the trunks that this program is the far end of have ended, or until
    /// `limits.drain_timeout` has passed. No new ones are accepted.
    pub async fn drain_trunks(&self) {
        self.trunk.drain().await;
    }

    /// How many tunnel sessions there are. A session that has ended counts until it is forgotten.
    pub fn tunnel_sessions(&self) -> usize {
        self.tunnel.sessions()
    }

    /// Hands a client's frames to the core, which counts the client from then on. If the core refuses the client,
    /// returns its stream and the reason for the farewell message.
    fn hand_over(
        &self,
        stream: Stream,
        first: Bytes,
        origin: &Origin,
        transport: Transport,
    ) -> Option<(Stream, Reason)> {
        let via = Via { client: origin.client, port: origin.port, transport, accepted: origin.accepted };
        let (refusal, Arrival { stream, .. }) = *self.core.take(Arrival { stream, first, via }).err()?;
        refusal.policy().farewell().map(|reason| (stream, reason))
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// The client that the PROXY header of a trusted proxy contains; otherwise the peer.
    client: SocketAddr,
    /// The port that it came to.
    port: Port,
    /// Whether the connection uses TLS.
    is_tls: bool,
    /// Whether another node of the cluster passes requests on it, and has proved that it is one.
    is_peer: bool,
    /// When the connection was accepted.
    accepted: Instant,
}
