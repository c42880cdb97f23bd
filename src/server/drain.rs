//! Ends the server: with a drain, or at once.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::{info, warn};

use super::Server;
use crate::mux::{Drained, LastArrivals};

/// How long the tasks may take that accept on the sockets of a service manager. They end when they are polled, or after
/// a pause because of `limits.connection_rate`.
const LEAVING_TIME: Duration = Duration::from_secs(2);

impl Server {
    /// Refuses new clients, and waits until the present ones have left. Their sessions are ended evenly over
    /// `limits.drain_timeout`.
    ///
    /// Ports stay open until then, because the clients of the tunnel send each request on a new connection. Sockets that a
    /// service manager passed are left to the next process at once, and nobody is refused whose connection came from them.
    pub async fn drain(&self) -> Drained {
        self.leave_to_successor().await;
        info!(sessions = self.0.mux.sessions(), "draining: no new clients");
        let (drained, ()) = tokio::join!(self.0.mux.drain(), self.0.ingress.drain_trunks());
        for closing in self.0.ports.close_all() {
            // When the task has ended, its socket is closed.
            let _ended = closing.await;
        }
        if drained.ended > 0 {
            warn!(ended = drained.ended, left = drained.left, "drained: sessions were ended");
        } else {
            info!("drained: every session has ended by itself");
        }
        drained
    }

    /// Accepts nothing more on the sockets that a service manager passed, but for that of `cluster.listen`: other nodes
    /// pass requests for the sessions that are left.
    async fn leave_to_successor(&self) {
        let (ports, accepting) = self.0.ports.leave_to_successor();
        let admin = self.0.admin.lock().take_if(|admin| self.0.passed.on(admin.address).next().is_some());
        if let Some(admin) = admin {
            admin.leave();
        }
        if ports.is_empty() {
            return;
        }
        let numbers: BTreeSet<u16> = ports.iter().map(|port| port.number).collect();
        info!(ports = ?numbers, "the sockets of the service manager are left to the next process");
        let left = async {
            for task in accepting {
                let _ended = task.await;
            }
            // Connections that one worker has handed over to another one are counted then.
            self.0.ingress.workers().respond().await;
        };
        if timeout(LEAVING_TIME, left).await.is_err() {
            warn!("a worker does not respond: clients that have just connected may be refused");
        }
        let ingress = Arc::downgrade(&self.0.ingress);
        let may_come = move || ingress.upgrade().is_some_and(|ingress| ingress.unsettled_connections() > 0);
        self.0.mux.admit_last(LastArrivals { ports, may_come: Box::new(may_come) });
    }

    /// Stops at once: closes the ports and ends the admin endpoint and the sandbox. Sessions that are left end with
    /// their runtimes.
    pub fn stop(&self) {
        drop(self.0.ports.close_all());
        if let Some(node) = &self.0.node {
            node.stop();
        }
        if let Some(admin) = self.0.admin.lock().take() {
            admin.stop();
        }
        if let Some(sandbox) = self.0.sandbox.lock().take() {
            sandbox.stop();
        }
    }
}
