//! What the clients do: a TOML file, or arguments, or both.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A way in, as a client chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Frames over TCP.
    Raw,
    /// Frames over TLS.
    Tls,
    /// The tunnel's polling client.
    Polling,
    /// The tunnel's hybrid, long-polling client.
    Hybrid,
}

impl Way {
    /// Every way, in the order of tables.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Tls, Self::Polling, Self::Hybrid];

    /// The name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tls => "tls",
            Self::Polling => "polling",
            Self::Hybrid => "hybrid",
        }
    }
}

/// How many of the clients take which way, as weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// Frames over TCP.
    pub raw: u32,
    /// Frames over TLS.
    pub tls: u32,
    /// Polling tunnels.
    pub polling: u32,
    /// Hybrid tunnels.
    pub hybrid: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Self { raw: 60, tls: 10, polling: 15, hybrid: 15 }
    }
}

impl Mix {
    fn weights(self) -> [(Way, u64); 4] {
        [
            (Way::Raw, self.raw.into()),
            (Way::Tls, self.tls.into()),
            (Way::Polling, self.polling.into()),
            (Way::Hybrid, self.hybrid.into()),
        ]
    }

    /// The sum of the weights.
    pub fn total(self) -> u64 {
        self.weights().iter().map(|(_, weight)| weight).sum()
    }

    /// The way of client `n`. Ways are spread evenly: any run of clients has about the mix.
    pub fn way(self, n: u64) -> Way {
        let total = self.total().max(1);
        // A step that has no divisor in common with the total visits every place once.
        let step = (total * 618 / 1000..).find(|step| *step > 0 && coprime(*step, total)).unwrap_or(1);
        let mut place = (n % total) * step % total;
        for (way, weight) in self.weights() {
            if place < weight {
                return way;
            }
            place -= weight;
        }
        Way::Raw
    }
}

fn coprime(mut a: u64, mut b: u64) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// Sizes of messages, in bytes: log-normal, as people's are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sizes {
    /// Half are shorter.
    pub median: u32,
    /// One in a hundred is longer.
    pub p99: u32,
    /// None is longer; 60,000 at the most.
    pub largest: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { median: 80, p99: 1_000, largest: 20_000 }
    }
}

/// A cut of the network: connections drop without a word, and their clients come back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// When, counted from the start of the run.
    #[serde(with = "duration")]
    pub at: Duration,
    /// How many of the clients: 0 to 1.
    pub share: f64,
}

/// What the clients do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// What it is called in the report.
    pub name: String,
    /// How many clients.
    pub clients: u32,
    /// Over how long their log-ins are spread.
    #[serde(with = "duration")]
    pub ramp_up: Duration,
    /// How long the run goes on after that.
    #[serde(with = "duration")]
    pub duration: Duration,
    /// The mean time between two messages of one client; zero: it says nothing.
    #[serde(with = "duration")]
    pub think_time: Duration,
    /// The mean time that a client stays before it logs out and in again; zero: to the end.
    #[serde(with = "duration")]
    pub stay: Duration,
    /// How often polling clients poll.
    #[serde(with = "duration")]
    pub poll: Duration,
    /// Which ways they take.
    pub mix: Mix,
    /// How long their messages are.
    pub sizes: Sizes,
    /// A cut of the network.
    pub cut: Option<Cut>,
    /// Hostile clients beside the others.
    pub hostile: u32,
    /// Ends the run when the log-ins of the last five seconds have a higher p99; zero: never.
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
            mix: Mix::default(),
            sizes: Sizes::default(),
            cut: None,
            hostile: 0,
            stop_p99_login: Duration::ZERO,
        }
    }
}

const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const MOST_CLIENTS: u32 = 500_000;
const LONGEST_MESSAGE: u32 = 60_000;

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// What is wrong, with the line where it stands.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Whether the scenario makes sense and is bounded.
    ///
    /// # Errors
    /// What is wrong and what is legal.
    pub fn check(&self) -> Result<(), String> {
        let bounds = |name: &str, value: Duration, least: Duration| {
            let fits = (least..=LONGEST).contains(&value);
            if fits { Ok(()) } else { Err(format!("{name}: {value:?} is out of bounds ({least:?} to 1d)")) }
        };
        if !(1..=MOST_CLIENTS).contains(&self.clients) {
            return Err(format!("clients: {} is out of bounds (1 to {MOST_CLIENTS})", self.clients));
        }
        if self.mix.total() == 0 {
            return Err("mix: every weight is 0 (give one of raw, tls, polling, hybrid)".to_owned());
        }
        bounds("ramp_up", self.ramp_up, Duration::ZERO)?;
        bounds("duration", self.duration, Duration::ZERO)?;
        bounds("think_time", self.think_time, Duration::ZERO)?;
        bounds("stay", self.stay, Duration::ZERO)?;
        bounds("poll", self.poll, Duration::from_millis(10))?;
        bounds("stop_p99_login", self.stop_p99_login, Duration::ZERO)?;
        let Sizes { median, p99, largest } = self.sizes;
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

    /// How long the whole run takes.
    pub fn whole(&self) -> Duration {
        self.ramp_up + self.duration
    }
}

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
    fn ways_are_spread_evenly() {
        let mix = Mix { raw: 60, tls: 10, polling: 15, hybrid: 15 };
        for start in [0, 17, 1000] {
            let count = |way| (start..start + 100).filter(|n| mix.way(*n) == way).count();
            assert_eq!(Way::ALL.map(count), [60, 10, 15, 15]);
            let early = (start..start + 20).filter(|n| mix.way(*n) == Way::Raw).count();
            assert!((8..=16).contains(&early), "{early} of the first 20 are raw");
        }
        assert!((0..10).all(|n| Mix { raw: 0, tls: 0, polling: 0, hybrid: 1 }.way(n) == Way::Hybrid));
    }

    #[test]
    fn a_scenario_says_what_is_wrong_with_it() {
        for (text, says) in [
            ("client = 3", "unknown field `client`"),
            ("clients = 0", "clients: 0 is out of bounds"),
            ("ramp_up = \"soon\"", "\"soon\" is no duration"),
            ("[mix]\nraw = 0\ntls = 0\npolling = 0\nhybrid = 0", "every weight is 0"),
            ("[sizes]\nmedian = 10\np99 = 5", "must hold"),
            ("[cut]\nat = \"1s\"\nshare = 2.0", "cut.share: 2 is out of bounds"),
        ] {
            let said = Scenario::parse(text).expect_err(text);
            assert!(said.contains(says), "{text}: {said}");
        }
        let back = toml::to_string(&Scenario::default()).expect("TOML");
        assert_eq!(Scenario::parse(&back), Ok(Scenario::default()));
    }
}
