//! The load generator, as a process: what it reports, and the faults that it must find.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use sametime_mux::load::Scenario;
use serde_json::Value;
use support::{
    community::{Community, Connection},
    frames::{self, Frame},
    has, in_time, mux,
    peer::free_address,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sametime-mux");

async fn load(target: std::net::SocketAddr, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["load", "--target", &target.to_string()]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    in_time("the load's end", command.output()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The result that was written to stdout as JSON.
fn outcome(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

fn sum(outcome: &Value, field: &str) -> u64 {
    let transports = outcome["total"]["ways"].as_object().unwrap();
    transports.values().map(|figures| figures[field].as_u64().unwrap()).sum()
}

const SHORT: &[&str] = &["--ramp-up", "500ms", "--duration", "4s", "--think-time", "200ms", "--json", "-"];

#[tokio::test(flavor = "multi_thread")]
async fn all_transports_deliver_everything_from_several_processes() {
    let mux = mux::start("").await;
    let page = mux.folder.path().join("report.html");
    let more = [
        "--clients",
        "75",
        "--workers",
        "2",
        "--raw",
        "1",
        "--tls",
        "1",
        "--polling",
        "1",
        "--hybrid",
        "1",
        "--streaming",
        "1",
    ];
    let output = load(mux.raw(), &[SHORT, &more, &["--html", page.to_str().unwrap()]].concat()).await;
    let outcome = outcome(&output);
    assert_eq!(output.status.code(), Some(0), "{}\n{outcome:#}", text(&output.stderr));
    for transport in ["raw", "tls", "polling", "hybrid", "streaming"] {
        let figures = &outcome["total"]["ways"][transport];
        assert_eq!((figures["log_ins"].as_u64(), figures["attempts"].as_u64()), (Some(15), Some(15)), "{transport}");
        let (sent, echoed) = (figures["sent"].as_u64().unwrap(), figures["echoed"].as_u64().unwrap());
        assert!(sent > 15 && echoed == sent, "{transport}: {sent} sent, {echoed} echoed");
        let counted: u64 = figures["echo"].as_array().unwrap().iter().map(|pair| pair[1].as_u64().unwrap()).sum();
        assert_eq!(counted, echoed, "{transport}: each has a latency");
    }
    assert_eq!(outcome["workers"], 2);
    let page = fs::read_to_string(page).unwrap();
    for part in ["<!doctype html>", "prefers-color-scheme", "Log-ins and messages over time", "Errors by reason"] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg").count(), 5);
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("NaN"), "nothing from outside");
    assert!((mux.metric(r#"sametime_mux_sessions_closed_total{reason="log_out"}"#).await - 75.0).abs() < 0.5);
}

/// Echoes, but drops every tenth message, repeats every eleventh and changes every 13th.
async fn unreliable(mut connection: Connection, count: &AtomicU32) {
    connection.accept_login().await;
    while let Some(mut frame) = connection.recv().await {
        match frame.kind {
            frames::CREATE => {
                let channel = u32::from_be_bytes(frame.body[4..8].try_into().unwrap());
                connection.send(&Frame::new(frames::ACCEPT, channel, b"").bytes()).await;
            }
            frames::SEND => {
                let n = count.fetch_add(1, Relaxed);
                if n % 13 == 12 {
                    *frame.body.last_mut().unwrap() ^= 1;
                }
                if n % 10 != 9 {
                    connection.send(&frame.bytes()).await;
                }
                if n % 11 == 10 {
                    connection.send(&frame.bytes()).await;
                }
            }
            _ => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_doubled_and_changed_messages_are_found() {
    let community = Community::start(|connection| async move {
        let count = AtomicU32::new(0);
        unreliable(connection, &count).await;
    })
    .await;
    let mux = mux::start(&community.setting()).await;
    let output = load(mux.raw(), &[SHORT, &["--clients", "4", "--raw", "1", "--think-time", "50ms"]].concat()).await;
    let outcome = outcome(&output);
    assert_eq!(output.status.code(), Some(1));
    for field in ["disordered", "corrupt"] {
        assert!(sum(&outcome, field) > 0, "{field}: {outcome:#}");
    }
    assert!(sum(&outcome, "echoed") < sum(&outcome, "sent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_never_comes_back_is_lost() {
    let community = Community::start(|mut connection| async move {
        connection.accept_login().await;
        let mut said = 0;
        while let Some(frame) = connection.recv().await {
            match frame.kind {
                frames::CREATE => {
                    let channel = u32::from_be_bytes(frame.body[4..8].try_into().unwrap());
                    connection.send(&Frame::new(frames::ACCEPT, channel, b"").bytes()).await;
                }
                frames::SEND => {
                    said += 1;
                    if said < 3 {
                        connection.send(&frame.bytes()).await;
                    }
                }
                _ => return,
            }
        }
    })
    .await;
    let mux = mux::start(&community.setting()).await;
    let more = ["--clients", "1", "--raw", "1", "--duration", "1s", "--think-time", "50ms"];
    let output = load(mux.raw(), &[SHORT, &more].concat()).await;
    let outcome = outcome(&output);
    assert_eq!((output.status.code(), sum(&outcome, "echoed")), (Some(1), 2));
    assert_eq!(sum(&outcome, "lost"), sum(&outcome, "sent") - 2, "{outcome:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_error_with_its_reason() {
    let mux = mux::start("[limits]\ncapacity = 2\n").await;
    let output = load(mux.raw(), &[SHORT, &["--clients", "4", "--raw", "1"]].concat()).await;
    let outcome = outcome(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(outcome["total"]["errors"]["refused: 0x8000020b"].as_u64().unwrap() >= 2, "{outcome:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_ins_that_take_too_long_stop_the_run() {
    let community = Community::start(|connection| async move {
        tokio::time::sleep(Duration::from_millis(600)).await;
        connection.echo().await;
    })
    .await;
    let mux = mux::start(&community.setting()).await;
    let more = ["--clients", "40", "--raw", "1", "--duration", "50s", "--stop-p99-login", "300ms"];
    let output = load(mux.raw(), &[SHORT, &more].concat()).await;
    let outcome = outcome(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(outcome["stopped"].as_str().unwrap().contains("p99 of log-ins"), "{outcome:#}");
    assert!(outcome["seconds"].as_u64().unwrap() < 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_were_cut_off_come_back() {
    let mux = mux::start("").await;
    let scenario = mux.folder.path().join("cut.toml");
    fs::write(&scenario, "clients = 24\n[cut]\nat = \"2s\"\nshare = 1.0\n").unwrap();
    let more = ["--duration", "12s", "--raw", "1", "--polling", "1", "--hybrid", "1", "--streaming", "1", "--scenario"];
    let output = load(mux.raw(), &[SHORT, &more, &[scenario.to_str().unwrap()]].concat()).await;
    let outcome = outcome(&output);
    assert_eq!(output.status.code(), Some(0), "{}\n{outcome:#}", text(&output.stderr));
    assert_eq!(sum(&outcome, "log_ins"), 48, "each twice: {outcome:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_clients_do_not_disturb_others() {
    let mux = mux::start("").await;
    let more = ["--clients", "20", "--raw", "1", "--tls", "1", "--polling", "1", "--hostile", "4", "--duration", "8s"];
    let output = load(mux.raw(), &[SHORT, &more].concat()).await;
    let outcome = outcome(&output);
    assert_eq!(output.status.code(), Some(0), "{}\n{outcome:#}", text(&output.stderr));
    assert!(outcome["total"]["hostile"].as_u64().unwrap() >= 4, "each at least once: {outcome:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_go_through_proxies() {
    if !has("tinyproxy", "tinyproxy-bin") || !has("microsocks", "microsocks") {
        return;
    }
    let mux = mux::start("").await;
    let (http, socks) = (free_address(), free_address());
    let file = mux.folder.path().join("tinyproxy.conf");
    fs::write(&file, format!("Port {}\nListen 127.0.0.1\nAllow 127.0.0.1\nMaxClients 200\n", http.port())).unwrap();
    let start = |program: &str, arguments: &[&str]| {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
    };
    let _tinyproxy = start("tinyproxy", &["-d", "-c", file.to_str().unwrap()]);
    let _microsocks = start("microsocks", &["-i", "127.0.0.1", "-p", &socks.port().to_string()]);
    for proxy in [http, socks] {
        support::wait_until("the proxy", || std::net::TcpStream::connect(proxy).is_ok()).await;
    }
    let (http, socks) = (http.to_string(), socks.to_string());
    let tunnels = ["--clients", "10", "--polling", "1", "--hybrid", "1", "--streaming", "1", "--http-proxy", &http];
    let connect = ["--clients", "10", "--raw", "1", "--tls", "1", "--https-proxy", &http];
    let socks = ["--clients", "10", "--raw", "1", "--tls", "1", "--socks5", &socks];
    for more in [&tunnels[..], &connect, &socks] {
        let output = load(mux.raw(), &[SHORT, more].concat()).await;
        let outcome = outcome(&output);
        assert_eq!(output.status.code(), Some(0), "{more:?}\n{}\n{outcome:#}", text(&output.stderr));
        assert_eq!(sum(&outcome, "log_ins"), 10, "{more:?}");
    }
}

#[test]
fn only_loopback_is_a_target_without_confirmation() {
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).arg("load").args(arguments).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    // No host has an address in 192.0.2.0/24, which is reserved for documents (RFC 5737).
    for arguments in [&["--target", "192.0.2.1:1533"][..], &["--socks5", "192.0.2.1:1080"]] {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(2));
        assert!(said.contains("192.0.2.1") && said.contains("--yes-i-own-this-server"), "{said}");
    }
    for (arguments, expected) in [
        (&["--clients", "0"][..], "clients: 0 is out of bounds"),
        (&["--raw", "0"], "every weight is 0"),
        (&["--scenario", "/nowhere.toml"], "/nowhere.toml: "),
        (&["--target", "127.0.0.1"], "127.0.0.1: "),
    ] {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn the_shipped_scenarios_are_legal() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/load");
    let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let scenario = Scenario::parse(&fs::read_to_string(&file).unwrap());
        let scenario = scenario.unwrap_or_else(|why| panic!("{}: {why}", file.display()));
        assert!(scenario.whole() <= Duration::from_secs(600), "{}: bounded", file.display());
    }
}
