//! Ends the server: with a drain, or at once.

use tracing::{info, warn};

use super::Server;
use crate::mux::Drained;

impl Server {
    /// Refuses new clients, and waits until the present ones have left. Their sessions are ended evenly over
    /// `limits.drain_timeout`.
    ///
    /// Ports stay open until then, because the clients of the tunnel send each request on a new connection.
    pub async fn drain(&self) -> Drained {
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
