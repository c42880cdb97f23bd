//! The sandbox: a small Community server, for trying the multiplexer out and for its tests.
//!
//! It implements enough for a real client to log in and chat. Any name may log in; only the password `wrong` is
//! refused. Users that are on line chat with each other. The user `echo` is always on line and sends every instant
//! message back. Awareness shows who is on line, and with which status; there are no groups. Every other service is
//! declined.
//!
//! A name that a client looks up means the user who has it, or else the users whose names begin with it: one match,
//! none, or several. Those are found who are on line, and `ann`, `bea`, `bob` and `echo` always.
//!
//! Its layouts are those that Java clients (toolkits 7.0 and 9.0) and libmeanwhile all take.
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
//! | `awareness`, `directory` | the bodies of messages about who is on line, and about names that are looked up |
//! | `bodies` | the bodies of other messages |
//! | `limits` | how much one client, and all of them, may have |
//!
//! The sandbox sends no keep-alives and ignores those of clients.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tracing::{debug, warn};

use crate::{
    log::Throttle,
    stream::{Stream, linger},
    wire::reason::Reason,
};

mod awareness;
mod bodies;
mod community;
mod connection;
mod directory;
mod limits;
mod session;

use community::SandboxCommunity;
use connection::SandboxConnection;
use limits::MAX_CLIENTS;

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
        let (mut clients, lines) = (JoinSet::new(), Throttle::default());
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((tcp, peer)) => {
                        if let Err(error) = tcp.set_nodelay(true) {
                            debug!(%peer, %error, "sandbox: client gone");
                        }
                        if clients.len() >= MAX_CLIENTS {
                            let _ = tcp.try_write(&Reason::ServerFull.destroy());
                            continue;
                        }
                        clients.spawn(serve_client(tcp, Arc::clone(&self.community)));
                    }
                    Err(error) => {
                        if let Some(more) = lines.pass() {
                            warn!(%error, more, "sandbox: can't accept");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = clients.join_next() => (),
            }
        }
    }
}

/// Serves a client to its end.
async fn serve_client(tcp: TcpStream, community: Arc<SandboxCommunity>) {
    let mut connection = SandboxConnection::new(tcp, community);
    let has_farewell = (&mut connection).await;
    let tcp = connection.into_tcp();
    if has_farewell {
        Box::pin(linger(Stream::Tcp(tcp))).await;
    }
}
