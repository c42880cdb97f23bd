//! The embedded sandbox Community server, on a port of its own on loopback.

use std::{io, net::SocketAddr};

use tokio::net::TcpListener;
use tracing::info;

use super::{RunningService, ServerError};
use crate::{community, net::listen, sandbox::Sandbox, telemetry::outcome::ReloadRefusal};

/// Whether the settings name the sandbox as a Community server.
pub(super) fn is_wanted(settings: &community::CommunitySettings) -> bool {
    settings.servers.iter().any(|server| server.address == community::ServerAddress::Sandbox)
}

/// Binds a free port for it, and returns the address.
///
/// # Errors
/// No port or descriptor is left.
pub(super) fn bind() -> Result<(TcpListener, SocketAddr), ServerError> {
    let failed = |error: io::Error| {
        ServerError::new(ReloadRefusal::Sandbox, format!("the sandbox Community server can't listen: {error}"))
    };
    let listener = listen::listen(SocketAddr::from(([127, 0, 0, 1], 0)), false).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Starts it on the current tokio runtime.
pub(super) fn start(listener: TcpListener, address: SocketAddr) -> RunningService {
    info!(%address, "the sandbox Community server is in use: any name logs in; set community.servers for a real one");
    let task = tokio::spawn(async move { Sandbox::new().serve(listener).await });
    RunningService { address, task: task.abort_handle() }
}
