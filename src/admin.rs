//! The admin endpoint: health, metrics, status and reload over HTTP.
//!
//! - `http` accepts and serves connections. `slots` bounds how many there are.
//! - `pages` has a response for each path.
//! - `auth` decides who may have it: by token, Host and Origin.
//! - [`status`] is the content of `/api/status`.
//!
//! On loopback, everybody may read. Whatever changes something always needs the token, and so does reading from elsewhere. What the
//! pages show, and what they ask of the server, goes through [`ServerControl`].

use std::{future::Future, net::SocketAddr, path::PathBuf, pin::Pin};

mod auth;
mod http;
pub(crate) mod pages;
mod response;
mod slots;
pub mod status;

pub use http::{AdminEndpoint, LastSockets, serve};

/// Settings of the admin endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where it listens; `None`: it is off.
    pub listen: Option<SocketAddr>,
    /// The file with the token; `None`: there is no token, and what needs it is refused.
    pub token_file: Option<PathBuf>,
}

/// What the endpoint shows of the server, and what it can ask of it.
pub trait ServerControl: Send + Sync + 'static {
    /// Whether clients can be served.
    ///
    /// # Errors
    /// Why not, one reason on each line.
    fn readiness(&self) -> Result<(), String>;

    /// The state of the server, its listeners, sessions and Community servers.
    fn status(&self) -> status::Status;

    /// All metrics, in the OpenMetrics text format.
    fn metrics(&self) -> String;

    /// The file with the token, by the settings in force.
    fn token_file(&self) -> Option<PathBuf>;

    /// Drains a Community server: it gets no new clients, and the sessions on it are ended. Returns how many there are.
    ///
    /// # Errors
    /// Why not.
    fn drain_server(&self, name: &str) -> Result<u64, String>;

    /// Sends clients to a Community server again. Returns how many sessions are on it.
    ///
    /// # Errors
    /// Why not.
    fn resume_server(&self, name: &str) -> Result<u64, String>;

    /// Reads the configuration database again. Returns the new revision of the configuration.
    ///
    /// # Errors
    /// Why it was refused; then nothing has changed.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + '_>>;
}
