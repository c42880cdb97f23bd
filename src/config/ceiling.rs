//! How much memory the program takes at the most, whoever attacks: the formula of
//! docs/configuration.md, which says what each term is made of. `tests/limits.rs` holds the program to it.

use super::Settings;

const KIB: u64 = 1024;
/// What there is without any client, and tables with a bound of their own.
const BASE: u64 = 64 * 1024 * KIB;
const CLIENT: u64 = 16 * KIB;
const CONNECTION: u64 = 64 * KIB;
const TUNNEL_SESSION: u64 = 16 * KIB;
const BACKEND_REQUEST: u64 = 192 * KIB;
/// What a stream takes that is inside TLS.
const TLS: u64 = 112 * KIB;

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// Where nobody uses TLS.
    pub plain: u64,
    /// Where everybody does.
    pub tls: u64,
}

impl Settings {
    /// Memory at the most, the kernel's for sockets not counted.
    pub fn memory_ceiling(&self) -> Ceiling {
        let clients = self.mux.capacity as u64;
        let connections = self.ingress.limits.connections as u64;
        // On each core: a long request or response while it is taken apart, in copies.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let longest = u64::from(self.mux.max_frame).max(self.ingress.tunnel.window as u64);
        let plain = BASE
            + cores * 8 * longest
            + clients * CLIENT
            + connections * CONNECTION
            + self.ingress.tunnel.sessions as u64 * TUNNEL_SESSION
            + self.ingress.http_backend_connections as u64 * BACKEND_REQUEST
            + self.mux.held_bytes as u64 * 2;
        Ceiling { plain, tls: plain + (clients + connections) * TLS }
    }
}
