//! The admin endpoint.
use std::{net::SocketAddr, path::PathBuf};

/// Settings of the admin endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens; `None`: off.
    pub listen: Option<SocketAddr>,
    /// File with the token that a reload needs, and reading, too, when not on loopback.
    pub token_file: Option<PathBuf>,
}
