//! The trunk: the sessions of many clients over few connections to a Community server, for a multiplexer in the DMZ.
//!
//! ```text
//!  near end, in the DMZ                              far end, on the Sametime server
//!  session ── stream ─┐                             ┌─ stream ── TCP ─▶ target
//!  session ── stream ─┼── HTTP/2 connection, TLS ───┼─ stream ── TCP ─▶ target
//!  session ── stream ─┘                             └─ stream ── TCP ─▶ target
//! ```
//! Each session is one CONNECT request of HTTP/2 (RFC 9113, section 8.5), and the bytes of the session are the request's
//! and the response's DATA. So a proxy that knows CONNECT of HTTP/2 can be the far end, too.
//!
//! - `near` keeps the connections to one Community server, and opens streams on them.
//! - `far` accepts such connections, and connects each stream to the only target.
//! - `guard` watches what the other end sends, and ends the connection of one that floods.
//! - `liveness` asks the other end for a sign of life.
//! - `stream` is a stream at either end, `relay` copies between it and a TCP connection, `identity` has what both ends
//!   need for TLS.

use std::{path::PathBuf, time::Duration};

use crate::telemetry::outcome::TrunkClose;

mod far;
mod guard;
mod identity;
mod liveness;
mod near;
mod relay;
mod stream;

pub use far::FarEnd;
pub use identity::{FarIdentity, NearIdentity};
pub use near::{OpenedTrunkStream, Trunk, TrunkError, Trunks};
pub use stream::TrunkStream;

/// How many bytes of a stream may wait at its receiver: as many as one read has. It bounds what a client that reads
/// nothing can make an end hold.
pub const STREAM_WINDOW: u32 = 32 * 1024;
/// How many bytes of all streams of a connection may wait: so many that streams wait only for their own windows.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// How often an end asks the other one for a sign of life. One that is missing for the same time again is a broken
/// connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// What an error of HTTP/2 means for a connection.
fn close_of(error: &h2::Error) -> TrunkClose {
    match error.reason() {
        _ if error.is_io() => TrunkClose::Broken,
        Some(h2::Reason::NO_ERROR) => TrunkClose::Closed,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => TrunkClose::Flood,
        _ => TrunkClose::Protocol,
    }
}

/// The settings of the near end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrunkSettings {
    /// Whether clients reach their servers over trunks.
    pub is_used: bool,
    /// How many connections there are to each server; at least 1.
    pub connections: usize,
    /// Whether they use TLS.
    pub tls: bool,
    /// PEM file with the authorities that sign the far end's certificate; empty: those of the system.
    pub certificate_authority: PathBuf,
    /// PEM file with the certificate by which the near end proves itself; empty: none.
    pub certificate: PathBuf,
    /// PEM file with its key.
    pub private_key: PathBuf,
    /// What the far end is asked to connect to: `host:port`.
    pub target: String,
}

impl TrunkSettings {
    /// Settings of a program without trunks.
    pub fn unused() -> Self {
        Self {
            is_used: false,
            connections: 1,
            tls: false,
            certificate_authority: PathBuf::new(),
            certificate: PathBuf::new(),
            private_key: PathBuf::new(),
            target: String::new(),
        }
    }
}

/// The settings of the far end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrunkListenerSettings {
    /// Whether connections have to use TLS, with a certificate of the near end.
    pub tls: bool,
    /// PEM file with the authorities that sign the near ends' certificates; empty without TLS.
    pub client_ca: PathBuf,
    /// The only place that a stream may reach: `host:port`.
    pub target: String,
    /// How many streams a connection may have at once.
    pub streams: u32,
    /// How long a connection may take to show its first request, and the target to accept a connection.
    pub login_timeout: Duration,
    /// How long streams may go on when the program is stopped.
    pub drain_timeout: Duration,
}
