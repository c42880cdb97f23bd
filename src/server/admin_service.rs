//! The admin endpoint as a service of the server: started, moved to another address, and stopped.
//!
//! When it moves to another address of its port, no connection is lost: see [`super::ports`], which moves client ports
//! in the same way.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use super::{ServerContext, control::AdminControl, ports::HANDSHAKE_TIME};
use crate::{
    admin::{self, LastSockets},
    net::address::covers,
};

/// The admin endpoint on its sockets.
pub(super) struct RunningAdmin {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// The socket on this address, and sockets of before that this address covers.
    sockets: Vec<(SocketAddr, Arc<TcpListener>)>,
    closes: oneshot::Sender<LastSockets>,
    task: JoinHandle<()>,
}

impl RunningAdmin {
    /// Starts it on `listener`, which has this address, on the current tokio runtime, and in the place of `before`.
    pub(super) fn start(
        listener: Arc<TcpListener>,
        address: SocketAddr,
        server: &Arc<ServerContext>,
        before: Option<&Self>,
    ) -> Self {
        let mut sockets = vec![(address, Arc::clone(&listener))];
        let before = before.into_iter().flat_map(|before| &before.sockets);
        let covered = before.filter(|(bound, socket)| covers(address, *bound) && !Arc::ptr_eq(socket, &listener));
        sockets.extend(covered.cloned());
        let (closes, closing) = oneshot::channel();
        let endpoint = admin::AdminEndpoint {
            sockets: sockets.iter().map(|(_, socket)| Arc::clone(socket)).collect(),
            is_on_loopback: address.ip().to_canonical().is_loopback(),
            server: Arc::new(AdminControl(Arc::downgrade(server))),
            telemetry: Arc::clone(&server.telemetry),
        };
        let task = tokio::spawn(admin::serve(endpoint, closing));
        Self { address, sockets, closes, task }
    }

    /// Its sockets, with their addresses.
    pub(super) fn sockets(&self) -> &[(SocketAddr, Arc<TcpListener>)] {
        &self.sockets
    }

    /// Closes it: requests that were received are answered. Its ports are closed when the task has ended.
    pub(super) fn close(self) -> JoinHandle<()> {
        self.close_but(&[], Duration::ZERO)
    }

    /// Accepts nothing more, and leaves what the kernel has accepted to the next process that has the sockets. Requests
    /// that were received are answered.
    pub(super) fn leave(self) {
        // If it has ended already, it accepts nothing.
        let _ = self.closes.send(LastSockets { sockets: Vec::new(), until: Instant::now() });
    }

    /// Closes it, but for the sockets that `next` has taken over.
    pub(super) fn close_for(self, next: &Self) -> JoinHandle<()> {
        let has_successor =
            self.sockets.iter().any(|(bound, _)| *bound != next.address && covers(*bound, next.address));
        self.close_but(&next.sockets, if has_successor { HANDSHAKE_TIME } else { Duration::ZERO })
    }

    fn close_but(self, taken: &[(SocketAddr, Arc<TcpListener>)], after: Duration) -> JoinHandle<()> {
        let is_taken = |socket: &Arc<TcpListener>| taken.iter().any(|(_, taken)| Arc::ptr_eq(taken, socket));
        let sockets = self.sockets.into_iter().map(|(_, socket)| socket).filter(|socket| !is_taken(socket)).collect();
        // If it has ended already, its sockets are closed here.
        let _ = self.closes.send(LastSockets { sockets, until: Instant::now() + after });
        self.task
    }

    /// Ends it at once, with its connections.
    pub(super) fn stop(self) {
        self.task.abort();
    }
}
