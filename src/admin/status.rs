//! `/api/status`, as its readers know it: fields are added, never changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::net::Section;

/// The state of everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Since the start.
    pub uptime_seconds: u64,
    /// Whether it is being stopped.
    pub draining: bool,
    /// Where the settings come from.
    pub configuration: Configuration,
    /// Every port.
    pub listeners: Vec<Listener>,
    /// Clients at present.
    pub sessions: Sessions,
    /// Every Community server.
    pub community: Vec<Server>,
    /// Clients refused since the start, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// Where the settings come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Configuration {
    /// The configuration database.
    pub file: String,
    /// When it was taken up last, in seconds since 1970.
    pub loaded_at: u64,
    /// Counted up by each reload that was taken up.
    pub revision: u64,
    /// Why the last reload was not.
    pub last_error: Option<String>,
}

/// Whether a port is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerState {
    /// Clients can come.
    Up,
    /// See the error.
    Down,
}

/// A port.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listener {
    /// The section of the configuration database.
    pub section: Section,
    /// What it listens on.
    pub address: String,
    /// The port.
    pub port: u16,
    /// Whether it is bound.
    pub state: ListenerState,
    /// Why not.
    pub error: Option<String>,
    /// Clients that came in here.
    pub sessions: u64,
    /// Connections accepted since the start.
    pub accepted_total: u64,
}

/// Clients at present.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sessions {
    /// All of them.
    pub total: u64,
    /// How many there may be.
    pub capacity: u64,
    /// By the name of their transport; a tunnel in TLS counts as its kind.
    pub by_transport: BTreeMap<String, u64>,
}

/// A Community server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Server {
    /// As configured.
    pub address: String,
    /// `up`, `down` or `draining`.
    pub state: String,
    /// Clients that it has through us.
    pub sessions: u64,
    /// What was wrong when it was tried last.
    pub last_error: Option<String>,
}
