//! `sametime-mux run`: the multiplexer.

use std::{path::Path, process::ExitCode, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::{BAD_USAGE, FAILED, log::Log, on_runtime};
use crate::{
    config::{self, Settings},
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
    let log = Log::start(settings.log);
    info!(version = VERSION, file = %file.display(), "sametime-mux");
    raise_descriptor_limit(&settings);
    on_runtime(serve(settings, log))
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

async fn serve(settings: Settings, log: Log) -> ExitCode {
    let signals = (signal(SignalKind::hangup()), signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut hangup), Ok(mut terminate), Ok(mut interrupt)) = signals else {
        error!("no signals can be received");
        return ExitCode::from(FAILED);
    };
    let server = match Server::start(settings).await {
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
    drop(log);
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
