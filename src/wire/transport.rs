//! The ways in which a client's frames are wrapped.

use std::fmt;

/// How a client's bytes are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Frames straight on TCP.
    Raw,
    /// Frames in TLS.
    Tls,
    /// The polling HTTP tunnel, in TLS or not.
    HttpPolling,
    /// The hybrid (long-polling) HTTP tunnel, in TLS or not.
    HttpHybrid,
}

impl Transport {
    /// Every transport, in the order of the status page.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Tls, Self::HttpPolling, Self::HttpHybrid];

    /// Its name in metrics, status and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tls => "tls",
            Self::HttpPolling => "http_polling",
            Self::HttpHybrid => "http_hybrid",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
