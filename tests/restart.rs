//! The multiplexer is killed, or reloaded, under many clients: all of them return, and no message that was answered is
//! lost. This file writes rows of `docs/reliability.md` (`SAMETIME_MUX_RECORD=1`).
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, clippy::cast_precision_loss, missing_docs)]

mod support;

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{
    in_time,
    program::{PROGRAM, Program, Sandbox, Setup, local, servers},
    record,
};

const CLIENTS: u64 = 2_000;
const TRANSPORTS: [&str; 5] = ["raw", "tls", "polling", "hybrid", "streaming"];

/// The configuration of two Community servers. Abandoned tunnel sessions end after 20 s.
fn settings(communities: &[Sandbox; 2]) -> String {
    servers(&communities.each_ref().map(|one| one.address), "[tunnel]\nsession_timeout = \"20s\"")
}

/// Starts clients with `sametime-mux load`. The task returns the load generator's result.
fn load(to: u16, folder: &Path, scenario: &str) -> tokio::task::JoinHandle<Value> {
    let file = folder.join("scenario.toml");
    fs::write(&file, scenario).unwrap();
    let mut load = tokio::process::Command::new(PROGRAM);
    load.args(["load", "--target", &local(to).to_string(), "--workers", "2", "--json", "-", "--scenario"]).arg(file);
    load.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    tokio::spawn(async move {
        let output = load.output().await.unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    })
}

fn sum(outcome: &Value, field: &str) -> u64 {
    TRANSPORTS.iter().map(|transport| outcome["total"]["ways"][transport][field].as_u64().unwrap_or(0)).sum()
}

/// The number of clients that were logged in at the end of each second.
fn logged_in_clients(outcome: &Value) -> Vec<u64> {
    let points = outcome["points"].as_array().unwrap();
    points
        .iter()
        .map(|point| point["sessions"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum())
        .collect()
}

fn assert_nothing_lost(outcome: &Value) {
    for field in ["lost", "disordered", "corrupt"] {
        assert_eq!(sum(outcome, field), 0, "{field}: {:#}", outcome["total"]["errors"]);
    }
}

async fn wait_for_sessions(program: &Program, n: u64) {
    in_time("that many sessions", async {
        while program.metric("sametime_mux_sessions").await != n as f64 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

fn row(fault: &str, tried: &str, seen: &str, lost: &str, well: &str) {
    record::row("docs/reliability.md", "faults", &[fault, tried, seen, lost, well]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_clients_return_after_the_multiplexer_is_killed_and_started_again() {
    let communities = [Sandbox::start().await, Sandbox::start().await];
    let setup = Setup::new(&settings(&communities));
    let (raw, folder) = (setup.raw, tempfile::tempdir().unwrap());
    let file = setup.file();
    let mut program = setup.start();
    let scenario = format!(
        "clients = {CLIENTS}\nramp_up = \"8s\"\nduration = \"44s\"\nthink_time = \"20s\"\n[mix]\nraw = 40\ntls = 15\npolling = 15\nhybrid = 15\nstreaming = 15\n"
    );
    let load = load(raw, folder.path(), &scenario);
    wait_for_sessions(&program, CLIENTS).await;
    // A moment later, while they send messages.
    tokio::time::sleep(Duration::from_secs(2)).await;
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    let killed = Instant::now();
    let again = Setup {
        folder: tempfile::tempdir().unwrap(),
        raw,
        http: 0,
        https: 0,
        admin: program.admin,
        more: String::new(),
    };
    fs::copy(file, again.file()).unwrap();
    let again = again.start();
    wait_for_sessions(&again, CLIENTS).await;
    let took = killed.elapsed();
    let (refused, dropped) = (
        again.metric("sametime_mux_sessions_refused_total").await,
        again.metric("sametime_mux_connections_dropped_total").await,
    );
    let outcome = in_time("the load's end", load).await.unwrap();
    assert_nothing_lost(&outcome);
    assert_eq!(*logged_in_clients(&outcome).iter().max().unwrap(), CLIENTS);
    assert!(sum(&outcome, "log_ins") >= 2 * CLIENTS, "each came back: {:#}", outcome["total"]["errors"]);
    assert_eq!((refused, dropped), (0.0, 0.0), "none of them was refused when it returned");
    wait_for_sessions(&again, 0).await;
    row(
        "multiplexer killed (kill -9) and started again",
        &format!("under {CLIENTS} clients over every transport"),
        "the end of the connection (polling and hybrid: 404); they return by themselves, each after its own waiting time",
        &format!(
            "0 of {} messages that were answered; {} were on their way",
            sum(&outcome, "echoed"),
            sum(&outcome, "cut_off")
        ),
        &format!(
            "{:.1} s until all {CLIENTS} are back, none refused ({} connection attempts came too early)",
            took.as_secs_f64(),
            sum(&outcome, "attempts") - sum(&outcome, "log_ins")
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_each_second_disturbs_no_client() {
    let communities = [Sandbox::start().await, Sandbox::start().await];
    let more = settings(&communities);
    let setup = Setup::new(&more);
    let (raw, folder, file, text) = (setup.raw, tempfile::tempdir().unwrap(), setup.file(), setup.toml(&[setup.raw]));
    let program = setup.start();
    let scenario = "clients = 200\nramp_up = \"2s\"\nduration = \"18s\"\nthink_time = \"500ms\"\nstay = \"6s\"\n[mix]\nraw = 1\ntls = 1\npolling = 1\nhybrid = 1\nstreaming = 1\n";
    let load = load(raw, folder.path(), scenario);
    let mut reloads = 0u32;
    while !load.is_finished() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Each reload changes a limit, and some change the servers.
        let only = format!("servers = [\"{}\"]", communities[reloads as usize / 4 % 2].address);
        let line = text.lines().find(|line| line.starts_with("servers")).unwrap();
        let servers = if reloads.is_multiple_of(4) { text.replace(line, &only) } else { text.clone() };
        fs::write(&file, format!("{servers}[limits]\ncapacity = {}\n", 10_000 + reloads)).unwrap();
        program.signal("HUP");
        reloads += 1;
    }
    let outcome = load.await.unwrap();
    assert_nothing_lost(&outcome);
    assert!(outcome["total"]["errors"].as_object().unwrap().is_empty(), "{:#}", outcome["total"]["errors"]);
    assert_eq!(sum(&outcome, "cut_off"), 0);
    let done = program.metric("sametime_mux_reloads_total{reason=\"accepted\"}").await;
    assert!(done >= 10.0, "{done} reloads");
    wait_for_sessions(&program, 0).await;
    row(
        "reload every second under load",
        &format!(
            "{done} reloads, 200 clients over every transport, {} log-ins; limits and servers change each time",
            sum(&outcome, "log_ins")
        ),
        "nothing",
        &format!("0 of {} messages", sum(&outcome, "echoed")),
        "no interruption",
    );
}
