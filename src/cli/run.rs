//! `sametime-mux run`: the multiplexer.

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

/// Descriptors beside those of clients: listeners, log, admin, back end, files.
const OTHER_DESCRIPTORS: u64 = 256;

pub(super) fn run(file: &Path) -> ExitCode {
    let settings = match config::load(file) {
        Ok(settings) => settings,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    let Some(log) = Log::start(settings.log) else { return ExitCode::from(FAILED) };
    info!(version = VERSION, file = %file.display(), "sametime-mux");
    leave_no_core();
    if geteuid().is_root() {
        warn!(
            "running as root, which is not needed: ports below 1024 take CAP_NET_BIND_SERVICE alone; see deploy/sametime-mux.service"
        );
    }
    raise_descriptor_limit(&settings);
    // This thread watches and serves the admin; the others accept and serve clients.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (runtime, threads) = match runtime.and_then(|runtime| Ok((runtime, Threads::start()?))) {
        Ok(started) => started,
        Err(error) => {
            error!(%error, "no threads to serve on");
            return ExitCode::from(FAILED);
        }
    };
    let workers = threads.workers();
    note_backlog(&settings, workers.runtimes().len());
    let code = runtime.block_on(serve(settings, workers, &log));
    // Sessions that are left don't hold the process back.
    runtime.shutdown_background();
    drop(threads);
    // What they said last is written.
    drop(log);
    code
}

/// What is said, passwords and keys are in memory: a crash writes it nowhere, and no process of the
/// same user reads it. The limit alone does not keep a core from a program that collects them.
fn leave_no_core() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = setrlimit(Resource::Core, none);
    if let Err(error) = limited.and(set_dumpable_behavior(DumpableBehavior::NotDumpable)) {
        warn!(%error, "core dumps can't be switched off");
    }
}

/// Uses all descriptors that the system allows, and says when they are too few.
fn raise_descriptor_limit(settings: &Settings) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        warn!(%error, "the descriptor limit can't be raised");
    }
    // A client and its link to the Community.
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

/// Says when the kernel holds fewer connections to a port than may log in at once, until they are
/// accepted. It holds as many as `somaxconn` for each of the threads.
fn note_backlog(settings: &Settings, threads: usize) {
    let wanted = (threads * usize::try_from(BACKLOG).unwrap_or_default()).min(settings.mux.capacity);
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
    if let Some(somaxconn) = somaxconn.filter(|somaxconn: &usize| threads * somaxconn < wanted) {
        info!(
            somaxconn,
            threads, wanted, "the kernel holds few connections in a storm of log-ins: raise net.core.somaxconn"
        );
    }
}

async fn serve(settings: Settings, workers: Workers, log: &Log) -> ExitCode {
    let signals = (signal(SignalKind::hangup()), signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut hangup), Ok(mut terminate), Ok(mut interrupt)) = signals else {
        error!("no signals can be received");
        return ExitCode::from(FAILED);
    };
    let server = match Server::start_on(workers, settings).await {
        Ok(server) => server,
        Err(fault) => {
            error!("not started:\n{fault}");
            return ExitCode::from(FAILED);
        }
    };
    say_ready(&server);
    let mut log_settings = server.log_settings();
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // What went wrong has been logged.
                let _ = server.reload_file().await;
            }
            Ok(()) = log_settings.changed() => log.set(*log_settings.borrow_and_update()),
            () = told_to_stop(&mut terminate, &mut interrupt) => break,
        }
    }
    tokio::select! {
        _ = server.drain() => (),
        () = told_to_stop(&mut terminate, &mut interrupt) => warn!("told to stop a second time: stopping at once"),
    }
    server.stop();
    // What was written to sockets is the kernel's; this is for answers of the admin endpoint.
    tokio::time::sleep(Duration::from_millis(20)).await;
    info!("stopped");
    ExitCode::SUCCESS
}

async fn told_to_stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
}

fn say_ready(server: &Server) {
    let ports = server.listeners();
    let ports = ports.iter().map(|port| format!("{}={}", port.section, port.address)).collect::<Vec<_>>().join(" ");
    let admin = server.admin_address().map_or_else(|| "off".to_owned(), |address| address.to_string());
    info!(ports, admin, "ready");
}
