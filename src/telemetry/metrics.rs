//! The metrics, one file for each domain.
//!
//! Names and labels are an interface, since dashboards use them. Every label has few values: the ports and servers of
//! the configuration, and the names of [`super::outcome`].

use std::marker::PhantomData;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};

use super::outcome::Outcome;

pub mod cluster;
pub mod community;
pub mod connections;
pub mod http;
pub mod listeners;
pub mod process;
pub mod server;
pub mod sessions;
pub mod tls;
pub mod traffic;
pub mod trunk;
pub mod tunnel;

/// The label of a metric that counts outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// A counter for each outcome of one kind. All of them exist from the start, so that a query returns 0 and not an
/// empty result. Counting needs no look-up.
pub struct OutcomeCounters<O> {
    counters: Box<[Counter]>,
    kind: PhantomData<O>,
}

impl<O: Outcome> OutcomeCounters<O> {
    fn register(registry: &mut Registry, help: &str) -> Self {
        let family = Family::<ReasonLabel, Counter>::default();
        let counter = |outcome: &O| family.get_or_create(&ReasonLabel { reason: outcome.name() }).clone();
        let counters = O::ALL.iter().map(counter).collect();
        registry.register(O::METRIC, help, family);
        Self { counters, kind: PhantomData }
    }

    /// Counts one.
    pub fn count(&self, outcome: O) {
        self.counters[outcome.index()].inc();
    }

    /// How often `outcome` was counted.
    pub fn total(&self, outcome: O) -> u64 {
        self.counters[outcome.index()].get()
    }

    /// The outcomes that were counted at least once, with their totals.
    pub fn counted(&self) -> impl Iterator<Item = (O, u64)> + '_ {
        O::ALL.iter().map(|outcome| (*outcome, self.total(*outcome))).filter(|(_, total)| *total > 0)
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

/// Like [`registered`], for a metric in seconds.
fn registered_seconds<M: Clone + prometheus_client::registry::Metric>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

/// A count as the value of a gauge.
fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
