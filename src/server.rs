//! Joins everything: binds, wires ingress to the core and the core to the Community, reloads,
//! drains.
//!
//! `ports` are the listeners, `control` is what the admin endpoint sees.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};
use tracing::{error, info, warn};

use crate::{
    admin, community,
    config::{self, Settings},
    ingress::{self, Ingress, tls},
    log::LogSettings,
    mux::{Drained, Mux},
    net::{Section, listen},
    runtime::Workers,
    sandbox::Sandbox,
    stream::Core,
    telemetry::{Telemetry, outcome::ReloadRefusal},
};

mod certificate;
mod control;
mod port_holder;
mod ports;

use ports::Ports;

/// The program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why the server did not start, or a reload was not taken up: what an admin reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// As a refused reload is counted.
    pub reason: ReloadRefusal,
    /// For the admin: what is wrong and what to do.
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
    fn from(fault: tls::TlsError) -> Self {
        Self::new(ReloadRefusal::Tls, format!("TLS: {fault}"))
    }
}

/// A port that is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundListener {
    /// The section that it stands in.
    pub section: Section,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Where the settings in force come from.
#[derive(Debug, Clone)]
struct Loaded {
    at: u64,
    revision: u64,
    last_error: Option<String>,
}

struct Shared {
    settings: ArcSwap<Settings>,
    loaded: Mutex<Loaded>,
    telemetry: Arc<Telemetry>,
    pool: Arc<community::Pool>,
    mux: Mux,
    ingress: Arc<Ingress>,
    ports: Ports,
    sandbox: Mutex<Option<(SocketAddr, AbortHandle)>>,
    admin: Mutex<Option<(SocketAddr, AbortHandle)>>,
    /// For whoever sets up the log.
    log: watch::Sender<LogSettings>,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
}

/// A running multiplexer. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

impl Server {
    /// As [`start_on`](Self::start_on), all on the present tokio runtime.
    ///
    /// # Errors
    /// As there.
    pub async fn start(settings: Settings) -> Result<Self, ServerError> {
        Self::start_on(Workers::here(), settings).await
    }

    /// Binds the ports and serves clients from now on: connections on `workers`, all else on the
    /// present tokio runtime.
    ///
    /// # Errors
    /// A Community port, or the admin endpoint, can't be bound; with `require_all`, any port;
    /// the TLS pair is not usable.
    pub async fn start_on(workers: Workers, settings: Settings) -> Result<Self, ServerError> {
        let acceptor = tls::Acceptor::load(&settings.ingress.tls)?;
        let bound = Ports::bind_all(&settings.ingress, &[])?;
        let telemetry = Telemetry::new(VERSION);
        telemetry.process.set_runtimes(workers.runtimes());
        let sandbox = if wants_sandbox(&settings.community) { Some(start_sandbox().await?) } else { None };
        let pool = community::Pool::start(settings.community.clone(), sandbox.as_ref().map(|(address, _)| *address));
        let mux = Mux::start(settings.mux.clone(), Arc::clone(&pool) as _, Arc::clone(&telemetry));
        let certificate = acceptor.certificate();
        let ingress = Ingress::start(
            settings.ingress.clone(),
            acceptor,
            Arc::new(mux.clone()) as Arc<dyn Core>,
            workers,
            Arc::clone(&telemetry),
        );
        let ports = Ports::new(Arc::clone(&ingress), Arc::clone(&telemetry));
        ports.replace(bound);
        let (admin_listen, log) = (settings.admin.listen, settings.log);
        let server = Self(Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings),
            loaded: Mutex::new(Loaded { at: now(), revision: 1, last_error: None }),
            telemetry,
            pool,
            mux,
            ingress,
            ports,
            sandbox: Mutex::new(sandbox),
            admin: Mutex::new(None),
            log: watch::Sender::new(log),
            reloading: tokio::sync::Mutex::new(()),
        }));
        server.note_certificate(&certificate, &server.0.settings.load().ingress);
        if let Some(address) = admin_listen {
            server.start_admin(address)?;
        }
        tokio::spawn(ports::retry(Arc::downgrade(&server.0)));
        tokio::spawn(certificate::daily(Arc::downgrade(&server.0)));
        Ok(server)
    }

    /// The ports that are bound, in the file's order.
    pub fn listeners(&self) -> Vec<BoundListener> {
        self.0.ports.bound()
    }

    /// Where the admin endpoint listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.0.admin.lock().as_ref().map(|(address, _)| *address)
    }

    /// The log's settings, and every change of them.
    pub fn log_settings(&self) -> watch::Receiver<LogSettings> {
        self.0.log.subscribe()
    }

    /// Clients at present.
    pub fn sessions(&self) -> usize {
        self.0.mux.sessions()
    }

    /// Whether new clients are refused.
    pub fn is_draining(&self) -> bool {
        self.0.mux.is_draining()
    }

    /// Reads the configuration database again and takes it up.
    ///
    /// # Errors
    /// What is wrong with it; then nothing has changed.
    pub async fn reload_file(&self) -> Result<u64, ServerError> {
        let file = self.0.settings.load().file.clone();
        let reloaded = match config::load(&file) {
            Ok(settings) => self.reload(settings).await,
            Err(faults) => Err(ServerError::new(ReloadRefusal::Configuration, faults.to_string())),
        };
        self.0.telemetry.server.reload(reloaded.as_ref().err().map(|error| error.reason));
        match &reloaded {
            Ok(revision) => info!(file = %file.display(), revision, "configuration reloaded"),
            Err(fault) => {
                self.0.loaded.lock().last_error = Some(fault.to_string());
                error!(file = %file.display(), "configuration not reloaded, nothing has changed:\n{fault}");
            }
        }
        reloaded
    }

    /// Takes up `settings`: ports are opened and closed, limits and certificate taken up;
    /// sessions go on, those of a closed port, too. Returns the new revision.
    ///
    /// # Errors
    /// What can't be taken up; then nothing has changed.
    pub async fn reload(&self, settings: Settings) -> Result<u64, ServerError> {
        let shared = &self.0;
        let _one = shared.reloading.lock().await;
        let before = shared.settings.load_full();
        // All that can fail comes first.
        let acceptor = tls::Acceptor::load(&settings.ingress.tls)?;
        let bound = Ports::bind_all(&settings.ingress, &shared.ports.configured())?;
        let sandbox = self.sandbox_for(&settings.community).await?;
        if settings.admin.listen != before.admin.listen {
            match settings.admin.listen {
                Some(address) => self.start_admin(address)?,
                None => self.stop_admin(),
            }
        }
        self.note_certificate(&acceptor.certificate(), &settings.ingress);
        shared.pool.reconfigure(settings.community.clone(), sandbox);
        shared.mux.reconfigure(settings.mux.clone());
        shared.ingress.reconfigure(settings.ingress.clone(), &acceptor);
        for closing in shared.ports.replace(bound) {
            // It was told to end; when it has, nobody can connect any more.
            let _ended = closing.await;
        }
        shared.log.send_replace(settings.log);
        shared.settings.store(Arc::new(settings));
        let mut loaded = shared.loaded.lock();
        *loaded = Loaded { at: now(), revision: loaded.revision + 1, last_error: None };
        Ok(loaded.revision)
    }

    /// Refuses new clients and waits for present ones, until `drain_timeout`. Ports stay open
    /// meanwhile: tunnel clients come on ever new connections.
    pub async fn drain(&self) -> Drained {
        info!(sessions = self.0.mux.sessions(), "draining: no new clients");
        let drained = self.0.mux.drain().await;
        self.0.ports.replace(Vec::new());
        if drained.ended > 0 {
            warn!(ended = drained.ended, left = drained.left, "drained: sessions were ended at the deadline");
        } else {
            info!("drained: every session has ended by itself");
        }
        drained
    }

    /// Stops at once: ports are closed, sessions cut off with the runtime.
    pub fn stop(&self) {
        self.0.ports.replace(Vec::new());
        self.stop_admin();
        if let Some((_, task)) = self.0.sandbox.lock().take() {
            task.abort();
        }
    }

    fn start_admin(&self, address: SocketAddr) -> Result<(), ServerError> {
        let listener = listen::bind(address, false).map_err(|error| {
            ServerError::new(ReloadRefusal::Admin, format!("admin.listen: {}", port_holder::explain(&error, address)))
        })?;
        let address = listener.local_addr().unwrap_or(address);
        self.stop_admin();
        let view = Arc::new(control::Live(Arc::downgrade(&self.0)));
        let task = tokio::spawn(admin::serve(listener, view));
        *self.0.admin.lock() = Some((address, task.abort_handle()));
        Ok(())
    }

    fn stop_admin(&self) {
        if let Some((_, task)) = self.0.admin.lock().take() {
            task.abort();
        }
    }

    /// Where the sandbox listens, if `settings` ask for it; it is started when first asked for
    /// and runs on until the end, for the sessions that it has.
    async fn sandbox_for(&self, settings: &community::Settings) -> Result<Option<SocketAddr>, ServerError> {
        if !wants_sandbox(settings) {
            return Ok(None);
        }
        let running = self.0.sandbox.lock().as_ref().map(|(address, _)| *address);
        if running.is_some() {
            return Ok(running);
        }
        let started = start_sandbox().await?;
        let address = started.0;
        *self.0.sandbox.lock() = Some(started);
        Ok(Some(address))
    }

    /// Shows when the certificate ends, and says what is wrong with it.
    fn note_certificate(&self, certificate: &tls::Certificate, settings: &ingress::IngressSettings) {
        self.0.telemetry.tls.set_certificate_expires(certificate.ends);
        certificate::note(certificate, settings, i64::try_from(now()).unwrap_or(i64::MAX));
    }
}

fn wants_sandbox(settings: &community::Settings) -> bool {
    settings.servers.contains(&community::Server::Sandbox)
}

async fn start_sandbox() -> Result<(SocketAddr, AbortHandle), ServerError> {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let fault = |error: std::io::Error| {
        ServerError::new(ReloadRefusal::Sandbox, format!("the sandbox Community server can't listen: {error}"))
    };
    let listener = listen::bind(address, false).map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    info!(%address, "the sandbox Community server is in use: any name logs in; set community.servers for a real one");
    let task = tokio::spawn(async move { Sandbox::new().serve(listener).await });
    Ok((address, task.abort_handle()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
