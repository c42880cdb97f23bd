//! Links to the Community servers: which server, whether it answers, and the connection.
//!
//! `pool` chooses and counts, `server` is one server and what is known of it, `direct` opens
//! a TCP connection for each client. A link that is shared by clients would stand beside
//! `direct`.

use std::time::Duration;

use serde::Deserialize;

mod direct;
mod endpoint;
mod pool;

pub use endpoint::State;
pub use pool::{Pool, ServerStatus};

/// Where clients are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// The first server that is up.
    Failover,
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest sessions, looked for anew every `recalculate_after` log-ins.
    LeastSessions,
}

/// How a server is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// By a connection. Its system takes one even while the server hangs.
    Connect,
    /// By a Handshake, which must be answered.
    Handshake,
}

/// A Community server, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Server {
    /// The embedded sandbox.
    Sandbox,
    /// `host:port`; the host is a name, an IPv4 address or an IPv6 address in brackets.
    Address(String),
}

/// Settings of the links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The servers, in the file's order; at least one.
    pub servers: Vec<Server>,
    /// How one is chosen.
    pub balance: Balance,
    /// Log-ins between two recalculations of the least loaded server; at least 1.
    pub recalculate_after: u32,
    /// Whether a PROXY v2 header tells the server the client's address.
    pub send_proxy_protocol: bool,
    /// How long a server may take to accept a link.
    pub connect_timeout: Duration,
    /// How long it may take to answer a client's Handshake.
    pub handshake_timeout: Duration,
    /// How it is tried without a client. One that left a Handshake unanswered is tried by Handshakes
    /// until it answers one.
    pub check: Check,
    /// How often each server is tried without a client; `None`: never, but for one that is down.
    pub check_interval: Option<Duration>,
}
