//! This node of the cluster, and the port at which other nodes pass requests to it.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinHandle},
};
use tracing::{info, warn};

use super::{ServerError, listener_error::ListenerError, own_sockets::OwnSockets};
use crate::{
    cluster::{Cluster, ClusterError, ClusterSettings, NodeAddress},
    ingress::{Ingress, peers},
    net::listen::ListeningSockets,
    telemetry::{Telemetry, outcome::ReloadRefusal},
    wire::tunnel::name::NodeTag,
};

/// A node whose port is bound.
pub(super) struct BoundNode {
    pub(super) cluster: Arc<Cluster>,
    settings: ClusterSettings,
    listener: TcpListener,
}

/// A node that accepts requests of other nodes.
pub(super) struct RunningNode {
    pub(super) cluster: Arc<Cluster>,
    /// As it was started.
    settings: ClusterSettings,
    task: AbortHandle,
}

/// The nodes of a reload, with their tags.
pub(super) type NewNodes = Vec<(NodeAddress, NodeTag)>;

fn refused(what: impl std::fmt::Display) -> ServerError {
    ServerError::new(ReloadRefusal::Cluster, format!("[cluster]: {what}"))
}

impl From<ClusterError> for ServerError {
    fn from(error: ClusterError) -> Self {
        refused(error)
    }
}

/// Reads the secret and binds the port, beside `sockets`.
///
/// # Errors
/// The secret can't be used, two nodes have the same tag, or the port can't be bound.
pub(super) async fn prepare(
    settings: ClusterSettings,
    sockets: &OwnSockets,
    telemetry: &Arc<Telemetry>,
) -> Result<BoundNode, ServerError> {
    let cluster = Cluster::start(&settings, Arc::clone(telemetry))?;
    let refuse = |error: ListenerError| refused(format!("listen: {} can't be bound: {error}", settings.listen));
    let bound = sockets.bind(settings.listen, false).await.map_err(refuse)?;
    let listener = bound.listen().and_then(ListeningSockets::into_one);
    let listener = listener.map_err(|error| refuse(ListenerError::from_listen(&error)))?;
    Ok(BoundNode { cluster, settings, listener })
}

impl BoundNode {
    /// Accepts requests of other nodes, and hands them to `ingress`.
    pub(super) fn start(self, ingress: &Arc<Ingress>) -> RunningNode {
        let Self { cluster, settings, listener } = self;
        info!(node = settings.node, listen = %settings.listen, nodes = settings.nodes.len(), "node of a cluster");
        let accepting = peers::accept(listener, settings.listen.port(), Arc::clone(ingress), Arc::clone(&cluster));
        let task: JoinHandle<()> = tokio::spawn(accepting);
        RunningNode { cluster, settings, task: task.abort_handle() }
    }
}

impl RunningNode {
    /// The tags of other nodes, for [`Self::replace`].
    ///
    /// # Errors
    /// Two nodes have the same tag.
    pub(super) fn new_nodes(&self, settings: Option<&ClusterSettings>) -> Result<NewNodes, ServerError> {
        Ok(self.cluster.tags(settings.map(|settings| &*settings.nodes).unwrap_or_default())?)
    }

    /// Uses the nodes of a reload from now on.
    pub(super) fn replace(&self, nodes: NewNodes, settings: Option<&ClusterSettings>) {
        self.cluster.replace(nodes);
        let is_same = settings.is_some_and(|new| {
            let ClusterSettings { node, listen, secret_file, nodes: _ } = new;
            *node == self.settings.node && *listen == self.settings.listen && *secret_file == self.settings.secret_file
        });
        if !is_same {
            warn_of_a_later_start();
        }
    }

    /// Where it accepts requests of other nodes.
    pub(super) fn listen(&self) -> SocketAddr {
        self.settings.listen
    }

    /// Accepts no more connections.
    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

/// Reports that a change has no effect yet.
pub(super) fn warn_of_a_later_start() {
    warn!("cluster.node, cluster.listen and cluster.secret_file have changed: they apply at the next start");
}
