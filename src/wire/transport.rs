//! Transports: how a client's frames are carried.

use std::fmt;

/// How a client's frames are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Frames directly on TCP.
    Raw,
    /// Frames inside TLS.
    Tls,
    /// The polling HTTP tunnel, inside TLS or not.
    HttpPolling,
    /// The hybrid (long-polling) HTTP tunnel, inside TLS or not.
    HttpHybrid,
    /// The streaming HTTP tunnel, inside TLS or not.
    HttpStreaming,
}

impl Transport {
    /// Every transport, in the order of the status page.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Tls, Self::HttpPolling, Self::HttpHybrid, Self::HttpStreaming];

    /// The name in metrics, status and log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tls => "tls",
            Self::HttpPolling => "http_polling",
            Self::HttpHybrid => "http_hybrid",
            Self::HttpStreaming => "http_streaming",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_the_name_that_metrics_have() {
        let mut names: Vec<String> = Transport::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names, Transport::ALL.map(Transport::name));
        names.dedup();
        assert_eq!(names.len(), Transport::ALL.len());
    }
}
