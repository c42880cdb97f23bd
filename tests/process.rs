//! The program as an admin runs it: exit codes, ports, signals, reload, status.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    fs,
    net::TcpListener,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::Value;
use support::{
    client::{Client, Transport},
    community::Community,
    frames, http, in_time,
    peer::text,
    program::{PROGRAM, Sandbox, Setup, free_ports, local},
};

const NOT_RESPONDING: u32 = 0x8000_020C;

#[test]
fn check_shows_the_result_and_reports_faults() {
    let setup = Setup::new("");
    let fine = setup.command(&["check"]);
    assert_eq!(fine.status.code(), Some(0), "{}", text(&fine.stderr));
    let shown = text(&fine.stdout);
    assert!(shown.contains("SECTION") && shown.contains(&setup.raw.to_string()), "{shown}");
    assert!(shown.contains("memory at the most  "), "{shown}");
    fs::write(setup.file(), "[limits]\ncapacity = 0\n\n[limit]\n").unwrap();
    let wrong = setup.command(&["check"]);
    assert_eq!(wrong.status.code(), Some(2));
    let reported = text(&wrong.stderr);
    let file = setup.file().display().to_string();
    assert!(reported.contains(&format!("{file}:2: limits.capacity: 0 is out of bounds (1 to 1000000)")), "{reported}");
    assert!(reported.contains(&format!("{file}:4: limit: no such section (did you mean limits?")), "{reported}");
    let absent = setup.command(&["check", "--config", "/nowhere.toml"]);
    assert_eq!(absent.status.code(), Some(2));
    assert!(text(&absent.stderr).contains("/nowhere.toml: the configuration database can't be read"));
    assert_eq!(setup.command(&["run"]).status.code(), Some(2), "the same faults keep it from running");
    assert_eq!(setup.command(&["no-such-command"]).status.code(), Some(2));
}

/// A program whose only Community port is in use reports this and ends.
fn assert_does_not_start_on(raw: u16) {
    let mut setup = Setup::new("");
    setup.raw = raw;
    setup.write(&[raw]);
    let mut program = setup.spawn();
    assert_eq!(program.exit_code(), Some(1));
    program.wait_for_log(&format!("[client_connections] ports: port {raw} is in use"));
}

#[tokio::test]
async fn a_listener_whose_name_does_not_resolve_never_opens_on_another_address() {
    let setup = Setup::new("");
    let http = setup.http;
    let section = "[http_tunneled_client_connections]\n";
    let toml = setup.toml(&[setup.raw]).replace(section, &format!("{section}host_name = \"no-such-host.invalid\"\n"));
    fs::write(setup.file(), toml).unwrap();
    let program = setup.start();
    program.wait_for_log("reason=unresolved");
    // Listeners that are down are tried again every 5 s.
    let until = std::time::Instant::now() + Duration::from_secs(7);
    while std::time::Instant::now() < until {
        assert!(std::net::TcpStream::connect(local(http)).is_err(), "the file names no address of this machine");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let status = program.status().await;
    let down = status["listeners"].as_array().unwrap().iter().find(|l| l["port"] == http).unwrap();
    assert_eq!(down["state"], "down");
}

#[tokio::test]
async fn a_port_in_use_is_reported_and_stops_the_program_only_if_the_port_is_required() {
    let held = TcpListener::bind("[::]:0").unwrap();
    let mut setup = Setup::new("");
    setup.http = held.local_addr().unwrap().port();
    setup.write(&[setup.raw]);
    let (http, raw) = (setup.http, setup.raw);
    let program = setup.start();
    program.wait_for_log("port is down");
    program.wait_for_log("reason=in_use");
    let metrics = text(&program.request("GET /metrics").await.body);
    let counted =
        metrics.lines().find(|line| line.starts_with("sametime_mux_listener_failures_total{reason=\"in_use\"} "));
    assert!(counted.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
    let status = program.status().await;
    let down = status["listeners"].as_array().unwrap().iter().find(|l| l["port"] == http).unwrap();
    assert_eq!((&down["state"], &down["section"]), (&"down".into(), &"http_tunneled_client_connections".into()));
    let error = down["error"].as_str().unwrap();
    assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
    assert_eq!(program.request("GET /readyz").await.status, 200, "clients can be served");
    // The program listens on the port as soon as it is free.
    drop(held);
    support::wait_until("the port", || std::net::TcpStream::connect(local(http)).is_ok()).await;
    drop(program);

    let _held = TcpListener::bind(("::", raw)).unwrap();
    assert_does_not_start_on(raw);

    let held = TcpListener::bind("[::]:0").unwrap();
    let mut setup = Setup::new("[listeners]\nrequire_all = true\n");
    setup.https = held.local_addr().unwrap().port();
    setup.write(&[setup.raw]);
    assert_eq!(setup.spawn().exit_code(), Some(1));
}

/// The number of sockets that listen on a port, from /proc/net (proc(5)).
fn listening_sockets(port: u16) -> usize {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let is_one = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next().unwrap(), fields.nth(1).unwrap());
        local.ends_with(&format!(":{port:04X}")) && state == "0A"
    };
    tables.iter().flat_map(|table| table.lines().skip(1)).filter(is_one).count()
}

#[tokio::test]
async fn each_thread_has_a_socket_on_the_port_and_a_second_program_has_none() {
    let setup = Setup::new("");
    let (raw, threads) = (setup.raw, std::thread::available_parallelism().unwrap().get());
    let _program = setup.start();
    assert_eq!(listening_sockets(raw), threads);

    assert_does_not_start_on(raw);
    assert_eq!(listening_sockets(raw), threads);
}

#[tokio::test]
async fn a_reload_opens_and_closes_ports_and_keeps_every_session() {
    let community = Community::start_echo().await;
    let setup = Setup::new(&community.setting());
    let [new] = free_ports();
    let (raw, file, good) = (setup.raw, setup.file(), setup.toml(&[setup.raw, new]));
    let program = setup.start();
    // Messages are exchanged all the time.
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for transport in Transport::ALL {
        let mut client = Client::connect(transport, local(raw)).await;
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        let over = Arc::clone(&over);
        clients.push(tokio::spawn(async move {
            let mut n = 0u32;
            while n < 5 || !over.load(Relaxed) {
                n += 1;
                let said = n.to_be_bytes();
                client.send_text(channel, &said).await;
                assert_eq!(client.recv().await.unwrap_or_else(|| panic!("{transport:?}: {n}")).text(), said);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
    }
    fs::write(&file, &good).unwrap();
    program.signal("HUP");
    program.wait_for_log("revision=2");
    Client::connect(Transport::Raw, local(new)).await.log_in("ann").await;

    fs::write(&file, good.replace("[admin]", "[admin]\nlisten_to = 1")).unwrap();
    program.signal("HUP");
    program.wait_for_log("not reloaded");
    program.wait_for_log("reason=configuration");
    let status = program.status().await;
    assert_eq!(status["configuration"]["revision"], 2);
    assert!(
        status["configuration"]["last_error"]
            .as_str()
            .unwrap()
            .contains("admin.listen_to: no such key (did you mean listen?")
    );
    Client::connect(Transport::Raw, local(new)).await.log_in("ann").await;

    // A reload over HTTP needs the token.
    fs::write(&file, good.replace(&format!("[{raw}, {new}]"), &format!("[{raw}]"))).unwrap();
    assert_eq!(program.reload("wrong").await.status, 401);
    let reloaded = program.reload("open sesame").await;
    assert_eq!(reloaded.status, 200, "{}", text(&reloaded.body));
    assert_eq!(serde_json::from_slice::<Value>(&reloaded.body).unwrap()["revision"], 3);
    assert!(std::net::TcpStream::connect(local(new)).is_err(), "closed");
    fs::write(&file, "[limits]\nmax_frame = 1\n").unwrap();
    let refused = program.reload("open sesame").await;
    assert_eq!(refused.status, 422);
    assert!(text(&refused.body).contains(":2: limits.max_frame: 1 is out of bounds"));
    over.store(true, Relaxed);
    for client in clients {
        in_time("the messages", client).await.unwrap();
    }
    let log = program.log.lock();
    assert!(!log.contains("broken"), "{log}");
}

#[tokio::test]
async fn a_reload_loads_a_new_certificate() {
    let setup = Setup::new("");
    let raw = setup.raw;
    let folder = setup.folder.path().to_owned();
    let program = setup.start();
    let mut before = Client::connect(Transport::Tls, local(raw)).await;
    before.log_in("bob").await;
    let channel = before.open_chat("echo").await;
    let old = certificate(raw).await;
    // If one of the two files is missing, nothing changes.
    fs::remove_file(folder.join("server.key")).unwrap();
    let refused = program.reload("open sesame").await;
    assert_eq!(refused.status, 422);
    assert!(text(&refused.body).contains("server.key is not"), "{}", text(&refused.body));
    assert_eq!(certificate(raw).await, old);
    let key = rcgen::KeyPair::generate().unwrap();
    let new = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::write(folder.join("server.pem"), new.pem()).unwrap();
    fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
    assert_eq!(program.reload("open sesame").await.status, 200);
    assert_ne!(certificate(raw).await, old);
    before.send_text(channel, b"still here").await;
    assert_eq!(before.recv().await.expect("an echo").text(), b"still here");
}

/// The certificate that clients of a port get.
async fn certificate(port: u16) -> Vec<u8> {
    let stream = http::connect_tls(local(port)).await;
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

#[tokio::test]
async fn terminate_drains_and_exits_with_0() {
    let setup = Setup::new("[limits]\ndrain_timeout = \"20s\"\n");
    let raw = setup.raw;
    let mut program = setup.start();
    let mut present = Client::connect(Transport::Raw, local(raw)).await;
    present.log_in("bob").await;
    let channel = present.open_chat("echo").await;
    program.signal("TERM");
    program.wait_for_log("draining");
    let mut late = Client::connect(Transport::Raw, local(raw)).await;
    late.send_frame(&frames::handshake()).await;
    assert_eq!(late.recv().await.expect("a DestroyCnl").reason(), NOT_RESPONDING);
    let ready = program.request("GET /readyz").await;
    assert_eq!((ready.status, text(&ready.body)), (503, "draining\n".to_owned()));
    assert_eq!(program.status().await["draining"], true);
    present.send_text(channel, b"on my way").await;
    assert_eq!(present.recv().await.expect("an echo").text(), b"on my way");
    present.log_out().await;
    drop(present);
    assert_eq!(program.exit_code(), Some(0));
}

#[tokio::test]
async fn the_drain_ends_at_its_deadline_and_a_second_signal_ends_it_at_once() {
    let setup = Setup::new("[limits]\ndrain_timeout = \"300ms\"\n");
    let raw = setup.raw;
    let mut program = setup.start();
    let mut raw_client = Client::connect(Transport::Raw, local(raw)).await;
    raw_client.log_in("bob").await;
    let mut hybrid = Client::connect(Transport::Hybrid, local(raw)).await;
    hybrid.log_in("ann").await;
    let mut streaming = Client::connect(Transport::Streaming, local(raw)).await;
    streaming.log_in("eve").await;
    program.signal("INT");
    for client in [&mut raw_client, &mut hybrid, &mut streaming] {
        assert_eq!(client.recv().await.expect("a DestroyCnl").kind, frames::DESTROY);
    }
    drop((raw_client, hybrid, streaming));
    assert_eq!(program.exit_code(), Some(0));
    program.wait_for_log("sessions were ended");

    let setup = Setup::new("[limits]\ndrain_timeout = \"1h\"\n");
    let raw = setup.raw;
    let mut program = setup.start();
    let mut client = Client::connect(Transport::Raw, local(raw)).await;
    client.log_in("bob").await;
    program.signal("TERM");
    program.wait_for_log("draining");
    program.signal("TERM");
    assert_eq!(program.exit_code(), Some(0));
}

#[test]
fn a_command_that_needs_the_token_says_which_file_to_name() {
    let program = Setup::new("").start();
    let token = program.folder.path().join("other");
    fs::write(&token, "another token").unwrap();
    let admin = format!("http://127.0.0.1:{}", program.admin);
    let ask = |more: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(["drain", "--server", "sandbox", "--admin", &admin]).args(more);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    assert!(ask(&[]).contains("use --token-file FILE"), "{}", ask(&[]));
    let said = ask(&["--token-file", &token.display().to_string()]);
    assert!(said.contains("is not that of admin.token_file"), "{said}");
}

#[tokio::test]
async fn status_and_metrics_report_sessions() {
    let setup = Setup::new("");
    let (raw, http_port) = (setup.raw, setup.http);
    let program = setup.start();
    let mut clients = Vec::new();
    for (transport, port) in [
        (Transport::Raw, raw),
        (Transport::Tls, raw),
        (Transport::Polling, http_port),
        (Transport::HybridTls, http_port),
        (Transport::StreamingTls, http_port),
    ] {
        let mut client = Client::connect(transport, local(port)).await;
        client.log_in("bob").await;
        clients.push(client);
    }
    let status = program.status().await;
    assert_eq!(status["sessions"]["total"], 5);
    for transport in ["raw", "tls", "http_polling", "http_hybrid", "http_streaming"] {
        assert_eq!(status["sessions"]["by_transport"][transport], 1, "{transport}");
    }
    assert_eq!(status["community"][0]["address"], "sandbox");
    assert_eq!(status["community"][0]["state"], "up");
    assert_eq!(status["community"][0]["sessions"], 5);
    for field in ["version", "uptime_seconds", "draining", "refused"] {
        assert!(!status[field].is_null(), "{field}");
    }
    for field in ["file", "loaded_at", "revision"] {
        assert!(!status["configuration"][field].is_null(), "{field}");
    }
    let metrics = text(&program.request("GET /metrics").await.body);
    for line in [
        format!("sametime_mux_sessions{{port=\"{http_port}\",transport=\"http_hybrid\"}} 1"),
        "sametime_mux_login_seconds_count 5".to_owned(),
        "sametime_mux_community_sessions{server=\"sandbox\"} 5".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} in\n{metrics}");
    }
    assert_eq!(text(&program.request("GET /healthz").await.body), "up\n");
    assert_eq!(program.request("GET /nowhere").await.status, 404);
    assert_eq!(program.request("POST /metrics").await.status, 405);
    let url = format!("http://127.0.0.1:{}", program.admin);
    let shown = Command::new(PROGRAM).args(["status", "--admin", &url]).output().unwrap();
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    let shown = text(&shown.stdout);
    assert!(shown.contains("http_streaming") && shown.contains("5 of 20000"), "{shown}");
    let nobody = Command::new(PROGRAM).args(["status", "--admin", "http://127.0.0.1:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("Is the server running"));
}

#[tokio::test]
async fn a_port_that_is_down_shows_the_reason_of_the_last_attempt() {
    let setup = Setup::new("");
    let port = setup.http;
    let first = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let program = setup.start();
    let error = async || {
        let status = program.status().await;
        let listeners = status["listeners"].as_array().unwrap().iter();
        let down = listeners.filter(|listener| listener["port"] == port).map(|listener| listener["error"].to_string());
        down.collect::<String>()
    };
    let holder = error().await;
    assert!(holder.contains(&format!("(process {})", std::process::id())), "{holder}");
    // Another process holds a part of the port before this one gives it up.
    let _second = Sandbox::start_at(local(port)).await;
    drop(first);
    in_time("the other reason", async {
        while !error().await.contains("in use by sametime-mux (process ") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_admin_endpoint_outside_loopback_needs_the_token_for_reading_too() {
    let setup = Setup::new("");
    let (file, toml) = (setup.file(), setup.toml(&[setup.raw]));
    // 0.0.0.0 includes addresses that are not loopback.
    fs::write(&file, toml.replace("listen = \"127.0.0.1:", "listen = \"0.0.0.0:")).unwrap();
    let program = setup.start();
    for path in ["/metrics", "/api/status"] {
        let refused = program.request(&format!("GET {path}")).await;
        assert_eq!(refused.status, 401, "{path}");
        assert!(!text(&refused.body).contains("sametime_mux"));
        let mut tcp = http::tcp(local(program.admin)).await;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: any.example\r\nAuthorization: Bearer open sesame\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(http::exchange(&mut tcp, head.as_bytes()).await.unwrap().status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_web_page_of_another_origin_can_neither_read_nor_reload() {
    let program = Setup::new("").start();
    let asked = async |request: &str| {
        let mut tcp = http::tcp(local(program.admin)).await;
        http::exchange(&mut tcp, request.replace('|', "\r\n").as_bytes()).await.unwrap().status
    };
    // The page's host name resolves to this machine now (DNS rebinding).
    assert_eq!(asked("GET /api/status HTTP/1.1|Host: evil.example|Connection: close||").await, 421);
    let reload = "POST /api/reload HTTP/1.1|Host: localhost|Authorization: Bearer open sesame|Connection: close|";
    assert_eq!(asked(&format!("{reload}Origin: http://evil.example||")).await, 403);
    assert_eq!(asked(&format!("{reload}|")).await, 200);
}
