//! The cluster: several multiplexers that act as one. A request of the tunnel may come to any node; the node whose
//! session it is for is known from the session's name, and the request is passed to it.
//!
//! ```text
//!  client ── request ──▶ this node ──┬── the name has this node's tag ──▶ own session
//!                                    └── the tag of another node ──▶ peer ── kept connection ──▶ that node's session
//! ```
//! - [`secret`]: the cluster's secret, the tags of nodes, and proofs.
//! - [`hello`]: how two nodes prove to each other who they are when a connection begins. It knows no socket.
//! - `handshake`: the same on a socket.
//! - [`reach`]: whether a node can be reached, and when it counts as gone. It knows no clock.
//! - `passing`: the bytes of a request that is passed, and of its response.
//! - `peer`: another node, with the connections to it that are kept.
//!
//! A request is passed once: a node never passes on what another node has passed to it. Names lead only to nodes of the
//! configuration, since a tag is compared with the tags of these nodes and nothing else.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tracing::{Level, debug, info, warn};

mod handshake;
pub mod hello;
mod passing;
mod peer;
pub mod reach;
pub mod secret;

use self::secret::{Secret, SecretError};
pub use self::{
    passing::{PassedRequest, PassedResponse, PassedTo},
    peer::Peer,
};
use crate::{
    limits::budget::HeldBytes,
    log::Throttles,
    telemetry::{
        Telemetry,
        outcome::{ClusterFailure, Outcome, PeerRefusal},
    },
    wire::tunnel::name::{NodeTag, SessionName},
};

/// How long a node that connects may take to prove that it is one.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);
/// How many connections may be about to prove it at the same time.
const MAX_UNPROVEN: usize = 256;
/// How often connections are closed that were not used for a while.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Settings of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// The name of this node.
    pub node: String,
    /// Every node, this one included, each of them once.
    pub nodes: Vec<NodeAddress>,
    /// Where other nodes reach this one.
    pub listen: SocketAddr,
    /// The file with the secret.
    pub secret_file: PathBuf,
}

/// A node and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// Its name.
    pub name: String,
    /// `host:port` of its `cluster.listen`, as other nodes reach it.
    pub address: String,
}

/// Why there can be no cluster with these settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterError {
    /// The secret can't be used.
    Secret(SecretError),
    /// Two nodes have the same tag, so that the names of their sessions can't be told apart.
    SameTag(String, String),
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(error) => error.fmt(f),
            Self::SameTag(one, other) => write!(
                f,
                "the nodes {one:?} and {other:?} have the same tag by chance: give one of them another name, or use another secret"
            ),
        }
    }
}

impl std::error::Error for ClusterError {}

/// Whose session a name belongs to.
pub enum Owner {
    /// This node.
    Here,
    /// Another node.
    Peer(Arc<Peer>),
    /// No node of the configuration has this tag.
    Nobody,
}

/// The state of a node, for the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// The tag with which the names of its sessions begin.
    pub tag: NodeTag,
    /// `host:port`.
    pub address: String,
    /// Whether it is this node itself.
    pub is_this: bool,
    /// Whether the last attempt to reach it succeeded. A node that was not needed yet counts as up.
    pub is_up: bool,
    /// Why it could not be reached.
    pub last_error: Option<String>,
    /// Requests passed to it that it has responded to.
    pub passed: u64,
}

/// This node of the cluster, and the others as it sees them.
pub struct Cluster {
    node: NodeAddress,
    tag: NodeTag,
    secret: Secret,
    peers: ArcSwap<Vec<Arc<Peer>>>,
    telemetry: Arc<Telemetry>,
    unproven: Semaphore,
    /// For log lines about requests that were not passed, by [`ClusterFailure`].
    failures: Throttles,
    /// For log lines about connections that are refused, by [`PeerRefusal`].
    refused: Throttles,
}

impl Cluster {
    /// This node, with the secret from its file. Must be called on a tokio runtime: for as long as it exists, a task closes
    /// connections to other nodes that are not used.
    ///
    /// # Errors
    /// The secret can't be used, or two nodes have the same tag.
    pub fn start(settings: &ClusterSettings, telemetry: Arc<Telemetry>) -> Result<Arc<Self>, ClusterError> {
        let secret = Secret::load(&settings.secret_file).map_err(ClusterError::Secret)?;
        let node = settings.nodes.iter().find(|node| node.name == settings.node).cloned();
        let node = node.unwrap_or_else(|| NodeAddress { name: settings.node.clone(), address: String::new() });
        let this = Arc::new(Self {
            tag: secret.tag(&node.name),
            node,
            secret,
            peers: ArcSwap::default(),
            telemetry,
            unproven: Semaphore::new(MAX_UNPROVEN),
            failures: Throttles::new(ClusterFailure::ALL.len()),
            refused: Throttles::new(PeerRefusal::ALL.len()),
        });
        let tags = this.tags(&settings.nodes)?;
        this.replace(tags);
        tokio::spawn(sweep(Arc::downgrade(&this)));
        Ok(this)
    }

    /// The tag of each node.
    ///
    /// # Errors
    /// Two nodes have the same tag.
    pub fn tags(&self, nodes: &[NodeAddress]) -> Result<Vec<(NodeAddress, NodeTag)>, ClusterError> {
        tags(&self.secret, nodes)
    }

    /// Uses other nodes from now on. Connections to those that stay are kept.
    pub fn replace(&self, nodes: Vec<(NodeAddress, NodeTag)>) {
        let before = self.peers.load();
        let others = nodes.into_iter().filter(|(node, _)| node.name != self.node.name);
        let peers = others.map(|(node, tag)| match before.iter().find(|peer| peer.address() == &node) {
            Some(kept) => Arc::clone(kept),
            None => Arc::new(Peer::new(node, tag)),
        });
        self.peers.store(Arc::new(peers.collect()));
    }

    /// The tag of this node.
    pub fn tag(&self) -> NodeTag {
        self.tag
    }

    /// Whose session this is the name of.
    pub fn owner(&self, name: &SessionName) -> Owner {
        let tag = name.node();
        if tag == self.tag {
            return Owner::Here;
        }
        self.peers.load().iter().find(|peer| peer.tag() == tag).cloned().map_or(Owner::Nobody, Owner::Peer)
    }

    /// Passes a request to `peer`, and waits for its response for `within`. Counts and logs a failure. `client` and `port`
    /// are for the log.
    ///
    /// # Errors
    /// There is no response of the node.
    pub async fn pass(
        &self,
        peer: &Peer,
        request: &PassedRequest<'_>,
        held: &mut HeldBytes,
        within: Duration,
        port: u16,
    ) -> Result<PassedResponse, ClusterFailure> {
        let passing = peer.pass((&self.node.name, &self.secret), request, held);
        let passed = timeout(within, passing).await;
        match passed.unwrap_or_else(|_| Err((ClusterFailure::TooSlow, String::new()))) {
            Ok(response) => {
                self.telemetry.cluster.passed();
                Ok(response)
            }
            Err((failure, error)) => {
                self.telemetry.cluster.failures.count(failure);
                if let Some(more) = self.failures.pass(failure.index()) {
                    let (client, node) = (request.client, &peer.address().name);
                    let error = Some(error).filter(|error| !error.is_empty());
                    if failure.policy().level == Some(Level::WARN) {
                        warn!(%client, port, node, reason = %failure, error, more, "request not passed to its node");
                    } else {
                        info!(%client, port, node, reason = %failure, error, more, "request not passed to its node");
                    }
                }
                Err(failure)
            }
        }
    }

    /// Counts a request that another node has passed to this one.
    pub fn received(&self) {
        self.telemetry.cluster.received();
    }

    /// Makes `tcp` prove that it is a node of this cluster. Returns the bytes that it has sent behind the proof. `None`: it
    /// is refused, which is counted and logged.
    pub async fn admit(&self, tcp: &mut TcpStream, from: SocketAddr, port: u16) -> Option<Bytes> {
        let Ok(_permit) = self.unproven.try_acquire() else {
            self.refuse(PeerRefusal::TooMany, from, port);
            return None;
        };
        let names = |name: &str| self.peers.load().iter().any(|peer| peer.address().name == name);
        let proving = handshake::answer(tcp, &self.node.name, &self.secret, names);
        match timeout(PROOF_TIMEOUT, proving).await.unwrap_or(Err(PeerRefusal::TooSlow)) {
            Ok(rest) => Some(rest),
            Err(refusal) => {
                self.refuse(refusal, from, port);
                None
            }
        }
    }

    /// Counts and logs a connection to `cluster.listen` that is refused.
    pub fn refuse(&self, refusal: PeerRefusal, from: SocketAddr, port: u16) {
        self.telemetry.cluster.refused.count(refusal);
        let level = refusal.policy().level;
        if level == Some(Level::DEBUG) {
            debug!(%from, port, reason = %refusal, "connection of a node refused");
        } else if let Some(more) = self.refused.pass(refusal.index()) {
            if level == Some(Level::WARN) {
                warn!(%from, port, reason = %refusal, more, "connection of a node refused");
            } else {
                info!(%from, port, reason = %refusal, more, "connection of a node refused");
            }
        }
    }

    /// Every node, this one first.
    pub fn nodes(&self) -> Vec<NodeState> {
        let this = NodeState {
            name: self.node.name.clone(),
            tag: self.tag,
            address: self.node.address.clone(),
            is_this: true,
            is_up: true,
            last_error: None,
            passed: 0,
        };
        [this].into_iter().chain(self.peers.load().iter().map(|peer| peer.state())).collect()
    }
}

/// The tag of each node, for a balancer that routes by it.
///
/// # Errors
/// The secret can't be used, or two nodes have the same tag.
pub fn node_tags(settings: &ClusterSettings) -> Result<Vec<(NodeAddress, NodeTag)>, ClusterError> {
    tags(&Secret::load(&settings.secret_file).map_err(ClusterError::Secret)?, &settings.nodes)
}

fn tags(secret: &Secret, nodes: &[NodeAddress]) -> Result<Vec<(NodeAddress, NodeTag)>, ClusterError> {
    let mut tags: Vec<(NodeAddress, NodeTag)> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let tag = secret.tag(&node.name);
        if let Some((other, _)) = tags.iter().find(|(_, other)| *other == tag) {
            return Err(ClusterError::SameTag(other.name.clone(), node.name.clone()));
        }
        tags.push((node.clone(), tag));
    }
    Ok(tags)
}

/// Closes connections to other nodes that were not used for a while, as long as the cluster exists.
async fn sweep(cluster: Weak<Cluster>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(cluster) = cluster.upgrade() else { return };
        let now = Instant::now();
        cluster.peers.load().iter().for_each(|peer| peer.sweep(now));
    }
}
