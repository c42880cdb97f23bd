//! The sandbox: a small Community server, for trying the multiplexer out and for its tests.
//!
//! It speaks enough for a real client to log in and chat: any name is let in (the password
//! `wrong` is refused), users that are on line chat with each other, `echo` answers every
//! instant message with the same text, awareness shows who is on line, names resolve. Any
//! other service is declined. `connection` is one client, `community` what clients share,
//! `service` the bodies of the messages.
//!
//! It sends no keep-alives of its own, and ignores those of clients.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinSet};
use tracing::{debug, warn};

mod community;
mod connection;
mod service;

use community::Community;

/// The user that is always on line and answers what it is told.
pub const ECHO: &[u8] = b"echo";
/// The password that is refused.
pub const WRONG_PASSWORD: &[u8] = b"wrong";

/// A sandbox Community server.
#[derive(Default)]
pub struct Sandbox {
    community: Arc<Community>,
}

impl Sandbox {
    /// A server without users.
    pub fn new() -> Self {
        Self::default()
    }

    /// Users that are logged in, each of their logins counted.
    pub fn log_ins(&self) -> usize {
        self.community.log_ins()
    }

    /// Serves clients until dropped; then their connections end, too.
    pub async fn serve(&self, listener: TcpListener) {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((tcp, peer)) => {
                        if let Err(error) = tcp.set_nodelay(true) {
                            debug!(%peer, %error, "sandbox: client gone");
                        }
                        clients.spawn(connection::Connection::new(tcp, Arc::clone(&self.community)));
                    }
                    Err(error) => {
                        warn!(%error, "sandbox: can't accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = clients.join_next() => (),
            }
        }
    }
}
