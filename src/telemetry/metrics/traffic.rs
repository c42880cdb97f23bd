//! Relayed bytes and frames.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// In which direction bytes are relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the Community.
    ToCommunity,
    /// From the Community to the client.
    ToClient,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

/// The counters of one direction. They are looked up once, so that relaying looks up no label.
struct DirectionCounters {
    bytes: Counter,
    frames: Counter,
}

/// The metrics of relayed bytes and frames.
pub struct TrafficMetrics {
    to_community: DirectionCounters,
    to_client: DirectionCounters,
}

impl TrafficMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        let (bytes, frames) =
            (Family::<DirectionLabel, Counter>::default(), Family::<DirectionLabel, Counter>::default());
        let counters = |direction| {
            let labels = DirectionLabel { direction };
            DirectionCounters {
                bytes: bytes.get_or_create(&labels).clone(),
                frames: frames.get_or_create(&labels).clone(),
            }
        };
        let this = Self { to_community: counters("to_community"), to_client: counters("to_client") };
        all.register("bytes", "Bytes relayed", bytes);
        all.register("frames", "Frames relayed", frames);
        this
    }

    /// Counts `n` relayed bytes.
    #[inline]
    pub fn bytes(&self, direction: Direction, n: u64) {
        self.counters(direction).bytes.inc_by(n);
    }

    /// Counts `n` relayed frames.
    #[inline]
    pub fn frames(&self, direction: Direction, n: u64) {
        self.counters(direction).frames.inc_by(n);
    }

    #[inline]
    fn counters(&self, direction: Direction) -> &DirectionCounters {
        match direction {
            Direction::ToCommunity => &self.to_community,
            Direction::ToClient => &self.to_client,
        }
    }
}
