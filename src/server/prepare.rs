//! Everything of a start or of a reload that can fail. It is done before anything changes: if a step fails, what was
//! prepared is dropped, and what runs is as it was.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpListener;
use tracing::warn;

use super::{
    RunningNode, ServerContext, ServerError, certificate,
    host_names::{HostNames, look_up_all},
    listener_error::ListenerError,
    own_sockets::OwnSockets,
    plan::{ListenerPlan, PresentListeners},
    sandbox_service,
};
use crate::{
    config::Settings,
    ingress::tls::Acceptor,
    net::{
        activation::PassedSockets,
        listen::{BoundSocket, ListeningSockets},
    },
    telemetry::{Telemetry, outcome::ReloadRefusal},
    trunk::NearIdentity,
};

/// New settings, and all that they need to come into force.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    pub(super) acceptor: Acceptor,
    /// The certificates of trunks' near ends.
    pub(super) near_identity: Option<NearIdentity>,
    pub(super) listeners: ListenerPlan<ListeningSockets>,
    pub(super) sandbox: ServicePlan<TcpListener>,
    pub(super) admin: ServicePlan<Arc<TcpListener>>,
}

/// What becomes of a service on a port of its own.
pub(super) enum ServicePlan<L> {
    /// The settings do not ask for it.
    Off,
    /// It runs, and goes on as it is.
    Kept,
    /// It is started on this listener, which has this address.
    Bound(L, SocketAddr),
}

/// What runs already.
#[derive(Default)]
struct RunningParts {
    present: PresentListeners,
    names: HostNames,
    has_sandbox: bool,
    /// `admin.listen` of the settings in force.
    admin: Option<SocketAddr>,
    /// The sockets of the admin endpoint.
    admin_sockets: Vec<(SocketAddr, Arc<TcpListener>)>,
}

impl Prepared {
    /// Prepares a start. `acceptor` has the certificate of `settings`; a service manager passed the sockets of `passed`.
    ///
    /// # Errors
    /// A Community port, or with `listeners.require_all` any port, can't be bound; the sandbox or the admin endpoint
    /// can't listen.
    pub(super) async fn for_start(
        settings: Settings,
        acceptor: Acceptor,
        passed: PassedSockets,
        telemetry: &Telemetry,
    ) -> Result<Self, ServerError> {
        let sockets = OwnSockets { passed, ..OwnSockets::default() };
        let present = PresentListeners { sockets, ..PresentListeners::default() };
        Self::new(settings, acceptor, RunningParts { present, ..RunningParts::default() }, telemetry).await
    }

    /// Prepares a reload of a running server. `acceptor` has the certificate of `settings`.
    ///
    /// # Errors
    /// As for [`for_start`](Self::for_start).
    pub(super) async fn for_reload(
        settings: Settings,
        acceptor: Acceptor,
        server: &Arc<ServerContext>,
    ) -> Result<Self, ServerError> {
        let running = RunningParts {
            present: server.present(),
            names: server.ports.names(),
            has_sandbox: server.sandbox.lock().is_some(),
            admin: server.settings.load().admin.listen,
            admin_sockets: server.admin.lock().as_ref().map(|admin| admin.sockets().to_vec()).unwrap_or_default(),
        };
        Self::new(settings, acceptor, running, &server.telemetry).await
    }

    async fn new(
        settings: Settings,
        acceptor: Acceptor,
        running: RunningParts,
        telemetry: &Telemetry,
    ) -> Result<Self, ServerError> {
        let near_identity = certificate::load_near_identity(&settings).await?;
        let hosts = settings.ingress.listeners.iter().map(|listener| listener.host.clone());
        let names = running.names.clone().updated(look_up_all(hosts).await);
        let admin = settings.admin.listen;
        let listeners = ListenerPlan::new(&settings.ingress, admin, names, &running.present, telemetry).await;
        listeners.check()?;
        let sandbox = if !sandbox_service::is_wanted(&settings.community) {
            ServicePlan::Off
        } else if running.has_sandbox {
            ServicePlan::Kept
        } else {
            let (listener, address) = sandbox_service::bind()?;
            ServicePlan::Bound(listener, address)
        };
        let admin = match settings.admin.listen {
            None => None,
            listen if listen == running.admin => None,
            Some(address) => Some((AdminSocket::of(address, &running).await?, address)),
        };
        // Nothing waits from here on: what listens is accepted on at once.
        let listeners = listeners.listen(telemetry);
        listeners.check()?;
        let admin = match admin {
            Some((socket, address)) => socket.listen(address)?,
            None if settings.admin.listen.is_none() => ServicePlan::Off,
            None => ServicePlan::Kept,
        };
        Ok(Self { settings, acceptor, near_identity, listeners, sandbox, admin })
    }
}

impl ServerContext {
    /// The sockets that are open, for a plan. As long as it exists, none of them is closed.
    pub(super) fn present(&self) -> PresentListeners {
        let (requests, mut held) = self.ports.sockets();
        if let Some(admin) = &*self.admin.lock() {
            held.extend(admin.sockets().iter().cloned());
        }
        PresentListeners { requests, sockets: OwnSockets { held, passed: self.passed.clone() } }
    }
}

impl ServerContext {
    /// Logs which sockets that a service manager passed are of no listener: nobody accepts connections on them.
    pub(super) fn report_unused_sockets(&self) {
        let settings = self.settings.load();
        let mut wanted = self.ports.wanted();
        wanted.extend(settings.admin.listen);
        // It is as it was at the start.
        wanted.extend(self.node.as_ref().map(RunningNode::listen));
        let unused = self.passed.unused(&wanted);
        if !unused.is_empty() {
            warn!(sockets = ?unused,
                "the service manager passed sockets that no listener of the file has: their clients wait in vain; remove them from the socket unit, or add the ports to the file");
        }
    }
}

/// The socket of the admin endpoint at a new address.
enum AdminSocket {
    /// It was kept from an endpoint of before.
    Held(Arc<TcpListener>),
    New(BoundSocket),
}

impl AdminSocket {
    async fn of(address: SocketAddr, running: &RunningParts) -> Result<Self, ServerError> {
        if let Some((_, held)) = running.admin_sockets.iter().find(|(bound, _)| *bound == address) {
            return Ok(Self::Held(Arc::clone(held)));
        }
        running.present.sockets.bind(address, false).await.map(Self::New).map_err(admin_error)
    }

    /// The address that it has is the one that the system chose for port 0, which only tests use.
    fn listen(self, address: SocketAddr) -> Result<ServicePlan<Arc<TcpListener>>, ServerError> {
        let listener = match self {
            Self::Held(listener) => Ok(listener),
            Self::New(bound) => bound.listen().and_then(ListeningSockets::into_one).map(Arc::new),
        };
        let listener = listener.map_err(|error| admin_error(ListenerError::from_listen(&error)))?;
        let address = listener.local_addr().unwrap_or(address);
        Ok(ServicePlan::Bound(listener, address))
    }
}

fn admin_error(error: ListenerError) -> ServerError {
    ServerError::new(ReloadRefusal::Admin, format!("admin.listen: {error}"))
}
