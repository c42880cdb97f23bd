//! The cluster: requests that nodes pass to each other.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeCounters, registered};
use crate::telemetry::outcome::{ClusterFailure, PeerRefusal};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

/// The metrics of the cluster.
pub struct ClusterMetrics {
    /// Requests that got no response of their node.
    pub failures: OutcomeCounters<ClusterFailure>,
    /// Connections to `cluster.listen` that were refused.
    pub refused: OutcomeCounters<PeerRefusal>,
    passed: Counter,
    received: Counter,
    up: Family<NodeLabel, Gauge>,
}

impl ClusterMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            failures: OutcomeCounters::register(all, "Requests that got no response of their node, by reason"),
            refused: OutcomeCounters::register(all, "Connections to cluster.listen that were refused, by reason"),
            passed: registered(
                all,
                "cluster_requests_passed",
                "Requests passed to other nodes that responded",
                Counter::default(),
            ),
            received: registered(
                all,
                "cluster_requests_received",
                "Requests that other nodes passed to this node",
                Counter::default(),
            ),
            up: registered(all, "cluster_node_up", "Whether another node can be reached", Family::default()),
        }
    }

    /// Counts a request that another node has responded to.
    pub fn passed(&self) {
        self.passed.inc();
    }

    /// Counts a request of another node.
    pub fn received(&self) {
        self.received.inc();
    }

    /// Sets which nodes can be reached, by their names. Others are forgotten.
    pub fn set_nodes(&self, nodes: impl Iterator<Item = (String, bool)>) {
        self.up.clear();
        for (node, is_up) in nodes {
            self.up.get_or_create(&NodeLabel { node }).set(i64::from(is_up));
        }
    }
}
