//! Incoming connections: what the first bytes decide, which address the client has, who is refused and how.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{net::SocketAddr, time::Duration};

use sametime_mux::{net::Section, wire::proxy_protocol};
use support::{
    client::{Client, Transport},
    community::{Community, Connection},
    frames::{self, Frame},
    http::{self, exchange, post},
    in_time,
    mux::{self, Mux},
    tunnel::{Kind, Session},
    wait_until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const FULL: u32 = 0x8000_020B;
const NOT_RESPONDING: u32 = 0x8000_020C;
const CANNOT_CONNECT: u32 = 0x8000_020D;
const PROTOCOL_ERROR: u32 = 0x8000_020F;
const TOO_LARGE: u32 = 0x8000_0209;
const IDLE: u32 = 0x8000_0216;
const BROKEN: u32 = 0x8000_0221;
const TIMED_OUT: u32 = 0x8000_0225;

/// Writes `bytes` one at a time, each in a packet of its own.
async fn write_one_by_one(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) {
    for byte in bytes {
        stream.write_all(&[*byte]).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
}

/// The client's address in the Handshake that the Community received in session `n`.
async fn stamped_address(community: &Community, n: usize) -> [u8; 4] {
    wait_until("the handshake", || community.sessions() > n && community.received(n).len() >= 24).await;
    community.received(n)[20..24].try_into().unwrap()
}

/// The reason that a raw client reads when it is refused: it gets one DestroyCnl, then the end.
async fn refusal(to: SocketAddr, bytes: &[u8]) -> u32 {
    let mut client = Client::connect(Transport::Raw, to).await;
    client.send(bytes).await;
    let frame = client.recv().await.expect("a DestroyCnl");
    assert_eq!((frame.kind, frame.channel, frame.body.len()), (frames::DESTROY, 0, 8));
    assert!(client.recv_all().await.is_empty(), "and nothing else");
    frame.reason()
}

/// An echoing Community server, and a multiplexer in front of it.
async fn echo_mux(toml: &str) -> (Community, Mux) {
    let community = Community::start_echo().await;
    let mux = mux::start(&format!("{}{toml}", community.setting())).await;
    (community, mux)
}

#[tokio::test]
async fn bytes_may_arrive_one_at_a_time() {
    let (community, mux) = echo_mux("").await;
    let hello = [frames::handshake().bytes(), frames::login("bob", "secret").bytes()].concat();
    for tls in [false, true] {
        let mut stream = http::connect(mux.raw(), tls).await;
        write_one_by_one(&mut stream, &hello).await;
        for kind in [frames::HANDSHAKE_ACK, frames::LOGIN_ACK] {
            assert_eq!(in_time("an answer", Frame::read(&mut stream)).await.expect("a frame").kind, kind);
        }
    }
    let mut stream = http::tcp(mux.raw()).await;
    let session = Session::new(Kind::Polling);
    write_one_by_one(&mut stream, &post(&session.path(), &session.opening())).await;
    assert_eq!(http::read_response(&mut stream).await.unwrap().status, 200);
    let mut seen = hello.clone();
    seen[20..24].copy_from_slice(&[127, 0, 0, 1]);
    wait_until("both", || community.sessions() == 2 && community.received(1).len() == seen.len()).await;
    assert_eq!((community.received(0), community.received(1)), (seen.clone(), seen));
}

#[tokio::test]
async fn keep_alives_pass_in_both_directions_and_before_the_handshake() {
    let community = Community::start(|mut connection: Connection| async move {
        connection.send(&[0x80]).await;
        connection.accept_login().await;
        connection.send(&[0x80, 0x81]).await;
        connection.read_to_end().await;
    })
    .await;
    let mux = mux::start(&community.setting()).await;
    let mut stream = http::connect(mux.raw(), false).await;
    let sent = [&[0x80][..], &frames::handshake().bytes(), &[0xFF], &frames::login("b", "s").bytes(), &[0x80]].concat();
    stream.write_all(&sent).await.unwrap();
    let mut got = vec![0; 1 + 20 + 42 + 2];
    in_time("all of it", stream.read_exact(&mut got)).await.unwrap();
    assert_eq!((got[0], &got[got.len() - 2..]), (0x80, &[0x80, 0x81][..]));
    wait_until("all of it", || community.received(0).len() == sent.len()).await;
    let mut expected = sent;
    expected[21..25].copy_from_slice(&[127, 0, 0, 1]);
    assert_eq!(community.received(0), expected);
}

#[tokio::test]
async fn a_proxy_header_from_a_trusted_proxy_gives_the_clients_address() {
    let (community, mux) = echo_mux("[listeners]\nproxy_protocol_from = [\"127.0.0.1\"]\n").await;
    let v1 = b"PROXY TCP4 192.0.2.7 127.0.0.1 5000 1533\r\n".to_vec();
    let v2 = proxy_protocol::v2("198.51.100.9:5".parse().unwrap(), "127.0.0.1:1533".parse().unwrap());
    let local = [&b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"[..]].concat();
    for (n, (header, expected)) in
        [(v1, [192, 0, 2, 7]), (v2, [198, 51, 100, 9]), (local, [127, 0, 0, 1])].into_iter().enumerate()
    {
        let mut stream = http::connect(mux.raw(), false).await;
        write_one_by_one(&mut stream, &header).await;
        stream.write_all(&frames::handshake().bytes()).await.unwrap();
        assert!(Frame::read(&mut stream).await.is_some());
        assert_eq!(stamped_address(&community, n).await, expected);
    }
    // The header is required: a connection without one is dropped.
    let mut stream = http::connect(mux.raw(), false).await;
    stream.write_all(&frames::handshake().bytes()).await.unwrap();
    assert!(in_time("the close", Frame::read(&mut stream)).await.is_none());
    assert_eq!(community.sessions(), 3);
    assert_eq!(mux.metric("sametime_mux_connections_dropped_total{reason=\"proxy_header\"}").await, 1.0);
}

#[tokio::test]
async fn a_proxy_header_from_anybody_else_is_refused() {
    let (community, mux) = echo_mux("").await;
    let header = b"PROXY TCP4 192.0.2.7 127.0.0.1 5000 1533\r\n".to_vec();
    let v2 = proxy_protocol::v2("192.0.2.7:5".parse().unwrap(), "127.0.0.1:1533".parse().unwrap());
    for header in [header, v2] {
        let mut stream = http::connect(mux.raw(), false).await;
        stream.write_all(&[&header[..], &frames::handshake().bytes()].concat()).await.unwrap();
        let mut rest = Vec::new();
        let _ = in_time("the close", stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty());
    }
    assert_eq!(community.sessions(), 0);
}

/// Opens a tunnel session with an extra header and sends a handshake through it.
async fn tunnel_with(mux: &Mux, header: &str) {
    let mut stream = http::tcp(mux.raw()).await;
    let mut session = Session::new(Kind::Polling);
    for step in 0..2 {
        let body = if step == 0 { session.opening() } else { session.request(&frames::handshake().bytes()) };
        let request = post(&session.path(), &body);
        let line = format!("\r\n{header}\r\nHost:");
        let request = String::from_utf8_lossy(&request[..request.len() - body.len()]).replacen("\r\nHost:", &line, 1);
        let response = exchange(&mut stream, &[request.as_bytes(), &body].concat()).await.unwrap();
        assert_eq!(response.status, 200);
        if step == 0 {
            session.opened(&response.body);
        }
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_may_give_a_clients_address() {
    let (community, mux) = echo_mux("").await;
    tunnel_with(&mux, "X-Forwarded-For: 192.0.2.7").await;
    assert_eq!(stamped_address(&community, 0).await, [127, 0, 0, 1]);
    let (community, mux) = echo_mux("[listeners]\nforwarded_for_from = [\"127.0.0.0/8\"]\n").await;
    tunnel_with(&mux, "X-Forwarded-For: 6.6.6.6, 192.0.2.7").await;
    assert_eq!(stamped_address(&community, 0).await, [192, 0, 2, 7]);
}

#[tokio::test]
async fn every_form_of_the_tunnels_path_is_recognized() {
    let (_community, mux) = echo_mux("").await;
    let opening = Session::new(Kind::Hybrid).opening();
    let plain = post("/CommunityCBR/CC.39./", &opening);
    let plain = |from: &str, to: &str| {
        let head = String::from_utf8_lossy(&plain[..plain.len() - opening.len()]).replacen(from, to, 1);
        [head.as_bytes(), &opening].concat()
    };
    let chunked = {
        let (a, b) = opening.split_at(10);
        let head = "POST /CommunityCBR/CC.39./ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        [head.as_bytes(), b"a\r\n", a, format!("\r\n{:x}\r\n", b.len()).as_bytes(), b, b"\r\n0\r\n\r\n"].concat()
    };
    for request in [
        plain("", ""),
        plain("/CommunityCBR", "/communityCBR"),
        plain("/CommunityCBR", "/st01/CommunityCBR"),
        plain("/CommunityCBR", "//st01//CommunityCBR"),
        plain("/CommunityCBR", "http://sametime.example:8082/CommunityCBR"),
        plain("HTTP/1.1", "HTTP/1.0"),
        chunked,
    ] {
        let mut stream = http::tcp(mux.port(Section::HttpTunneledClientConnections)).await;
        let response = in_time("a response", exchange(&mut stream, &request)).await.unwrap();
        let first = String::from_utf8_lossy(&request[..60]).into_owned();
        assert_eq!(response.status, 200, "{first}: {}", response.head);
        assert_eq!(response.header("content-type"), Some("application/octet-stream"));
        Session::new(Kind::Hybrid).opened(&response.body);
    }
    assert_eq!(mux.metric("sametime_mux_tunnel_requests_total{kind=\"http_hybrid\",outcome=\"opened\"}").await, 7.0);
}

#[tokio::test]
async fn requests_that_are_not_of_the_tunnels_form_get_their_status() {
    let (_community, mux) = echo_mux("").await;
    let long = "A".repeat(5000);
    let very_long = "A".repeat(100_000);
    let unknown = format!("POST /CommunityCBR/CC.35.{}/", "0".repeat(32));
    for (line, body, status) in [
        ("GET /CommunityCBR", &b""[..], 200),
        ("HEAD /CommunityCBR/", b"", 200),
        ("GET /CommunityCBR/CC.35./", b"", 200),
        ("PUT /CommunityCBR/CC.35./", b"", 405),
        ("DELETE /CommunityCBR", b"", 405),
        ("POST /CommunityCBR/CC.35./", b"", 400),
        ("POST /CommunityCBR/CC.35./", b"\0\0\0\0\0\0\0\x01\xFF\xFF\xFF\xFF", 400),
        ("POST /CommunityCBR/CC.35./", b"\0\0\0\0\0\0\0\x01\0\0\0\x01\x01", 400),
        (&*unknown, b"\0\0\0\0\0\0\0\x08abcdefgh", 404),
        ("POST /CommunityCBR/CC.35.short/", b"\0\0\0\0", 404),
        ("POST /CommunityCBR/CC.36./", b"", 404),
        (&*format!("POST /CommunityCBR/CC.39.{long}/"), b"", 404),
        (&*format!("POST /CommunityCBR/CC.39.{very_long}/"), b"", 414),
        ("GET /", b"", 404),
        ("GET /index.html?x=/CommunityCBR", b"", 404),
    ] {
        let mut stream = http::tcp(mux.raw()).await;
        let request =
            format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut answer = Vec::new();
        // The multiplexer may respond and close before it has read everything.
        let _ = stream.write_all(&[request.as_bytes(), body].concat()).await;
        let _ = in_time("an answer", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        let seen: u16 = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        // hyper responds to an over-long head with 431 or 414.
        assert!(seen == status || (status == 414 && seen == 431), "{:.80}: {answer}", line);
    }
    // Afterwards a client can log in.
    Client::connect(Transport::Polling, mux.raw()).await.log_in("bob").await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let (_community, mux) = echo_mux("[limits]\nmax_frame = 1024\n").await;
    let mut stream = http::tcp(mux.raw()).await;
    let request = b"POST /CommunityCBR/CC.35./ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n";
    assert_eq!(in_time("a response", exchange(&mut stream, request)).await.unwrap().status, 413);
}

#[tokio::test]
async fn other_requests_go_to_the_web_back_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
        // The body is passed on as it arrives: the first half has a response before the second half is sent.
        let mut half = vec![0; 13];
        tcp.read_exact(&mut half).await.unwrap();
        tcp.write_all(b"HTTP/1.1 201 Created\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            .await
            .unwrap();
        tcp.read_exact(&mut half).await.unwrap();
        tcp.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        String::from_utf8(head).unwrap().to_lowercase()
    });
    let mux = mux::start(&format!("[http_backend]\nurl = \"http://{backend}\"\n")).await;
    let mut stream = http::tcp(mux.raw()).await;
    stream
        .write_all(b"POST /page?q=1 HTTP/1.1\r\nHost: web.example\r\nConnection: X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\nX-Forwarded-For: 6.6.6.6\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"first\r\n") {
        head.push(in_time("the first half", stream.read_u8()).await.unwrap());
    }
    stream.write_all(b"8\r\n12345678\r\n0\r\n\r\n").await.unwrap();
    let mut rest = vec![0; 64];
    let n = in_time("the second half", stream.read(&mut rest)).await.unwrap();
    assert!(rest[..n].starts_with(b"6\r\nsecond\r\n"));
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 201") && head.contains("x-kept: 2") && !head.contains("x-hop"), "{head}");
    let request = served.await.unwrap();
    assert!(request.starts_with("post /page?q=1 http/1.1\r\n"), "{request}");
    assert!(
        request.contains("host: web.example\r\n") && request.contains("x-forwarded-for: 127.0.0.1\r\n"),
        "{request}"
    );
    assert!(
        !request.contains("x-mine") && !request.contains("te: trailers") && !request.contains("6.6.6.6"),
        "{request}"
    );
    let mut stream = http::tcp(mux.raw()).await;
    let gone = exchange(&mut stream, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(gone.status, 502, "the back end is gone");
}

/// The response to the first request of a tunnel that is refused.
async fn tunnel_refusal(to: SocketAddr) -> http::Response {
    let mut stream = http::tcp(to).await;
    let session = Session::new(Kind::Polling);
    exchange(&mut stream, &post(&session.path(), &session.opening())).await.unwrap()
}

#[tokio::test]
async fn a_client_over_the_limit_is_refused_in_its_own_protocol() {
    for (limit, reason) in [("capacity = 1", "capacity"), ("per_address = 1", "per_address")] {
        let (_community, mux) = echo_mux(&format!("[limits]\n{limit}\n")).await;
        let mut first = Client::connect(Transport::Raw, mux.raw()).await;
        first.log_in("bob").await;
        assert_eq!(refusal(mux.raw(), &frames::handshake().bytes()).await, FULL);
        let response = tunnel_refusal(mux.raw()).await;
        assert_eq!(response.status, 503);
        assert!(response.header("retry-after").is_some());
        let mut tls = Client::connect(Transport::Tls, mux.raw()).await;
        tls.send_frame(&frames::handshake()).await;
        assert_eq!(tls.recv().await.expect("a DestroyCnl").reason(), FULL);
        let name = format!("sametime_mux_sessions_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(mux.metric(&name).await, 3.0);
        // The place of a client that leaves is free again.
        first.log_out().await;
        wait_until("the place", || mux.server.sessions() == 0).await;
        Client::connect(Transport::Raw, mux.raw()).await.log_in("ann").await;
    }
}

#[tokio::test]
async fn a_client_without_a_community_server_gets_the_reason() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mux = mux::start(&format!("[community]\nservers = [\"{nobody}\"]\n")).await;
    assert_eq!(refusal(mux.raw(), &frames::handshake().bytes()).await, CANNOT_CONNECT);
    // Over the tunnel, the first payload is the reason.
    let mut client = Client::connect(Transport::Hybrid, mux.raw()).await;
    client.send_frame(&frames::handshake()).await;
    assert_eq!(client.recv().await.expect("a DestroyCnl").reason(), CANNOT_CONNECT);
    assert!(client.recv().await.is_none(), "then the end");
    assert_eq!(mux.get("/readyz").await.status, 503);
}

#[tokio::test]
async fn a_client_that_continues_without_an_answer_is_not_delayed() {
    // This server sends nothing before it has the Login. The other server must get no byte.
    let slow = Community::start(|mut connection: Connection| async move {
        for kind in [frames::HANDSHAKE, frames::LOGIN] {
            let Some(frame) = connection.recv().await else { return };
            assert_eq!(frame.kind, kind);
        }
        connection.send(&Frame::new(frames::HANDSHAKE_ACK, 0, &[0; 8]).bytes()).await;
        connection.send(&Frame::new(frames::LOGIN_ACK, 0, &[0; 30]).bytes()).await;
        connection.read_to_end().await;
    })
    .await;
    let other = Community::start_echo().await;
    let mux = mux::start(&format!(
        "[community]\nservers = [\"{}\", \"{}\"]\nbalance = \"failover\"\nhandshake_timeout = \"2m\"\n",
        slow.address, other.address
    ))
    .await;
    let hello = [frames::handshake().bytes(), frames::login("bob", "secret").bytes()].concat();
    let mut present = Vec::new();
    for (n, transport) in Transport::ALL.into_iter().enumerate() {
        // Every second client sends the Login together with the Handshake, the others send it later.
        let mut client = Client::connect(transport, mux.raw()).await;
        if n % 2 == 0 {
            client.send(&hello).await;
        } else {
            client.send_frame(&frames::handshake()).await;
            wait_until("the handshake", || slow.sessions() > n).await;
            client.send_frame(&frames::login("bob", "secret")).await;
        }
        for kind in [frames::HANDSHAKE_ACK, frames::LOGIN_ACK] {
            assert_eq!(client.recv().await.expect("an answer").kind, kind, "{transport:?}");
        }
        assert_eq!(slow.received(n).len(), hello.len(), "{transport:?}: each byte once");
        present.push(client);
    }
    // A client that leaves without an answer leaves no session.
    for transport in [Transport::Raw, Transport::Tls] {
        let mut client = Client::connect(transport, mux.raw()).await;
        client.send_frame(&frames::handshake()).await;
        client.shut_down().await;
        drop(client);
    }
    wait_until("their end", || slow.sessions() == present.len() + 2 && mux.server.sessions() == present.len()).await;
    assert_eq!(other.sessions(), 0);
    assert_eq!(mux.metric("sametime_mux_held_bytes").await, 0.0);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_skipped_and_no_byte_is_lost() {
    let hangs = Community::start(|mut connection: Connection| async move { connection.read_to_end().await }).await;
    let other = Community::start_echo().await;
    let mux = mux::start(&format!(
        "[community]\nservers = [\"{}\", \"{}\"]\nbalance = \"failover\"\nhandshake_timeout = \"300ms\"\n",
        hangs.address, other.address
    ))
    .await;
    for transport in Transport::ALL {
        let mut client = Client::connect(transport, mux.raw()).await;
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        client.send_text(channel, b"hello").await;
        assert_eq!(client.recv().await.expect("an echo").text(), b"hello", "{transport:?}");
    }
    assert_eq!(other.sessions(), Transport::ALL.len());
    assert_eq!(stamped_address(&other, 0).await, [127, 0, 0, 1]);
    let alone =
        mux::start(&format!("[community]\nservers = [\"{}\"]\nhandshake_timeout = \"300ms\"\n", hangs.address)).await;
    assert_eq!(refusal(alone.raw(), &frames::handshake().bytes()).await, NOT_RESPONDING);
}

#[tokio::test]
async fn bytes_that_are_not_a_frame_are_refused() {
    let (community, mux) = echo_mux("[limits]\nmax_frame = 2048\n").await;
    let to = mux.raw();
    assert_eq!(refusal(to, &[0, 0, 0, 7, 0, 0, 0]).await, PROTOCOL_ERROR);
    assert_eq!(refusal(to, &[0, 0, 8, 1]).await, TOO_LARGE);
    assert_eq!(refusal(to, &frames::login("bob", "secret").bytes()).await, PROTOCOL_ERROR);
    assert_eq!(refusal(to, b"\x05\x01\0").await, PROTOCOL_ERROR);
    // Before the log-in the limit is 64 KiB, whatever the value of max_frame.
    let (_community, generous) = echo_mux("[limits]\nmax_frame = 1048576\n").await;
    assert_eq!(refusal(generous.raw(), &65_537u32.to_be_bytes()).await, TOO_LARGE);
    assert_eq!(community.sessions(), 0, "none of it came through");
    // After the log-in, the frames before the wrong one are passed on.
    let mut client = Client::connect(Transport::Raw, to).await;
    client.log_in("bob").await;
    let before = frames::message(1, b"before").bytes();
    client.send(&[&before[..], &[0, 0, 8, 1]].concat()).await;
    let mut frame = client.recv().await.expect("an echo, or the DestroyCnl");
    if frame.kind == frames::SEND {
        frame = client.recv().await.expect("the DestroyCnl");
    }
    assert_eq!(frame.reason(), TOO_LARGE);
    wait_until("what stood before", || community.received(0).ends_with(&before)).await;
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_disconnected() {
    let (community, mux) = echo_mux("[limits]\nlogin_timeout = \"150ms\"\n").await;
    assert_eq!(refusal(mux.raw(), b"").await, TIMED_OUT);
    assert_eq!(refusal(mux.raw(), &frames::handshake().bytes()[..9]).await, TIMED_OUT);
    for half in [&b"POST /CommunityCBR"[..], b"\x16\x03"] {
        let mut stream = http::tcp(mux.raw()).await;
        stream.write_all(half).await.unwrap();
        let _ = in_time("the close", stream.read_to_end(&mut Vec::new())).await;
    }
    assert_eq!(community.sessions(), 0);
    // After the first frame, the client may wait longer.
    let mut client = Client::connect(Transport::Raw, mux.raw()).await;
    client.handshake().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    client.send_frame(&frames::login("bob", "secret")).await;
    assert_eq!(client.recv().await.expect("a LoginAck").kind, frames::LOGIN_ACK);
}

#[tokio::test]
async fn a_client_that_is_idle_for_too_long_is_disconnected() {
    let (_community, mux) = echo_mux("[limits]\nidle_timeout = \"300ms\"\n").await;
    let mut client = Client::connect(Transport::Raw, mux.raw()).await;
    client.log_in("bob").await;
    // With keep-alives a client is not idle.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.send(&[0x80]).await;
    }
    let channel = client.open_chat("echo").await;
    client.send_text(channel, b"still here").await;
    assert!(client.recv().await.is_some());
    assert_eq!(client.recv().await.expect("a DestroyCnl").reason(), IDLE);
}

#[tokio::test]
async fn the_last_bytes_arrive_before_the_end() {
    for transport in Transport::ALL {
        let community = Community::start(|mut connection: Connection| async move {
            connection.accept_login().await;
            connection.send(&frames::message(1, b"last words").bytes()).await;
        })
        .await;
        let mux = mux::start(&community.setting()).await;
        let mut client = Client::connect(transport, mux.raw()).await;
        client.log_in("bob").await;
        assert_eq!(client.recv().await.expect("the last words").text(), b"last words", "{transport:?}");
        assert!(client.recv().await.is_none(), "{transport:?}: then the end");
        drop(client);
        wait_until("the count", || mux.server.sessions() == 0).await;
    }
}

#[tokio::test]
async fn a_client_gets_the_reason_when_its_link_breaks() {
    let community = Community::start(|mut connection: Connection| async move {
        connection.accept_login().await;
        connection.recv().await;
        // With this option the close is a reset.
        let stream = connection.into.as_ref();
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        // Without this the write half would send a FIN first.
        connection.into.forget();
    })
    .await;
    let mux = mux::start(&community.setting()).await;
    let mut client = Client::connect(Transport::Raw, mux.raw()).await;
    client.log_in("bob").await;
    client.send_text(1, b"x").await;
    assert_eq!(client.recv().await.expect("a DestroyCnl").reason(), BROKEN);
    assert!(client.recv().await.is_none());
    assert_eq!(mux.metric("sametime_mux_sessions_closed_total{reason=\"community_broken\"}").await, 1.0);
}

#[tokio::test]
async fn a_client_that_half_closes_still_receives() {
    let community = Community::start(|mut connection: Connection| async move {
        connection.accept_login().await;
        connection.read_to_end().await;
        connection.send(&frames::message(1, b"after your end").bytes()).await;
    })
    .await;
    let mux = mux::start(&community.setting()).await;
    for transport in [Transport::Raw, Transport::Tls] {
        let mut client = Client::connect(transport, mux.raw()).await;
        client.log_in("bob").await;
        client.shut_down().await;
        assert_eq!(client.recv().await.expect("a message").text(), b"after your end");
        assert!(client.recv().await.is_none());
    }
}

#[tokio::test]
async fn a_tunnel_session_without_requests_ends() {
    let community = Community::start(|mut connection: Connection| async move {
        connection.accept_login().await;
        connection.read_to_end().await;
    })
    .await;
    let mux =
        mux::start(&format!("{}[tunnel]\nhold = \"100ms\"\nsession_timeout = \"400ms\"\n", community.setting())).await;
    let mut stream = http::tcp(mux.raw()).await;
    let mut session = Session::new(Kind::Polling);
    let first = exchange(&mut stream, &post(&session.path(), &session.opening())).await.unwrap();
    session.opened(&first.body);
    let request = session.request(&frames::handshake().bytes());
    assert_eq!(exchange(&mut stream, &post(&session.path(), &request)).await.unwrap().status, 200);
    assert_eq!(mux.server.sessions(), 1);
    wait_until("the end", || mux.server.sessions() == 0).await;
    assert_eq!(exchange(&mut stream, &post(&session.path(), &request)).await.unwrap().status, 404);
    assert_eq!(mux.metric("sametime_mux_sessions_closed_total{reason=\"session_timeout\"}").await, 1.0);
}

#[tokio::test]
async fn an_unread_tunnel_holds_the_community_back_and_loses_nothing() {
    const ALL: usize = 8 << 20;
    let community = Community::start(|mut connection: Connection| async move {
        connection.accept_login().await;
        for n in 0..(ALL >> 10) {
            connection.send(&frames::message(u32::try_from(n).unwrap(), &[7; 1024 - 24]).bytes()).await;
        }
        connection.read_to_end().await;
    })
    .await;
    let mux = mux::start(&format!("{}[tunnel]\nwindow = 65536\n", community.setting())).await;
    let mut stream = http::tcp(mux.raw()).await;
    let mut session = Session::new(Kind::Polling);
    let first = exchange(&mut stream, &post(&session.path(), &session.opening())).await.unwrap();
    session.opened(&first.body);
    let hello = [frames::handshake().bytes(), frames::login("bob", "s").bytes()].concat();
    let request = session.request(&hello);
    let response = exchange(&mut stream, &post(&session.path(), &request)).await.unwrap();
    let mut got = session.response(&response.body);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let to_client = mux.metric("sametime_mux_bytes_total{direction=\"to_client\"}").await;
    assert!(to_client < 400_000.0, "{to_client} bytes were read for a client that asks for none");
    while got.len() < ALL {
        let request = session.request(&[]);
        let response = exchange(&mut stream, &post(&session.path(), &request)).await.unwrap();
        let payload = session.response(&response.body);
        assert!(payload.len() <= 65536);
        got.extend(payload);
    }
    let mut from = &got[20 + 42..];
    for n in 0..(ALL >> 10) - 1 {
        assert_eq!(Frame::read(&mut from).await.unwrap().channel, u32::try_from(n).unwrap());
    }
}

#[tokio::test]
async fn drain_refuses_new_clients_and_lets_present_ones_continue() {
    // Long enough for the messages of present clients, also on a busy machine.
    let (_community, mux) = echo_mux("[limits]\ndrain_timeout = \"10s\"\n").await;
    let mut present = Vec::new();
    for transport in Transport::ALL {
        let mut client = Client::connect(transport, mux.raw()).await;
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        present.push((transport, client, channel));
    }
    let server = mux.server.clone();
    let draining = tokio::spawn(async move { server.drain().await });
    wait_until("the drain", || mux.server.is_draining()).await;
    assert_eq!(refusal(mux.raw(), &frames::handshake().bytes()).await, NOT_RESPONDING);
    assert_eq!(tunnel_refusal(mux.raw()).await.status, 503);
    let ready = mux.get("/readyz").await;
    assert_eq!((ready.status, &ready.body[..]), (503, &b"draining\n"[..]));
    for (_, client, channel) in &mut present {
        client.send_text(*channel, b"still served").await;
    }
    for (_, client, _) in &mut present {
        assert_eq!(client.recv().await.expect("an echo").text(), b"still served");
    }
    let (transport, mut leaver, _) = present.remove(0);
    assert_eq!(transport, Transport::Raw);
    leaver.log_out().await;
    assert!(leaver.recv().await.is_none());
    drop(leaver);
    // The others get the reason at the deadline, each over its own transport.
    for (transport, client, _) in &mut present {
        assert_eq!(
            client.recv().await.unwrap_or_else(|| panic!("{transport:?}: a DestroyCnl")).reason(),
            BROKEN,
            "{transport:?}"
        );
        assert!(client.recv().await.is_none(), "{transport:?}: then the end");
    }
    let drained = in_time("the drain's end", draining).await.unwrap();
    assert_eq!((drained.ended, drained.left), (Transport::ALL.len() - 1, 0));
}
