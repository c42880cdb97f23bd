//! The metrics, one file for each domain.
//!
//! Names and labels are an interface: dashboards hold them. Every label has few values: ports and servers of
//! the configuration, and the names of [`super::outcome`].

use std::marker::PhantomData;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};

use super::outcome::Outcome;

pub mod community;
pub mod connections;
pub mod http;
pub mod listeners;
pub mod process;
pub mod server;
pub mod sessions;
pub mod tls;
pub mod traffic;
pub mod tunnel;

/// The label of a metric that counts outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// A counter for each outcome of one kind: all there from the start, so that a query finds 0 and not nothing,
/// and none of them looked up when it counts.
pub struct OutcomeCounters<O> {
    counters: Box<[Counter]>,
    kind: PhantomData<O>,
}

impl<O: Outcome> OutcomeCounters<O> {
    fn register(registry: &mut Registry, help: &str) -> Self {
        let family = Family::<Reason, Counter>::default();
        let counter = |outcome: &O| family.get_or_create(&Reason { reason: outcome.name() }).clone();
        let counters = O::ALL.iter().map(counter).collect();
        registry.register(O::METRIC, help, family);
        Self { counters, kind: PhantomData }
    }

    /// Counts one more.
    pub fn count(&self, outcome: O) {
        self.counters[outcome.index()].inc();
    }

    /// How many there were.
    pub fn total(&self, outcome: O) -> u64 {
        self.counters[outcome.index()].get()
    }
}

/// Registers `metric`, and returns it.
fn registered<M: Clone + prometheus_client::registry::Metric>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// As [`registered`], for a metric in seconds.
fn registered_seconds<M: Clone + prometheus_client::registry::Metric>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

/// A count as a gauge holds it.
fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
