//! Composes the rooms below into a running multiplexer, reloads it, and drains it.
//!
//! - `compose` starts it: it connects `ingress` to the core, and the core to the Community servers.
//! - `reload` takes over new settings under running sessions. `reload_guard` refuses those that are probably a file that
//!   is cut off.
//! - `drain` ends it.
//! - `prepare` does everything of a start or a reload that can fail, before anything changes.
//! - `control` is what the admin endpoint sees of the server, and can ask of it.
//! - `ports` keeps the listeners for clients: up, down, opened and closed. `plan` decides what becomes of each, by the
//!   addresses of `host_names` and the sockets of `own_sockets`. `listener_error` and `port_holder` explain why one is
//!   down, and `retry` tries it again.
//! - `cluster_service` makes this server a node of a cluster.
//! - `certificate` loads the TLS certificate, and warns before it expires. `admin_service` runs the admin endpoint,
//!   `sandbox_service` the embedded Community server.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    community,
    config::Settings,
    ingress::{Ingress, tls},
    log::LogSettings,
    mux::Mux,
    net::{Section, activation::PassedSockets},
    telemetry::{Telemetry, outcome::ReloadRefusal},
    trunk::Trunks,
};

mod admin_service;
mod certificate;
mod cluster_service;
mod compose;
mod control;
pub(crate) mod drain;
mod host_names;
mod listener_error;
mod own_sockets;
mod plan;
mod port_holder;
pub(crate) mod ports;
mod prepare;
pub(crate) mod reload;
mod reload_guard;
mod retry;
mod sandbox_service;

use admin_service::RunningAdmin;
pub use certificate::check_files;
use cluster_service::RunningNode;
use ports::Ports;

/// The program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why the server did not start, or why a reload was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// The reason by which a refused reload is counted.
    pub reason: ReloadRefusal,
    /// For the admin: what is wrong, and what to do. One line for each error.
    pub what: String,
}

impl ServerError {
    fn new(reason: ReloadRefusal, what: impl Into<String>) -> Self {
        Self { reason, what: what.into() }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ServerError {}

impl From<tls::TlsError> for ServerError {
    fn from(error: tls::TlsError) -> Self {
        Self::new(ReloadRefusal::Tls, format!("TLS: {error}"))
    }
}

/// A listener that is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundListener {
    /// The section of the configuration database that it is in.
    pub section: Section,
    /// The address that it listens on.
    pub address: SocketAddr,
}

/// A running multiplexer. Clones are cheap and refer to the same one.
#[derive(Clone)]
pub struct Server(Arc<ServerContext>);

/// The composed rooms, and the settings in force. Background tasks hold it weakly, so that they end with the server.
struct ServerContext {
    settings: ArcSwap<Settings>,
    revision: Mutex<ConfigurationRevision>,
    telemetry: Arc<Telemetry>,
    pool: Arc<community::Pool>,
    trunks: Arc<Trunks>,
    mux: Mux,
    ingress: Arc<Ingress>,
    ports: Ports,
    /// What a service manager passed to this process.
    passed: PassedSockets,
    /// The embedded Community server, from the first settings that name it on.
    sandbox: Mutex<Option<RunningService>>,
    /// This node of the cluster; `None`: it was started alone.
    node: Option<RunningNode>,
    admin: Mutex<Option<RunningAdmin>>,
    /// The log's settings in force. The command line subscribes to them, because it owns the log.
    log: watch::Sender<LogSettings>,
    /// Held during a reload, so that there is one at a time.
    reloading: tokio::sync::Mutex<()>,
}

/// Which configuration is in force, and whether a newer one was refused.
#[derive(Debug, Clone)]
struct ConfigurationRevision {
    /// 1 at the start; each accepted reload adds 1.
    number: u64,
    /// When it came into force, in seconds since 1970.
    loaded_at: u64,
    /// Why the last reload was refused; none if it was accepted.
    last_error: Option<String>,
}

/// The embedded Community server, on a port of its own.
struct RunningService {
    address: SocketAddr,
    task: AbortHandle,
}

impl RunningService {
    fn stop(self) {
        self.task.abort();
    }
}

impl Server {
    /// The listeners that are bound, in the order of the configuration.
    pub fn listeners(&self) -> Vec<BoundListener> {
        self.0.ports.bound()
    }

    /// The addresses of all listeners that are bound, with that of the admin endpoint.
    fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners().into_iter().map(|listener| listener.address).chain(self.admin_address()).collect()
    }

    /// The address of the admin endpoint; none if it is off.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.0.admin.lock().as_ref().map(|service| service.address)
    }

    /// The log's settings in force, and a notification of each change.
    pub fn log_settings(&self) -> watch::Receiver<LogSettings> {
        self.0.log.subscribe()
    }

    /// The number of the configuration in force, which each accepted reload raises by 1, and why the last reload was
    /// refused; none if it was accepted.
    pub fn revision(&self) -> (u64, Option<String>) {
        let revision = self.0.revision.lock();
        (revision.number, revision.last_error.clone())
    }

    /// How long sessions may continue after the drain has begun.
    pub fn drain_timeout(&self) -> Duration {
        self.0.settings.load().mux.drain_timeout
    }

    /// Present clients.
    pub fn sessions(&self) -> usize {
        self.0.mux.sessions()
    }

    /// Whether new clients are refused, because the server is being stopped.
    pub fn is_draining(&self) -> bool {
        self.0.mux.is_draining()
    }
}

/// Seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
