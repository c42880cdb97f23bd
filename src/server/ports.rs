//! The listeners for clients: which are up, which are down, and their exchange by a reload.
//!
//! ```text
//!            plan               replace
//!  settings ──┬─▶ Kept      ─────────────▶ up, as before
//!             ├─▶ New       ── accept ───▶ up; down if descriptors have run out
//!             └─▶ Down      ─────────────▶ down ── planned again every 5 s ──▶ up
//!
//!  a socket that no listener has any more
//!    ├─ an address of a listener on every address ──▶ covered: accepts for that listener
//!    └─ else ──▶ accepts what has arrived ──▶ closed
//! ```
//!
//! [`Ports::replace`] can't fail. It opens before it closes, and a socket whose address is still served is never closed:
//! that would reset connections that the kernel has accepted and this program has not. When `[::]:1533` takes the place
//! of `127.0.0.1:1533`, the kernel gives connections to the more exact address, so the old socket goes on for the new
//! listener. The other way round, the new socket gets all connections to its address; the old one is closed when the
//! handshakes that it has begun have ended.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinHandle},
};
use tracing::{error, info, warn};

use super::{
    BoundListener,
    host_names::HostNames,
    listener_error::ListenerError,
    plan::{ListenerPlan, ListenerRequest, ListenerSource, PlannedListener},
};
use crate::{
    ingress::{
        Ingress, ListenerSettings,
        accept::{OpenPort, accept},
    },
    net::{Port, Section, address::covers, listen::ListeningSockets},
    telemetry::{Telemetry, metrics::listeners::ShownListener},
};

/// How long a TCP handshake may take that has begun on a socket whose place another one takes.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(1);

/// A socket for each worker on one address, and the tasks that accept on them.
struct HeldSocket {
    /// The listener that it belongs to, or belonged to if it is covered.
    request: ListenerRequest,
    /// Where it is bound.
    address: SocketAddr,
    /// As its connections have it.
    port: Port,
    open: OpenPort,
    /// Connections accepted since it was opened.
    accepted: Arc<AtomicU64>,
}

/// A listener of the settings in force.
struct ManagedListener {
    request: ListenerRequest,
    state: Result<HeldSocket, ListenerError>,
    /// Why the name's last look-up failed, if its last addresses stay in force.
    stale: Option<String>,
}

#[derive(Default)]
struct ListenerTable {
    listeners: Vec<ManagedListener>,
    /// Sockets whose address a listener on every address covers.
    covered: Vec<HeldSocket>,
    names: HostNames,
    /// Sockets that are being closed.
    closing: Vec<AbortHandle>,
    /// The sockets of the service manager are left to the next process.
    is_left: bool,
    /// The server has stopped: no port is opened any more.
    is_stopped: bool,
}

/// The state of a listener at one moment.
pub(super) struct ListenerSnapshot {
    pub(super) section: Section,
    /// Its IP address; its name, if no address of it is known.
    pub(super) address: String,
    pub(super) port: u16,
    /// Where it is bound; none if it is down.
    pub(super) bound: Option<SocketAddr>,
    /// Why it is down; or, for one that is up, why it may be up at addresses that its name no longer has.
    pub(super) error: Option<String>,
    /// Connections accepted since it was opened.
    pub(super) accepted: u64,
}

/// The listeners of the settings in force.
pub(super) struct Ports {
    table: Mutex<ListenerTable>,
    ingress: Arc<Ingress>,
    telemetry: Arc<Telemetry>,
}

impl Ports {
    /// No listeners yet. Those to come hand their connections to `ingress`.
    pub(super) fn new(ingress: Arc<Ingress>, telemetry: Arc<Telemetry>) -> Self {
        Self { table: Mutex::default(), ingress, telemetry }
    }

    /// The requests of the sockets that are open, and the sockets.
    pub(super) fn sockets(&self) -> (Vec<ListenerRequest>, Vec<(SocketAddr, Arc<TcpListener>)>) {
        let table = self.table.lock();
        let held = || table.held();
        let sockets =
            held().flat_map(|held| held.open.sockets().iter().map(|socket| (held.address, Arc::clone(socket))));
        (held().map(|held| held.request.clone()).collect(), sockets.collect())
    }

    /// The addresses of the listeners of the settings in force.
    pub(super) fn wanted(&self) -> Vec<SocketAddr> {
        self.table.lock().listeners.iter().filter_map(|listener| listener.request.address).collect()
    }

    /// The names of the settings in force, with their addresses.
    pub(super) fn names(&self) -> HostNames {
        self.table.lock().names.clone()
    }

    /// Whether there is something to try again: a listener is down, or the look-up of a name has failed.
    pub(super) fn is_incomplete(&self) -> bool {
        let table = self.table.lock();
        !table.names.failed().is_empty() || table.listeners.iter().any(|listener| listener.state.is_err())
    }

    /// Makes `plan` the listeners in force, and closes the others. A port is closed when the tasks that are returned have
    /// ended.
    pub(super) fn replace(&self, plan: ListenerPlan<ListeningSockets>) -> Vec<JoinHandle<()>> {
        let mut table = self.table.lock();
        if table.is_stopped {
            return Vec::new();
        }
        let mut held = std::mem::take(&mut table.covered);
        let (mut down, mut known_stale) = (Vec::new(), Vec::new());
        for listener in std::mem::take(&mut table.listeners) {
            known_stale.extend(listener.stale);
            match listener.state {
                Ok(socket) => held.push(socket),
                Err(error) => down.push((listener.request, error)),
            }
        }
        for PlannedListener { request, source, stale } in plan.listeners {
            let ListenerSettings { section, port, .. } = request.settings;
            let state = self.realize(&request, source, &mut held);
            // What is tried again and fails as before is not logged again.
            if let Err(error) = &state
                && !down.iter().any(|(was, why)| *was == request && why == error)
            {
                error!(%section, port, reason = %error.reason, why = error.what, "port is down");
            }
            if let Some(why) = stale.as_ref().filter(|why| !known_stale.contains(why)) {
                warn!(%section, port, "{why}");
            }
            table.listeners.push(ManagedListener { request, state, stale });
        }
        table.names = plan.names;
        let closing = table.cover(held);
        table.closing.retain(|task| !task.is_finished());
        table.closing.extend(closing.iter().flat_map(|(socket, _)| socket.open.abort_handles()));
        self.telemetry.listeners.show(&table.shown());
        closing
            .into_iter()
            .flat_map(|(socket, at)| {
                info!(section = %socket.request.settings.section, address = %socket.address, "port closed");
                socket.open.close(at)
            })
            .collect()
    }

    /// Opens a listener, or takes its socket out of `held`.
    fn realize(
        &self,
        request: &ListenerRequest,
        source: ListenerSource<ListeningSockets>,
        held: &mut Vec<HeldSocket>,
    ) -> Result<HeldSocket, ListenerError> {
        match source {
            ListenerSource::Down(why) => Err(why),
            ListenerSource::New(listener) => {
                let section = request.settings.section;
                let open = || {
                    let (address, accepted) = (listener.sockets[0].local_addr()?, Arc::default());
                    let port = self.telemetry.sessions.port(address);
                    let open = accept(listener, port, &self.ingress, &accepted, section)?;
                    Ok(HeldSocket { request: request.clone(), address, port, open, accepted })
                };
                let opened = open().map_err(|error| ListenerError::from_listen(&error));
                match &opened {
                    Ok(socket) => info!(%section, address = %socket.address, "port open"),
                    Err(error) => self.telemetry.listeners.failures.count(error.reason),
                }
                opened
            }
            ListenerSource::Kept => {
                let at = held.iter().position(|held| held.request.is_same_socket(request));
                let mut socket = held.swap_remove(at.expect("a plan keeps what there is"));
                let (before, now) = (socket.request.settings.section, request.settings.section);
                if before != now {
                    info!(section = %now, address = %socket.address, %before, "port is in another section");
                }
                socket.open.set_section(now);
                socket.request = request.clone();
                Ok(socket)
            }
        }
    }

    /// Whether every listener is closed for good, because the server is being stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.table.lock().is_stopped
    }

    /// Stops accepting on the sockets that a service manager passed: it keeps them open, and the kernel keeps what
    /// arrives there for the next process. Returns their ports, and the tasks that accept until they have ended.
    pub(super) fn leave_to_successor(&self) -> (Vec<Port>, Vec<JoinHandle<()>>) {
        let mut table = self.table.lock();
        let (mut ports, mut accepting) = (Vec::new(), Vec::new());
        for held in table.held_mut().filter(|held| held.open.is_passed()) {
            ports.push(held.port);
            accepting.extend(held.open.leave());
        }
        table.is_left = !ports.is_empty();
        (ports, accepting)
    }

    /// Whether a reload could take back what was left to the next process.
    pub(super) fn is_left(&self) -> bool {
        self.table.lock().is_left
    }

    /// Closes every listener at once, for good. A port is closed when the tasks that are returned have ended.
    pub(super) fn close_all(&self) -> Vec<JoinHandle<()>> {
        let mut table = self.table.lock();
        let ListenerTable { listeners, covered, closing, .. } = std::mem::take(&mut *table);
        table.is_stopped = true;
        closing.iter().for_each(AbortHandle::abort);
        self.telemetry.listeners.show(&[]);
        let held = listeners.into_iter().filter_map(|listener| listener.state.ok()).chain(covered);
        held.flat_map(|socket| socket.open.abort()).collect()
    }

    /// The listeners that are up.
    pub(super) fn bound(&self) -> Vec<BoundListener> {
        let table = self.table.lock();
        let up = table.listeners.iter().filter_map(|listener| Some((listener, listener.state.as_ref().ok()?)));
        up.map(|(listener, socket)| BoundListener {
            section: listener.request.settings.section,
            address: socket.address,
        })
        .collect()
    }

    /// Why the listeners of a section are down that are down.
    pub(super) fn errors(&self, section: Section) -> Vec<String> {
        let table = self.table.lock();
        let of_section = table.listeners.iter().filter(|listener| listener.request.settings.section == section);
        of_section.filter_map(|listener| Some(listener.state.as_ref().err()?.what.clone())).collect()
    }

    /// The state of every listener.
    pub(super) fn snapshot(&self) -> Vec<ListenerSnapshot> {
        self.table.lock().snapshot()
    }
}

impl ListenerTable {
    /// Every socket that is open.
    fn held(&self) -> impl Iterator<Item = &HeldSocket> {
        self.listeners.iter().filter_map(|listener| listener.state.as_ref().ok()).chain(&self.covered)
    }

    /// As [`Self::held`].
    fn held_mut(&mut self) -> impl Iterator<Item = &mut HeldSocket> {
        self.listeners.iter_mut().filter_map(|listener| listener.state.as_mut().ok()).chain(&mut self.covered)
    }

    /// Keeps those sockets whose address a listener covers. Returns the others, with the moment at which each is to be
    /// closed.
    fn cover(&mut self, rest: Vec<HeldSocket>) -> Vec<(HeldSocket, Instant)> {
        let mut closing = Vec::new();
        let now = Instant::now();
        for socket in rest {
            let wanted = self.listeners.iter().filter_map(|listener| listener.request.address);
            if wanted.into_iter().any(|wanted| covers(wanted, socket.address)) {
                self.covered.push(socket);
                continue;
            }
            let mut up = self.listeners.iter().filter_map(|listener| listener.state.as_ref().ok());
            let has_successor = up.any(|up| covers(socket.address, up.address));
            closing.push((socket, if has_successor { now + HANDSHAKE_TIME } else { now }));
        }
        closing
    }

    fn shown(&self) -> Vec<ShownListener> {
        let shown = self.snapshot().into_iter().map(|listener| ShownListener {
            section: listener.section,
            address: listener.address,
            port: listener.port,
            is_up: listener.bound.is_some(),
        });
        shown.collect()
    }

    fn snapshot(&self) -> Vec<ListenerSnapshot> {
        let mut shown: Vec<ListenerSnapshot> = self.listeners.iter().map(ManagedListener::snapshot).collect();
        for socket in &self.covered {
            let cover = self
                .listeners
                .iter()
                .position(|listener| listener.state.as_ref().is_ok_and(|cover| covers(cover.address, socket.address)));
            let accepted = socket.accepted.load(Relaxed);
            match cover {
                Some(at) => shown[at].accepted += accepted,
                // The listener that asks for it is down, but this part of it is up.
                None => {
                    let asks = |listener: &&ManagedListener| {
                        listener.request.address.is_some_and(|address| covers(address, socket.address))
                    };
                    let section = self.listeners.iter().find(asks).map(|listener| listener.request.settings.section);
                    let section = section.unwrap_or(socket.request.settings.section);
                    shown.push(ListenerSnapshot::up(section, socket));
                }
            }
        }
        shown
    }
}

impl ManagedListener {
    fn snapshot(&self) -> ListenerSnapshot {
        let ListenerRequest { settings, address } = &self.request;
        match &self.state {
            Ok(socket) => {
                ListenerSnapshot { error: self.stale.clone(), ..ListenerSnapshot::up(settings.section, socket) }
            }
            Err(error) => ListenerSnapshot {
                section: settings.section,
                address: address.map_or_else(|| settings.host.clone(), |address| address.ip().to_string()),
                port: settings.port,
                bound: None,
                error: Some(error.what.clone()),
                accepted: 0,
            },
        }
    }
}

impl ListenerSnapshot {
    fn up(section: Section, socket: &HeldSocket) -> Self {
        Self {
            section,
            address: socket.address.ip().to_string(),
            port: socket.address.port(),
            bound: Some(socket.address),
            error: None,
            accepted: socket.accepted.load(Relaxed),
        }
    }
}
