//! Lines about connections, clients and requests on the ports.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    AT_ONCE, TIMES, assert_throttled_and_counted, flood, send_and_leave,
    support::{
        client::{Client, Transport},
        frames,
        http::{self, exchange, post},
        in_time,
        peer::free_address,
        program::{Setup, local},
        tunnel::{Kind, Session},
    },
};

/// Starts the program with these settings, floods its Community port with connections that send `bytes`, and asserts
/// that the lines with `what` are few and stand for as many events as `metric` has.
async fn flood_and_count(settings: &str, bytes: Vec<u8>, what: &str, metric: &str) {
    let setup = Setup::new(settings);
    let to = local(setup.raw);
    let (program, start) = (setup.start(), Instant::now());
    flood(to, bytes.clone()).await;
    assert_throttled_and_counted(&program, what, metric, start, async || send_and_leave(to, &bytes).await).await;
}

fn dropped(reason: &str) -> (String, String) {
    let metric = format!("sametime_mux_connections_dropped_total{{reason=\"{reason}\"}}");
    (format!("reason=\"{reason}\""), metric)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_dropped_cause_few_lines() {
    let trusted = "[listeners]\nproxy_protocol_from = [\"127.0.0.0/8\"]\n";
    for (settings, bytes, reason) in [
        ("", &b"\x05\x01\0"[..], "unknown_protocol"),
        ("", b"\x16\x03\x01\0\x05hello", "tls_handshake"),
        (trusted, b"no PROXY header\r\n", "proxy_header"),
    ] {
        let (what, metric) = dropped(reason);
        flood_and_count(settings, bytes.to_vec(), &what, &metric).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_a_limit_cause_few_lines() {
    let (what, metric) = dropped("connection_rate_per_address");
    let settings = "[limits]\nconnection_rate_per_address = 10\n";
    let setup = Setup::new(settings);
    let to = local(setup.raw);
    let (program, start) = (setup.start(), Instant::now());
    let handshake = frames::handshake().bytes();
    flood(to, handshake.clone()).await;
    let provoke = async || at_once(to, &handshake, 100).await;
    assert_throttled_and_counted(&program, &what, &metric, start, provoke).await;
}

/// So many connections at once that one of them is over a rate.
async fn at_once(to: SocketAddr, bytes: &[u8], connections: usize) {
    let all: Vec<_> = (0..connections)
        .map(|_| {
            let bytes = bytes.to_vec();
            tokio::spawn(async move { send_and_leave(to, &bytes).await })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_have_to_wait_cause_few_lines() {
    let metric = "sametime_mux_connections_delayed_total";
    let setup = Setup::new("[limits]\nconnection_rate = 500\n");
    let to = local(setup.raw);
    let (program, start) = (setup.start(), Instant::now());
    let what = "more connections than limits.connection_rate";
    flood(to, b"\x05\x01\0".to_vec()).await;
    let provoke = async || at_once(to, b"\x05\x01\0", 1500).await;
    assert_throttled_and_counted(&program, what, metric, start, provoke).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_refused_cause_few_lines() {
    let setup = Setup::new("[limits]\ncapacity = 1\n");
    let to = local(setup.raw);
    let (program, start) = (setup.start(), Instant::now());
    let mut client = Client::connect(Transport::Raw, to).await;
    client.log_in("bob").await;
    let handshake = frames::handshake().bytes();
    flood(to, handshake.clone()).await;
    let metric = "sametime_mux_sessions_refused_total{reason=\"capacity\"}";
    assert_throttled_and_counted(&program, "client refused", metric, start, async || {
        send_and_leave(to, &handshake).await
    })
    .await;
}

/// A connection that is used for many requests.
async fn send_requests(to: SocketAddr, request: Vec<u8>, times: usize) {
    let mut stream = http::tcp(to).await;
    for _ in 0..times {
        if exchange(&mut stream, &request).await.unwrap().header("connection") == Some("close") {
            stream = http::tcp(to).await;
        }
    }
}

/// [`TIMES`] requests.
async fn flood_with_requests(to: SocketAddr, request: &[u8]) {
    let all: Vec<_> =
        (0..AT_ONCE).map(|_| tokio::spawn(send_requests(to, request.to_vec(), TIMES / AT_ONCE))).collect();
    for one in all {
        one.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_refused_cause_few_lines() {
    let metric = "sametime_mux_http_requests_refused_total{reason=\"line_end\"}";
    flood_and_count("", b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), "HTTP request refused", metric).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnel_sessions_that_are_refused_cause_few_lines() {
    let setup = Setup::new("[limits]\ntunnel_sessions = 1\n");
    let to = local(setup.http);
    let (program, start) = (setup.start(), Instant::now());
    let mut client = Client::connect(Transport::Polling, to).await;
    client.log_in("bob").await;
    let session = Session::new(Kind::Polling);
    let request = post(&session.path(), &session.opening());
    flood_with_requests(to, &request).await;
    let metric = "sametime_mux_sessions_refused_total{reason=\"tunnel_sessions\"}";
    assert_throttled_and_counted(&program, "client refused", metric, start, async || {
        send_requests(to, request.clone(), 1).await
    })
    .await;
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_of_tunnel_sessions_cause_few_lines() {
    let setup = Setup::new("");
    let to = local(setup.http);
    let (program, start) = (setup.start(), Instant::now());
    let mut session = Session::new(Kind::Polling);
    session.name = "0123456789abcdef".to_owned();
    let request = post(&session.path(), &[0; 20]);
    // The response comes late, and nobody waits for it.
    let send = |times: usize| {
        let request = request.clone();
        async move {
            let mut streams = Vec::new();
            for _ in 0..times {
                let mut stream = http::tcp(to).await;
                stream.write_all(&request).await.unwrap();
                streams.push(stream);
                if streams.len() == 500 {
                    streams.clear();
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    send(TIMES).await;
    let metric = "sametime_mux_tunnel_guesses_delayed_total";
    assert_throttled_and_counted(&program, "very many requests", metric, start, async || send(200).await).await;
}

/// A web server that reads a request and gives `response`.
async fn web_server(response: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while tcp.read(&mut buffer).await.is_ok_and(|n| n > 0) && tcp.write_all(response).await.is_ok() {}
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_the_web_server_does_not_answer_cause_few_lines() {
    let switches = web_server(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await;
    let not_http = web_server(b"What do you want?\r\n").await;
    for (web_server, reason) in
        [(free_address(), "unreachable"), (not_http, "no_response"), (switches, "switched_protocols")]
    {
        let setup = Setup::new(&format!("[http_backend]\nurl = \"http://{web_server}\"\n"));
        let to = local(setup.http);
        let (program, start) = (setup.start(), Instant::now());
        let request = b"GET / HTTP/1.1\r\nHost: chat.example\r\n\r\n".to_vec();
        flood_with_requests(to, &request).await;
        let metric = format!("sametime_mux_http_backend_errors_total{{reason=\"{reason}\"}}");
        let what = format!("reason=\"{reason}\"");
        assert_throttled_and_counted(&program, &what, &metric, start, async || {
            send_requests(to, request.clone(), 1).await
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_idle_cause_few_lines() {
    let setup = Setup::new("[limits]\nidle_timeout = \"100ms\"\n");
    let to = local(setup.raw);
    let (program, start) = (setup.start(), Instant::now());
    let all: Vec<_> = (0..1000)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..TIMES / 1000 {
                    let Ok(mut tcp) = TcpStream::connect(to).await else { return };
                    let _ = tcp.write_all(&frames::handshake().bytes()).await;
                    let mut bytes = Vec::new();
                    let _ = tcp.read_to_end(&mut bytes).await;
                }
            })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
    crate::assert_throttled(&program, "idle for too long", 1, start);
    crate::assert_throttled(&program, "session closed", 1, start);
    assert!(program.metric("sametime_mux_sessions_closed_total{reason=\"idle\"}").await > TIMES as f64 / 2.0);
}

/// Connections to the admin endpoint that send nothing. There are always more of them than it has places.
async fn idle_connections(to: SocketAddr, times: usize) {
    let mut held = VecDeque::new();
    for _ in 0..times {
        held.push_back(http::tcp(to).await);
        // The one that has waited the longest is closed for another one.
        if held.len() > 100 {
            let mut first = held.pop_front().unwrap();
            let _ = in_time("the end", first.read(&mut [0])).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_admin_endpoint_cause_few_lines() {
    let setup = Setup::new("");
    let to = local(setup.admin);
    let (program, start) = (setup.start(), Instant::now());
    idle_connections(to, TIMES).await;
    let metric = "sametime_mux_admin_connections_closed_total{reason=\"evicted\"}";
    let what = "admin: a connection was closed";
    assert_throttled_and_counted(&program, what, metric, start, async || idle_connections(to, 100).await).await;
}
