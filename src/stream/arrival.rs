//! A client that has arrived: its stream of frames, and how it is connected.

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;

use super::Stream;
use crate::{net::Port, wire::Transport};

/// How a client is connected. This is for limits, log and metrics; the core decides nothing by it.
#[derive(Debug, Clone, Copy)]
pub struct Via {
    /// The client's address: that of the peer, or the one that a trusted proxy reports (PROXY header,
    /// X-Forwarded-For).
    pub client: SocketAddr,
    /// The port that it came to.
    pub port: Port,
    /// How its frames are carried.
    pub transport: Transport,
    /// When its connection was accepted; for a tunnel session, when it was opened.
    pub accepted: Instant,
}

/// A client that waits for admission.
#[derive(Debug)]
pub struct Arrival {
    /// Its stream of frames, on every transport.
    pub stream: Stream,
    /// The bytes of the stream that were read already.
    pub first: Bytes,
    /// How it is connected.
    pub via: Via,
}
