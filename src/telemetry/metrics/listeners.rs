//! Listeners: which of them are bound, and their errors.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use rustix::io::Errno;

use super::{OutcomeCounters, registered};
use crate::{
    net::{Section, shortage::is_shortage},
    telemetry::outcome::{AcceptError, ListenerFailure},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct ListenerLabels {
    section: &'static str,
    port: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct ListenerAddressLabels {
    section: &'static str,
    address: String,
    port: u32,
}

/// A listener at one address, as the metrics show it.
#[derive(Debug, Clone)]
pub struct ShownListener {
    /// The section that it is in.
    pub section: Section,
    /// Its address, or the name that it has no address of.
    pub address: String,
    /// Its port number.
    pub port: u16,
    /// Whether it is bound.
    pub is_up: bool,
}

/// The metrics of listeners.
pub struct ListenerMetrics {
    up: Family<ListenerLabels, Gauge>,
    address_up: Family<ListenerAddressLabels, Gauge>,
    /// The labels that are shown.
    shown: Mutex<(BTreeSet<ListenerLabels>, BTreeSet<ListenerAddressLabels>)>,
    /// Times that a listener could not be bound.
    pub failures: OutcomeCounters<ListenerFailure>,
    /// Times that a listener could not accept a connection.
    pub accept_errors: OutcomeCounters<AcceptError>,
}

impl ListenerMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            up: registered(all, "listener_up", "Whether a port is bound, at each of its addresses", Family::default()),
            address_up: registered(
                all,
                "listener_address_up",
                "Whether a port is bound at one of its addresses",
                Family::default(),
            ),
            shown: Mutex::default(),
            failures: OutcomeCounters::register(all, "Times that a port could not be bound, by reason"),
            accept_errors: OutcomeCounters::register(all, "Errors of accept, by class"),
        }
    }

    /// Shows these listeners, and no others. A port is up if it is up at each of its addresses.
    pub fn show(&self, listeners: &[ShownListener]) {
        let (mut ports, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        for ShownListener { section, address, port, is_up } in listeners {
            let (section, port) = (section.name(), u32::from(*port));
            *ports.entry(ListenerLabels { section, port }).or_insert(true) &= is_up;
            *addresses.entry(ListenerAddressLabels { section, address: address.clone(), port }).or_insert(true) &=
                is_up;
        }
        let mut shown = self.shown.lock();
        for (labels, &is_up) in &ports {
            self.up.get_or_create(labels).set(is_up.into());
        }
        for (labels, &is_up) in &addresses {
            self.address_up.get_or_create(labels).set(is_up.into());
        }
        for gone in shown.0.iter().filter(|labels| !ports.contains_key(labels)) {
            self.up.remove(gone);
        }
        for gone in shown.1.iter().filter(|labels| !addresses.contains_key(labels)) {
            self.address_up.remove(gone);
        }
        *shown = (ports.into_keys().collect(), addresses.into_keys().collect());
    }
}

impl AcceptError {
    /// What an error of accept means.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            _ if is_shortage(error) => Self::Exhausted,
            Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => Self::Listener,
            // Linux returns network errors that a new connection already has from accept (accept(2)).
            _ => Self::Connection,
        }
    }
}
