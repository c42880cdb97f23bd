//! The listeners: bound, down, opened and closed by a reload.

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

use super::{BoundListener, ServerError, Shared, port_holder::explain};
use crate::{
    ingress::{self, Ingress, ListenerSettings, accept::accept},
    net::{Section, listen, resolve},
    telemetry::{Telemetry, outcome::ReloadRefusal},
};

/// How often a port that is down is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A port that is to be: kept, bound anew, or down.
pub(super) struct Wanted {
    settings: ListenerSettings,
    address: SocketAddr,
    state: WantedState,
}

enum WantedState {
    Kept,
    Bound(TcpListener),
    Down(String),
}

/// A port that is.
struct Port {
    settings: ListenerSettings,
    /// As asked for, and as bound (they differ where port 0 was asked for).
    wanted: SocketAddr,
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
    /// What accepts on it, or why it is down.
    state: Result<Vec<JoinHandle<()>>, String>,
}

/// A port, as the status shows it.
pub(super) struct PortStatus {
    pub(super) section: Section,
    pub(super) address: SocketAddr,
    pub(super) error: Option<String>,
    pub(super) accepted: u64,
}

/// Every port.
pub(super) struct Ports {
    ports: Mutex<Vec<Port>>,
    ingress: Arc<Ingress>,
    telemetry: Arc<Telemetry>,
}

impl Ports {
    pub(super) fn new(ingress: Arc<Ingress>, telemetry: Arc<Telemetry>) -> Self {
        Self { ports: Mutex::default(), ingress, telemetry }
    }

    /// Binds what `settings` ask for, but for what is `present` already.
    ///
    /// # Errors
    /// A Community port, or with `require_all` any, can't be bound; all that can't are named.
    pub(super) fn bind_all(
        settings: &ingress::IngressSettings,
        present: &[(ListenerSettings, SocketAddr)],
    ) -> Result<Vec<Wanted>, ServerError> {
        let (mut wanted, mut fatal) = (Vec::new(), Vec::new());
        for listener in &settings.listeners {
            let must = settings.require_all || listener.section == Section::ClientConnections;
            let addresses = resolve::addresses(&listener.host, listener.port).unwrap_or_else(|error| {
                // A name that is nobody's: down, at no address.
                let what = format!("[{}] host_name {:?}: {error}", listener.section, listener.host);
                let address = SocketAddr::from(([0, 0, 0, 0], listener.port));
                if must {
                    fatal.push(what.clone());
                }
                wanted.push(Wanted { settings: listener.clone(), address, state: WantedState::Down(what) });
                Vec::new()
            });
            for address in addresses {
                let kept = present.iter().any(|(settings, at)| settings == listener && *at == address);
                let state = if kept { WantedState::Kept } else { bind(address, settings.share_ports) };
                if let (WantedState::Down(why), true) = (&state, must) {
                    fatal.push(format!("[{}] ports: {why}", listener.section));
                }
                wanted.push(Wanted { settings: listener.clone(), address, state });
            }
        }
        if fatal.is_empty() { Ok(wanted) } else { Err(ServerError::new(ReloadRefusal::Listener, fatal.join("\n"))) }
    }

    /// What is bound, by what it was asked for as.
    pub(super) fn configured(&self) -> Vec<(ListenerSettings, SocketAddr)> {
        let ports = self.ports.lock();
        ports.iter().filter(|port| port.state.is_ok()).map(|port| (port.settings.clone(), port.wanted)).collect()
    }

    /// Makes `wanted` the ports: those that are not among them are closed, which has happened
    /// when the tasks that are returned have ended.
    pub(super) fn replace(&self, wanted: Vec<Wanted>) -> Vec<JoinHandle<()>> {
        let mut ports = self.ports.lock();
        let mut before = std::mem::take(&mut *ports);
        for Wanted { settings, address, state } in wanted {
            let old = before.iter().position(|port| port.settings == settings && port.wanted == address);
            let old = old.map(|at| before.swap_remove(at));
            let accepted = old.as_ref().map_or_else(Arc::default, |port| Arc::clone(&port.accepted));
            let port = match (state, old) {
                (WantedState::Kept, Some(old)) => old,
                (WantedState::Bound(listener), _) => self.open(settings, address, listener, accepted),
                (WantedState::Down(why), _) => {
                    error!(section = %settings.section, port = settings.port, why, "port is down");
                    Port { settings, wanted: address, address, accepted, state: Err(why) }
                }
                (WantedState::Kept, None) => continue,
            };
            self.telemetry.set_listener(port.settings.section, port.address.port(), port.state.is_ok());
            ports.push(port);
        }
        let mut closing = Vec::new();
        for port in before {
            if let Ok(tasks) = port.state {
                tasks.iter().for_each(JoinHandle::abort);
                info!(section = %port.settings.section, port = port.address.port(), "port closed");
                closing.extend(tasks);
            }
            let (section, number) = (port.settings.section, port.address.port());
            if !ports.iter().any(|other| other.settings.section == section && other.address.port() == number) {
                self.telemetry.listeners.remove(section, number);
            }
        }
        closing
    }

    fn open(
        &self,
        settings: ListenerSettings,
        wanted: SocketAddr,
        listener: TcpListener,
        accepted: Arc<AtomicU64>,
    ) -> Port {
        let address = listener.local_addr().unwrap_or(wanted);
        let state = match accept(listener, address.port(), &self.ingress, &accepted) {
            Ok(tasks) => {
                info!(section = %settings.section, %address, "port open");
                Ok(tasks)
            }
            Err(error) => {
                error!(section = %settings.section, %address, %error, "port is down");
                Err(error.to_string())
            }
        };
        Port { settings, wanted, address, accepted, state }
    }

    /// Tries the ports that are down again.
    fn retry(&self) {
        let share = self.ingress.shares_ports();
        let mut ports = self.ports.lock();
        for port in ports.iter_mut().filter(|port| port.state.is_err()) {
            // A host name without an address is looked up by the next reload.
            if let WantedState::Bound(listener) = bind(port.wanted, share) {
                *port = self.open(port.settings.clone(), port.wanted, listener, Arc::clone(&port.accepted));
                self.telemetry.set_listener(port.settings.section, port.address.port(), port.state.is_ok());
            }
        }
    }

    pub(super) fn bound(&self) -> Vec<BoundListener> {
        let ports = self.ports.lock();
        let up = ports.iter().filter(|port| port.state.is_ok());
        up.map(|port| BoundListener { section: port.settings.section, address: port.address }).collect()
    }

    pub(super) fn status(&self) -> Vec<PortStatus> {
        let ports = self.ports.lock();
        ports
            .iter()
            .map(|port| PortStatus {
                section: port.settings.section,
                address: port.address,
                error: port.state.as_ref().err().cloned(),
                accepted: port.accepted.load(Relaxed),
            })
            .collect()
    }
}

fn bind(address: SocketAddr, share: bool) -> WantedState {
    match listen::bind(address, share) {
        Ok(listener) => WantedState::Bound(listener),
        Err(error) => WantedState::Down(explain(&error, address)),
    }
}

/// Tries ports that are down again, for as long as the server lives.
pub(super) async fn retry(server: Weak<Shared>) {
    loop {
        tokio::time::sleep(RETRY).await;
        let Some(server) = server.upgrade() else { return };
        if !server.mux.is_draining() {
            server.ports.retry();
        }
    }
}
