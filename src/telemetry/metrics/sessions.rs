//! Sessions: how many there are, over which transport, and how they end.

use std::collections::BTreeMap;

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
    telemetry::outcome::{Refusal, SessionEnd},
    wire::Transport,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PortLabels {
    port: u32,
    transport: &'static str,
}

/// Sessions of one port and transport.
#[derive(Clone)]
pub struct SessionsGauge {
    present: Gauge,
    opened: Counter,
}

impl SessionsGauge {
    /// Counts a session that begins.
    pub fn opened(&self) {
        self.present.inc();
        self.opened.inc();
    }

    /// Counts a session that ends.
    pub fn closed(&self) {
        self.present.dec();
    }
}

/// The metrics of sessions.
pub struct SessionMetrics {
    present: Family<PortLabels, Gauge>,
    opened: Family<PortLabels, Counter>,
    gauges: Mutex<BTreeMap<(u16, Transport), SessionsGauge>>,
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

    /// The gauge of a port and transport. It is in the metrics from now on, with 0 if there is no session.
    pub fn of(&self, port: u16, transport: Transport) -> SessionsGauge {
        let mut gauges = self.gauges.lock();
        let gauge = gauges.entry((port, transport)).or_insert_with(|| {
            let labels = PortLabels { port: port.into(), transport: transport.name() };
            SessionsGauge {
                present: self.present.get_or_create(&labels).clone(),
                opened: self.opened.get_or_create(&labels).clone(),
            }
        });
        gauge.clone()
    }

    /// The number of present sessions on ports and transports that match.
    pub fn present(&self, matches: impl Fn(u16, Transport) -> bool) -> u64 {
        let gauges = self.gauges.lock();
        let matching = gauges.iter().filter(|((port, transport), _)| matches(*port, *transport));
        u64::try_from(matching.map(|(_, gauge)| gauge.present.get()).sum::<i64>()).unwrap_or(0)
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
