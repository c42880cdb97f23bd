//! The maximum memory of the program under any load, also under attack. docs/configuration.md explains the formula
//! and its terms, and `tests/limits.rs` verifies that the program stays below it.

use super::Settings;
use crate::{net::Section, trunk::STREAM_WINDOW};

const KIB: u64 = 1024;
/// The program without clients, and the tables that have a bound of their own.
const BASE: u64 = 64 * 1024 * KIB;
const CLIENT: u64 = 16 * KIB;
const CONNECTION: u64 = 64 * KIB;
const TUNNEL_SESSION: u64 = 16 * KIB;
const BACKEND_REQUEST: u64 = 192 * KIB;
/// What TLS adds to a client or to a connection.
const TLS: u64 = 112 * KIB;

/// Maximum memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// If no client uses TLS.
    pub plain: u64,
    /// If all clients use TLS.
    pub tls: u64,
}

impl Settings {
    /// The maximum memory that the program uses with these settings, without the kernel's memory for sockets.
    pub fn memory_ceiling(&self) -> Ceiling {
        let clients = self.mux.capacity as u64;
        let connections = self.ingress.limits.connections as u64;
        // On each core one long request or response of the tunnel is parsed at a time: two frames, in four copies.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let longest = u64::from(self.mux.max_frame).max(self.ingress.tunnel.window as u64);
        let plain = BASE
            + cores * 8 * longest
            + clients * CLIENT
            + connections * CONNECTION
            + self.ingress.tunnel.sessions as u64 * TUNNEL_SESSION
            + self.ingress.http_backend_connections as u64 * BACKEND_REQUEST
            + self.mux.held_bytes as u64 * 2;
        let trunks = u64::from(self.community.trunk.is_used)
            + u64::from(self.ingress.listeners.iter().any(|listener| listener.section == Section::TrunkListener));
        // In each direction as many bytes as a stream's window has.
        let plain = plain + trunks * clients * 2 * u64::from(STREAM_WINDOW);
        Ceiling { plain, tls: plain + (clients + connections) * TLS }
    }
}
