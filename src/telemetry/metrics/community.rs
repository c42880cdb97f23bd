//! The Community servers: which of them answer, and how many clients each one has.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::registered;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabel {
    server: String,
}

/// The metrics of the Community servers.
pub struct CommunityMetrics {
    up: Family<ServerLabel, Gauge>,
    sessions: Family<ServerLabel, Gauge>,
}

impl CommunityMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            up: registered(all, "community_up", "Whether a Community server answers", Family::default()),
            sessions: registered(all, "community_sessions", "Clients on a Community server", Family::default()),
        }
    }

    /// Replaces the values of all servers. For each one: its name, whether it answers, and how many clients it has.
    pub fn set(&self, servers: impl Iterator<Item = (String, bool, u64)>) {
        self.up.clear();
        self.sessions.clear();
        for (server, up, sessions) in servers {
            let labels = ServerLabel { server };
            self.up.get_or_create(&labels).set(up.into());
            self.sessions.get_or_create(&labels).set(i64::try_from(sessions).unwrap_or(i64::MAX));
        }
    }
}
