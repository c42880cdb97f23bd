//! The sections of the configuration database that hold ports.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A section of the configuration database that holds ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// The Community ports, for direct TCP.
    ClientConnections,
    /// Ports for the HTTP tunnel.
    HttpTunneledClientConnections,
    /// Ports for connections through the CONNECT of an HTTPS proxy.
    HttpsTunneledClientConnections,
    /// Ports for the far end of trunks.
    TrunkListener,
}

impl Section {
    /// The sections for clients, in the order of the file.
    pub const ALL: [Self; 3] =
        [Self::ClientConnections, Self::HttpTunneledClientConnections, Self::HttpsTunneledClientConnections];

    /// The name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientConnections => "client_connections",
            Self::HttpTunneledClientConnections => "http_tunneled_client_connections",
            Self::TrunkListener => "trunk_listener",
            Self::HttpsTunneledClientConnections => "https_tunneled_client_connections",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
