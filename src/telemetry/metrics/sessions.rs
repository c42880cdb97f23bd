//! Sessions: how many there are, over which transport, and how they end.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::{OutcomeCounters, as_gauge, registered, registered_seconds};
use crate::{
    net::Port,
    telemetry::outcome::{Refusal, SessionEnd},
    wire::Transport,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PortLabels {
    port: u32,
    transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerSessionsLabels {
    address: String,
    port: u32,
}

/// Sessions of one listener and transport. One pointer, because every session has it.
#[derive(Clone)]
pub struct SessionsGauge(Arc<SessionCounts>);

/// Two listeners with one port number share `present` and `opened`.
struct SessionCounts {
    present: Gauge,
    opened: Counter,
    of_listener: Gauge,
}

impl SessionsGauge {
    /// Counts a session that begins.
    pub fn opened(&self) {
        self.0.present.inc();
        self.0.opened.inc();
        self.0.of_listener.inc();
    }

    /// Counts a session that ends.
    pub fn closed(&self) {
        self.0.present.dec();
        self.0.of_listener.dec();
    }
}

/// The metrics of sessions.
pub struct SessionMetrics {
    present: Family<PortLabels, Gauge>,
    opened: Family<PortLabels, Counter>,
    by_listener: Family<ListenerSessionsLabels, Gauge>,
    /// Every listener since the start, with its sessions. A listener's number is its place, counted from 1.
    listeners: Mutex<Vec<(SocketAddr, Gauge)>>,
    gauges: Mutex<BTreeMap<(Port, Transport), SessionsGauge>>,
    /// Clients that were refused.
    pub refused: OutcomeCounters<Refusal>,
    closed: OutcomeCounters<SessionEnd>,
    duration: Histogram,
    login: Histogram,
    logins_refused: Counter,
    logging_in: Gauge,
    held_bytes: Gauge,
}

impl SessionMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        Self {
            present: registered(all, "sessions", "Clients at present", Family::default()),
            opened: registered(all, "sessions_opened", "Clients admitted", Family::default()),
            by_listener: registered(all, "listener_sessions", "Clients at present, by listener", Family::default()),
            listeners: Mutex::default(),
            gauges: Mutex::default(),
            refused: OutcomeCounters::register(all, "Clients refused, by reason"),
            closed: OutcomeCounters::register(all, "Sessions ended, by reason"),
            duration: registered_seconds(
                all,
                "session_duration",
                "From accept to close",
                Histogram::new(exponential_buckets(1.0, 4.0, 10)),
            ),
            login: registered_seconds(
                all,
                "login",
                "From accept to the Community's LoginAck",
                Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            ),
            logins_refused: registered(all, "logins_refused", "Log-ins that the Community refused", Counter::default()),
            logging_in: registered(all, "sessions_logging_in", "Clients that are not logged in yet", Gauge::default()),
            held_bytes: registered(
                all,
                "held_bytes",
                "Bytes that wait for a slow client or a slow Community server",
                Gauge::default(),
            ),
        }
    }

    /// The port of the listener at `address`. Its sessions are in the metrics from now on, with 0 if there are none.
    pub fn port(&self, address: SocketAddr) -> Port {
        let mut listeners = self.listeners.lock();
        let place = listeners.iter().position(|(known, _)| *known == address).unwrap_or_else(|| {
            let labels = ListenerSessionsLabels { address: address.ip().to_string(), port: address.port().into() };
            listeners.push((address, self.by_listener.get_or_create(&labels).clone()));
            listeners.len() - 1
        });
        drop(listeners);
        // After very many addresses, the sessions of further ones count for the port number alone.
        let port = Port { number: address.port(), listener: u16::try_from(place + 1).unwrap_or(0) };
        for transport in Transport::ALL {
            self.of(port, transport);
        }
        port
    }

    /// The gauge of a port and transport. It is in the metrics from now on, with 0 if there is no session.
    pub fn of(&self, port: impl Into<Port>, transport: Transport) -> SessionsGauge {
        let port = port.into();
        let mut gauges = self.gauges.lock();
        let gauge = gauges.entry((port, transport)).or_insert_with(|| {
            let labels = PortLabels { port: port.number.into(), transport: transport.name() };
            let listeners = self.listeners.lock();
            let listener = usize::from(port.listener).checked_sub(1).and_then(|place| listeners.get(place));
            SessionsGauge(Arc::new(SessionCounts {
                present: self.present.get_or_create(&labels).clone(),
                opened: self.opened.get_or_create(&labels).clone(),
                of_listener: listener.map(|(_, sessions)| sessions.clone()).unwrap_or_default(),
            }))
        });
        gauge.clone()
    }

    /// The number of present sessions on transports that match, over all ports.
    pub fn present(&self, matches: impl Fn(Transport) -> bool) -> u64 {
        let gauges = self.gauges.lock();
        // Listeners with one port number share a gauge.
        let matching: BTreeMap<_, _> = gauges
            .iter()
            .filter(|((_, transport), _)| matches(*transport))
            .map(|((port, transport), gauge)| ((port.number, *transport), gauge.0.present.get()))
            .collect();
        u64::try_from(matching.values().sum::<i64>()).unwrap_or(0)
    }

    /// Every listener since the start, with its present sessions.
    pub fn by_listener(&self) -> Vec<(SocketAddr, u64)> {
        let listeners = self.listeners.lock();
        listeners.iter().map(|(address, sessions)| (*address, u64::try_from(sessions.get()).unwrap_or(0))).collect()
    }

    /// Counts a session that ended `seconds` after its connection was accepted.
    pub fn closed(&self, end: SessionEnd, seconds: f64) {
        self.closed.count(end);
        self.duration.observe(seconds);
    }

    /// Counts a log-in that the Community has accepted or refused, `seconds` after the connection was accepted.
    pub fn login(&self, seconds: f64, accepted: bool) {
        if accepted {
            self.login.observe(seconds);
        } else {
            self.logins_refused.inc();
        }
    }

    /// Sets how many clients are not logged in yet, and how many bytes are held, at present.
    pub fn set_load(&self, logging_in: usize, held_bytes: usize) {
        self.logging_in.set(as_gauge(logging_in));
        self.held_bytes.set(as_gauge(held_bytes));
    }
}
