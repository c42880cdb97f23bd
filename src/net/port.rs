//! The port that a connection came to.

/// The port that a connection came to, and the listener that took it there: two listeners may have one port number, on
/// two addresses. It is small, because every idle session has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// The port number.
    pub number: u16,
    /// Which listener, by its place in the metrics; 0: none of them.
    pub listener: u16,
}

/// A port of no listener: its sessions count for the port number alone.
impl From<u16> for Port {
    fn from(number: u16) -> Self {
        Self { number, listener: 0 }
    }
}
