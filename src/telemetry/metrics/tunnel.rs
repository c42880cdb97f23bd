//! Requests and sessions of the HTTP tunnel.

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

/// The transports that are a tunnel.
const KINDS: [Transport; 2] = [Transport::HttpPolling, Transport::HttpHybrid];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: &'static str,
    outcome: TunnelOutcome,
}

/// See the module's page.
pub struct TunnelMetrics {
    /// For each of [`KINDS`], a counter for each outcome.
    requests: [Box<[Counter]>; KINDS.len()],
    /// Requests whose path does not say which tunnel they are for.
    malformed: Counter,
    guesses_delayed: Counter,
    sessions: Gauge,
}

impl TunnelMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        let family = Family::<Labels, Counter>::default();
        let counter = |kind, outcome| family.get_or_create(&Labels { kind, outcome }).clone();
        let this = Self {
            requests: KINDS.map(|kind| TunnelOutcome::ALL.iter().map(|at| counter(kind.name(), *at)).collect()),
            malformed: counter("unknown", TunnelOutcome::Malformed),
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

    /// A request was answered.
    pub fn request(&self, kind: Transport, outcome: TunnelOutcome) {
        if let Some(at) = KINDS.iter().position(|known| *known == kind) {
            self.requests[at][outcome.index()].inc();
        }
    }

    /// A request's path is meant for the tunnel, but does not name a tunnel.
    pub fn malformed_path(&self) {
        self.malformed.inc();
    }

    /// A request for an unknown session was answered late.
    pub fn guess_delayed(&self) {
        self.guesses_delayed.inc();
    }

    /// How many sessions there are at present.
    pub fn set_sessions(&self, sessions: usize) {
        self.sessions.set(as_gauge(sessions));
    }
}
