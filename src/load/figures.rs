//! What is counted, and how workers' counts become one.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Way;

/// Latencies in microseconds, to three digits, up to an hour. As large as its longest.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

const LONGEST: u64 = 3_600_000_000;

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(3).expect("a legal precision"))
    }
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, latency: std::time::Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST);
        // It grows as needed: nothing up to an hour is out of its range.
        let _ = self.0.record(micros.clamp(1, LONGEST));
    }

    /// Counts another's in.
    pub fn add(&mut self, other: &Self) {
        // Both grow as needed.
        let _ = self.0.add(&other.0);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `share` (0 to 1) of all do not exceed, in milliseconds.
    #[allow(clippy::cast_precision_loss)]
    pub fn quantile(&self, share: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(share) as f64 / 1e3 }
    }
}

/// On the wire: values that occurred and how often.
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

/// What happened on one way, or on all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Log-ins that were begun.
    pub attempts: u64,
    /// Log-ins that succeeded.
    pub log_ins: u64,
    /// Messages that were sent.
    pub sent: u64,
    /// Echoes that came, each once, in order and whole.
    pub echoed: u64,
    /// Messages whose session was cut by the generator itself, or by an error that is counted.
    pub cut_off: u64,
    /// Messages without an echo at the end of a session that was fine.
    pub lost: u64,
    /// Echoes out of order, or twice.
    pub disordered: u64,
    /// Echoes that are not what was sent.
    pub corrupt: u64,
    /// Bytes of messages, both ways.
    pub bytes: u64,
    /// From the planned start to the LoginAck.
    pub login: Latencies,
    /// From the planned time of a message to its echo.
    pub echo: Latencies,
}

impl Figures {
    /// Adds another's.
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

    /// Whether every message came once, in order and whole.
    pub fn is_whole(&self) -> bool {
        self.lost == 0 && self.disordered == 0 && self.corrupt == 0
    }
}

/// What happened since the last line, as a worker tells it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Second {
    /// By way.
    pub ways: BTreeMap<Way, Figures>,
    /// What went wrong, by reason.
    pub errors: BTreeMap<String, u64>,
    /// Clients that are logged in at its end, by way.
    pub sessions: BTreeMap<Way, u64>,
    /// Connections of hostile clients.
    pub hostile: u64,
}

impl Second {
    /// Adds another worker's of the same time.
    pub fn add(&mut self, other: &Self) {
        for (way, figures) in &other.ways {
            self.ways.entry(*way).or_default().add(figures);
        }
        for (reason, count) in &other.errors {
            *self.errors.entry(reason.clone()).or_default() += count;
        }
        for (way, count) in &other.sessions {
            *self.sessions.entry(*way).or_default() += count;
        }
        self.hostile += other.hostile;
    }

    /// All ways in one.
    pub fn all(&self) -> Figures {
        let mut all = Figures::default();
        self.ways.values().for_each(|figures| all.add(figures));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn figures_survive_the_way_between_processes() {
        let mut figures = Figures { sent: 3, ..Figures::default() };
        for ms in [1, 2, 2, 500] {
            figures.login.record(Duration::from_millis(ms));
        }
        let line = serde_json::to_string(&figures).expect("JSON");
        let back: Figures = serde_json::from_str(&line).expect("JSON");
        let mut sum = Figures::default();
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
