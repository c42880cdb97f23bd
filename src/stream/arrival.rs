//! A client that has arrived: its stream of frames, and how it was reached.

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;

use super::Stream;
use crate::{net::Port, wire::Transport};

/// How a client came in: for limits, logs and metrics, never for a decision of the core.
#[derive(Debug, Clone, Copy)]
pub struct Via {
    /// The client, as far as it can be believed (PROXY header, X-Forwarded-For).
    pub client: SocketAddr,
    /// The port that it came to.
    pub port: Port,
    /// How its bytes are wrapped.
    pub transport: Transport,
    /// When its connection was accepted.
    pub accepted: Instant,
}

/// A client at the door: a byte stream of frames, whatever it came wrapped in.
#[derive(Debug)]
pub struct Arrival {
    /// The stream of frames.
    pub stream: Stream,
    /// Its bytes read so far.
    pub first: Bytes,
    /// How it came in.
    pub via: Via,
}
