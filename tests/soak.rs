//! A soak test: rounds of clients over every transport, which come, go and are cut off, while Community servers are
//! killed and stopped and the configuration is reloaded each second. After each round no client, descriptor or task is
//! left, and memory does not grow.
//!
//! It runs for 60 s, or for `SAMETIME_MUX_SOAK` seconds. With `SAMETIME_MUX_RECORD=1` it writes its figures to
//! `docs/reliability.md` and its graph to `docs/soak.svg`.
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    missing_docs,
    unreachable_pub
)]

#[path = "soak/graph.rs"]
mod graph;
mod support;

use std::{
    fs,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::Value;
use support::{
    in_time,
    program::{PROGRAM, Program, Sandbox, Setup, servers},
    record,
};

/// The state of the program at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Seconds since the start.
    pub second: f64,
    pub sessions: f64,
    pub tasks: f64,
    pub descriptors: f64,
    /// Own memory of the process, in MiB.
    pub memory: f64,
}

/// One round: clients log in for 2 s and chat for 12 s more. Half of them are cut off after 10 s.
const SCENARIO: &str =
    "clients = 80\nramp_up = \"2s\"\nduration = \"12s\"\nthink_time = \"400ms\"\nstay = \"6s\"\nhostile = 2
[mix]\nraw = 1\ntls = 1\npolling = 1\nhybrid = 1\nstreaming = 1\n[cut]\nat = \"10s\"\nshare = 0.5\n";
/// The duration of the test in seconds, if none is given.
const SHORTEST: u64 = 60;
/// The share by which memory may grow after the first round. Allocators keep memory, and later rounds may need more at
/// the same time than the first.
const MARGIN: f64 = 0.25;

/// The process's own memory in MiB. Pages of the program's file are not included: they are shared, also with the load
/// generator.
fn memory(program: &Program) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

async fn sample(program: &Program, since: Instant) -> Sample {
    Sample {
        sessions: program.metric("sametime_mux_sessions").await,
        tasks: program.metric("sametime_mux_tasks").await,
        descriptors: program.metric("sametime_mux_open_file_descriptors").await,
        memory: memory(program),
        second: since.elapsed().as_secs_f64(),
    }
}

/// Waits until no client is left. Returns the state then.
async fn wait_for_rest(program: &Program, since: Instant) -> Sample {
    in_time("rest", async {
        loop {
            let mut left = 0.0;
            for gauge in ["sessions", "tunnel_sessions", "connections", "held_bytes", "sessions_logging_in"] {
                left += program.metric(&format!("sametime_mux_{gauge}")).await;
            }
            if left == 0.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    // Connections that were just closed may have a task and a descriptor for a moment.
    let (mut best, mut waited) = (sample(program, since).await, 0);
    while waited < 20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let next = sample(program, since).await;
        waited = if next.tasks < best.tasks || next.descriptors < best.descriptors { 0 } else { waited + 1 };
        best =
            Sample { tasks: next.tasks.min(best.tasks), descriptors: next.descriptors.min(best.descriptors), ..next };
    }
    best
}

/// The sums over all rounds.
#[derive(Debug, Default)]
struct Sums {
    log_ins: u64,
    sent: u64,
    echoed: u64,
    cut_off: u64,
    hostile: u64,
    rounds: u64,
}

impl Sums {
    fn add(&mut self, outcome: &Value) {
        let sum = |field: &str| {
            let transports = outcome["total"]["ways"].as_object().unwrap();
            transports.values().map(|figures| figures[field].as_u64().unwrap()).sum::<u64>()
        };
        for field in ["lost", "disordered", "corrupt"] {
            assert_eq!(sum(field), 0, "{field}: {:#}", outcome["total"]["errors"]);
        }
        for transport in ["raw", "tls", "polling", "hybrid", "streaming"] {
            let figures = &outcome["total"]["ways"][transport];
            assert!(figures["log_ins"].as_u64().unwrap() >= 15, "{transport}: {figures:#}");
            assert!(figures["echoed"].as_u64().unwrap() > 0, "{transport}: {figures:#}");
        }
        self.log_ins += sum("log_ins");
        self.sent += sum("sent");
        self.echoed += sum("echoed");
        self.cut_off += sum("cut_off");
        self.hostile += outcome["total"]["hostile"].as_u64().unwrap();
        self.rounds += 1;
    }
}

/// One round of clients, with the faults of the Community servers. Returns the load generator's result.
async fn round(program: &Program, to: &str, scenario: &str, communities: &mut [Sandbox; 2]) -> Value {
    let mut load = tokio::process::Command::new(PROGRAM);
    load.args(["load", "--target", to, "--scenario", scenario, "--workers", "1", "--json", "-"]);
    let load = tokio::spawn(load.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).output());
    let second = Duration::from_secs(1);
    let [killed, stopped] = communities;
    for at in 1..=12 {
        tokio::time::sleep(second).await;
        match at {
            3 => killed.kill(),
            5 => killed.start_again().await,
            7 => stopped.signal("STOP"),
            9 => stopped.signal("CONT"),
            _ => (),
        }
        program.signal("HUP");
    }
    let output = in_time("the load's end", load).await.unwrap().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_are_as_before_after_rounds_of_churn_faults_and_reloads() {
    let asked = std::env::var("SAMETIME_MUX_SOAK").ok().map(|text| text.parse::<u64>().unwrap());
    let whole = Duration::from_secs(asked.unwrap_or(SHORTEST));
    let mut communities = [Sandbox::start().await, Sandbox::start().await];
    let addresses = [communities[0].address, communities[1].address];
    let timing = "handshake_timeout = \"1s\"\ncheck_interval = \"500ms\"\n[tunnel]\nsession_timeout = \"4s\"\nhold = \"2s\"\n[limits]\nlogin_timeout = \"3s\"";
    let setup = Setup::new(&servers(&addresses, timing));
    let scenario = setup.folder.path().join("soak.toml");
    fs::write(&scenario, SCENARIO).unwrap();
    let (to, scenario) = (format!("127.0.0.1:{}", setup.raw), scenario.display().to_string());
    let program = Arc::new(setup.start());
    let since = Instant::now();
    let (samples, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let sampling = tokio::spawn({
        let (program, samples, over) = (Arc::clone(&program), Arc::clone(&samples), Arc::clone(&over));
        async move {
            while !over.load(Relaxed) {
                let now = sample(&program, since).await;
                samples.lock().push(now);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
    let (mut sums, mut rests) = (Sums::default(), Vec::new());
    // The first round warms up allocators, tables and threads.
    while rests.len() < 3 || since.elapsed() < whole {
        sums.add(&round(&program, &to, &scenario, &mut communities).await);
        rests.push(wait_for_rest(&program, since).await);
        println!("{:?}", rests.last().unwrap());
    }
    over.store(true, Relaxed);
    in_time("the last sample", sampling).await.unwrap();
    let reloads = program.metric("sametime_mux_reloads_total").await;
    let (first, last) = (rests[0], *rests.last().unwrap());
    let samples = samples.lock().clone();
    let most = |of: fn(&Sample) -> f64| samples.iter().map(of).fold(0.0, f64::max);
    let minutes = since.elapsed().as_secs_f64() / 60.0;
    let text = format!(
        "- {minutes:.0} minutes, {} rounds, {} log-ins\n\
         - {} messages, of which 0 were lost, sent twice or out of order; {} were on their way when their connection was cut\n\
         - {} hostile connections, {reloads} reloads\n\
         - {} times a Community server was killed, and as often one was stopped for 2 s\n\n\
         | | after the first round | after the last | maximum |\n|---|---|---|---|\n\
         | sessions | {} | {} | {} |\n| tasks | {} | {} | {} |\n| descriptors | {} | {} | {} |\n| own memory (RssAnon), MiB | {:.1} | {:.1} | {:.1} |",
        sums.rounds,
        sums.log_ins,
        sums.sent,
        sums.cut_off,
        sums.hostile,
        sums.rounds,
        first.sessions,
        last.sessions,
        most(|s| s.sessions),
        first.tasks,
        last.tasks,
        most(|s| s.tasks),
        first.descriptors,
        last.descriptors,
        most(|s| s.descriptors),
        first.memory,
        last.memory,
        most(|s| s.memory),
    );
    println!("{text}");
    if record::is_asked_for() {
        fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/soak.svg"), graph::svg(&samples)).unwrap();
        record::between("docs/reliability.md", "soak", &text);
    }
    assert!(most(|s| s.sessions) >= 40.0, "there was load");
    assert!(reloads >= 12.0 * sums.rounds as f64 * 0.5, "{reloads}");
    assert_eq!(last.sessions, 0.0);
    assert!(last.tasks <= first.tasks, "{rests:?}");
    assert!(last.descriptors <= first.descriptors, "{rests:?}");
    assert!(last.memory <= first.memory * (1.0 + MARGIN), "{rests:?}");
    // In a long test, memory may not grow slowly within the margin.
    if rests.len() >= 12 {
        let middle = |rests: &[Sample]| {
            let mut memory: Vec<f64> = rests.iter().map(|rest| rest.memory).collect();
            memory.sort_by(f64::total_cmp);
            memory[memory.len() / 2]
        };
        let third = rests.len() / 3;
        let (second, last) = (middle(&rests[third..2 * third]), middle(&rests[2 * third..]));
        assert!(last <= second * 1.05, "memory grows: {second} MiB, then {last} MiB: {rests:?}");
    }
    assert!(!program.log.lock().contains("panicked"), "{}", program.log.lock());
}
