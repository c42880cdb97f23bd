//! Everything of a start or of a reload that can fail. It is done before anything changes: if a step fails, what was
//! prepared is dropped, and what runs is as it was.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpListener;

use super::{
    ServerContext, ServerError,
    listener_error::ListenerError,
    ports::{ListenerRequest, PlannedListener, plan},
    sandbox_service,
};
use crate::{
    config::Settings,
    ingress::tls::Acceptor,
    net::listen,
    telemetry::{Telemetry, outcome::ReloadRefusal},
};

/// New settings, and all that they need to come into force.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    pub(super) acceptor: Acceptor,
    pub(super) listeners: Vec<PlannedListener>,
    pub(super) sandbox: ServicePlan,
    pub(super) admin: ServicePlan,
}

/// What becomes of a service on a port of its own.
pub(super) enum ServicePlan {
    /// The settings do not ask for it.
    Off,
    /// It runs, and goes on as it is.
    Kept,
    /// It is started on this listener, which has this address.
    Bound(TcpListener, SocketAddr),
}

/// What runs already.
#[derive(Default)]
struct RunningParts {
    listeners: Vec<ListenerRequest>,
    has_sandbox: bool,
    /// `admin.listen` of the settings in force.
    admin: Option<SocketAddr>,
}

impl Prepared {
    /// Prepares a start. `acceptor` has the certificate of `settings`.
    ///
    /// # Errors
    /// A Community port, or with `listeners.require_all` any port, can't be bound; the sandbox or the admin endpoint
    /// can't listen.
    pub(super) fn for_start(
        settings: Settings,
        acceptor: Acceptor,
        telemetry: &Telemetry,
    ) -> Result<Self, ServerError> {
        Self::new(settings, acceptor, &RunningParts::default(), telemetry)
    }

    /// Prepares a reload of a running server. `acceptor` has the certificate of `settings`.
    ///
    /// # Errors
    /// As for [`for_start`](Self::for_start).
    pub(super) fn for_reload(
        settings: Settings,
        acceptor: Acceptor,
        server: &Arc<ServerContext>,
    ) -> Result<Self, ServerError> {
        let running = RunningParts {
            listeners: server.ports.bound_requests(),
            has_sandbox: server.sandbox.lock().is_some(),
            admin: server.settings.load().admin.listen,
        };
        Self::new(settings, acceptor, &running, &server.telemetry)
    }

    fn new(
        settings: Settings,
        acceptor: Acceptor,
        running: &RunningParts,
        telemetry: &Telemetry,
    ) -> Result<Self, ServerError> {
        let listeners = plan(&settings.ingress, &running.listeners, telemetry)?;
        let sandbox = if !sandbox_service::is_wanted(&settings.community) {
            ServicePlan::Off
        } else if running.has_sandbox {
            ServicePlan::Kept
        } else {
            let (listener, address) = sandbox_service::bind()?;
            ServicePlan::Bound(listener, address)
        };
        let admin = match settings.admin.listen {
            None => ServicePlan::Off,
            listen if listen == running.admin => ServicePlan::Kept,
            Some(address) => {
                let (listener, address) = bind_admin(address)?;
                ServicePlan::Bound(listener, address)
            }
        };
        Ok(Self { settings, acceptor, listeners, sandbox, admin })
    }
}

/// Binds the admin endpoint. The address that it returns has the port that the system chose for port 0, which only
/// tests use.
fn bind_admin(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServerError> {
    let listener = listen::bind(address, false).map_err(|error| {
        let error = ListenerError::from_bind(&error, address);
        ServerError::new(ReloadRefusal::Admin, format!("admin.listen: {error}"))
    })?;
    let address = listener.local_addr().unwrap_or(address);
    Ok((listener, address))
}
