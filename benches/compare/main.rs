//! Compares the multiplexer with what could be used instead: HAProxy, nginx, hyper alone, and no proxy.
//!
//! ```text
//! cargo bench --bench compare -- [--quick] [--out FOLDER] [--before PROGRAM] [SCENARIO...]
//! ```
//! `--before` adds another build of the multiplexer.
//!
//! All contenders run in front of the same echo server, one after the other. Their order changes from round to
//! round, so that other work on the machine affects all of them. Medians and ratios within one run are meaningful,
//! single values are not. Clients, proxy and echo server share the machine: a rate is that of the whole system, CPU
//! time is the proxy's own. Only loopback is used.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub)]

mod echo;
mod figures;
mod growth;
mod load;
mod passed;
mod proxies;
mod report;
mod streaming;
mod svg;
mod trunk;
mod tunnel;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use figures::{Results, SCENARIOS, Scenario};
use load::{Busy, Window};
use proxies::{Contender, Folder, Running, Workload, start};
use tunnel::Kind;

/// The number of idle clients: raw ones, and those of the other transports, which cost more.
const IDLE_RAW: usize = 9_000;
const IDLE_OTHER: usize = 4_000;
const POLLING_CLIENTS: usize = 64;
const WAKE_UP_CLIENTS: usize = 1_000;
const MIB: f64 = 1024.0 * 1024.0;

/// The time after which memory is measured.
const SETTLE: Duration = Duration::from_secs(1);

/// How long and how often each scenario is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    quick: bool,
    rounds: usize,
    /// Rounds of the scenarios that measure memory, which varies little.
    memory_rounds: usize,
    window: Window,
    log_ins: usize,
    handshakes: usize,
    sweeps: usize,
}

impl Plan {
    fn new(quick: bool) -> Self {
        let (warm_up, length) = if quick { (200, 600) } else { (500, 2_000) };
        Self {
            quick,
            rounds: if quick { 3 } else { 5 },
            memory_rounds: if quick { 1 } else { 3 },
            window: Window { warm_up: Duration::from_millis(warm_up), length: Duration::from_millis(length) },
            log_ins: if quick { 4_000 } else { 12_000 },
            handshakes: if quick { 1_000 } else { 4_000 },
            sweeps: if quick { 1 } else { 3 },
        }
    }

    fn rounds(&self, scenario: &Scenario) -> usize {
        match scenario.name {
            // It takes long, and no other contender takes part.
            "ceiling" => 1,
            "growth" => self.memory_rounds.min(2),
            _ if scenario.is_memory => self.memory_rounds,
            _ => self.rounds,
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--role", "community"] => {
            echo::community();
            return ExitCode::SUCCESS;
        }
        ["--role", "streaming"] => {
            streaming::server();
            return ExitCode::SUCCESS;
        }
        ["--role", "hyper"] => {
            echo::hyper();
            return ExitCode::SUCCESS;
        }
        ["--role", "clients", to, count] => {
            growth::clients(to.parse().unwrap(), count.parse().unwrap());
            return ExitCode::SUCCESS;
        }
        _ => (),
    }
    // `cargo test --all-targets` starts this program, too, but it is not a test.
    if !arguments.contains(&"--bench") {
        println!("run by: cargo bench --bench compare -- [--quick] [--out FOLDER] [SCENARIO...]");
        return ExitCode::SUCCESS;
    }
    let quick = arguments.contains(&"--quick");
    let value_of = |option: &str| {
        let at = arguments.iter().position(|argument| *argument == option)?;
        arguments.get(at + 1).copied()
    };
    let (folder, before) = (value_of("--out"), value_of("--before"));
    let names: Vec<&str> = arguments
        .iter()
        .copied()
        .filter(|name| !name.starts_with("--") && ![folder, before].contains(&Some(name)))
        .collect();
    if let Some(unknown) = names.iter().find(|name| SCENARIOS.iter().all(|scenario| scenario.name != **name)) {
        let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        eprintln!("no scenario is called {unknown}; there are: {}", known.join(", "));
        return ExitCode::from(2);
    }
    raise_descriptor_limit();
    let plan = Plan::new(quick);
    let chosen: Vec<&Scenario> =
        SCENARIOS.iter().filter(|scenario| names.is_empty() || names.contains(&scenario.name)).collect();
    let results = run(&plan, &chosen, before.map(PathBuf::from));
    // A partial or quick run does not replace the record.
    let default = if quick || !names.is_empty() || before.is_some() { "target/benchmarks" } else { "docs/benchmarks" };
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder.unwrap_or(default));
    let table = report::write(&folder, &results, &plan);
    println!("\n{table}\nwritten to {}", folder.display());
    ExitCode::SUCCESS
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let enough = 2 * IDLE_RAW as u64 + 200;
    if limit.maximum.is_some_and(|maximum| maximum < enough) {
        eprintln!("the descriptor limit is below {enough} (ulimit -Hn): scenarios with many clients will fail");
    }
}

fn run(plan: &Plan, scenarios: &[&Scenario], before: Option<PathBuf>) -> Results {
    let (folder, mut results) = (Folder::new(before), Results::default());
    for scenario in scenarios {
        let mut present = Vec::new();
        for contender in scenario.contenders {
            match contender.missing() {
                None => present.push(*contender),
                Some(why) => results.miss(why),
            }
        }
        if folder.before.is_some() && !matches!(scenario.name, "growth" | "ceiling") {
            present.push(Contender::Before);
        }
        for round in 0..plan.rounds(scenario) {
            for position in 0..present.len() {
                let contender = present[(position + round) % present.len()];
                eprintln!("{} {}/{} {}", scenario.name, round + 1, plan.rounds(scenario), contender.name());
                // Each measurement has its own runtime, so that its clients end with it.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let local = tokio::task::LocalSet::new();
                let figures = local.block_on(&runtime, measure(scenario.name, contender, plan, &folder));
                for (figure, value) in figures {
                    results.add(figure, contender, value);
                }
            }
        }
    }
    results
}

type Figures = Vec<(&'static str, f64)>;

/// Measures one contender in one scenario.
async fn measure(scenario: &str, contender: Contender, plan: &Plan, folder: &Folder) -> Figures {
    let is_mux = matches!(contender, Contender::Mux | Contender::Before);
    let tunnel = is_mux.then_some(Kind::Polling);
    match scenario {
        "start" => {
            let running = start(contender, Workload::Raw, folder);
            tokio::time::sleep(Duration::from_millis(200)).await;
            vec![("start", running.started_in.as_secs_f64() * 1e3), ("memory", running.memory() / MIB)]
        }
        "idle-raw" => {
            let running = start(contender, Workload::Raw, folder);
            let bytes = memory_of(IDLE_RAW, &running, load::idle(IDLE_RAW, running.address, None)).await;
            vec![("idle-raw", bytes)]
        }
        "idle-tls" => {
            let running = start(contender, Workload::Tls, folder);
            let tls = load::tls();
            let bytes = memory_of(IDLE_OTHER, &running, load::idle(IDLE_OTHER, running.address, Some(&tls))).await;
            vec![("idle-tls", bytes)]
        }
        "idle-polling" => {
            let running = start(contender, Workload::Http, folder);
            let bytes = memory_of(IDLE_OTHER, &running, tunnel::sessions(IDLE_OTHER, tunnel, running.address)).await;
            vec![("idle-polling", bytes)]
        }
        "idle-hybrid" => {
            let running = start(contender, Workload::Http, folder);
            let held = async {
                let sessions = tunnel::sessions(IDLE_OTHER, Some(Kind::Hybrid), running.address).await;
                tunnel::hold(sessions, &std::rc::Rc::default());
            };
            vec![("idle-hybrid", memory_of(IDLE_OTHER, &running, held).await)]
        }
        "idle-streaming" => {
            let running = start(contender, Workload::Streaming, folder);
            let bytes = memory_of(IDLE_OTHER, &running, streaming::clients(IDLE_OTHER, running.address)).await;
            vec![("idle-streaming", bytes)]
        }
        "messages-streaming" => {
            let running = start(contender, Workload::Streaming, folder);
            message_figures(scenario, &streaming::messages(&running, 64, plan.window).await)
        }
        "messages-1" | "messages-64" | "messages-1000" => {
            let running = start(contender, Workload::Raw, folder);
            let clients = scenario.trim_start_matches("messages-").parse().unwrap();
            let busy = load::messages(&running, clients, None, plan.window).await;
            message_figures(scenario, &busy)
        }
        "messages-tls" => {
            let running = start(contender, Workload::Tls, folder);
            let busy = load::messages(&running, 64, Some(&load::tls()), plan.window).await;
            message_figures(scenario, &busy)
        }
        "log-ins" => {
            let running = start(contender, Workload::Raw, folder);
            let busy = load::come_and_go(&running, plan.log_ins, None).await;
            drop(running);
            let quiet = if is_mux {
                let running = start(contender, Workload::Quiet, folder);
                load::come_and_go(&running, plan.log_ins, None).await.rate
            } else {
                busy.rate
            };
            vec![("log-ins rate", busy.rate), ("log-ins cpu", busy.cpu * 1e3), ("log-ins quiet", quiet)]
        }
        "handshakes" => {
            let running = start(contender, Workload::Tls, folder);
            let busy = load::come_and_go(&running, plan.handshakes, Some(&load::tls())).await;
            vec![("handshakes rate", busy.rate), ("handshakes cpu", busy.cpu * 1e3)]
        }
        "polls" => {
            let running = start(contender, Workload::Http, folder);
            let busy = tunnel::polls(&running, POLLING_CLIENTS, tunnel, plan.window).await;
            vec![("polls rate", busy.rate), ("polls cpu", busy.cpu * 1e6), ("polls p99", busy.percentile(99.0))]
        }
        "wake-up" => {
            let pause = Duration::from_micros(1_000);
            let running = start(contender, Workload::Raw, folder);
            let raw = load::wake_up(&running, WAKE_UP_CLIENTS, plan.sweeps, pause).await;
            let mut figures = vec![
                ("wake-up raw p50", load::percentile(&raw, 50.0) / 1e3),
                ("wake-up raw p99", load::percentile(&raw, 99.0) / 1e3),
            ];
            if is_mux {
                let running = start(contender, Workload::Http, folder);
                let hybrid = tunnel::wake_up(&running, WAKE_UP_CLIENTS, plan.sweeps, pause).await;
                let p99 = load::percentile(&hybrid, 99.0) / 1e3;
                figures.push(("wake-up hybrid p50", load::percentile(&hybrid, 50.0) / 1e3));
                figures.push(("wake-up hybrid p99", p99));
                figures.push(("wake-up more", p99 - load::percentile(&raw, 99.0) / 1e3));
                let running = start(contender, Workload::Streaming, folder);
                let streaming = streaming::wake_up(&running, WAKE_UP_CLIENTS, plan.sweeps, pause).await;
                let p99 = load::percentile(&streaming, 99.0) / 1e3;
                figures.push(("wake-up streaming p50", load::percentile(&streaming, 50.0) / 1e3));
                figures.push(("wake-up streaming p99", p99));
                figures.push(("wake-up streaming more", p99 - load::percentile(&raw, 99.0) / 1e3));
            }
            figures
        }
        "bulk" => {
            let running = start(contender, Workload::Raw, folder);
            let busy = load::bulk(&running, plan.window).await;
            vec![("bulk rate", busy.rate / 1e6), ("bulk cpu", busy.cpu * 1e9)]
        }
        "growth" => growth::growth(contender, folder, plan.window).await,
        "ceiling" => growth::ceiling(folder),
        "passed" => passed::passed(folder, plan.window).await,
        "trunk-idle" => trunk::idle(folder).await,
        "trunk-64" => {
            let busy = trunk::messages(contender, 64, folder, plan.window).await;
            vec![
                ("trunk 64 rate", busy.rate),
                ("trunk 64 cpu", busy.cpu * 1e6),
                ("trunk 64 p99", busy.percentile(99.0)),
            ]
        }
        "trunk-1000" => {
            let busy = trunk::messages(contender, 1_000, folder, plan.window).await;
            vec![
                ("trunk 1000 rate", busy.rate),
                ("trunk 1000 cpu", busy.cpu * 1e6),
                ("trunk 1000 p99", busy.percentile(99.0)),
            ]
        }
        other => unreachable!("{other} is not in SCENARIOS"),
    }
}

/// The memory in bytes that the proxy needs for each of the `n` clients that `clients` connects, in addition to its
/// memory without clients.
async fn memory_of<T>(n: usize, running: &Running, clients: impl Future<Output = T>) -> f64 {
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = running.memory();
    let clients = clients.await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let bytes = (running.memory() - before) / n as f64;
    drop(clients);
    bytes
}

fn message_figures(scenario: &str, busy: &Busy) -> Figures {
    let names = match scenario {
        "messages-1" => ["1 rate", "1 cpu", "1 p50", "1 p99", "1 p99.9"],
        "messages-64" => ["64 rate", "64 cpu", "64 p50", "64 p99", "64 p99.9"],
        "messages-1000" => ["1000 rate", "1000 cpu", "1000 p50", "1000 p99", "1000 p99.9"],
        "messages-streaming" => {
            ["streaming rate", "streaming cpu", "streaming p50", "streaming p99", "streaming p99.9"]
        }
        _ => ["tls rate", "tls cpu", "tls p50", "tls p99", "tls p99.9"],
    };
    let percentiles = [50.0, 99.0, 99.9].map(|percent| busy.percentile(percent));
    let values = [busy.rate, busy.cpu * 1e6, percentiles[0], percentiles[1], percentiles[2]];
    names.into_iter().zip(values).collect()
}
