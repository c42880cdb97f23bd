//! The sandbox: a small Community server, for trying the multiplexer out and for its tests.
//!
//! It implements enough for a real client to log in and chat. Any name may log in; only the password `wrong` is
//! refused. Users that are online chat with each other. The user `echo` is always online and sends every instant
//! message back. Awareness shows who is online, and names are resolved. Every other service is declined.
//!
//! ```text
//!  connection ── session ── community ── session ── connection
//!  (socket)      (protocol)  (users, and a message queue for each session)
//! ```
//!
//! | part | content |
//! |---|---|
//! | `connection` | the socket of one client |
//! | `session` | one client's side of the protocol: frames to frames, without a socket |
//! | `community` | what all sessions share |
//! | `bodies` | the bodies of messages |
//!
//! The sandbox sends no keep-alives and ignores those of clients.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinSet};
use tracing::{debug, warn};

mod bodies;
mod community;
mod connection;
mod session;

use community::SandboxCommunity;
use connection::SandboxConnection;

/// The user that is always online and sends every message back.
pub const ECHO: &[u8] = b"echo";
/// The password that is refused.
pub const WRONG_PASSWORD: &[u8] = b"wrong";
/// The pause after an error of accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A sandbox Community server.
#[derive(Default)]
pub struct Sandbox {
    community: Arc<SandboxCommunity>,
}

impl Sandbox {
    /// A server without users.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of log-ins that are present. A user who is logged in twice counts twice.
    pub fn log_ins(&self) -> usize {
        self.community.log_ins()
    }

    /// Serves the clients of `listener` until the future is dropped, which also closes their connections.
    pub async fn serve(&self, listener: TcpListener) {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((tcp, peer)) => {
                        if let Err(error) = tcp.set_nodelay(true) {
                            debug!(%peer, %error, "sandbox: client gone");
                        }
                        clients.spawn(SandboxConnection::new(tcp, Arc::clone(&self.community)));
                    }
                    Err(error) => {
                        warn!(%error, "sandbox: can't accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = clients.join_next() => (),
            }
        }
    }
}
