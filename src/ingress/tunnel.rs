//! The HTTP tunnel: a byte stream inside HTTP requests. Polling and hybrid sessions lose nothing when connections
//! break. Streaming sessions end with the connection of their GET request.
//!
//! ```text
//!                          ┌─ handle ── live ── session      polling and hybrid
//!                          │    │
//!  ingress::http ── service│  stream ── core
//!               (registry) │
//!                          └─ streaming ────── core          streaming
//! ```
//! `session` is the protocol of one session: acknowledgements, retries, responses. `live` is the session between its
//! requests and the core. Neither knows a socket or a clock. In `handle`, requests and the core wait for a session;
//! `stream` is its byte stream for the core. `registry` finds a session by its name. `service` opens sessions, passes
//! requests to them, and forgets them.

use std::time::Duration;

use ipnet::IpNet;

mod handle;
mod live;
mod registry;
mod response;
mod service;
pub mod session;
mod stream;
mod streaming;
mod token;

pub use self::{
    response::{TunnelBody, TunnelResponse, status},
    service::{RefusedStream, Service, StreamOpening, transport},
    token::Token,
};

/// Settings of the HTTP tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSettings {
    /// How long an idle hybrid request is held.
    pub hold: Duration,
    /// How long a request that brought data waits for the Community's answer.
    pub reply_wait: Duration,
    /// A session ends when its client sends no request for this time.
    pub session_timeout: Duration,
    /// After how long a streaming session's silent response gets a keep-alive. `None`: never.
    pub stream_keep_alive: Option<Duration>,
    /// 0: the payload is not encrypted; 1: it is encrypted with RC2.
    pub version: u32,
    /// Bytes of a session that may wait in each direction: for the client's acknowledgement, and for the Community
    /// server.
    pub window: usize,
    /// Whether later requests of a session must come from the address that the first one came from.
    pub same_address: bool,
    /// How many sessions there may be, including those that have ended but may still be asked for.
    pub sessions: usize,
    /// How many of them one address may have; 0: any number.
    pub sessions_per_address: usize,
    /// Networks whose addresses may have any number.
    pub exempt: Vec<IpNet>,
}
