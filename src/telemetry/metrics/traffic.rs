//! Bytes and frames that were relayed.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Which direction bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToCommunity,
    /// From the Community.
    ToClient,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    direction: &'static str,
}

/// A direction's counters, resolved once: relaying a byte looks up no label.
struct Flow {
    bytes: Counter,
    frames: Counter,
}

/// See the module's page.
pub struct TrafficMetrics {
    to_community: Flow,
    to_client: Flow,
}

impl TrafficMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        let (bytes, frames) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
        let flow = |direction| {
            let labels = Labels { direction };
            Flow { bytes: bytes.get_or_create(&labels).clone(), frames: frames.get_or_create(&labels).clone() }
        };
        let this = Self { to_community: flow("to_community"), to_client: flow("to_client") };
        all.register("bytes", "Bytes relayed", bytes);
        all.register("frames", "Frames relayed", frames);
        this
    }

    /// So many bytes were read for the given direction.
    #[inline]
    pub fn bytes(&self, direction: Direction, n: u64) {
        self.flow(direction).bytes.inc_by(n);
    }

    /// So many frames were read for the given direction.
    #[inline]
    pub fn frames(&self, direction: Direction, n: u64) {
        self.flow(direction).frames.inc_by(n);
    }

    #[inline]
    fn flow(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::ToCommunity => &self.to_community,
            Direction::ToClient => &self.to_client,
        }
    }
}
