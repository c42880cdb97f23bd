//! The ways in, each yielding an [`Arrival`](crate::stream::Arrival).
use std::{net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

use crate::stream::Section;

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
pub(crate) fn believed(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}
