//! What is counted, and how the counts of several workers become one.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::scenario::LoadTransport;

/// Latencies in microseconds, with a precision of three digits, from 1 µs to an hour. Its memory grows with
/// the longest latency.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

/// The longest latency in microseconds; a longer one counts as this.
const LONGEST: u64 = 3_600_000_000;

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(3).expect("a legal precision"))
    }
}

impl Latencies {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST);
        // The histogram grows as needed, so no value up to an hour is out of its range.
        let _ = self.0.record(micros.clamp(1, LONGEST));
    }

    /// Adds the latencies of another histogram.
    pub fn add(&mut self, other: &Self) {
        // The histogram grows as needed.
        let _ = self.0.add(&other.0);
    }

    /// The number of latencies.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency in milliseconds that a `share` of all latencies (0 to 1) does not exceed; 0 if there are
    /// none. `quantile(0.99)` is the 99th percentile, `quantile(1.0)` the longest.
    #[allow(clippy::cast_precision_loss)]
    pub fn quantile(&self, share: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(share) as f64 / 1e3 }
    }
}

/// In JSON, latencies are pairs of a value in microseconds and how often it occurred.
impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(self.0.iter_recorded().map(|at| (at.value_iterated_to(), at.count_at_value())))
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut this = Self::default();
        for (value, count) in Vec::<(u64, u64)>::deserialize(from)? {
            let _ = this.0.record_n(value.clamp(1, LONGEST), count);
        }
        Ok(this)
    }
}

/// What happened on one transport, or on all of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TransportFigures {
    /// Log-ins that were begun.
    pub attempts: u64,
    /// Log-ins that succeeded.
    pub log_ins: u64,
    /// Messages that were sent.
    pub sent: u64,
    /// Echoes that arrived once, in order and unchanged.
    pub echoed: u64,
    /// Messages without an echo whose session the scenario cut, or an error ended that is counted itself.
    pub cut_off: u64,
    /// Messages without an echo in a session that ended without an error.
    pub lost: u64,
    /// Echoes that arrived out of order, or twice.
    pub disordered: u64,
    /// Echoes that differ from every message that was sent.
    pub corrupt: u64,
    /// Bytes of messages in both directions.
    pub bytes: u64,
    /// Time from the planned start of a log-in to its LoginAck.
    pub login: Latencies,
    /// Time from the planned time of a message to its echo.
    pub echo: Latencies,
}

impl TransportFigures {
    /// Adds other figures.
    pub fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.log_ins += other.log_ins;
        self.sent += other.sent;
        self.echoed += other.echoed;
        self.cut_off += other.cut_off;
        self.lost += other.lost;
        self.disordered += other.disordered;
        self.corrupt += other.corrupt;
        self.bytes += other.bytes;
        self.login.add(&other.login);
        self.echo.add(&other.echo);
    }

    /// Whether no message was lost, out of order, doubled or changed.
    pub fn is_whole(&self) -> bool {
        self.lost == 0 && self.disordered == 0 && self.corrupt == 0
    }
}

/// What happened in a span of time: in one worker since its last report, or in the whole run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LoadFigures {
    /// The figures of each transport that was used.
    #[serde(rename = "ways")]
    pub transports: BTreeMap<LoadTransport, TransportFigures>,
    /// How often each error occurred, by its text.
    pub errors: BTreeMap<String, u64>,
    /// Clients that are logged in at the end of the span, by transport.
    pub sessions: BTreeMap<LoadTransport, u64>,
    /// Connections of hostile clients.
    pub hostile: u64,
}

impl LoadFigures {
    /// Adds the figures of another worker for the same span.
    pub fn add(&mut self, other: &Self) {
        for (transport, figures) in &other.transports {
            self.transports.entry(*transport).or_default().add(figures);
        }
        for (reason, count) in &other.errors {
            *self.errors.entry(reason.clone()).or_default() += count;
        }
        for (transport, count) in &other.sessions {
            *self.sessions.entry(*transport).or_default() += count;
        }
        self.hostile += other.hostile;
    }

    /// The sum over all transports.
    pub fn all(&self) -> TransportFigures {
        let mut all = TransportFigures::default();
        self.transports.values().for_each(|figures| all.add(figures));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_the_same_after_json() {
        let mut figures = TransportFigures { sent: 3, ..TransportFigures::default() };
        for ms in [1, 2, 2, 500] {
            figures.login.record(Duration::from_millis(ms));
        }
        let line = serde_json::to_string(&figures).expect("JSON");
        let back: TransportFigures = serde_json::from_str(&line).expect("JSON");
        let mut sum = TransportFigures::default();
        sum.add(&back);
        sum.add(&figures);
        assert_eq!((sum.sent, sum.login.count()), (6, 8));
        for share in [0.5, 0.99] {
            let (was, is) = (figures.login.quantile(share), sum.login.quantile(share));
            assert!((was - is).abs() <= was / 500.0, "{was} {is}");
        }
        assert!((figures.login.quantile(1.0) - 500.0).abs() < 1.0);
    }
}
