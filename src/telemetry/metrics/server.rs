//! The program: its version, the time since its start, reloads of its configuration, and its admin endpoint.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

use prometheus_client::{
    metrics::{gauge::Gauge, info::Info},
    registry::Registry,
};

use super::{OutcomeCounters, registered_seconds};
use crate::telemetry::outcome::{AdminClose, ReloadOutcome, ReloadRefusal};

/// The metrics of the program.
pub struct ServerMetrics {
    started: Instant,
    uptime: Gauge<f64, AtomicU64>,
    reloads: OutcomeCounters<ReloadOutcome>,
    reloads_refused: OutcomeCounters<ReloadRefusal>,
    /// Connections to the admin endpoint that it closed.
    pub admin_closed: OutcomeCounters<AdminClose>,
}

impl ServerMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry, version: &str) -> Self {
        all.register("build", "The program", Info::new(vec![("version".to_owned(), version.to_owned())]));
        Self {
            started: Instant::now(),
            uptime: registered_seconds(all, "uptime", "Since the start", Gauge::default()),
            reloads: OutcomeCounters::register(all, "Reloads of the configuration, by outcome"),
            reloads_refused: OutcomeCounters::register(all, "Reloads that were refused, by reason"),
            admin_closed: OutcomeCounters::register(all, "Connections to the admin endpoint that it closed, by reason"),
        }
    }

    /// The time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts a reload; `refusal` is the reason if it was refused.
    pub fn reload(&self, refusal: Option<ReloadRefusal>) {
        if let Some(reason) = refusal {
            self.reloads_refused.count(reason);
        }
        self.reloads.count(if refusal.is_none() { ReloadOutcome::Accepted } else { ReloadOutcome::Refused });
    }

    pub(in crate::telemetry) fn refresh(&self) {
        self.uptime.set(self.uptime().as_secs_f64());
    }
}
