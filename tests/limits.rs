//! Limits in total and for one address: who is refused, how, and that refusals are counted. Memory stays below its
//! ceiling under attack.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sametime_mux::wire::proxy_protocol;
use support::{
    client::{Client, Transport},
    community::{Community, Connection},
    frames::{self, Frame},
    http::{self, exchange, post},
    in_time,
    mux::{self, Mux},
    program::{Setup, local},
    record, streaming,
    tunnel::{Kind, Session},
    wait_until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

const FULL: u32 = 0x8000_020B;
const TIMED_OUT: u32 = 0x8000_0225;

async fn echo_mux(limits: &str) -> (Community, Mux) {
    let community = Community::start_echo().await;
    let mux = mux::start(&format!("{}{limits}", community.setting())).await;
    (community, mux)
}

/// Connects from the address `source`.
async fn try_connect_from(source: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // With a small receive buffer, more bytes wait in the multiplexer.
    socket.set_recv_buffer_size(4096)?;
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
    socket.connect(to).await
}

async fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    try_connect_from(source, to).await.unwrap()
}

/// The reason that a raw client on `stream` gets.
async fn refusal_reason(stream: TcpStream) -> u32 {
    let mut client = Client::on_stream(Box::new(stream));
    client.send_frame(&frames::handshake()).await;
    let reason = client.recv().await.expect("a DestroyCnl").reason();
    assert!(client.recv_all().await.is_empty(), "and nothing else");
    reason
}

/// Sends the first request of a tunnel session.
async fn open_tunnel(source: &str, to: SocketAddr) -> (TcpStream, http::Response) {
    let (mut stream, session) = (connect_from(source, to).await, Session::new(Kind::Polling));
    let response = in_time("a response", exchange(&mut stream, &post(&session.path(), &session.opening()))).await;
    (stream, response.unwrap())
}

async fn dropped(mux: &Mux, reason: &str) -> f64 {
    mux.metric(&format!("sametime_mux_connections_dropped_total{{reason=\"{reason}\"}}")).await
}

async fn refused(mux: &Mux, reason: &str) -> f64 {
    mux.metric(&format!("sametime_mux_sessions_refused_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn connections_are_bounded_in_total_and_for_each_address() {
    for (limit, reason, other) in
        [("connections = 2", "connections", false), ("connections_per_address = 2", "connections_per_address", true)]
    {
        let (_community, mux) = echo_mux(&format!("[limits]\n{limit}\n")).await;
        let silent = [connect_from("127.0.0.9", mux.raw()).await, connect_from("127.0.0.9", mux.raw()).await];
        in_time("both", async { while mux.metric("sametime_mux_connections").await < 2.0 {} }).await;
        assert_eq!(refusal_reason(connect_from("127.0.0.9", mux.raw()).await).await, FULL);
        let (_, response) = open_tunnel("127.0.0.9", mux.raw()).await;
        assert_eq!((response.status, response.header("retry-after")), (503, Some("10")));
        assert_eq!(dropped(&mux, reason).await, 2.0);
        if other {
            let mut client = Client::on_stream(Box::new(connect_from("127.0.0.8", mux.raw()).await));
            client.log_in("ann").await;
        }
        drop(silent);
        in_time("a place", async { while mux.metric("sametime_mux_connections").await > 0.0 {} }).await;
        Client::on_stream(Box::new(connect_from("127.0.0.9", mux.raw()).await)).log_in("bob").await;
    }
    let exempt = "[limits]\nconnections_per_address = 1\nper_address = 1\nexempt = [\"127.0.0.0/8\"]\n";
    let (_community, mux) = echo_mux(exempt).await;
    let _silent = [connect_from("127.0.0.9", mux.raw()).await, connect_from("127.0.0.9", mux.raw()).await];
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::on_stream(Box::new(connect_from("127.0.0.9", mux.raw()).await));
        client.log_in("bob").await;
        clients.push(client);
    }
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_client_is_counted_and_not_the_proxy() {
    let trusted = "[listeners]\nproxy_protocol_from = [\"127.0.0.1\"]\n[limits]\nconnections_per_address = 1\n";
    let (_community, mux) = echo_mux(trusted).await;
    let behind = async |client: &str, bytes: &[u8]| {
        let mut stream = connect_from("127.0.0.1", mux.raw()).await;
        let header = format!("PROXY TCP4 {client} 127.0.0.1 5000 1533\r\n");
        stream.write_all(&[header.as_bytes(), bytes].concat()).await.unwrap();
        stream
    };
    let page = b"GET /CommunityCBR/ HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut kept = behind("192.0.2.7", page).await;
    assert_eq!(http::read_response(&mut kept).await.unwrap().status, 200);
    let mut refused = behind("192.0.2.7", page).await;
    assert_eq!(http::read_response(&mut refused).await.unwrap().status, 503);
    let mut refused = behind("192.0.2.7", &frames::handshake().bytes()).await;
    assert_eq!(Frame::read(&mut refused).await.expect("a DestroyCnl").reason(), FULL);
    let mut other = behind("192.0.2.8", page).await;
    assert_eq!(http::read_response(&mut other).await.unwrap().status, 200);
    assert_eq!(dropped(&mux, "connections_per_address").await, 2.0);
}

#[tokio::test]
async fn behind_a_trusted_proxy_a_client_without_room_is_refused_in_its_own_protocol() {
    let trusted = "[listeners]\nproxy_protocol_from = [\"127.0.0.1\"]\n[limits]\nconnections = 1\n";
    let (_community, mux) = echo_mux(trusted).await;
    let _silent = connect_from("127.0.0.9", mux.raw()).await;
    in_time("it", async { while mux.metric("sametime_mux_connections").await < 1.0 {} }).await;
    let v1 = b"PROXY TCP4 192.0.2.7 127.0.0.1 5000 1533\r\n".to_vec();
    let v2 = proxy_protocol::v2("192.0.2.7:5000".parse().unwrap(), "127.0.0.1:1533".parse().unwrap());
    for header in [v1, v2] {
        // The header and the client's bytes come together, or not.
        for pause in [0, 20] {
            let behind = async |bytes: &[u8]| {
                let mut stream = connect_from("127.0.0.1", mux.raw()).await;
                stream.write_all(&header).await.unwrap();
                tokio::time::sleep(Duration::from_millis(pause)).await;
                stream.write_all(bytes).await.unwrap();
                stream
            };
            let mut raw = behind(&frames::handshake().bytes()).await;
            assert_eq!(Frame::read(&mut raw).await.expect("a DestroyCnl").reason(), FULL);
            let mut page = behind(b"GET /CommunityCBR HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert_eq!(http::read_response(&mut page).await.unwrap().status, 503);
            let mut tls = behind(b"\x16\x03\x01").await;
            let mut alert = Vec::new();
            tls.read_to_end(&mut alert).await.unwrap();
            assert_eq!((alert.len(), alert[0]), (7, 0x15), "all that can be sent before the handshake: {alert:?}");
        }
    }
    // A peer that has to send a header and does not gets nothing, as always.
    let mut without = connect_from("127.0.0.1", mux.raw()).await;
    without.write_all(&frames::handshake().bytes()).await.unwrap();
    assert!(!matches!(without.read_to_end(&mut Vec::new()).await, Ok(1..)));
    assert_eq!(dropped(&mux, "connections").await, 13.0);
}

#[tokio::test]
async fn connections_that_come_too_fast_wait_or_are_refused() {
    let (_community, mux) = echo_mux("[limits]\nconnection_rate = 20\n").await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = Client::connect(Transport::Raw, mux.raw()).await;
        client.send_frame(&frames::handshake()).await;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.recv().await.expect("nobody is refused").kind, frames::HANDSHAKE_ACK);
    }
    assert!(mux.metric("sametime_mux_connections_delayed_total").await > 0.0);

    let (_community, mux) = echo_mux("[limits]\nconnection_rate_per_address = 1\n").await;
    in_time("a refusal", async {
        while dropped(&mux, "connection_rate_per_address").await == 0.0 {
            drop(connect_from("127.0.0.9", mux.raw()).await);
        }
    })
    .await;
    Client::on_stream(Box::new(connect_from("127.0.0.8", mux.raw()).await)).log_in("ann").await;
}

#[tokio::test]
async fn clients_that_are_not_logged_in_are_bounded_and_disconnected() {
    for (limit, reason) in [("logging_in = 1", "logging_in"), ("logging_in_per_address = 1", "logging_in_per_address")]
    {
        let (_community, mux) = echo_mux(&format!("[limits]\n{limit}\n")).await;
        let mut first = Client::connect(Transport::Raw, mux.raw()).await;
        first.handshake().await;
        assert_eq!(refusal_reason(connect_from("127.0.0.1", mux.raw()).await).await, FULL);
        let (_, response) = open_tunnel("127.0.0.1", mux.raw()).await;
        assert_eq!(response.status, 503);
        assert_eq!(refused(&mux, reason).await, 2.0);
        assert_eq!(mux.metric("sametime_mux_sessions_logging_in").await, 1.0);
        first.send_frame(&frames::login("bob", "secret")).await;
        assert_eq!(first.recv().await.expect("a LoginAck").kind, frames::LOGIN_ACK);
        in_time("its place", async { while mux.metric("sametime_mux_sessions_logging_in").await > 0.0 {} }).await;
        Client::connect(Transport::Raw, mux.raw()).await.log_in("ann").await;
    }
    let (_community, mux) = echo_mux("[limits]\nlogging_in_timeout = \"1s\"\n").await;
    let (mut in_time, mut never) =
        (Client::connect(Transport::Raw, mux.raw()).await, Client::connect(Transport::Hybrid, mux.raw()).await);
    in_time.log_in("bob").await;
    never.handshake().await;
    assert_eq!(never.recv().await.expect("a DestroyCnl").reason(), TIMED_OUT);
    assert_eq!(mux.metric("sametime_mux_sessions_closed_total{reason=\"not_logged_in\"}").await, 1.0);
    let channel = in_time.open_chat("echo").await;
    in_time.send_text(channel, b"still here").await;
    assert_eq!(in_time.recv().await.expect("an echo").text(), b"still here");
}

#[tokio::test]
async fn tunnel_sessions_are_bounded_until_they_are_forgotten() {
    for (limit, reason, other) in [
        ("tunnel_sessions = 1", "tunnel_sessions", false),
        ("tunnel_sessions_per_address = 1", "tunnel_sessions_per_address", true),
    ] {
        let toml = format!("[limits]\n{limit}\nlogin_timeout = \"200ms\"\n[tunnel]\nsession_timeout = \"6s\"\n");
        let (_community, mux) = echo_mux(&toml).await;
        let (_first, response) = open_tunnel("127.0.0.9", mux.raw()).await;
        assert_eq!(response.status, 200);
        let (_, response) = open_tunnel("127.0.0.9", mux.raw()).await;
        assert_eq!((response.status, response.header("retry-after")), (503, Some("10")));
        // The client has left the core, but its tunnel session still exists.
        wait_until("the client's end", || mux.server.sessions() == 0).await;
        assert_eq!(mux.metric("sametime_mux_tunnel_sessions").await, 1.0);
        assert!(refused(&mux, reason).await >= 1.0);
        if other {
            assert_eq!(open_tunnel("127.0.0.8", mux.raw()).await.1.status, 200);
        }
        Client::connect(Transport::Raw, mux.raw()).await.log_in("ann").await;
        in_time("a place", async { while open_tunnel("127.0.0.9", mux.raw()).await.1.status != 200 {} }).await;
    }
}

/// A Community that sends `n` messages of 1 KB after the log-in, each with its number.
async fn start_sender(n: u32) -> Community {
    Community::start(move |mut connection: Connection| async move {
        if connection.accept_login().await.is_some() {
            for number in 0..n {
                connection.send(&frames::message(1, &[&number.to_be_bytes()[..], &[0; 1000]].concat()).bytes()).await;
            }
            connection.read_to_end().await;
        }
    })
    .await
}

/// Reads all messages of [`start_sender`], in order.
async fn read_messages(client: &mut Client, n: u32) {
    for number in 0..n {
        let frame = client.recv().await.expect("a message");
        assert_eq!(frame.text()[..4], number.to_be_bytes());
    }
}

/// A tunnel client that logs in and then sends no request. Returns its session and the bytes that it has read.
async fn slow_tunnel(source: &str, to: SocketAddr) -> (Session, Vec<u8>) {
    let (mut session, mut read) = (Session::new(Kind::Polling), Vec::new());
    for step in 0..3 {
        let body = match step {
            0 => session.opening(),
            1 => session.request(&frames::handshake().bytes()),
            _ => session.request(&frames::login("bob", "secret").bytes()),
        };
        let response =
            in_time("a response", exchange(&mut connect_from(source, to).await, &post(&session.path(), &body)))
                .await
                .unwrap();
        assert_eq!(response.status, 200);
        if step == 0 { session.opened(&response.body) } else { read.extend(session.response(&response.body)) }
    }
    (session, read)
}

#[tokio::test]
async fn bytes_held_for_slow_clients_are_bounded_and_none_is_lost() {
    const MESSAGES: u32 = 2_000;
    const SLOW: usize = 30;
    for (limit, bound) in [("held_bytes = 1048576", 1_048_576.0), ("held_bytes_per_address = 65536", 65_536.0)] {
        let community = start_sender(MESSAGES).await;
        let mux = mux::start(&format!("{}[limits]\n{limit}\n", community.setting())).await;
        let mut slow = Vec::new();
        for _ in 0..SLOW {
            slow.push(slow_tunnel("127.0.0.9", mux.raw()).await);
        }
        let held = || mux.metric("sametime_mux_held_bytes");
        in_time("what is held", async { while held().await < bound * 0.9 {} }).await;
        // Other clients are served.
        let mut client = Client::connect(Transport::Raw, mux.raw()).await;
        client.log_in("ann").await;
        read_messages(&mut client, MESSAGES).await;
        // Above the bound are one piece that each thread was reading, and at most 4 KiB for each client.
        let over = held().await - bound;
        assert!(over <= (SLOW * 4096 + 4 * 65_536) as f64, "{over}");
        // The slow clients get every byte.
        for (mut session, mut all) in slow.into_iter().take(3) {
            let (path, mut stream) = (session.path(), connect_from("127.0.0.9", mux.raw()).await);
            let whole = frames::message(1, &[0; 1004]).bytes().len() * MESSAGES as usize;
            while all.len() < whole {
                let body = session.request(&[]);
                let response = in_time("a response", exchange(&mut stream, &post(&path, &body))).await.unwrap();
                all.extend(session.response(&response.body));
            }
            let mut all = &all[all.len() - whole..];
            for number in 0..MESSAGES {
                assert_eq!(Frame::read(&mut all).await.unwrap().text()[..4], number.to_be_bytes());
            }
        }
    }
}

#[tokio::test]
async fn a_tunnel_client_that_has_used_up_its_addresss_limit_itself_sends_and_receives_on() {
    const MESSAGES: u32 = 1_000;
    let community = start_sender(MESSAGES).await;
    let limits = "[limits]\nheld_bytes_per_address = 65536\n";
    let mux = mux::start(&format!("{}{limits}", community.setting())).await;
    let (mut session, mut all) = slow_tunnel("127.0.0.9", mux.raw()).await;
    in_time("what is held", async { while mux.metric("sametime_mux_held_bytes").await < 60_000.0 {} }).await;
    // By its next requests, each of which brings more than has room, it acknowledges what is held.
    let (path, mut stream) = (session.path(), connect_from("127.0.0.9", mux.raw()).await);
    let whole = frames::message(1, &[0; 1004]).bytes().len() * MESSAGES as usize;
    let mut sent = Vec::new();
    while all.len() < whole {
        let data = frames::message(sent.len() as u32, &[7; 5_000]).bytes();
        let body = session.request(&data);
        let response = in_time("a response", exchange(&mut stream, &post(&path, &body))).await.unwrap();
        assert_eq!(response.status, 200, "after {} bytes", all.len());
        all.extend(session.response(&response.body));
        sent.extend(data);
    }
    let mut all = &all[all.len() - whole..];
    for number in 0..MESSAGES {
        assert_eq!(Frame::read(&mut all).await.unwrap().text()[..4], number.to_be_bytes());
    }
    wait_until("what the client has sent", || community.received(0).ends_with(&sent)).await;
}

#[tokio::test]
async fn requests_to_the_back_end_are_bounded() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", backend.local_addr().unwrap());
    let mux = mux::start(&format!("[http_backend]\nurl = \"{url}\"\nconnections = 1\n")).await;
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut first = http::tcp(mux.raw()).await;
    first.write_all(request).await.unwrap();
    let (mut asked, _) = in_time("the request", backend.accept()).await.unwrap();
    let busy = exchange(&mut http::tcp(mux.raw()).await, request).await.unwrap();
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("10")));
    assert_eq!(mux.metric("sametime_mux_http_requests_refused_total{reason=\"http_backend\"}").await, 1.0);
    asked.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await.unwrap();
    // The place is taken until the last byte of the response.
    assert_eq!(exchange(&mut http::tcp(mux.raw()).await, request).await.unwrap().status, 503);
    asked.write_all(b"ok").await.unwrap();
    assert_eq!(http::read_response(&mut first).await.unwrap().body, b"ok");
    let mut next = http::tcp(mux.raw()).await;
    next.write_all(request).await.unwrap();
    in_time("the next", async {
        let mut head = [0; 16];
        tokio::select! {
            read = asked.read(&mut head) => assert!(read.unwrap() > 0),
            other = backend.accept() => drop(other.unwrap()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_whole_company_behind_one_proxy_logs_in_by_default() {
    let (_community, mux) = echo_mux("").await;
    let mut all = tokio::task::JoinSet::new();
    for n in 0..1_000 {
        let (to, transport) = (mux.raw(), if n % 10 == 0 { Transport::Polling } else { Transport::Raw });
        all.spawn(async move {
            let mut client = Client::connect(transport, to).await;
            client.log_in("bob").await;
            client
        });
    }
    let clients = in_time("everybody", all.join_all()).await;
    assert_eq!((clients.len(), mux.server.sessions()), (1_000, 1_000));
    assert_eq!(mux.metric_sum("sametime_mux_sessions_refused_total").await, 0.0);
}

/// One attack, again and again: it connects, sends, and then keeps the connection open without reading.
async fn attack(to: SocketAddr, source: String, bytes: Arc<Vec<u8>>, tls: bool) {
    loop {
        let held = async {
            let tcp = try_connect_from(&source, to).await?;
            let mut stream: http::Stream = if tls { Box::new(http::tls_over(tcp).await?) } else { Box::new(tcp) };
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            tokio::time::sleep(Duration::from_secs(4)).await;
            std::io::Result::Ok(())
        };
        if held.await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Logs in over the tunnel, then requests the same response on many connections and reads none of them.
async fn ask_and_never_read(to: SocketAddr, source: String) {
    loop {
        let asked = async {
            let mut session = Session::new(Kind::Polling);
            let mut tcp = try_connect_from(&source, to).await?;
            for step in 0..3 {
                let body = match step {
                    0 => session.opening(),
                    1 => session.request(&frames::handshake().bytes()),
                    _ => session.request(&frames::login("bob", "secret").bytes()),
                };
                let response = exchange(&mut tcp, &post(&session.path(), &body)).await?;
                match (step, response.status) {
                    (0, 200) => session.opened(&response.body),
                    (_, 200) => drop(session.response(&response.body)),
                    _ => return Err(std::io::ErrorKind::Other.into()),
                }
            }
            let request = post(&session.path(), &session.request(&[]));
            let mut unread = Vec::new();
            for _ in 0..20 {
                let mut tcp = try_connect_from(&source, to).await?;
                tcp.write_all(&request).await?;
                unread.push(tcp);
            }
            tokio::time::sleep(Duration::from_secs(4)).await;
            std::io::Result::Ok(())
        };
        if asked.await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Logs in over the streaming tunnel, reads nothing of its response, and sends long requests on several connections.
async fn stream_and_never_read(to: SocketAddr, source: String) {
    loop {
        let streamed = async {
            let stream: http::Stream = Box::new(try_connect_from(&source, to).await?);
            let (from, mut into) = tokio::io::split(stream);
            into.write_all(&streaming::get("")).await?;
            let down = streaming::Down::begin(from).await?;
            let logged_in = [frames::handshake().bytes(), frames::login("bob", "secret").bytes()].concat();
            let mut tcp = try_connect_from(&source, to).await?;
            let response = exchange(&mut tcp, &streaming::post("", &streaming::body(&down.name, &logged_in))).await?;
            if response.status != 200 {
                return Err(std::io::ErrorKind::Other.into());
            }
            let long = frames::message(1, &vec![0; 60_000]).bytes().repeat(10);
            let request = streaming::post("", &streaming::body(&down.name, &long));
            let mut unread = Vec::new();
            for _ in 0..6 {
                let mut tcp = try_connect_from(&source, to).await?;
                let sent = tokio::time::timeout(Duration::from_millis(200), tcp.write_all(&request)).await;
                unread.push((tcp, sent.is_ok()));
            }
            tokio::time::sleep(Duration::from_secs(4)).await;
            drop((down, into));
            std::io::Result::Ok(())
        };
        if streamed.await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Starts a web server that responds to every request with 64 MB.
async fn start_web_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = tcp.read(&mut [0; 4096]).await;
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n";
                let _ = tcp.write_all(head).await;
                for _ in 0..1024 {
                    if tcp.write_all(&[0; 65_536]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// All attacks at the same time, from eight addresses. Each address reaches its limits, and together they reach the
/// total limits: about 600 MB are sent to a program that may use 150 MB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_below_its_ceiling_under_attack_and_a_present_client_stays() {
    let community = Community::start(|mut connection: Connection| async move {
        // A client with the name `bob` gets many bytes, others get echoes.
        while let Some(frame) = connection.recv().await {
            match frame.kind {
                frames::HANDSHAKE => {
                    let ack = [&[0, 0x1E, 0, 0x18][..], &frame.body[8..12]].concat();
                    connection.send(&Frame::new(frames::HANDSHAKE_ACK, 0, &ack).bytes()).await;
                }
                frames::LOGIN => {
                    connection.send(&Frame::new(frames::LOGIN_ACK, 0, &[0; 30]).bytes()).await;
                    if frame.body.windows(3).any(|name| name == b"bob") {
                        let pushed = frames::message(1, &[0; 8_000]).bytes();
                        for _ in 0..400 {
                            connection.send(&pushed).await;
                        }
                        return connection.read_to_end().await;
                    }
                }
                frames::SEND => connection.send(&frame.bytes()).await,
                _ => (),
            }
        }
    })
    .await;
    let limits = "
        [limits]
        capacity = 90
        per_address = 12
        logging_in = 60
        logging_in_per_address = 10
        tunnel_sessions = 20
        tunnel_sessions_per_address = 3
        connections = 320
        connections_per_address = 50
        connection_rate = 2000
        connection_rate_per_address = 300
        held_bytes = 2097152
        held_bytes_per_address = 524288
        login_timeout = \"10s\"
        logging_in_timeout = \"5s\"
        [tunnel]
        session_timeout = \"5s\"
    ";
    let backend = format!("[http_backend]\nurl = \"http://{}\"\nconnections = 20\n", start_web_server().await);
    let setup = Setup::new(&format!("{}{limits}{backend}", community.setting()));
    let settings = sametime_mux::config::load(&setup.file()).unwrap();
    let ceiling = settings.memory_ceiling().tls;
    let raw = local(setup.raw);
    let program = setup.start();
    let mut present = Client::connect(Transport::Raw, raw).await;
    present.log_in("ann").await;
    let idle = program.resident();

    let logged_in = [frames::handshake().bytes(), frames::login("bob", "secret").bytes()].concat();
    let loud = [&logged_in[..], &frames::message(1, &vec![0; 60_000]).bytes().repeat(20)].concat();
    let long_handshake = [&65_500u32.to_be_bytes()[..], &[0; 60_000]].concat();
    let half_a_post = post("/CommunityCBR/CC.35.0123456789abcdef0123456789abcdef/", &[7; 2_000_000]);
    let half_a_post = half_a_post[..half_a_post.len() - 1].to_vec();
    let pages = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500);
    let probes = b"GET /CommunityCBR/ HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500);
    let guesses = post("/CommunityCBR/CC.35.0123456789abcdef0123456789abcdef/", &[0; 16]).repeat(100);
    let attacks: [(&[u8], bool, usize); 11] = [
        (b"", false, 100),
        (b"\x16\x03\x01\x40", false, 40),
        (&long_handshake, false, 100),
        (&long_handshake, true, 20),
        (&loud, false, 120),
        (&loud, true, 40),
        (&half_a_post, false, 80),
        (&half_a_post, true, 10),
        (&pages, false, 60),
        (&probes, false, 40),
        (&guesses, false, 20),
    ];
    let mut attackers = tokio::task::JoinSet::new();
    for n in 0..80 {
        attackers.spawn(ask_and_never_read(raw, format!("127.0.1.{}", n % 8)));
        attackers.spawn(stream_and_never_read(raw, format!("127.0.1.{}", n % 8)));
    }
    for (bytes, tls, count) in attacks {
        let bytes = Arc::new(bytes.to_vec());
        for n in 0..count {
            attackers.spawn(attack(raw, format!("127.0.1.{}", n % 8), Arc::clone(&bytes), tls));
        }
    }
    let (began, mut most) = (Instant::now(), 0);
    let refusals = [
        "sametime_mux_connections_dropped_total{reason=\"connections\"}",
        "sametime_mux_connections_dropped_total{reason=\"connections_per_address\"}",
        "sametime_mux_sessions_refused_total{reason=\"per_address\"}",
        "sametime_mux_sessions_refused_total{reason=\"tunnel_sessions_per_address\"}",
        "sametime_mux_sessions_refused_total{reason=\"held_bytes\"}",
    ];
    let mut unseen = refusals.to_vec();
    // Until every limit is reached, and at least for 12 s.
    let mut said = 0u32;
    while !unseen.is_empty() || began.elapsed() < Duration::from_secs(12) {
        assert!(began.elapsed() < Duration::from_secs(120), "never refused: {unseen:?}");
        said += 1;
        present.send_frame(&frames::message(1, &said.to_be_bytes())).await;
        assert_eq!(present.recv().await.expect("an echo").text(), said.to_be_bytes());
        let mut left = Vec::new();
        for name in unseen {
            if program.metric(name).await == 0.0 {
                left.push(name);
            }
        }
        unseen = left;
        most = most.max(program.resident());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mib = |bytes: u64| bytes / (1024 * 1024);
    println!(
        "idle {} MiB, at the most {} MiB, ceiling {} MiB; {said} messages of the one who was there",
        mib(idle),
        mib(most),
        mib(ceiling)
    );
    let test = "memory_stays_below_its_ceiling_under_attack_and_a_present_client_stays";
    for (name, what, seen) in [
        (refusals[0], "connections beyond `limits.connections`", "0x8000020B, or 503 with Retry-After"),
        (refusals[1], "connections beyond `limits.connections_per_address`", "0x8000020B, or 503 with Retry-After"),
        (refusals[2], "clients beyond `limits.per_address`", "0x8000020B"),
        (refusals[3], "tunnel sessions beyond `limits.tunnel_sessions_per_address`", "503 with Retry-After"),
        (refusals[4], "long first frames while `limits.held_bytes` is used up", "0x8000020B"),
    ] {
        let tried = format!("{}, from 8 addresses, all of these at once", program.metric(name).await);
        record::attack(what, &tried, seen, &format!("0 of {said} messages of a present client"), test);
    }
    // The ceiling includes 64 MiB for a program without clients. Attackers must not use these.
    assert!(most - idle <= ceiling - (64 << 20), "{most} - {idle} > {ceiling} - 64 MiB");
    attackers.shutdown().await;
    // After the attack, new clients are served and held bytes are released.
    in_time("a new client", async {
        loop {
            let Ok(mut tcp) = try_connect_from("127.0.1.1", raw).await else { continue };
            tcp.write_all(&frames::handshake().bytes()).await.unwrap();
            if Frame::read(&mut tcp).await.is_some_and(|frame| frame.kind == frames::HANDSHAKE_ACK) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    in_time("what was held", async { while program.metric("sametime_mux_held_bytes").await > 0.0 {} }).await;
    in_time("every place", async { while program.metric("sametime_mux_tunnel_sessions").await > 0.0 {} }).await;
    // Refusals of one kind are logged at most once a second.
    let log = program.log.lock().clone();
    let lines = log.lines().filter(|line| line.contains("connection dropped")).count();
    assert!(lines > 0 && lines as u64 <= began.elapsed().as_secs() + 2, "{lines} lines");
}
