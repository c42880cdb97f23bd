//! The HTTP tunnel: its requests and sessions.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{as_gauge, registered};
use crate::{
    telemetry::outcome::{Outcome, TunnelOutcome},
    wire::Transport,
};

/// The transports that use the tunnel.
const KINDS: [Transport; 3] = [Transport::HttpPolling, Transport::HttpHybrid, Transport::HttpStreaming];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TunnelLabels {
    kind: &'static str,
    outcome: TunnelOutcome,
}

/// The metrics of the HTTP tunnel.
pub struct TunnelMetrics {
    /// For each of [`KINDS`], a counter for each outcome.
    requests: [Box<[Counter]>; KINDS.len()],
    /// Requests whose path names no kind of tunnel.
    no_such_path: Counter,
    guesses_delayed: Counter,
    sessions: Gauge,
}

impl TunnelMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        let family = Family::<TunnelLabels, Counter>::default();
        let counter = |kind, outcome| family.get_or_create(&TunnelLabels { kind, outcome }).clone();
        let this = Self {
            requests: KINDS.map(|kind| TunnelOutcome::ALL.iter().map(|at| counter(kind.name(), *at)).collect()),
            no_such_path: counter("unknown", TunnelOutcome::NoSuchPath),
            guesses_delayed: registered(
                all,
                "tunnel_guesses_delayed",
                "Requests for unknown tunnel sessions, answered late because one address sent very many",
                Counter::default(),
            ),
            sessions: registered(
                all,
                "tunnel_sessions",
                "Sessions of the HTTP tunnel, those included that have ended and may still be asked for",
                Gauge::default(),
            ),
        };
        all.register(TunnelOutcome::METRIC, "Requests of the HTTP tunnel, by kind and outcome", family);
        this
    }

    /// Counts a request, by its outcome.
    pub fn request(&self, kind: Transport, outcome: TunnelOutcome) {
        if let Some(at) = KINDS.iter().position(|known| *known == kind) {
            self.requests[at][outcome.index()].inc();
        }
    }

    /// Counts a request whose path is meant for the tunnel but names no kind of tunnel.
    pub fn no_such_path(&self) {
        self.no_such_path.inc();
    }

    /// Counts a request for an unknown session that is answered late.
    pub fn guess_delayed(&self) {
        self.guesses_delayed.inc();
    }

    /// Sets how many sessions there are at present.
    pub fn set_sessions(&self, sessions: usize) {
        self.sessions.set(as_gauge(sessions));
    }
}
