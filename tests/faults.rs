//! Faults, with the program and other processes as they really run: what clients see, that no message that was answered
//! is lost, and that clients can log in afterwards. This file writes rows of `docs/reliability.md`
//! (`SAMETIME_MUX_RECORD=1`). Faults that need a restart are in `restart`.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, clippy::float_cmp, missing_docs, unreachable_pub)]

#[path = "faults/chat.rs"]
mod chat;
#[path = "faults/dns.rs"]
mod dns;
#[path = "faults/namespaces.rs"]
mod namespaces;
mod support;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chat::{ChatClient, ChatEnd, all_can_log_in, all_continue, all_ended, stop_all, try_log_in, wait_for_sessions};
use dns::{Answer, Dns};
use support::{
    client::{Client, Transport},
    community::{Community, Connection},
    frames::{self, Frame},
    has, http, in_time,
    peer::{Process, free_address, text},
    program::{PROGRAM, Program, Sandbox, Setup, local},
    record,
    route::Route,
    wait_until,
};

const FULL: u32 = 0x8000_020B;
const NOT_RESPONDING: u32 = 0x8000_020C;
const CANNOT_CONNECT: u32 = 0x8000_020D;
const BROKEN: u32 = 0x8000_0221;
const TIMES: u32 = 3;
/// One client over each transport.
const CLIENTS: u32 = Transport::ALL.len() as u32;

/// A configuration with short time-outs. `more` may begin with keys of `[community]`.
fn settings(servers: &[SocketAddr], more: &str) -> String {
    let servers: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
    format!(
        "[tunnel]\nhold = \"2s\"\nsession_timeout = \"6s\"\n[community]\nservers = {servers:?}\nbalance = \"failover\"\n\
         check_interval = \"200ms\"\n{more}\n"
    )
}

fn start(servers: &[SocketAddr], more: &str) -> (Program, SocketAddr) {
    let setup = Setup::new(&settings(servers, more));
    let raw = local(setup.raw);
    (setup.start(), raw)
}

/// The state of a Community server in the status.
async fn state(program: &Program, server: usize) -> String {
    program.status().await["community"][server]["state"].as_str().unwrap().to_owned()
}

async fn wait_for_state(program: &Program, server: usize, wanted: &str) -> Duration {
    let since = Instant::now();
    in_time(wanted, async {
        while state(program, server).await != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    since.elapsed()
}

async fn closed(program: &Program, reason: &str) -> f64 {
    program.metric(&format!("sametime_mux_sessions_closed_total{{reason=\"{reason}\"}}")).await
}

/// A new client is refused with `reason`, over every transport.
async fn all_are_refused(to: SocketAddr, reason: u32) {
    let trying = Transport::ALL.map(|transport| (transport, tokio::spawn(try_log_in(transport, to))));
    for (transport, one) in trying {
        assert_eq!(one.await.unwrap().err(), Some(ChatEnd::Reason(reason)), "{transport:?}");
    }
}

/// The longest of `times`, as text for the document.
fn seconds(times: &[Duration]) -> String {
    format!("{:.1} s", times.iter().max().unwrap().as_secs_f64())
}

fn row(fault: &str, tried: &str, seen: &str, lost: &str, well: &str) {
    record::row("docs/reliability.md", "faults", &[fault, tried, seen, lost, well]);
}

/// Every message that was sent was answered.
fn none_lost(messages: u32) -> String {
    format!("0 of {messages} messages")
}

/// Every message that was answered arrived once and in order. The last message of each client had no answer yet.
fn none_answered_lost(answered: u32, clients: u32) -> String {
    format!("0 of {answered} messages that were answered; each of {clients} clients had one on its way")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_community_server_that_is_killed_costs_its_clients_a_log_in() {
    let (mut a, b) = (Sandbox::start().await, Sandbox::start().await);
    let (program, to) = start(&[a.address, b.address], "");
    let (mut times, mut back, mut messages) = (Vec::new(), Vec::new(), 0);
    for _ in 0..TIMES {
        wait_for_state(&program, 0, "up").await;
        let clients = ChatClient::start_all(to).await;
        assert_eq!(program.status().await["community"][0]["sessions"], clients.len());
        a.kill();
        let (ended, answered) = all_ended(clients).await;
        for (transport, ended) in ended {
            assert!([ChatEnd::Closed, ChatEnd::Reason(BROKEN)].contains(&ended), "{transport:?}: {ended:?}");
        }
        messages += answered;
        times.push(all_can_log_in(to).await);
        wait_for_state(&program, 0, "down").await;
        a.start_again().await;
        back.push(wait_for_state(&program, 0, "up").await);
    }
    wait_for_sessions(&program, 0).await;
    row(
        "Community server killed",
        &format!("{TIMES} times, {CLIENTS} clients on it, another server up"),
        "the end of the connection, or 0x80000221; a new log-in goes to the other server",
        &none_answered_lost(messages, TIMES * CLIENTS),
        &format!("{} for eight log-ins; the server, once back, is up in {}", seconds(&times), seconds(&back)),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_community_server_that_hangs_is_skipped_and_its_clients_continue_when_it_continues() {
    let (a, b) = (Sandbox::start().await, Sandbox::start().await);
    let (program, to) = start(&[a.address, b.address], "handshake_timeout = \"500ms\"");
    let (alone, to_alone) = start(&[a.address], "handshake_timeout = \"500ms\"");
    let (mut times, mut back, mut messages) = (Vec::new(), Vec::new(), 0);
    for _ in 0..TIMES {
        wait_for_state(&program, 0, "up").await;
        wait_for_state(&alone, 0, "up").await;
        let clients = ChatClient::start_all(to).await;
        a.signal("STOP");
        times.push(all_can_log_in(to).await);
        wait_for_state(&program, 0, "down").await;
        all_are_refused(to_alone, NOT_RESPONDING).await;
        let before: u32 = clients.iter().map(ChatClient::answered).sum();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(before, clients.iter().map(ChatClient::answered).sum::<u32>(), "the server does not hang");
        assert_eq!(
            state(&program, 0).await,
            "down",
            "its system accepts connections, which does not show that it is up"
        );
        a.signal("CONT");
        back.push(wait_for_state(&program, 0, "up").await);
        all_continue(&clients).await;
        messages += stop_all(clients).await;
    }
    wait_for_sessions(&program, 0).await;
    wait_for_sessions(&alone, 0).await;
    row(
        "Community server hangs (SIGSTOP)",
        &format!("{TIMES} times, {CLIENTS} clients on it, `community.handshake_timeout` of 0.5 s"),
        "present clients wait, and continue with it; new ones wait for the time-out, then get the other server, or 0x8000020C where there is none",
        &none_lost(messages),
        &format!("{} for eight log-ins; up in {} once it continues", seconds(&times), seconds(&back)),
    );
}

/// A script that echoes, late and in pieces.
async fn echo_slowly(mut connection: Connection) {
    while let Some(frame) = connection.recv().await {
        let answer = match frame.kind {
            frames::HANDSHAKE => Frame::new(frames::HANDSHAKE_ACK, 0, &[0; 8]),
            frames::LOGIN => Frame::new(frames::LOGIN_ACK, 0, &[0; 30]),
            frames::CREATE => Frame::new(frames::ACCEPT, u32::from_be_bytes(frame.body[4..8].try_into().unwrap()), b""),
            frames::SEND => frame,
            _ => return,
        };
        tokio::time::sleep(Duration::from_millis(150)).await;
        for piece in answer.bytes().chunks(7) {
            connection.send(piece).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_community_server_only_delays_its_clients() {
    let community = Community::start(echo_slowly).await;
    let (program, to) = start(&[community.address], "");
    let clients = ChatClient::start_all(to).await;
    for _ in 0..TIMES {
        all_continue(&clients).await;
    }
    let messages = stop_all(clients).await;
    assert_eq!(state(&program, 0).await, "up");
    wait_for_sessions(&program, 0).await;
    row(
        "Community server slow",
        &format!("{CLIENTS} clients; each answer 150 ms late, in pieces of 7 bytes"),
        "the delay",
        &none_lost(messages),
        "once the server is fast again",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_community_server_that_refuses_is_not_noticed_if_there_is_another() {
    let (refuses, b) = (free_address(), Sandbox::start().await);
    let (program, to) = start(&[refuses, b.address], "");
    let (_alone, to_alone) = start(&[refuses], "");
    let clients = ChatClient::start_all(to).await;
    assert_eq!(state(&program, 0).await, "down");
    all_are_refused(to_alone, CANNOT_CONNECT).await;
    let a = Sandbox::start_at(refuses).await;
    let back = wait_for_state(&program, 0, "up").await;
    let first = all_can_log_in(to_alone).await;
    all_continue(&clients).await;
    let messages = stop_all(clients).await;
    drop(a);
    wait_for_sessions(&program, 0).await;
    row(
        "Community server refuses",
        &format!("{CLIENTS} clients with another server, {CLIENTS} without"),
        "nothing; without another server 0x8000020D at once",
        &none_lost(messages),
        &format!("up in {} once it listens, eight log-ins in {}", seconds(&[back]), seconds(&[first])),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_in_the_middle_of_a_frame_ends_that_session_and_no_other() {
    let bad = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&bad);
    let community = Community::start(move |mut connection: Connection| {
        let bad = Arc::clone(&set);
        async move {
            connection.accept_login().await;
            while let Some(frame) = connection.recv().await {
                match frame.kind {
                    frames::CREATE => {
                        let channel = u32::from_be_bytes(frame.body[4..8].try_into().unwrap());
                        connection.send(&Frame::new(frames::ACCEPT, channel, b"").bytes()).await;
                    }
                    frames::SEND if bad.load(Relaxed) => {
                        let bytes = frame.bytes();
                        connection.send(&bytes[..bytes.len() / 2]).await;
                        // Closes with a reset instead of a FIN.
                        socket2::SockRef::from(connection.into.as_ref()).set_linger(Some(Duration::ZERO)).unwrap();
                        connection.into.forget();
                        return;
                    }
                    frames::SEND => connection.send(&frame.bytes()).await,
                    _ => return,
                }
            }
        }
    })
    .await;
    let (program, to) = start(&[community.address], "");
    let (mut times, mut messages, mut resets) = (Vec::new(), 0, 0u32);
    for _ in 0..TIMES {
        let clients = ChatClient::start_all(to).await;
        resets += clients.len() as u32;
        bad.store(true, Relaxed);
        let (ended, answered) = all_ended(clients).await;
        assert!(ended.iter().all(|(_, ended)| *ended == ChatEnd::Closed), "half a frame, then the end: {ended:?}");
        messages += answered;
        bad.store(false, Relaxed);
        times.push(all_can_log_in(to).await);
    }
    assert_eq!(closed(&program, "community_broken").await, f64::from(resets));
    assert_eq!(state(&program, 0).await, "up");
    wait_for_sessions(&program, 0).await;
    row(
        "Community server resets mid-frame",
        &format!("{resets} sessions"),
        "the received part of the frame, then the end (a reason code cannot be sent inside a frame)",
        &none_answered_lost(messages, resets),
        &format!("{} for eight log-ins", seconds(&times)),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_community_server_that_half_closes_still_receives_from_its_client() {
    let community = Community::start(|mut connection: Connection| async move {
        connection.accept_login().await;
        connection.send(&frames::message(1, b"my last").bytes()).await;
        tokio::io::AsyncWriteExt::shutdown(&mut connection.into).await.unwrap();
        connection.read_to_end().await;
    })
    .await;
    let (program, to) = start(&[community.address], "");
    let mut tried = 0;
    for _ in 0..TIMES {
        for transport in Transport::ALL {
            let mut client = Client::connect(transport, to).await;
            client.log_in("bob").await;
            let n = community.sessions() - 1;
            assert_eq!(client.recv().await.expect("what was said").text(), b"my last", "{transport:?}");
            if [Transport::Raw, Transport::Tls].contains(&transport) {
                assert!(client.recv().await.is_none(), "{transport:?}: then its end");
                let answer = frames::message(1, b"heard you").bytes();
                client.send(&answer).await;
                wait_until("what the client said after that", || community.received(n).ends_with(&answer)).await;
            } else {
                assert!(client.recv().await.is_none(), "{transport:?}: then the end of the tunnel's session");
            }
            tried += 1;
        }
    }
    wait_for_sessions(&program, 0).await;
    row(
        "Community server closes half",
        &format!("{tried} sessions"),
        "its last message, then the end; what raw and TLS clients send after that still arrives, as long as the server accepts it, for up to 5 min",
        &format!("0 of {tried} last messages, 0 of {} that followed", tried * 2 / CLIENTS),
        "at once",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn all_community_servers_may_stop_and_start_again() {
    let (mut a, mut b) = (Sandbox::start().await, Sandbox::start().await);
    let (program, to) = start(&[a.address, b.address], "");
    let (mut times, mut messages) = (Vec::new(), 0);
    for _ in 0..TIMES {
        let clients = ChatClient::start_all(to).await;
        a.kill();
        b.kill();
        messages += all_ended(clients).await.1;
        wait_for_state(&program, 0, "down").await;
        wait_for_state(&program, 1, "down").await;
        all_are_refused(to, CANNOT_CONNECT).await;
        assert_eq!(program.request("GET /readyz").await.status, 503);
        let since = Instant::now();
        a.start_again().await;
        b.start_again().await;
        all_can_log_in(to).await;
        times.push(since.elapsed());
        assert_eq!(program.request("GET /readyz").await.status, 200);
    }
    wait_for_sessions(&program, 0).await;
    row(
        "all Community servers down, and back",
        &format!("{TIMES} times, {CLIENTS} clients"),
        "the end of the connection, or 0x80000221; new clients 0x8000020D; /readyz returns 503",
        &none_answered_lost(messages, TIMES * CLIENTS),
        &format!("{} after they are back (at most 5 s until they are checked again)", seconds(&times)),
    );
}

/// The number of connections in this network namespace to `server`, which has an IPv4 address.
fn connections_to(server: SocketAddr) -> usize {
    let std::net::IpAddr::V4(ip) = server.ip() else { panic!("{server}") };
    // The address in the machine's byte order, the port, and the state "established".
    let wanted = format!(" {:08X}:{:04X} 01 ", u32::from_ne_bytes(ip.octets()), server.port());
    fs::read_to_string("/proc/net/tcp").unwrap().lines().filter(|line| line.contains(&wanted)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_that_changes_is_followed_and_one_that_fails_keeps_its_addresses() {
    if !namespaces::inside("a_host_name_that_changes_is_followed_and_one_that_fails_keeps_its_addresses") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.1\noptions timeout:3 attempts:2\n").unwrap();
    namespaces::run(&format!("mount --bind {} /etc/resolv.conf", file.display()));
    let dns = Dns::start(Answer::Address([127, 0, 0, 2].into()));
    let port = free_address().port();
    let at = |last: u8| SocketAddr::from(([127, 0, 0, last], port));
    let (mut old, _new) = (Sandbox::start_at(at(2)).await, Sandbox::start_at(at(3)).await);
    let setup = Setup::new(&settings(&[], "").replace("servers = []", &format!("servers = [\"chat.test:{port}\"]")));
    let to = local(setup.raw);
    let program = setup.start();
    all_can_log_in(to).await;
    // The server moves, and the old address does not work any more.
    let clients = ChatClient::start_all(to).await;
    dns.set(Answer::Address([127, 0, 0, 3].into()));
    old.kill();
    let mut messages = all_ended(clients).await.1;
    let moved = all_can_log_in(to).await;
    // The server moves back, and both addresses work: present clients stay, new ones follow the name.
    old.start_again().await;
    let clients = ChatClient::start_all(to).await;
    assert_eq!(connections_to(at(2)), 0);
    dns.set(Answer::Address([127, 0, 0, 2].into()));
    let since = Instant::now();
    let mut followed = in_time("a log-in at the new address", async {
        loop {
            let client = try_log_in(Transport::Raw, to).await.unwrap();
            if connections_to(at(2)) > 0 {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let followed_after = since.elapsed();
    followed.log_out().await;
    assert!(connections_to(at(3)) >= clients.len());
    messages += stop_all(clients).await;
    row(
        "DNS name changes (the server moves)",
        &format!("once with the old address gone, once with both served; {CLIENTS} clients"),
        "where the old address is gone, the end of the connection, and a new log-in goes to the new one; else nothing",
        &none_answered_lost(messages, CLIENTS),
        &format!(
            "{} for eight log-ins; with both served, new clients follow the name after {} (10 s at the most)",
            seconds(&[moved]),
            seconds(&[followed_after])
        ),
    );
    // Each fault lasts longer than an answer of the name server is used.
    let (clients, mut log_ins) = (ChatClient::start_all(to).await, 0);
    for answer in [Answer::Failure, Answer::Silence] {
        dns.set(answer);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(13) {
            for transport in Transport::ALL {
                try_log_in(transport, to)
                    .await
                    .unwrap_or_else(|ended| panic!("{answer:?}: {transport:?}: {ended:?}"))
                    .log_out()
                    .await;
                log_ins += 1;
            }
        }
    }
    program.wait_for_log("its last addresses stay in force");
    assert_eq!(state(&program, 0).await, "up");
    messages = stop_all(clients).await;
    wait_for_sessions(&program, 0).await;
    row(
        "DNS name fails (server failure; no answer at all)",
        &format!("13 s each, {CLIENTS} clients, {log_ins} log-ins"),
        "nothing: the last addresses stay in force",
        &none_lost(messages),
        "no interruption",
    );
}

fn tinyproxy(at: SocketAddr, _: SocketAddr, folder: &Path) -> Command {
    let file = folder.join("tinyproxy.conf");
    fs::write(&file, format!("Port {}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 30\n", at.port())).unwrap();
    let mut command = Command::new("tinyproxy");
    command.args(["-d", "-c"]).arg(file);
    command
}

fn haproxy(at: SocketAddr, mux: SocketAddr, folder: &Path) -> Command {
    let file = folder.join("haproxy.cfg");
    let text = format!(
        "global\n  maxconn 500\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         frontend clients\n  bind {at}\n  default_backend mux\nbackend mux\n  server mux {mux}\n"
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("haproxy");
    command.args(["-db", "-q", "-f"]).arg(file);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_killed_in_the_middle_of_a_poll_loses_nothing() {
    type Start = fn(SocketAddr, SocketAddr, &Path) -> Command;
    let proxies: [(&str, &str, Start); 2] =
        [("tinyproxy", "tinyproxy-bin", tinyproxy), ("haproxy", "haproxy", haproxy)];
    let community = Sandbox::start().await;
    let (program, to) = start(&[community.address], "");
    let folder = tempfile::tempdir().unwrap();
    let (mut kills, mut messages, mut streamed, mut times, mut names) = (0, 0, 0, Vec::new(), Vec::new());
    for (name, package, start) in proxies {
        if !has(name, package) {
            continue;
        }
        names.push(name);
        let at = free_address();
        let begin = async || {
            let process = Process::start(&mut start(at, to, folder.path()));
            wait_until("the proxy's port", || std::net::TcpStream::connect(at).is_ok()).await;
            process
        };
        let mut proxy = begin().await;
        let route = if name == "haproxy" { at.into() } else { Route::absolute(at, to) };
        let mut clients = Vec::new();
        for transport in [Transport::Polling, Transport::Hybrid, Transport::Polling, Transport::Hybrid] {
            clients.push(ChatClient::start_through(transport, &route).await);
        }
        for _ in 0..5 {
            let streaming = ChatClient::start_through(Transport::Streaming, &route).await;
            all_continue(&clients).await;
            drop(proxy);
            // Its response without an end has ended with the proxy, and its session with it.
            let (ended, answered) = streaming.ended().await;
            assert_eq!(ended, ChatEnd::Closed);
            streamed += answered;
            kills += 1;
            let since = Instant::now();
            tokio::time::sleep(Duration::from_millis(100)).await;
            proxy = begin().await;
            all_continue(&clients).await;
            times.push(since.elapsed());
        }
        messages += stop_all(clients).await;
    }
    if names.len() < 2 {
        return;
    }
    wait_for_sessions(&program, 0).await;
    row(
        "proxy killed mid-poll",
        &format!(
            "{kills} times ({}), 4 polling and hybrid clients and a streaming client each, back 0.1 s later",
            names.join(", ")
        ),
        "polling and hybrid: a request without a response, which they send again, and the same session continues; streaming: the end, and a new log-in",
        &format!("0 of {messages} messages; streaming: 0 of {streamed} messages that were answered"),
        &format!("{}, from the kill until all clients get echoes again", seconds(&times)),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_without_closing_is_detected() {
    if !namespaces::inside("a_client_that_vanishes_without_closing_is_detected") {
        return;
    }
    // A second network for clients, and a cable between the two.
    let away = Process::start(Command::new("unshare").args(["--net", "sleep", "600"]));
    let there = format!("nsenter --target {} --net", away.0.id());
    wait_until("its network", || {
        let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        network(&away.0.id().to_string()) != network("self")
    })
    .await;
    namespaces::run(&format!(
        "ip link add near type veth peer name far netns {}; ip addr add 192.0.2.1/30 dev near; ip link set near up; \
         {there} ip addr add 192.0.2.2/30 dev far; {there} ip link set far up; {there} ip link set lo up",
        away.0.id()
    ));
    let community = Sandbox::start().await;
    let (program, to) = start(&[community.address], "[limits]\nvanished_timeout = \"8s\"");
    let load = |think_time: &str, transports: &[&str]| {
        let mut command = Command::new("nsenter");
        let target = format!("192.0.2.1:{}", to.port());
        command.args(["--target", &away.0.id().to_string(), "--net", PROGRAM, "load", "--target", &target]);
        command.args(["--clients", "8", "--ramp-up", "100ms", "--duration", "10m", "--workers", "1"]);
        Process::start(command.args(["--yes-i-own-this-server", "--think-time", think_time]).args(transports))
    };
    let _talk = load("50ms", &["--raw", "1", "--tls", "1", "--polling", "1", "--hybrid", "1"]);
    let _idle = load("0s", &["--raw", "1", "--tls", "1"]);
    let clients = [ChatClient::start(Transport::Raw, to).await, ChatClient::start(Transport::Hybrid, to).await];
    wait_for_sessions(&program, 18).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    namespaces::run(&format!("{there} ip link set far down"));
    let since = Instant::now();
    wait_for_sessions(&program, 2).await;
    let noticed = since.elapsed();
    assert_eq!(closed(&program, "client_broken").await, 12.0, "raw and TLS, with bytes on their way or without");
    assert_eq!(closed(&program, "session_timeout").await, 4.0, "tunnels");
    let [raw, hybrid] = clients;
    let messages = raw.stop().await + hybrid.stop().await;
    let well = all_can_log_in(to).await;
    wait_for_sessions(&program, 0).await;
    row(
        "client vanishes without FIN (network cut)",
        "16 clients at once, over every transport, idle and busy, `limits.vanished_timeout` of 8 s",
        "others: nothing",
        &format!("0 of {messages} messages of 2 others"),
        &format!(
            "all detected after {}, raw and TLS as `client_broken`, tunnels as `session_timeout`; eight log-ins in {}",
            seconds(&[noticed]),
            seconds(&[well])
        ),
    );
}

/// The CPU time that a process has used, in seconds.
fn processor(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).map(|n| n.parse().unwrap()).collect();
    (fields[0] + fields[1]) as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_present_clients_continue_and_new_ones_wait_or_are_refused() {
    if !has("prlimit", "util-linux") {
        return;
    }
    let community = Sandbox::start().await;
    let setup = Setup::new(&settings(&[community.address], "[limits]\nlogin_timeout = \"6s\""));
    let to = local(setup.raw);
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64:64", PROGRAM]);
    let program = setup.spawn_with(command);
    program.wait_for_log("ready");
    let clients = [
        ChatClient::start(Transport::Raw, to).await,
        ChatClient::start(Transport::Tls, to).await,
        ChatClient::start(Transport::Polling, to).await,
    ];
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(http::tcp(to).await);
    }
    program.wait_for_log("out of descriptors or memory");
    let before = processor(program.child.id());
    all_continue(&clients).await;
    program.signal("HUP");
    program.wait_for_log("not reloaded");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = processor(program.child.id()) - before;
    assert!(used < 2.0, "{used} s of processor time for a wait of 2 s: it spins");
    drop(silent);
    // A client needs two descriptors: the last ones get one for themselves and none for their link.
    let (refused, served) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut many = tokio::task::JoinSet::new();
    for _ in 0..80 {
        let (refused, served) = (Arc::clone(&refused), Arc::clone(&served));
        many.spawn(async move {
            match try_log_in(Transport::Raw, to).await {
                Ok(client) => {
                    served.fetch_add(1, Relaxed);
                    // The client stays while others connect.
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    drop(client);
                }
                Err(end) => {
                    assert_eq!(end, ChatEnd::Reason(FULL));
                    refused.fetch_add(1, Relaxed);
                }
            }
        });
    }
    while let Some(joined) = in_time("the clients", many.join_next()).await {
        joined.unwrap();
    }
    let messages = {
        let mut sum = 0;
        for client in clients {
            client.continues().await;
            sum += client.stop().await;
        }
        sum
    };
    let well = all_can_log_in(to).await;
    wait_for_sessions(&program, 0).await;
    assert!(program.metric("sametime_mux_accept_errors_total{reason=\"exhausted\"}").await > 0.0);
    assert!(!program.log.lock().contains("Community server is down"), "the Community server is not the cause");
    row(
        "descriptors exhausted",
        "80 silent connections, then 80 clients, with 64 descriptors; a reload meanwhile (refused, nothing changed)",
        &format!(
            "present clients: nothing; new ones wait, or get 0x8000020B: {} served, {} refused",
            served.load(Relaxed),
            refused.load(Relaxed)
        ),
        &none_lost(messages),
        &format!("{} for eight log-ins, once there are descriptors", seconds(&[well])),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_delays_no_client() {
    if !namespaces::inside("a_log_that_cannot_be_written_delays_no_client") {
        return;
    }
    let community = Sandbox::start().await;
    let setup = Setup::new(&settings(&[community.address], "[log]\nlevel = \"trace\""));
    let (to, disk) = (local(setup.raw), setup.folder.path().join("disk"));
    fs::create_dir(&disk).unwrap();
    namespaces::run(&format!("mount -t tmpfs -o size=8k none {}", disk.display()));
    let log = disk.join("log");
    let mut command = Command::new("sh");
    command.args(["-c", "log=$1; shift; exec \"$0\" \"$@\" 2>>\"$log\"", PROGRAM]).arg(&log);
    let program = setup.spawn_with(command);
    wait_until("its port", || std::net::TcpStream::connect(to).is_ok()).await;
    let clients = ChatClient::start_all(to).await;
    let size = || fs::metadata(&log).unwrap().len();
    let mut rounds = 0;
    in_time("a full disk", async {
        while size() < 8192 {
            all_can_log_in(to).await;
            rounds += 1;
        }
    })
    .await;
    for _ in 0..TIMES {
        all_can_log_in(to).await;
        all_continue(&clients).await;
    }
    assert_eq!(size(), 8192, "no room");
    let of_clients = clients.len();
    let messages = stop_all(clients).await;
    wait_for_sessions(&program, 0).await;
    // There is room again: all lines of the time between are written now, with one line for each session.
    namespaces::run(&format!("mount -o remount,size=64m {}", disk.display()));
    let sessions = of_clients + (rounds + TIMES as usize) * Transport::ALL.len();
    in_time("all lines", async {
        while fs::read_to_string(&log).unwrap_or_default().matches("session closed ").count() < sessions {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().all(|line| line.starts_with("20")), "no line is cut");
    row(
        "disk full for the log",
        &format!("once, {CLIENTS} clients, {} log-ins while it was full", TIMES * CLIENTS),
        "nothing",
        &none_lost(messages),
        "every line is written once there is room (up to 16 MiB are kept, and further lines are counted)",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ends_no_session() {
    let library = fs::read_dir("/usr/lib").unwrap().find_map(|entry| {
        let path = entry.unwrap().path().join("faketime/libfaketime.so.1");
        path.exists().then_some(path)
    });
    let Some(library) = library else { return support::skip("faketime", "not installed (Debian package faketime)") };
    let community = Sandbox::start().await;
    let limits = "[limits]\nidle_timeout = \"1h\"\nlogging_in_timeout = \"1h\"";
    let setup = Setup::new(&settings(&[community.address], limits));
    let (to, clock) = (local(setup.raw), setup.folder.path().join("clock"));
    fs::write(&clock, "+0d\n").unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        // A monotonic clock does not jump.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1");
    let program = setup.spawn_with(command);
    program.wait_for_log("ready");
    let clients = ChatClient::start_all(to).await;
    let ends_in = async || program.metric("sametime_mux_tls_certificate_expiry_seconds").await;
    let real = ends_in().await;
    let jumps = [("+1d", -1.0), ("-400d", 400.0), ("+20y", -20.0 * 365.0), ("+0d", 0.0)];
    for (jump, days) in jumps {
        fs::write(&clock, format!("{jump}\n")).unwrap();
        let expected = real + days * 86400.0;
        let seen = ends_in().await;
        assert!((seen - expected).abs() < 10.0 * 86400.0, "{jump}: the program's clock did jump: {seen}, {expected}");
        all_continue(&clients).await;
        all_can_log_in(to).await;
        assert_eq!(program.request("GET /readyz").await.status, 200);
        assert!(program.status().await["uptime_seconds"].as_u64().unwrap() < 3600);
    }
    let messages = stop_all(clients).await;
    wait_for_sessions(&program, 0).await;
    assert!(!text(program.log.lock().as_bytes()).contains("panicked"));
    row(
        "clock jumps",
        &format!(
            "{} times, 400 days back to 20 years ahead, {CLIENTS} clients, with an idle time-out of 1 h",
            jumps.len()
        ),
        "nothing: no time-out uses the wall clock",
        &none_lost(messages),
        "no interruption",
    );
}
