//! What the clients do, as described by a TOML file, by arguments, or by both.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The transport of a simulated client.
///
/// The variants are those of `wire::Transport`. The names differ: scenario files, arguments and the JSON report
/// say `polling`, `hybrid` and `streaming`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadTransport {
    /// Frames over TCP.
    Raw,
    /// Frames over TLS.
    Tls,
    /// The HTTP tunnel of polling clients.
    Polling,
    /// The HTTP tunnel of hybrid (long-polling) clients.
    Hybrid,
    /// The HTTP tunnel of streaming clients.
    Streaming,
}

impl LoadTransport {
    /// Every transport, in the order of the report's tables.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Tls, Self::Polling, Self::Hybrid, Self::Streaming];

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tls => "tls",
            Self::Polling => "polling",
            Self::Hybrid => "hybrid",
            Self::Streaming => "streaming",
        }
    }
}

/// How the clients are spread over the transports, as weights: of 100 clients with the weights 50, 10, 15, 15 and 10, 50
/// are raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportMix {
    /// The weight of raw clients.
    pub raw: u32,
    /// The weight of TLS clients.
    pub tls: u32,
    /// The weight of polling clients.
    pub polling: u32,
    /// The weight of hybrid clients.
    pub hybrid: u32,
    /// The weight of streaming clients; 0 in a file that has other weights and not this one.
    #[serde(default)]
    pub streaming: u32,
}

impl Default for TransportMix {
    fn default() -> Self {
        Self { raw: 50, tls: 10, polling: 15, hybrid: 15, streaming: 10 }
    }
}

impl TransportMix {
    fn weights(self) -> [(LoadTransport, u64); 5] {
        [
            (LoadTransport::Raw, self.raw.into()),
            (LoadTransport::Tls, self.tls.into()),
            (LoadTransport::Polling, self.polling.into()),
            (LoadTransport::Hybrid, self.hybrid.into()),
            (LoadTransport::Streaming, self.streaming.into()),
        ]
    }

    /// The sum of the weights.
    pub fn total(self) -> u64 {
        self.weights().iter().map(|(_, weight)| weight).sum()
    }

    /// The transport of client `n`. Transports are spread evenly: any sequence of clients has about this mix.
    pub fn transport_of(self, n: u64) -> LoadTransport {
        let total = self.total().max(1);
        // A step that has no divisor in common with the total reaches each of the places 0..total once.
        let step = (total * 618 / 1000..).find(|step| *step > 0 && is_coprime(*step, total)).unwrap_or(1);
        let mut place = (n % total) * step % total;
        for (transport, weight) in self.weights() {
            if place < weight {
                return transport;
            }
            place -= weight;
        }
        LoadTransport::Raw
    }
}

/// Whether 1 is the only common divisor of `a` and `b`.
fn is_coprime(mut a: u64, mut b: u64) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// The sizes of messages in bytes, with a log-normal distribution, as those of people have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MessageSizes {
    /// Half of the messages are shorter.
    pub median: u32,
    /// One message in a hundred is longer.
    pub p99: u32,
    /// No message is longer; at most 60,000.
    pub largest: u32,
}

impl Default for MessageSizes {
    fn default() -> Self {
        Self { median: 80, p99: 1_000, largest: 20_000 }
    }
}

/// A cut of the network: connections close without a log-out, and their clients come back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkCut {
    /// The time of the cut, from the start of the run.
    #[serde(with = "duration")]
    pub at: Duration,
    /// The share of the clients that lose their connection, 0 to 1.
    pub share: f64,
}

/// What the clients do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// The title of the report.
    pub name: String,
    /// The number of clients.
    pub clients: u32,
    /// The time over which their log-ins are spread.
    #[serde(with = "duration")]
    pub ramp_up: Duration,
    /// How long the run continues after that.
    #[serde(with = "duration")]
    pub duration: Duration,
    /// The mean time between two messages of one client; zero: it sends no messages.
    #[serde(with = "duration")]
    pub think_time: Duration,
    /// The mean time before a client logs out and in again; zero: it stays to the end.
    #[serde(with = "duration")]
    pub stay: Duration,
    /// How often polling clients poll.
    #[serde(with = "duration")]
    pub poll: Duration,
    /// How the clients are spread over the transports.
    pub mix: TransportMix,
    /// The sizes of their messages.
    pub sizes: MessageSizes,
    /// A cut of the network; `None`: there is none.
    pub cut: Option<NetworkCut>,
    /// The number of hostile clients, in addition to the others.
    pub hostile: u32,
    /// Ends the run when the 99th percentile of the log-ins in the last five seconds is higher; zero: never.
    #[serde(with = "duration")]
    pub stop_p99_login: Duration,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: "load".to_owned(),
            clients: 100,
            ramp_up: Duration::from_secs(10),
            duration: Duration::from_secs(30),
            think_time: Duration::from_secs(10),
            stay: Duration::ZERO,
            poll: Duration::from_secs(1),
            mix: TransportMix::default(),
            sizes: MessageSizes::default(),
            cut: None,
            hostile: 0,
            stop_p99_login: Duration::ZERO,
        }
    }
}

/// The longest of all times.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const MOST_CLIENTS: u32 = 500_000;
const LONGEST_MESSAGE: u32 = 60_000;

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// A text that says what is wrong, with the line if the form is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Checks that every value is within its bounds.
    ///
    /// # Errors
    /// A text that says what is wrong and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let check_bounds = |name: &str, value: Duration, least: Duration| {
            let is_within = (least..=LONGEST).contains(&value);
            if is_within { Ok(()) } else { Err(format!("{name}: {value:?} is out of bounds ({least:?} to 1d)")) }
        };
        if !(1..=MOST_CLIENTS).contains(&self.clients) {
            return Err(format!("clients: {} is out of bounds (1 to {MOST_CLIENTS})", self.clients));
        }
        if self.mix.total() == 0 {
            return Err("mix: every weight is 0 (give one of raw, tls, polling, hybrid, streaming)".to_owned());
        }
        check_bounds("ramp_up", self.ramp_up, Duration::ZERO)?;
        check_bounds("duration", self.duration, Duration::ZERO)?;
        check_bounds("think_time", self.think_time, Duration::ZERO)?;
        check_bounds("stay", self.stay, Duration::ZERO)?;
        check_bounds("poll", self.poll, Duration::from_millis(10))?;
        check_bounds("stop_p99_login", self.stop_p99_login, Duration::ZERO)?;
        let MessageSizes { median, p99, largest } = self.sizes;
        if !(1 <= median && median <= p99 && p99 <= largest && largest <= LONGEST_MESSAGE) {
            return Err(format!("sizes: 1 <= median <= p99 <= largest <= {LONGEST_MESSAGE} must hold"));
        }
        if let Some(cut) = self.cut
            && !(0.0..=1.0).contains(&cut.share)
        {
            return Err(format!("cut.share: {} is out of bounds (0 to 1)", cut.share));
        }
        Ok(())
    }

    /// How long the whole run takes, unless the stop rule ends it.
    pub fn whole(&self) -> Duration {
        self.ramp_up + self.duration
    }
}

/// Durations in TOML and JSON are texts such as "30s".
mod duration {
    use super::{Deserialize, Deserializer, Duration, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&humantime::format_duration(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map_err(|error| de::Error::custom(format!("{text:?} is no duration: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_spread_evenly() {
        let mix = TransportMix { raw: 55, tls: 10, polling: 15, hybrid: 15, streaming: 5 };
        for start in [0, 17, 1000] {
            let count = |transport| (start..start + 100).filter(|n| mix.transport_of(*n) == transport).count();
            assert_eq!(LoadTransport::ALL.map(count), [55, 10, 15, 15, 5]);
            let early = (start..start + 20).filter(|n| mix.transport_of(*n) == LoadTransport::Raw).count();
            assert!((8..=16).contains(&early), "{early} of the first 20 are raw");
        }
        let hybrid_only = TransportMix { raw: 0, tls: 0, polling: 0, hybrid: 1, streaming: 0 };
        assert!((0..10).all(|n| hybrid_only.transport_of(n) == LoadTransport::Hybrid));
    }

    #[test]
    fn a_wrong_scenario_is_an_error_that_names_the_fault() {
        for (text, expected) in [
            ("client = 3", "unknown field `client`"),
            ("clients = 0", "clients: 0 is out of bounds"),
            ("ramp_up = \"soon\"", "\"soon\" is no duration"),
            ("[mix]\nraw = 0\ntls = 0\npolling = 0\nhybrid = 0\nstreaming = 0", "every weight is 0"),
            ("[sizes]\nmedian = 10\np99 = 5", "must hold"),
            ("[cut]\nat = \"1s\"\nshare = 2.0", "cut.share: 2 is out of bounds"),
        ] {
            let error = Scenario::parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        let back = toml::to_string(&Scenario::default()).expect("TOML");
        assert_eq!(Scenario::parse(&back), Ok(Scenario::default()));
    }
}
