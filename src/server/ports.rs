//! The listeners for clients: which are bound, which are down, and their exchange by a reload.
//!
//! ```text
//!            plan            replace
//!  settings ──────┬─▶ Kept  ─────────▶ up, as before
//!                 ├─▶ Bound ── open ─▶ up; down if the system refuses
//!                 └─▶ Down  ─────────▶ down ── retry_down, every 5 s ──▶ up
//!
//!  listeners that are no longer planned ── replace ──▶ closed
//! ```
//!
//! [`plan`] binds what is new, and changes nothing that is there. [`Ports::replace`] can't fail: it opens what was bound,
//! and closes what is no longer planned. Each failed attempt to bind is counted by its reason.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinHandle};
use tracing::{error, info};

use super::{BoundListener, ServerContext, ServerError, listener_error::ListenerError};
use crate::{
    ingress::{self, Ingress, ListenerSettings, accept::accept},
    net::{Section, listen, resolve},
    telemetry::{
        Telemetry,
        outcome::{ListenerFailure, ReloadRefusal},
    },
};

/// How often a listener that is down is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// A listener of the settings at one address. A host name with several addresses makes several requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListenerRequest {
    settings: ListenerSettings,
    /// By the settings. Port 0, which only tests use, is still 0 here.
    address: SocketAddr,
}

/// A listener that is to be there after the next [`Ports::replace`].
pub(super) struct PlannedListener {
    request: ListenerRequest,
    source: ListenerSource,
}

/// Where a planned listener comes from.
enum ListenerSource {
    /// It is up, and stays as it is.
    Kept,
    /// It was bound for this plan.
    Bound(TcpListener),
    /// It can't be bound, and the settings allow that it is down.
    Down(ListenerError),
}

/// A listener of the settings in force.
struct ManagedListener {
    request: ListenerRequest,
    /// Where it is bound; the requested address if it is down.
    address: SocketAddr,
    /// Connections accepted since the start.
    accepted: Arc<AtomicU64>,
    /// Up: the tasks that accept, one for each worker. Down: why.
    state: Result<Vec<JoinHandle<()>>, ListenerError>,
}

/// The state of a listener at one moment.
pub(super) struct ListenerSnapshot {
    pub(super) section: Section,
    pub(super) address: SocketAddr,
    /// Why it is down; none if it is up.
    pub(super) error: Option<String>,
    /// Connections accepted since the start.
    pub(super) accepted: u64,
}

/// Binds what `settings` ask for, except the listeners of `present`, which are kept.
///
/// # Errors
/// A Community port can't be bound; with `listeners.require_all`, any port. The error names all that can't.
pub(super) fn plan(
    settings: &ingress::IngressSettings,
    present: &[ListenerRequest],
    telemetry: &Telemetry,
) -> Result<Vec<PlannedListener>, ServerError> {
    let (mut planned, mut fatal) = (Vec::new(), Vec::new());
    for listener in &settings.listeners {
        let is_required = settings.require_all || listener.section == Section::ClientConnections;
        let addresses = match resolve::addresses(&listener.host, listener.port) {
            Ok(addresses) => addresses,
            Err(error) => {
                let error = ListenerError::unresolved(listener, &error);
                telemetry.listeners.failures.count(error.reason);
                if is_required {
                    fatal.push(error.what.clone());
                }
                // There is no address to show: it is down at 0.0.0.0.
                let address = SocketAddr::from(([0, 0, 0, 0], listener.port));
                let request = ListenerRequest { settings: listener.clone(), address };
                planned.push(PlannedListener { request, source: ListenerSource::Down(error) });
                continue;
            }
        };
        for address in addresses {
            let request = ListenerRequest { settings: listener.clone(), address };
            let source = if present.contains(&request) {
                ListenerSource::Kept
            } else {
                match bind(address, settings.share_ports, telemetry) {
                    Ok(bound) => ListenerSource::Bound(bound),
                    Err(error) => {
                        if is_required {
                            fatal.push(format!("[{}] ports: {error}", listener.section));
                        }
                        ListenerSource::Down(error)
                    }
                }
            };
            planned.push(PlannedListener { request, source });
        }
    }
    if fatal.is_empty() { Ok(planned) } else { Err(ServerError::new(ReloadRefusal::Listener, fatal.join("\n"))) }
}

/// Binds one address. A failure is counted.
fn bind(address: SocketAddr, share: bool, telemetry: &Telemetry) -> Result<TcpListener, ListenerError> {
    listen::bind(address, share).map_err(|error| {
        let error = ListenerError::from_bind(&error, address);
        telemetry.listeners.failures.count(error.reason);
        error
    })
}

/// The listeners of the settings in force.
pub(super) struct Ports {
    listeners: Mutex<Vec<ManagedListener>>,
    ingress: Arc<Ingress>,
    telemetry: Arc<Telemetry>,
}

impl Ports {
    /// No listeners yet. Those to come hand their connections to `ingress`.
    pub(super) fn new(ingress: Arc<Ingress>, telemetry: Arc<Telemetry>) -> Self {
        Self { listeners: Mutex::default(), ingress, telemetry }
    }

    /// The requests of the listeners that are up.
    pub(super) fn bound_requests(&self) -> Vec<ListenerRequest> {
        let listeners = self.listeners.lock();
        listeners.iter().filter(|listener| listener.state.is_ok()).map(|listener| listener.request.clone()).collect()
    }

    /// Makes `planned` the listeners in force, and closes the others. A listener is closed when the tasks that are
    /// returned have ended.
    pub(super) fn replace(&self, planned: Vec<PlannedListener>) -> Vec<JoinHandle<()>> {
        let mut listeners = self.listeners.lock();
        let mut before = std::mem::take(&mut *listeners);
        for PlannedListener { request, source } in planned {
            let old = before.iter().position(|listener| listener.request == request);
            let old = old.map(|at| before.swap_remove(at));
            let accepted = old.as_ref().map_or_else(Arc::default, |old| Arc::clone(&old.accepted));
            let listener = match (source, old) {
                (ListenerSource::Kept, Some(old)) => old,
                (ListenerSource::Bound(bound), _) => self.open(request, bound, accepted),
                (ListenerSource::Down(why), _) => {
                    let ListenerSettings { section, port, .. } = &request.settings;
                    error!(%section, port, reason = %why.reason, why = why.what, "port is down");
                    ManagedListener { address: request.address, request, accepted, state: Err(why) }
                }
                (ListenerSource::Kept, None) => continue,
            };
            self.show(&listener);
            listeners.push(listener);
        }
        let mut closing = Vec::new();
        for listener in before {
            let (section, port) = (listener.request.settings.section, listener.address.port());
            if let Ok(tasks) = listener.state {
                tasks.iter().for_each(JoinHandle::abort);
                info!(%section, port, "port closed");
                closing.extend(tasks);
            }
            let is_in_use =
                |other: &ManagedListener| other.request.settings.section == section && other.address.port() == port;
            if !listeners.iter().any(is_in_use) {
                self.telemetry.listeners.remove(section, port);
            }
        }
        closing
    }

    /// Closes every listener.
    pub(super) fn close_all(&self) {
        self.replace(Vec::new());
    }

    /// Accepts connections on a bound listener.
    fn open(&self, request: ListenerRequest, bound: TcpListener, accepted: Arc<AtomicU64>) -> ManagedListener {
        let section = request.settings.section;
        let address = bound.local_addr().unwrap_or(request.address);
        let state = match accept(bound, address.port(), &self.ingress, &accepted) {
            Ok(tasks) => {
                info!(%section, %address, "port open");
                Ok(tasks)
            }
            Err(error) => {
                let error = ListenerError::from_accept(&error);
                self.telemetry.listeners.failures.count(error.reason);
                error!(%section, %address, reason = %error.reason, %error, "port is down");
                Err(error)
            }
        };
        ManagedListener { request, address, accepted, state }
    }

    /// Shows in the metrics whether a listener is up.
    fn show(&self, listener: &ManagedListener) {
        let section = listener.request.settings.section;
        self.telemetry.set_listener(section, listener.address.port(), listener.state.is_ok());
    }

    /// Tries to bind the listeners that are down.
    fn retry(&self) {
        let share = self.ingress.shares_ports();
        let mut listeners = self.listeners.lock();
        // A listener whose name did not resolve has no address that could be bound: `request.address` only shows its port.
        let has_address = |error: &ListenerError| error.reason != ListenerFailure::Unresolved;
        let down = listeners.iter_mut().filter(|listener| listener.state.as_ref().is_err_and(has_address));
        for listener in down {
            if let Ok(bound) = bind(listener.request.address, share, &self.telemetry) {
                *listener = self.open(listener.request.clone(), bound, Arc::clone(&listener.accepted));
                self.show(listener);
            }
        }
    }

    /// The listeners that are up.
    pub(super) fn bound(&self) -> Vec<BoundListener> {
        let listeners = self.listeners.lock();
        let up = listeners.iter().filter(|listener| listener.state.is_ok());
        up.map(|up| BoundListener { section: up.request.settings.section, address: up.address }).collect()
    }

    /// The state of every listener.
    pub(super) fn snapshot(&self) -> Vec<ListenerSnapshot> {
        let listeners = self.listeners.lock();
        listeners
            .iter()
            .map(|listener| ListenerSnapshot {
                section: listener.request.settings.section,
                address: listener.address,
                error: listener.state.as_ref().err().map(|error| error.what.clone()),
                accepted: listener.accepted.load(Relaxed),
            })
            .collect()
    }
}

/// Tries listeners that are down again, until the server ends or is drained.
pub(super) async fn retry_down(server: Weak<ServerContext>) {
    loop {
        tokio::time::sleep(RETRY_INTERVAL).await;
        let Some(server) = server.upgrade() else { return };
        if !server.mux.is_draining() {
            server.ports.retry();
        }
    }
}
