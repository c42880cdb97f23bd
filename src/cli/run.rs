//! `sametime-mux run`: runs the multiplexer.
//!
//! SIGHUP reloads the configuration database. SIGTERM and SIGINT drain; a second one stops at once.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use rustix::process::{DumpableBehavior, Resource, Rlimit, geteuid, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::{BAD_USAGE, FAILED};
use crate::{
    config::{self, Settings},
    log::Log,
    net::listen::BACKLOG,
    runtime::{Threads, Workers},
    server::{Server, VERSION},
};

/// Descriptors for everything except clients: listeners, log, admin endpoint, back end, files.
const OTHER_DESCRIPTORS: u64 = 256;

pub(super) fn run(file: &Path) -> ExitCode {
    let settings = match config::load(file) {
        Ok(settings) => settings,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    let Some(log) = Log::start(settings.log) else { return ExitCode::from(FAILED) };
    info!(version = VERSION, file = %file.display(), "sametime-mux");
    disable_core_dumps();
    if geteuid().is_root() {
        warn!(
            "running as root, which is not needed: for ports below 1024 the capability CAP_NET_BIND_SERVICE is enough; see deploy/sametime-mux.service"
        );
    }
    raise_descriptor_limit(&settings);
    // This thread runs the admin endpoint, the timers and the health checks; the worker threads accept and serve
    // clients.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (runtime, threads) = match runtime.and_then(|runtime| Ok((runtime, Threads::start()?))) {
        Ok(started) => started,
        Err(error) => {
            error!(%error, "the threads can't be started");
            return ExitCode::from(FAILED);
        }
    };
    let workers = threads.workers();
    log_short_backlog(&settings, workers.runtimes().len());
    let code = runtime.block_on(serve(settings, workers, &log));
    // Does not wait for blocking work, such as a name look-up that hangs.
    runtime.shutdown_background();
    drop(threads);
    // The threads have ended: their last lines are written here.
    drop(log);
    code
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

async fn serve(settings: Settings, workers: Workers, log: &Log) -> ExitCode {
    let signals = (signal(SignalKind::hangup()), signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut hangup), Ok(mut terminate), Ok(mut interrupt)) = signals else {
        error!("signals can't be received");
        return ExitCode::from(FAILED);
    };
    let started = tokio::select! {
        started = Server::start_on(workers, settings) => started,
        // A name look-up may take long.
        () = stop_signal(&mut terminate, &mut interrupt) => {
            info!("stopped during the start");
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
    let mut log_settings = server.log_settings();
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // On a task of its own, because a reload may take long: signals are received meanwhile. The server logs
                // the result.
                let server = server.clone();
                tokio::spawn(async move { server.reload_file().await });
            }
            Ok(()) = log_settings.changed() => log.set(*log_settings.borrow_and_update()),
            () = stop_signal(&mut terminate, &mut interrupt) => break,
        }
    }
    tokio::select! {
        _ = server.drain() => (),
        () = stop_signal(&mut terminate, &mut interrupt) => warn!("a second signal to stop: stopping at once"),
    }
    server.stop();
    // What was written to a socket is sent by the kernel in any case. This gives the admin endpoint time to write its
    // last responses.
    tokio::time::sleep(Duration::from_millis(20)).await;
    info!("stopped");
    ExitCode::SUCCESS
}

/// Waits for SIGTERM or SIGINT.
async fn stop_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
}

fn log_ready(server: &Server) {
    let listeners = server.listeners();
    let ports = listeners.iter().map(|listener| format!("{}={}", listener.section, listener.address));
    let ports = ports.collect::<Vec<_>>().join(" ");
    let admin = server.admin_address().map_or_else(|| "off".to_owned(), |address| address.to_string());
    info!(ports, admin, "ready");
}
