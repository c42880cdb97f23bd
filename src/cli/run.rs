//! `sametime-mux run`: runs the multiplexer.
//!
//! SIGHUP reloads the configuration database. SIGTERM and SIGINT drain; a second one stops at once. A service manager may
//! pass listening sockets, and is told when the program is ready, reloads and stops.
//!
//! ```text
//!           receives signals, reads the file     starts the server       serves           drains
//!  SIGHUP   reloads when it serves               reloads when it serves  reloads          is ignored
//!  SIGTERM  ends                                 ends                    drains           stops at once
//! ```

use std::{fs, io, path::PathBuf, process::ExitCode, time::Duration};

use rustix::process::{DumpableBehavior, Resource, Rlimit, geteuid, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tracing::{error, info, warn};

use super::{BAD_USAGE, FAILED, output, service_manager::ServiceManager};
use crate::{
    config::{self, ConfigErrors, Settings},
    log::Log,
    net::{activation::PassedSockets, listen::BACKLOG},
    runtime::{Threads, Workers},
    server::{Server, VERSION},
};

/// Descriptors for everything except clients: listeners, log, admin endpoint, back end, files.
const OTHER_DESCRIPTORS: u64 = 256;

/// The thread that the signals are received on. It runs the admin endpoint, the timers and the health checks; the worker
/// threads accept and serve clients.
pub(super) struct MainThread {
    runtime: Runtime,
    signals: Signals,
}

/// The signals that the program acts on. Those that arrive early are kept until they are asked for.
struct Signals {
    /// SIGHUP.
    reload: Signal,
    stop: StopSignals,
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl MainThread {
    /// Receives the signals from now on: until then each of them kills the process.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _on_runtime = runtime.enter();
            let [reload, terminate, interrupt] =
                [SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt()].map(signal);
            Signals { reload: reload?, stop: StopSignals { terminate: terminate?, interrupt: interrupt? } }
        };
        Ok(Self { runtime, signals })
    }
}

impl StopSignals {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

pub(super) fn run(file: PathBuf, main_thread: io::Result<MainThread>) -> ExitCode {
    let MainThread { runtime, signals } = match main_thread {
        Ok(main_thread) => main_thread,
        Err(error) => {
            output::complain(format_args!("sametime-mux: signals can't be received: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let code = run_on(&runtime, file, signals);
    // Does not wait for blocking work, such as a file on a disk that hangs.
    runtime.shutdown_background();
    code
}

fn run_on(runtime: &Runtime, file: PathBuf, mut signals: Signals) -> ExitCode {
    // There are no other threads yet, as it requires.
    let passed = PassedSockets::from_environment();
    let Some(loaded) = runtime.block_on(load(file, &mut signals)) else { return ExitCode::SUCCESS };
    let settings = match loaded {
        Ok(settings) => settings,
        Err(errors) => {
            output::complain(errors);
            return ExitCode::from(BAD_USAGE);
        }
    };
    let Some(log) = Log::start(settings.log) else { return ExitCode::from(FAILED) };
    info!(version = VERSION, file = %settings.file.display(), "sametime-mux");
    let passed = match passed {
        Ok(passed) => passed,
        Err(unusable) => {
            for why in unusable {
                error!(%why, "not started: the service manager passed a descriptor that is not a TCP socket which listens; the socket unit needs ListenStream= with a port or an IP address, and Accept=no");
            }
            return ExitCode::from(FAILED);
        }
    };
    if passed.block() {
        warn!(
            "the service manager passed sockets that block: if it starts a further process on them, this one halts; set NonBlocking=yes in the service unit"
        );
    }
    disable_core_dumps();
    if geteuid().is_root() {
        warn!(
            "running as root, which is not needed: for ports below 1024 the capability CAP_NET_BIND_SERVICE is enough; see deploy/sametime-mux.service"
        );
    }
    raise_descriptor_limit(&settings);
    let threads = match Threads::start() {
        Ok(threads) => threads,
        Err(error) => {
            error!(%error, "the threads can't be started");
            return ExitCode::from(FAILED);
        }
    };
    let workers = threads.workers();
    log_short_backlog(&settings, workers.runtimes().len());
    let code = runtime.block_on(serve(settings, passed, workers, &log, signals));
    drop(threads);
    // The threads have ended: their last lines are written here.
    drop(log);
    code
}

/// Reads the configuration database. Returns `None` at a signal to stop, which does not wait for a slow disk.
async fn load(file: PathBuf, signals: &mut Signals) -> Option<Result<Settings, ConfigErrors>> {
    let loading = tokio::task::spawn_blocking(move || config::load(&file));
    tokio::select! {
        loaded = loading => loaded.ok(),
        () = signals.stop.recv() => None,
    }
}

/// Disables core dumps, and forbids other processes of the same user to read this one's memory: it contains chats,
/// passwords and the private key. The limit alone is not enough, because the kernel ignores it where it pipes core dumps
/// to a program (core(5)).
fn disable_core_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = setrlimit(Resource::Core, none);
    if let Err(error) = limited.and(set_dumpable_behavior(DumpableBehavior::NotDumpable)) {
        warn!(%error, "core dumps can't be disabled");
    }
}

/// Raises the limit of descriptors to the hard limit, and warns if that is too low for `limits.capacity`.
fn raise_descriptor_limit(settings: &Settings) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        warn!(%error, "the descriptor limit can't be raised");
    }
    // A client's connection, and its link to the Community server.
    let needed = 2 * settings.mux.capacity as u64 + OTHER_DESCRIPTORS;
    if let Some(allowed) = getrlimit(Resource::Nofile).current
        && allowed < needed
    {
        warn!(
            allowed,
            needed,
            capacity = settings.mux.capacity,
            "too few descriptors for limits.capacity: raise the limit (LimitNOFILE, ulimit -n) or lower the capacity"
        );
    }
}

/// Logs a note if the kernel's queue of connections that are not accepted yet is shorter than the number of clients that
/// may log in at once. Each thread has its own queue on a port, of at most `somaxconn` connections.
fn log_short_backlog(settings: &Settings, threads: usize) {
    let wanted = (threads * usize::try_from(BACKLOG).unwrap_or_default()).min(settings.mux.capacity);
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
    if let Some(somaxconn) = somaxconn.filter(|somaxconn: &usize| threads * somaxconn < wanted) {
        info!(
            somaxconn,
            threads,
            wanted,
            "the kernel's queue for new connections is short for a storm of log-ins: raise net.core.somaxconn"
        );
    }
}

async fn serve(
    settings: Settings,
    passed: PassedSockets,
    workers: Workers,
    log: &Log,
    mut signals: Signals,
) -> ExitCode {
    let mut service_manager = ServiceManager::from_environment();
    let started = tokio::select! {
        started = Server::start_on(workers.clone(), settings, passed) => started,
        () = signals.stop.recv() => {
            info!("stopped before it was ready");
            return ExitCode::SUCCESS;
        }
    };
    let server = match started {
        Ok(server) => server,
        Err(why) => {
            error!(reason = %why.reason, "not started:\n{why}");
            return ExitCode::from(FAILED);
        }
    };
    log_ready(&server);
    service_manager.ready(&server, workers);
    let mut log_settings = server.log_settings();
    let mut reloads = JoinSet::new();
    loop {
        tokio::select! {
            // On a task, so that a reload that hangs does not hold up a signal to stop. Signals that arrive during a
            // reload are one reload afterwards.
            _ = signals.reload.recv(), if reloads.is_empty() => {
                service_manager.reloading();
                let server = server.clone();
                reloads.spawn(async move {
                    // The server logs the result.
                    let _ = server.reload_file().await;
                });
            }
            Some(_) = reloads.join_next() => service_manager.reloaded(&server),
            Ok(()) = log_settings.changed() => {
                log.set(*log_settings.borrow_and_update());
                service_manager.changed(&server);
            }
            () = signals.stop.recv() => break,
        }
    }
    service_manager.stopping(&server);
    reloads.detach_all();
    tokio::select! {
        _ = server.drain() => (),
        () = signals.stop.recv() => warn!("a second signal to stop: stopping at once"),
    }
    server.stop();
    // What was written to a socket is sent by the kernel in any case. This gives the admin endpoint time to write its
    // last responses.
    tokio::time::sleep(Duration::from_millis(20)).await;
    info!("stopped");
    service_manager.finish().await;
    ExitCode::SUCCESS
}

fn log_ready(server: &Server) {
    let listeners = server.listeners();
    let ports = listeners.iter().map(|listener| format!("{}={}", listener.section, listener.address));
    let ports = ports.collect::<Vec<_>>().join(" ");
    let admin = server.admin_address().map_or_else(|| "off".to_owned(), |address| address.to_string());
    info!(ports, admin, "ready");
}
