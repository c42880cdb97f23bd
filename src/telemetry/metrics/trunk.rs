//! The trunk, at either end.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeCounters, registered};
use crate::telemetry::outcome::{TrunkClose, TrunkRefusal};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabel {
    end: &'static str,
}

/// What one end has at present.
pub struct TrunkEndMetrics {
    connections: Gauge,
    streams: Gauge,
}

/// One connection or stream, which counts until this is dropped.
pub struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl TrunkEndMetrics {
    /// Counts one connection more.
    pub fn connection(&self) -> Counted {
        self.connections.inc();
        Counted(self.connections.clone())
    }

    /// Counts one stream more.
    pub fn stream(&self) -> Counted {
        self.streams.inc();
        Counted(self.streams.clone())
    }

    /// The streams at present.
    pub fn streams(&self) -> usize {
        usize::try_from(self.streams.get()).unwrap_or(0)
    }
}

/// The metrics of the trunk.
pub struct TrunkMetrics {
    /// The near end: this program's connections to far ends.
    pub near: TrunkEndMetrics,
    /// The far end: connections that this program has accepted.
    pub far: TrunkEndMetrics,
    /// Requests that the far end refused.
    pub refused: OutcomeCounters<TrunkRefusal>,
    /// Connections that are over, of both ends.
    pub closed: OutcomeCounters<TrunkClose>,
}

impl TrunkMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        let connections = registered(
            all,
            "trunk_connections",
            "Connections of the trunk, by end",
            Family::<EndLabel, Gauge>::default(),
        );
        let streams =
            registered(all, "trunk_streams", "Clients on the trunk, by end", Family::<EndLabel, Gauge>::default());
        let of = |end| TrunkEndMetrics {
            connections: connections.get_or_create(&EndLabel { end }).clone(),
            streams: streams.get_or_create(&EndLabel { end }).clone(),
        };
        Self {
            near: of("near"),
            far: of("far"),
            refused: OutcomeCounters::register(all, "Requests that the trunk's far end refused, by reason"),
            closed: OutcomeCounters::register(all, "Connections of the trunk that are over, by reason"),
        }
    }
}
