//! `sametime-mux community`: runs only the sandbox Community server.

use std::{net::SocketAddr, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use super::{FAILED, output};
use crate::{
    log::{Log, LogFormat, LogLevel, LogSettings},
    net::listen,
    sandbox::Sandbox,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The address and port to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:1534")]
    listen: SocketAddr,
}

pub(super) async fn run(arguments: Arguments) -> ExitCode {
    // First: until then, a signal kills the process.
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        output::complain("sametime-mux: signals can't be received");
        return ExitCode::from(FAILED);
    };
    let Some(_log) = Log::start(LogSettings { format: LogFormat::Text, level: LogLevel::Info }) else {
        return ExitCode::from(FAILED);
    };
    let listener = match listen::listen(arguments.listen, false) {
        Ok(listener) => listener,
        Err(failed) => {
            error!(address = %arguments.listen, %failed, "the sandbox Community server can't listen");
            return ExitCode::from(FAILED);
        }
    };
    let address = listener.local_addr().unwrap_or(arguments.listen);
    info!(%address, "ready");
    let sandbox = Sandbox::new();
    tokio::select! {
        () = sandbox.serve(listener) => (),
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    info!(log_ins = sandbox.log_ins(), "stopped");
    ExitCode::SUCCESS
}
