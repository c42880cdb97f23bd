//! Starts the server: builds the rooms and connects them.
//!
//! ```text
//!  ports ── Ingress ──▶ Mux (stream::Core) ──▶ Pool (stream::Community) ──▶ Community servers
//!                                                                        └▶ sandbox
//! ```
//!
//! This is the only place that knows which types implement the traits of [`crate::stream`].

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    ConfigurationRevision, Server, ServerContext, ServerError, VERSION,
    admin_service::RunningAdmin,
    certificate, cluster_service,
    own_sockets::OwnSockets,
    ports::Ports,
    prepare::{Prepared, ServicePlan},
    retry, sandbox_service, unix_time,
};
use crate::{
    community::Pool,
    config::Settings,
    ingress::Ingress,
    mux::Mux,
    net::{activation::PassedSockets, own::OwnListeners},
    runtime::Workers,
    stream::Core,
    telemetry::Telemetry,
    trunk::Trunks,
};

impl Server {
    /// As [`start_on`](Self::start_on), with all connections on the current tokio runtime.
    ///
    /// # Errors
    /// As [`start_on`](Self::start_on).
    pub async fn start(settings: Settings) -> Result<Self, ServerError> {
        Self::start_on(Workers::here(), settings, PassedSockets::default()).await
    }

    /// Binds the ports, or takes them from `passed`, and serves clients from then on: connections run on `workers`,
    /// everything else on the current tokio runtime.
    ///
    /// # Errors
    /// The TLS pair can't be used; a Community port, or with `listeners.require_all` any port, can't be bound; the
    /// sandbox or the admin endpoint can't listen.
    pub async fn start_on(workers: Workers, settings: Settings, passed: PassedSockets) -> Result<Self, ServerError> {
        let telemetry = Telemetry::new(VERSION);
        let acceptor = certificate::load_for_start(&settings).await?;
        let Prepared { settings, acceptor, near_identity, listeners, sandbox, admin } =
            Prepared::for_start(settings, acceptor, passed.clone(), &telemetry).await?;
        let node = match settings.cluster.clone() {
            Some(cluster) => {
                let sockets = OwnSockets { passed: passed.clone(), ..OwnSockets::default() };
                Some(cluster_service::prepare(cluster, &sockets, &telemetry).await?)
            }
            None => None,
        };
        telemetry.process.set_runtimes(workers.runtimes());
        let sandbox = match sandbox {
            ServicePlan::Bound(listener, address) => Some(sandbox_service::start(listener, address)),
            ServicePlan::Off | ServicePlan::Kept => None,
        };
        let own = OwnListeners::default();
        let sandbox_address = sandbox.as_ref().map(|service| service.address);
        let trunks = Trunks::new(workers.runtimes().to_vec(), Arc::clone(&telemetry));
        trunks.set_identity(near_identity);
        let pool = Pool::start(settings.community.clone(), sandbox_address, own.clone(), Arc::clone(&trunks));
        let mux = Mux::start(settings.mux.clone(), Arc::clone(&pool) as _, Arc::clone(&telemetry));
        let own_certificate = acceptor.certificate();
        let ingress = Ingress::start(
            settings.ingress.clone(),
            acceptor,
            Arc::new(mux.clone()) as Arc<dyn Core>,
            workers,
            Arc::clone(&telemetry),
            own.clone(),
            node.as_ref().map(|node| Arc::clone(&node.cluster)),
        );
        let node = node.map(|node| node.start(&ingress));
        let ports = Ports::new(Arc::clone(&ingress), Arc::clone(&telemetry));
        // There is nothing to close.
        drop(ports.replace(listeners));
        let log = settings.log;
        let server = Arc::new(ServerContext {
            settings: ArcSwap::from_pointee(settings),
            revision: Mutex::new(ConfigurationRevision { number: 1, loaded_at: unix_time(), last_error: None }),
            telemetry,
            pool,
            trunks,
            mux,
            ingress,
            ports,
            passed,
            sandbox: Mutex::new(sandbox),
            node,
            admin: Mutex::new(None),
            log: watch::Sender::new(log),
            reloading: tokio::sync::Mutex::new(()),
        });
        server.report_unused_sockets();
        server.report_certificate(&own_certificate, &server.settings.load().ingress);
        if let ServicePlan::Bound(listener, address) = admin {
            *server.admin.lock() = Some(RunningAdmin::start(listener, address, &server, None));
        }
        let listening = Arc::downgrade(&server);
        own.set_source(move || listening.upgrade().map(|server| Self(server).addresses()).unwrap_or_default());
        let serving = Arc::downgrade(&server);
        server.ingress.set_readiness(move || serving.upgrade().is_some_and(|server| server.obstacles().is_empty()));
        tokio::spawn(retry::retry(Arc::downgrade(&server)));
        tokio::spawn(certificate::report_daily(Arc::downgrade(&server)));
        Ok(Self(server))
    }
}
