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
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use ipnet::IpNet;

use crate::{
    stream::{self, Arrival, Core, Section, Stream, Transport, Via},
    telemetry::Telemetry,
    throttle::Throttle,
};

mod backend;
mod connection;
mod detect;
mod http;
pub mod listener;
pub mod tls;
pub mod tunnel;

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

/// Where the TLS pair lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file with the certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// PEM file with the private key.
    pub private_key: PathBuf,
}

/// Settings of the ways in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Every listener, in the file's order.
    pub listeners: Vec<ListenerSettings>,
    /// Whether a port that can't be bound fails the start, whatever its section.
    pub require_all: bool,
    /// Peers whose PROXY header is believed and required.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Peers whose X-Forwarded-For is believed.
    pub forwarded_for_from: Vec<IpNet>,
    /// From accept to the end of the first frame or request.
    pub login_timeout: Duration,
    /// The most that one frame may hold, in bytes; bounds a tunnel request, too.
    pub max_frame: u32,
    /// The TLS pair.
    pub tls: TlsSettings,
    /// Where other HTTP requests go: scheme and authority of a URL.
    pub http_backend: Option<hyper::Uri>,
    /// The HTTP tunnel.
    pub tunnel: tunnel::Settings,
}

/// Whether `address` lies in one of `networks`; an IPv4-mapped address counts as IPv4.
fn believed(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// What all ways in share.
pub struct Ingress {
    settings: ArcSwap<Settings>,
    tls: tls::Acceptor,
    tunnel: Arc<tunnel::Service>,
    backend: backend::Backend,
    core: Arc<dyn Core>,
    telemetry: Arc<Telemetry>,
    troubles: Throttle,
    accept_errors: Throttle,
}

impl Ingress {
    /// The ways in to `core`. Must be called on a tokio runtime.
    pub fn start(settings: Settings, tls: tls::Acceptor, core: Arc<dyn Core>, telemetry: Arc<Telemetry>) -> Arc<Self> {
        Arc::new(Self {
            tls,
            tunnel: tunnel::Service::start(settings.tunnel.clone(), Arc::clone(&core)),
            backend: backend::Backend::new(),
            settings: ArcSwap::from_pointee(settings),
            core,
            telemetry,
            troubles: Throttle::default(),
            accept_errors: Throttle::default(),
        })
    }

    /// Takes up new settings, and a new TLS pair, for connections and requests from now on.
    pub fn reconfigure(&self, settings: Settings, tls: &tls::Acceptor) {
        self.tls.replace(tls);
        self.tunnel.reconfigure(settings.tunnel.clone());
        self.settings.store(Arc::new(settings));
    }

    /// Hands frames over to the core, or refuses the client in its own protocol.
    async fn arrive(&self, stream: Stream, first: Bytes, origin: Origin, transport: Transport) {
        let via = Via { client: origin.client, port: origin.port, transport, accepted: origin.accepted };
        if let Err(refused) = self.core.take(Arrival { stream, first, via }) {
            let (refusal, arrival) = *refused;
            stream::refuse(arrival.stream, refusal.reason()).await;
        }
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// The client, by PROXY header where that is believed, else the peer.
    client: SocketAddr,
    /// The listener's port.
    port: u16,
    accepted: Instant,
}
