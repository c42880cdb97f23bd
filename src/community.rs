//! Links to the Community servers: which server a client gets, and whether a server answers.
//!
//! - `pool` is the set of servers: reconfiguration, status, and a link for each client.
//! - `balance` chooses the server. `health` is what is known of one, `trust` whether it is trusted not to lead back to
//!   this program, and `state_log` when its state is logged. They do no I/O.
//! - `endpoint` is one server: opening links to it, and checking it. `Endpoint::open_stream` opens a
//!   stream of the trunk, or by `direct` a TCP connection for each client.
//! - `failure` has the errors, and the table of what follows from each.

use std::time::Duration;

use serde::Deserialize;

use crate::trunk::TrunkSettings;

mod balance;
mod direct;
mod endpoint;
mod failure;
mod health;
mod pool;
mod state_log;
mod trust;

pub use endpoint::ServerState;
pub use pool::{Pool, ServerStatus};

/// How the server for a client is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// The first server that is up.
    Failover,
    /// One server after the other.
    RoundRobin,
    /// The server with the fewest sessions. It is determined again after every `recalculate_after` log-ins.
    LeastSessions,
}

/// How a server is checked without a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// By a connection. The operating system of a server that hangs accepts it, too.
    Connect,
    /// By a Handshake, which the server has to answer.
    Handshake,
}

/// The address of a Community server, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServerAddress {
    /// The sandbox Community server, which is built in.
    Sandbox,
    /// `host:port`. The host is a name, an IPv4 address, or an IPv6 address in brackets.
    Address(String),
}

/// A Community server, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredServer {
    /// Where it is.
    pub address: ServerAddress,
    /// Its share of the clients beside the other servers, for least-sessions and round-robin; 1 to [`MAX_WEIGHT`].
    pub weight: u32,
}

impl From<ServerAddress> for ConfiguredServer {
    /// With the weight that a server has if the file names none.
    fn from(address: ServerAddress) -> Self {
        Self { address, weight: 1 }
    }
}

/// The highest weight of a server.
pub const MAX_WEIGHT: u32 = 256;

/// The settings of the links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommunitySettings {
    /// The servers in the order of the file; at least one.
    pub servers: Vec<ConfiguredServer>,
    /// How the server for a client is chosen.
    pub balance: Balance,
    /// After how many log-ins the server with the fewest sessions is determined again; at least 1.
    pub recalculate_after: u32,
    /// How long the share of a server grows that is back; zero: it has its whole share at once.
    pub slow_start: Duration,
    /// Whether the server gets the client's address in a PROXY v2 header.
    pub send_proxy_protocol: bool,
    /// Trunks to the servers.
    pub trunk: TrunkSettings,
    /// How long a server may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long a server may take to answer a Handshake.
    pub handshake_timeout: Duration,
    /// How a server is checked. One that did not answer a Handshake is checked by Handshakes until it answers one.
    pub check: Check,
    /// How often each server is checked; `None`: only when it is down or suspect.
    pub check_interval: Option<Duration>,
}
