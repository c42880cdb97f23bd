//! The admin endpoint: health, metrics, status and reload over HTTP.
//!
//! Reading is free on loopback; a reload, and reading from elsewhere, need the token. `http`
//! answers requests; what they are answered with comes through [`View`].

use std::{future::Future, net::SocketAddr, path::PathBuf, pin::Pin};

mod http;
pub mod status;

pub use http::serve;

/// Settings of the admin endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where it listens; `None`: off.
    pub listen: Option<SocketAddr>,
    /// File with the token that a reload needs, and reading, too, when not on loopback.
    pub token_file: Option<PathBuf>,
}

/// What the endpoint shows and can ask for.
pub trait View: Send + Sync + 'static {
    /// Whether clients can be served.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> Result<(), String>;

    /// The state of everything.
    fn status(&self) -> status::Status;

    /// All counters, in the OpenMetrics text format.
    fn metrics(&self) -> String;

    /// The file with the token in force.
    fn token_file(&self) -> Option<PathBuf>;

    /// Reads the configuration database again; says the new revision.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + '_>>;
}
