//! What is measured: the scenarios, the figures with their targets, and the values of a run.

use std::collections::{BTreeMap, BTreeSet};

use super::proxies::Contender::{self, HaProxy, Hyper, Mux, Nginx, Nothing};

/// A measurement that each of its contenders runs through.
pub struct Scenario {
    pub name: &'static str,
    pub contenders: &'static [Contender],
    pub is_memory: bool,
}

const PROXIES: &[Contender] = &[Mux, HaProxy, Nginx];
const ALL: &[Contender] = &[Nothing, Mux, HaProxy, Nginx];
const HTTP: &[Contender] = &[Mux, Hyper, Nginx];

const fn scenario(name: &'static str, contenders: &'static [Contender]) -> Scenario {
    Scenario { name, contenders, is_memory: false }
}

const fn memory(name: &'static str, contenders: &'static [Contender]) -> Scenario {
    Scenario { name, contenders, is_memory: true }
}

pub const SCENARIOS: &[Scenario] = &[
    scenario("start", PROXIES),
    memory("idle-raw", PROXIES),
    memory("idle-tls", PROXIES),
    memory("idle-polling", HTTP),
    memory("idle-hybrid", &[Mux]),
    memory("idle-streaming", &[Mux]),
    scenario("messages-1", ALL),
    scenario("messages-64", ALL),
    scenario("messages-1000", ALL),
    scenario("messages-tls", PROXIES),
    scenario("messages-streaming", &[Mux, HaProxy]),
    scenario("log-ins", ALL),
    scenario("handshakes", PROXIES),
    scenario("polls", HTTP),
    scenario("wake-up", ALL),
    scenario("bulk", ALL),
    memory("growth", &[Nothing, Mux, HaProxy]),
    memory("ceiling", &[Mux]),
    scenario("passed", &[Mux]),
    memory("trunk-idle", &[Mux]),
    scenario("trunk-64", &[Mux, HaProxy]),
    scenario("trunk-1000", &[Mux, HaProxy]),
];

/// Whether lower or higher values are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// What the multiplexer's value is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// With a number in the figure's unit.
    Number,
    /// With another contender, as the ratio in each round.
    To(Contender),
    /// With the better of HAProxy and nginx, as the ratio in each round.
    TheBetter,
}

impl Against {
    pub fn name(self) -> String {
        match self {
            Self::Number => "(absolute)".to_owned(),
            Self::To(contender) => contender.name().to_owned(),
            Self::TheBetter => "the better of HAProxy and nginx".to_owned(),
        }
    }
}

/// A target of a figure.
pub struct Target {
    pub against: Against,
    /// The bound that must be met.
    pub must: f64,
    /// The bound that is aimed at.
    pub aim: f64,
}

/// Something that is measured.
pub struct Figure {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub better: Better,
    pub targets: &'static [Target],
}

const fn target(against: Against, must: f64, aim: f64) -> Target {
    Target { against, must, aim }
}

const fn low(name: &'static str, title: &'static str, unit: &'static str, targets: &'static [Target]) -> Figure {
    Figure { name, title, unit, better: Better::Lower, targets }
}

const fn high(name: &'static str, title: &'static str, unit: &'static str, targets: &'static [Target]) -> Figure {
    Figure { name, title, unit, better: Better::Higher, targets }
}

const CPU: &[Target] = &[target(Against::To(HaProxy), 1.0, 0.8)];
const P99: &[Target] = &[target(Against::TheBetter, 1.1, 0.8)];

const LOG_INS: &[Target] = &[target(Against::To(HaProxy), 0.95, 1.1)];

const NEAR_END: &[Target] = &[target(Against::Number, 1_600.0, 1_000.0)];
const TRUNK_CPU: &[Target] = &[target(Against::To(HaProxy), 0.8, 0.55)];

const FLAT: &[Target] = &[target(Against::Number, 1.2, 1.05)];

pub const FIGURES: &[Figure] = &[
    low("start", "Start to the first accepted connection", "ms", &[target(Against::Number, 100.0, 20.0)]),
    low("memory", "Memory without clients", "MiB", &[]),
    low("idle-raw", "Memory of an idle client, 9,000 clients", "bytes", &[target(Against::Number, 1_800.0, 1_300.0)]),
    low(
        "idle-tls",
        "Memory of an idle TLS client, 4,000 clients",
        "bytes",
        &[target(Against::Number, 11_000.0, 6_500.0)],
    ),
    low(
        "idle-polling",
        "Memory of an idle polling session, 4,000 sessions",
        "bytes",
        &[target(Against::Number, 4_000.0, 1_500.0)],
    ),
    low(
        "idle-hybrid",
        "Memory of a held hybrid session, 4,000 sessions",
        "bytes",
        &[target(Against::Number, 8_000.0, 3_000.0)],
    ),
    low(
        "idle-streaming",
        "Memory of an idle streaming session, 4,000 sessions",
        "bytes",
        &[target(Against::Number, 2_400.0, 1_800.0)],
    ),
    high("1 rate", "Messages, 1 busy client", "/s", &[]),
    low("1 cpu", "CPU of a million messages, 1 busy client", "s", CPU),
    low("1 p50", "Latency p50, 1 busy client", "us", &[]),
    low("1 p99", "Latency p99, 1 busy client", "us", &[]),
    low("1 p99.9", "Latency p99.9, 1 busy client", "us", &[]),
    high("64 rate", "Messages, 64 busy clients", "/s", &[]),
    low("64 cpu", "CPU of a million messages, 64 busy clients", "s", CPU),
    low("64 p50", "Latency p50, 64 busy clients", "us", &[]),
    low("64 p99", "Latency p99, 64 busy clients", "us", P99),
    low("64 p99.9", "Latency p99.9, 64 busy clients", "us", &[]),
    high("1000 rate", "Messages, 1,000 busy clients", "/s", &[]),
    low("1000 cpu", "CPU of a million messages, 1,000 busy clients", "s", CPU),
    low("1000 p50", "Latency p50, 1,000 busy clients", "us", &[]),
    low("1000 p99", "Latency p99, 1,000 busy clients", "us", P99),
    low("1000 p99.9", "Latency p99.9, 1,000 busy clients", "us", &[]),
    high("tls rate", "Messages, 64 busy TLS clients", "/s", &[]),
    low("tls cpu", "CPU of a million messages, 64 busy TLS clients", "s", &[]),
    low("tls p50", "Latency p50, 64 busy TLS clients", "us", &[]),
    low("tls p99", "Latency p99, 64 busy TLS clients", "us", &[]),
    low("tls p99.9", "Latency p99.9, 64 busy TLS clients", "us", &[]),
    high("streaming rate", "Messages, 64 busy streaming clients", "/s", &[]),
    low("streaming cpu", "CPU of a million messages, 64 busy streaming clients", "s", CPU),
    low("streaming p50", "Latency p50, 64 busy streaming clients", "us", &[]),
    low("streaming p99", "Latency p99, 64 busy streaming clients", "us", &[]),
    low("streaming p99.9", "Latency p99.9, 64 busy streaming clients", "us", &[]),
    high("log-ins rate", "Log-ins", "/s", LOG_INS),
    high("log-ins quiet", "Log-ins, with `log.level = \"warn\"`", "/s", LOG_INS),
    low("log-ins cpu", "CPU of 1,000 log-ins", "s", &[]),
    high("handshakes rate", "TLS handshakes, with log-in", "/s", &[]),
    low("handshakes cpu", "CPU of a TLS handshake, with log-in", "ms", &[target(Against::To(HaProxy), 0.5, 0.4)]),
    high(
        "polls rate",
        "Idle polls",
        "/s",
        &[target(Against::To(Hyper), 0.85, 1.0), target(Against::To(Nginx), 0.85, 1.0)],
    ),
    low("polls cpu", "CPU of a million idle polls", "s", &[]),
    low("polls p99", "Latency p99 of idle polls, 64 clients", "us", &[]),
    low("wake-up raw p50", "Community to one of 1,000 idle clients, raw, p50", "ms", &[]),
    low("wake-up raw p99", "Community to one of 1,000 idle clients, raw, p99", "ms", &[]),
    low("wake-up hybrid p50", "Community to one of 1,000 held hybrid clients, p50", "ms", &[]),
    low("wake-up hybrid p99", "Community to one of 1,000 held hybrid clients, p99", "ms", &[]),
    low("wake-up more", "Held hybrid p99 over raw p99", "ms", &[target(Against::Number, 1.0, 0.3)]),
    low("wake-up streaming p50", "Community to one of 1,000 streaming clients, p50", "ms", &[]),
    low("wake-up streaming p99", "Community to one of 1,000 streaming clients, p99", "ms", &[]),
    low("wake-up streaming more", "Streaming p99 over raw p99", "ms", &[target(Against::Number, 0.3, 0.1)]),
    high("bulk rate", "Bulk echoed, 4 clients", "MB/s", &[target(Against::TheBetter, 1.0, 1.15)]),
    low("bulk cpu", "CPU of a GB echoed", "s", &[]),
    low("growth bytes 100", "Memory of an idle client, 100 clients", "bytes", &[]),
    low("growth bytes 1000", "Memory of an idle client, 1,000 clients", "bytes", &[]),
    low("growth bytes 5000", "Memory of an idle client, 5,000 clients", "bytes", &[]),
    low("growth bytes 9000", "Memory of an idle client, 9,000 clients", "bytes", &[]),
    low("growth bytes 19000", "Memory of an idle client, 19,000 clients, two processes", "bytes", &[]),
    low("growth bytes", "Memory of a client, highest of these to lowest", "", FLAT),
    low("growth adds 100", "Memory that a client adds, second half of 100 clients", "bytes", &[]),
    low("growth adds 1000", "Memory that a client adds, second half of 1,000 clients", "bytes", &[]),
    low("growth adds 5000", "Memory that a client adds, second half of 5,000 clients", "bytes", &[]),
    low("growth adds 9000", "Memory that a client adds, second half of 9,000 clients", "bytes", &[]),
    low("growth adds 19000", "Memory that a client adds, second half of 19,000 clients, two processes", "bytes", &[]),
    low("growth adds", "Memory that a client adds, highest of these to lowest", "", FLAT),
    low("growth cpu 100", "CPU of a million messages of 100 clients in turn", "s", &[]),
    low("growth cpu 1000", "CPU of a million messages of 1,000 clients in turn", "s", &[]),
    low("growth cpu 5000", "CPU of a million messages of 5,000 clients in turn", "s", &[]),
    low("growth cpu 9000", "CPU of a million messages of 9,000 clients in turn", "s", &[]),
    low("growth cpu 19000", "CPU of a million messages of 19,000 clients in turn, two processes", "s", &[]),
    low("growth user 100", "Of this, user time of the proxy, 100 clients", "s", &[]),
    low("growth user 1000", "Of this, user time of the proxy, 1,000 clients", "s", &[]),
    low("growth user 5000", "Of this, user time of the proxy, 5,000 clients", "s", &[]),
    low("growth user 9000", "Of this, user time of the proxy, 9,000 clients", "s", &[]),
    low("growth user 19000", "Of this, user time of the proxy, 19,000 clients", "s", &[]),
    low("growth cpu", "CPU of a message, highest of these to lowest", "", FLAT),
    low("ceiling bytes", "Memory of an idle client, 80,000 clients, nine processes", "bytes", &[]),
    low("ceiling memory", "Memory of each of the nine processes", "MiB", &[]),
    high("ceiling rate", "Log-ins of the 80,000", "/s", &[]),
    low("trunk near", "Memory of an idle client at the near end of a trunk, 19,000 clients", "bytes", NEAR_END),
    low("trunk far", "Memory of an idle client at the far end, 19,000 clients", "bytes", &[]),
    high("trunk 64 rate", "Messages through a trunk, 64 busy clients; HAProxy has no trunk", "/s", &[]),
    low("trunk 64 cpu", "CPU of a million messages at the near end, 64 busy clients", "s", TRUNK_CPU),
    low("trunk 64 p99", "Latency p99 through a trunk, 64 busy clients", "us", &[]),
    high("trunk 1000 rate", "Messages through a trunk, 1,000 busy clients", "/s", &[]),
    low("trunk 1000 cpu", "CPU of a million messages at the near end, 1,000 busy clients", "s", TRUNK_CPU),
    low("trunk 1000 p99", "Latency p99 through a trunk, 1,000 busy clients", "us", &[]),
    low("passed poll cpu", "CPU of a million idle polls that are passed to another node, both nodes", "s", &[]),
    low("passed poll ratio", "Of this, as a multiple of polls of the own node", "", &[]),
    low("passed poll later", "Latency p50 that passing adds to a poll, 64 clients", "us", &[]),
    low("passed post cpu", "CPU of a million streaming messages whose POST is passed, both nodes", "s", &[]),
    low("passed post ratio", "Of this, as a multiple of messages of the own node", "", &[]),
    low("passed post later", "Latency p50 that passing adds to a streaming message, 64 clients", "us", &[]),
    low("ceiling idle", "CPU of all nine while the 80,000 are idle, in a second", "ms", &[]),
];

/// All values of a run, by figure and contender, in the order of the rounds.
#[derive(Default)]
pub struct Results {
    values: BTreeMap<&'static str, BTreeMap<Contender, Vec<f64>>>,
    missing: BTreeSet<String>,
}

/// The median, for an odd or an even number of values; NaN for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// A value as text, with as many digits as are meaningful.
pub fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => String::new(),
        size if size >= 1000.0 => {
            let (text, mut out) = (format!("{value:.0}"), String::new());
            for (i, c) in text.chars().enumerate() {
                if i > 0 && (text.len() - i).is_multiple_of(3) && c != '-' {
                    out.push(',');
                }
                out.push(c);
            }
            out
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

impl Results {
    pub fn add(&mut self, figure: &'static str, contender: Contender, value: f64) {
        // Without a proxy there is no CPU time of a proxy.
        if value.is_finite() {
            self.values.entry(figure).or_default().entry(contender).or_default().push(value);
        }
    }

    /// Records why a contender could not take part.
    pub fn miss(&mut self, why: String) {
        eprintln!("MISSING: {why}");
        self.missing.insert(why);
    }

    pub fn missing(&self) -> impl Iterator<Item = &String> {
        self.missing.iter()
    }

    /// The values of a figure for a contender, one for each round.
    pub fn of(&self, figure: &str, contender: Contender) -> &[f64] {
        self.values.get(figure).and_then(|by| by.get(&contender)).map_or(&[], Vec::as_slice)
    }

    /// Whether anything was measured for this contender.
    pub fn has(&self, contender: Contender) -> bool {
        self.values.values().any(|by| by.contains_key(&contender))
    }

    /// The figures that have values.
    pub fn figures(&self) -> impl Iterator<Item = &'static Figure> {
        FIGURES.iter().filter(|figure| self.values.contains_key(figure.name))
    }

    /// The multiplexer's value compared with `against`: the median over the rounds.
    pub fn against(&self, figure: &Figure, against: Against) -> f64 {
        let mux = self.of(figure.name, Mux);
        let ratios = |to: &[f64]| median(&mux.iter().zip(to).map(|(mux, to)| mux / to).collect::<Vec<_>>());
        match against {
            Against::Number => median(mux),
            Against::To(contender) => ratios(self.of(figure.name, contender)),
            Against::TheBetter => {
                let better = |(a, b): (&f64, &f64)| if figure.better == Better::Lower { a.min(*b) } else { a.max(*b) };
                let best: Vec<f64> =
                    self.of(figure.name, HaProxy).iter().zip(self.of(figure.name, Nginx)).map(better).collect();
                ratios(&best)
            }
        }
    }
}
