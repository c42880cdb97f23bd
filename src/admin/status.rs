//! The content of `/api/status`. Fields may be added, but never changed or removed: programs read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::net::Section;

/// The state of the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The time since the start, in seconds.
    pub uptime_seconds: u64,
    /// Whether new clients are refused because the server is being stopped.
    pub draining: bool,
    /// The configuration in force.
    pub configuration: ConfigurationStatus,
    /// Every listener of the configuration.
    pub listeners: Vec<ListenerStatus>,
    /// Present clients.
    pub sessions: SessionsStatus,
    /// Every Community server of the configuration, and those that still have clients but are no longer in it.
    pub community: Vec<CommunityServerStatus>,
    /// The cluster; none if this multiplexer is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
    /// Clients that were refused since the start, by reason; only reasons that occurred.
    pub refused: BTreeMap<String, u64>,
}

/// The configuration in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConfigurationStatus {
    /// The path of the configuration database.
    pub file: String,
    /// When it was loaded, in seconds since 1970.
    pub loaded_at: u64,
    /// 1 at the start; each accepted reload adds 1.
    pub revision: u64,
    /// Why the last reload was refused; none if it was accepted.
    pub last_error: Option<String>,
}

/// Whether a listener is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerState {
    /// It accepts connections.
    Up,
    /// It does not; the error says why.
    Down,
}

/// A listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// The section of the configuration database that it is in.
    pub section: Section,
    /// The IP address that it listens on; its name, if it is down because the name has no address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// Whether it is bound.
    pub state: ListenerState,
    /// Why it is down; or, for one that is up, why its name's last addresses stay in force.
    pub error: Option<String>,
    /// Present clients that connected to this address and port.
    pub sessions: u64,
    /// Connections accepted since the start.
    pub accepted_total: u64,
}

/// Present clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionsStatus {
    /// All clients.
    pub total: u64,
    /// The maximum, `limits.capacity`.
    pub capacity: u64,
    /// Clients by the name of their transport. A tunnel inside TLS counts as its tunnel kind.
    pub by_transport: BTreeMap<String, u64>,
}

/// A Community server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommunityServerStatus {
    /// Its address as configured, or `sandbox`.
    pub address: String,
    /// `up`, `down` or `draining`.
    pub state: String,
    /// Clients that are connected to it through this multiplexer.
    pub sessions: u64,
    /// What was wrong at its last check; none if it is up.
    pub last_error: Option<String>,
}

/// The cluster, as this node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The name of this node.
    pub node: String,
    /// Every node, this one first.
    pub nodes: Vec<NodeStatus>,
}

/// A node of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// The four hexadecimal digits with which the names of its tunnel sessions begin.
    pub tag: String,
    /// `host:port`, where other nodes reach it.
    pub address: String,
    /// "this", "up" or "down". A node that was not needed yet is up.
    pub state: String,
    /// Requests passed to it that it has responded to.
    pub passed_total: u64,
    /// Why it could not be reached.
    pub last_error: Option<String>,
}
