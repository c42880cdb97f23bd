//! The streaming tunnel: requests in every form that proxies make of them, order, backpressure, keep-alives, and the end
//! of a session.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use support::{
    client::{Client, Transport},
    community::{Community, Connection},
    frames::{self, Frame},
    http::{self, Response, Stream},
    in_time,
    mux::{self, Mux},
    route::Route,
    streaming::{self, Down, body, send},
    wait_until,
};
use tokio::{
    io::{AsyncWriteExt, WriteHalf},
    net::{TcpSocket, TcpStream},
};

/// The headers that every request of a real client has.
const HEADERS: &str = "Pragma: No-Cache\r\nHost: 127.0.0.1\r\nContent-Type: Application/Octet-Stream\r\n";

/// How many requests of streaming clients had this outcome.
async fn outcome(mux: &Mux, outcome: &str) -> f64 {
    mux.metric(&format!("sametime_mux_tunnel_requests_total{{kind=\"http_streaming\",outcome=\"{outcome}\"}}")).await
}

/// Opens a session on `stream` with this request.
async fn open_with(mut stream: Stream, request: &[u8]) -> (Down, WriteHalf<Stream>) {
    stream.write_all(request).await.unwrap();
    stream.flush().await.unwrap();
    let (from, into) = tokio::io::split(stream);
    (in_time("the beginning", Down::begin(from)).await.unwrap(), into)
}

async fn open(mux: &Mux) -> (Down, WriteHalf<Stream>) {
    open_with(http::connect(mux.raw(), false).await, &streaming::get("")).await
}

/// Reads `n` bytes of the stream.
async fn read(down: &mut Down, n: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < n {
        let mut some = vec![0; n - all.len()];
        let read = in_time("bytes of the stream", down.read(&mut some)).await.unwrap();
        assert!(read > 0, "the stream has ended after {} bytes", all.len());
        all.extend_from_slice(&some[..read]);
    }
    all
}

/// Reads until the stream ends.
async fn read_rest(down: &mut Down) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    while let Ok(n @ 1..) = in_time("the end of the stream", down.read(&mut buffer)).await {
        all.extend_from_slice(&buffer[..n]);
    }
    all
}

/// Sends a POST request as a real client does.
async fn upload(mux: &Mux, name: &[u8], data: &[u8]) -> Response {
    in_time("a response", send(&mux.raw().into(), false, name, data)).await.unwrap()
}

fn assert_taken(response: &Response, name: &[u8]) {
    assert_eq!((response.status, &response.body), (200, &body(name, b"")), "{}", response.head);
}

/// Handshake and Login, and the number of bytes that the scripted Community answers.
fn log_in() -> (Vec<u8>, usize) {
    ([frames::handshake().bytes(), frames::login("bob", "secret").bytes()].concat(), 12 + 8 + 12 + 30)
}

#[tokio::test]
async fn requests_are_understood_in_every_form_that_proxies_make_of_them() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let (hello, answer) = log_in();
    for (line, more, is_chunked) in [
        ("http://127.0.0.1:8082/communityCBR/ HTTP/1.0", "", false),
        ("/communityCBR/ HTTP/1.0", "Connection: close\r\nVia: 1.0 tinyproxy\r\n", false),
        ("/communityCBR/ HTTP/1.1", "Connection: keep-alive\r\nVia: 1.1 squid\r\nCache-Control: max-age=0\r\n", true),
        ("/CommunityCBR HTTP/1.1", "Connection: close\r\n", true),
        ("//st01//COMMUNITYCBR/ HTTP/1.1", "X-Forwarded-For: 10.0.0.1\r\n", true),
        ("/st01/communityCBR/ HTTP/1.0", "Connection: Keep-Alive\r\n", false),
        // hyper reads these.
        ("/communityCBR/?x HTTP/1.1", "", true),
        ("/communityCBR/ HTTP/1.1", "Upgrade: h2c\r\nConnection: Upgrade\r\n", true),
        ("HTTP://Host/communityCBR/ HTTP/1.0", "", false),
    ] {
        for tls in [false, true] {
            let get = format!("GET {line}\r\n{HEADERS}{more}\r\n");
            let (mut down, _keep) = open_with(http::connect(mux.raw(), tls).await, get.as_bytes()).await;
            let head = Response { status: 200, head: down.head.clone(), body: Vec::new() };
            assert_eq!(head.header("transfer-encoding").is_some(), is_chunked, "{}", down.head);
            assert!(down.head.starts_with(if is_chunked { "HTTP/1.1 200" } else { "HTTP/1.0 200" }), "{}", down.head);
            assert_eq!(head.header("cache-control"), Some("no-cache, no-transform"));
            assert_eq!(head.header("x-accel-buffering"), Some("no"));
            let name = down.name.clone();
            let request = body(&name, &hello);
            let post = format!("POST {line}\r\n{HEADERS}{more}Content-Length: {}\r\n\r\n", request.len()).into_bytes();
            let mut connection = http::connect(mux.raw(), tls).await;
            let post = [post, request].concat();
            let exchange = http::exchange(&mut connection, &post);
            assert_taken(&in_time("a response", exchange).await.unwrap(), &name);
            assert_eq!(read(&mut down, answer).await[4..6], [0x80, 0], "a HandshakeAck");
        }
    }
}

#[tokio::test]
async fn a_request_may_come_in_chunks_and_in_pieces_and_on_a_connection_that_is_kept() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    // Byte by byte, behind the request for a page.
    let mut stream = http::connect(mux.raw(), false).await;
    let page = http::exchange(&mut stream, b"GET /communityCBR/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(page.body.starts_with(b"Sametime"));
    for byte in format!("GET /communityCBR/ HTTP/1.1\r\n{HEADERS}").bytes() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let (mut down, _keep) = open_with(stream, b"\r\n").await;
    let name = down.name.clone();
    let mut connection = http::connect(mux.raw(), false).await;
    let (hello, answer) = log_in();
    for (at, byte) in hello.iter().enumerate() {
        let request = body(&name, &[*byte]);
        let post = if at % 2 == 0 {
            let head = format!("POST /communityCBR/ HTTP/1.1\r\n{HEADERS}Transfer-Encoding: chunked\r\n\r\n");
            let mut post = head.into_bytes();
            for byte in &request {
                post.extend([b"1\r\n", &[*byte][..], b"\r\n"].concat());
            }
            [&post[..], b"0\r\n\r\n"].concat()
        } else {
            let length = request.len();
            let head = format!("POST /communityCBR/ HTTP/1.1\r\n{HEADERS}Content-Length: {length}\r\n\r\n");
            [head.as_bytes(), &request].concat()
        };
        let response = in_time("a response", http::exchange(&mut connection, &post)).await.unwrap();
        assert_taken(&response, &name);
    }
    assert_eq!(read(&mut down, answer).await.len(), answer);
    assert_eq!(outcome(&mux, "taken").await, hello.len() as f64);
    assert_eq!(outcome(&mux, "opened").await, 1.0);
}

#[tokio::test]
async fn a_person_and_a_health_check_get_the_page() {
    let mux = mux::start("").await;
    for request in [
        "GET /communityCBR/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /CommunityCBR HTTP/1.0\r\n\r\n",
        "GET /communityCBR/ HTTP/1.1\r\nHost: x\r\nPragma: no-cache\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\n\r\n",
        "GET /communityCBR/ HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe/1.30\r\nPragma: no-cache\r\n\r\n",
    ] {
        let mut tcp = http::tcp(mux.raw()).await;
        let response = in_time("a page", http::exchange(&mut tcp, request.as_bytes())).await.unwrap();
        assert!(response.status == 200 && response.body.starts_with(b"Sametime"), "{request}: {}", response.head);
    }
    assert_eq!(mux.metric("sametime_mux_tunnel_sessions").await, 0.0);
}

/// A Community server that reads nothing after the log-in until `reads` is set.
async fn slow_community(reads: &Arc<AtomicBool>) -> Community {
    let reads = Arc::clone(reads);
    Community::start(move |mut connection: Connection| {
        let reads = Arc::clone(&reads);
        async move {
            connection.accept_login().await;
            while !reads.load(Relaxed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            connection.read_to_end().await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_community_makes_the_client_wait_and_nothing_is_lost() {
    let reads = Arc::new(AtomicBool::new(false));
    let community = slow_community(&reads).await;
    let mux = mux::start(&community.setting()).await;
    let (mut down, _keep) = open(&mux).await;
    let (hello, answer) = log_in();
    let name = down.name.clone();
    assert_taken(&upload(&mux, &name, &hello).await, &name);
    read(&mut down, answer).await;
    let message = |n: u32| frames::message(n, &vec![n as u8; 60_000]).bytes();
    let answered = Arc::new(AtomicUsize::new(0));
    let (count, to) = (Arc::clone(&answered), mux.raw());
    let sender = name.clone();
    let sending = tokio::spawn(async move {
        for n in 0..400 {
            let response = send(&to.into(), false, &sender, &message(n)).await.unwrap();
            assert_taken(&response, &sender);
            count.fetch_add(1, Relaxed);
        }
    });
    // The sockets' buffers are full, and the response waits.
    let mut before = usize::MAX;
    in_time("the client waits", async {
        while std::mem::replace(&mut before, answered.load(Relaxed)) != answered.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
    assert!(before < 400, "the Community reads nothing, and everything was answered");
    let held = mux.metric("sametime_mux_held_bytes").await;
    assert!(held < 300_000.0, "{held} bytes are held");
    reads.store(true, Relaxed);
    in_time("all responses", sending).await.unwrap();
    let expected: Vec<u8> = (0..400).flat_map(message).collect();
    wait_until("all messages", || community.received(0).len() >= hello.len() + expected.len()).await;
    assert!(community.received(0).ends_with(&expected), "in order, and once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_community_that_takes_nothing_ends_the_session_with_the_reason() {
    let community = slow_community(&Arc::default()).await;
    let mux = mux::start(&format!("{}[tunnel]\nsession_timeout = \"1s\"\n", community.setting())).await;
    let (mut down, _keep) = open(&mux).await;
    let (hello, answer) = log_in();
    let name = down.name.clone();
    upload(&mux, &name, &hello).await;
    read(&mut down, answer).await;
    let message = frames::message(1, &[7; 60_000]).bytes();
    let last = loop {
        let response = upload(&mux, &name, &message).await;
        if response.status != 200 {
            break response;
        }
    };
    assert_eq!(last.status, 503);
    read_rest(&mut down).await;
    let closed = "sametime_mux_sessions_closed_total{reason=\"community_too_slow\"}";
    in_time("the reason", async {
        while mux.metric(closed).await < 1.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_stops_the_reading_of_the_community() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let message = frames::message(1, &[7; 30_000]).bytes();
    let flood = message.clone();
    let community = Community::start(move |mut connection: Connection| {
        let (count, flood) = (Arc::clone(&count), flood.clone());
        async move {
            connection.accept_login().await;
            for _ in 0..2_000 {
                if connection.into.write_all(&flood).await.is_err() {
                    return;
                }
                count.fetch_add(flood.len(), Relaxed);
            }
            connection.read_to_end().await;
        }
    })
    .await;
    let mux = mux::start(&community.setting()).await;
    for request in [streaming::get(""), format!("GET /communityCBR/ HTTP/1.1\r\n{HEADERS}\r\n").into_bytes()] {
        sent.store(0, Relaxed);
        let (mut down, _keep) = open_with(http::connect(mux.raw(), false).await, &request).await;
        let (hello, answer) = log_in();
        let name = down.name.clone();
        upload(&mux, &name, &hello).await;
        read(&mut down, answer).await;
        let mut before = usize::MAX;
        in_time("the Community waits", async {
            while std::mem::replace(&mut before, sent.load(Relaxed)) != sent.load(Relaxed) {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        })
        .await;
        assert!(before < 2_000 * message.len(), "everything was sent to a client that reads nothing");
        let held = mux.metric("sametime_mux_held_bytes").await;
        assert!(held < 200_000.0, "{held} bytes are held");
        for _ in 0..2_000 {
            assert!(read(&mut down, message.len()).await == message, "whole and in order");
        }
    }
}

#[tokio::test]
async fn a_silent_stream_gets_keep_alives_between_frames_only() {
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let wait = Arc::new(parking_lot::Mutex::new(Some(wait)));
    let whole = frames::message(9, b"text").bytes();
    let (first, second) = (whole[..15].to_vec(), whole[15..].to_vec());
    let community = Community::start(move |mut connection: Connection| {
        let (wait, first, second) = (wait.lock().take(), first.clone(), second.clone());
        async move {
            connection.accept_login().await;
            connection.recv().await;
            connection.send(&first).await;
            let _ = wait.expect("one session").await;
            connection.send(&second).await;
            connection.read_to_end().await;
        }
    })
    .await;
    let mux = mux::start(&format!("{}[tunnel]\nstream_keep_alive = \"100ms\"\n", community.setting())).await;
    let (mut down, _keep) = open_with(
        http::connect(mux.raw(), false).await,
        format!("GET /communityCBR/ HTTP/1.1\r\n{HEADERS}\r\n").as_bytes(),
    )
    .await;
    let (hello, answer) = log_in();
    let name = down.name.clone();
    upload(&mux, &name, &hello).await;
    // Keep-alives may come at once. All of the answer is before the first three of them that follow each other.
    let mut log_in_answer = Vec::new();
    while !log_in_answer.ends_with(&[0x80; 3]) {
        log_in_answer.extend(read(&mut down, 1).await);
    }
    assert!(log_in_answer.len() >= answer + 3);
    upload(&mux, &name, &frames::message(9, b"now").bytes()).await;
    // In the middle of a frame, no byte may come.
    let mut got = Vec::new();
    while got.len() < 15 {
        let byte = read(&mut down, 1).await;
        if !(got.is_empty() && byte == [0x80]) {
            got.extend(byte);
        }
    }
    let silence = tokio::time::timeout(Duration::from_millis(700), down.read(&mut [0])).await;
    assert!(silence.is_err(), "a byte in the middle of a frame");
    go.send(()).unwrap();
    got.extend(read(&mut down, whole.len() - 15).await);
    assert_eq!(got, whole);
    assert_eq!(read(&mut down, 2).await, [0x80; 2]);
}

#[tokio::test]
async fn the_last_requests_arrive_although_the_get_request_has_ended() {
    for first in ["the message", "the end"] {
        let community = Community::start_echo().await;
        let mux = mux::start(&community.setting()).await;
        let (mut down, keep) = open(&mux).await;
        let (hello, answer) = log_in();
        let name = down.name.clone();
        upload(&mux, &name, &hello).await;
        read(&mut down, answer).await;
        if first == "the end" {
            drop((down, keep));
            assert_taken(&upload(&mux, &name, &frames::log_out().bytes()).await, &name);
        } else {
            assert_taken(&upload(&mux, &name, &frames::log_out().bytes()).await, &name);
            drop((down, keep));
        }
        wait_until("the log-out", || community.received(0).ends_with(&frames::log_out().bytes())).await;
        in_time("the reason", async {
            while mux.metric("sametime_mux_sessions_closed_total{reason=\"log_out\"}").await < 1.0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        wait_until("the end", || mux.server.sessions() == 0).await;
        // A request for a session that is over is answered, too: its client does not wait for nothing.
        assert_taken(&upload(&mux, &name, &frames::log_out().bytes()).await, &name);
        assert_eq!(outcome(&mux, "after_end").await, 1.0, "{first}");
    }
}

#[tokio::test]
async fn the_end_of_the_get_request_ends_the_session_and_so_does_the_communitys() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let (hello, answer) = log_in();
    let (mut down, keep) = open(&mux).await;
    let name = down.name.clone();
    upload(&mux, &name, &hello).await;
    read(&mut down, answer).await;
    let sessions = format!("sametime_mux_sessions{{port=\"{}\",transport=\"http_streaming\"}}", mux.raw().port());
    assert_eq!(mux.metric(&sessions).await, 1.0);
    assert_eq!(mux.server.sessions(), 1);
    drop((down, keep));
    wait_until("the end", || mux.server.sessions() == 0).await;
    assert_eq!(mux.metric(&sessions).await, 0.0);
    // The Community's farewell message comes to the client, and then the end of the response.
    let leaving = Community::start(|mut connection: Connection| async move {
        connection.accept_login().await;
        connection.send(&frames::log_out().bytes()).await;
    })
    .await;
    let mux = mux::start(&leaving.setting()).await;
    for request in [streaming::get(""), format!("GET /communityCBR/ HTTP/1.1\r\n{HEADERS}\r\n").into_bytes()] {
        let (mut down, _keep) = open_with(http::connect(mux.raw(), false).await, &request).await;
        let name = down.name.clone();
        upload(&mux, &name, &hello).await;
        assert!(read_rest(&mut down).await.ends_with(&frames::log_out().bytes()));
    }
}

#[tokio::test]
async fn nobody_can_use_or_find_the_session_of_another() {
    let community = Community::start_echo().await;
    let mux = mux::start(&format!("{}[tunnel]\nsame_address = true\n", community.setting())).await;
    let (down, _keep) = open(&mux).await;
    let other = String::from_utf8(down.name.clone()).unwrap();
    let changed = other.replace(&other[..1], if other.starts_with('0') { "1" } else { "0" });
    for (name, status) in [(changed.as_str(), 404), ("S1", 404), ("", 404), (&"a".repeat(65), 400)] {
        assert_eq!(upload(&mux, name.as_bytes(), b"x").await.status, status, "{name}");
    }
    let malformed = in_time("a response", async {
        let mut tcp = http::tcp(mux.raw()).await;
        http::exchange(&mut tcp, &streaming::post("", b"\x01no such form")).await.unwrap()
    });
    assert_eq!(malformed.await.status, 400);
    // A name of one tunnel is none of another.
    let polling = format!("/CommunityCBR/CC.35.{other}/");
    let mut tcp = http::tcp(mux.raw()).await;
    assert_eq!(http::exchange(&mut tcp, &http::post(&polling, b"\0\0\0\0\0\0\0\0")).await.unwrap().status, 404);
    // The right name from another address.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stranger: TcpStream = socket.connect(mux.raw()).await.unwrap();
    let request = streaming::post("", &body(&down.name, b"x"));
    assert_eq!(http::exchange(&mut stranger, &request).await.unwrap().status, 404);
    assert_eq!(outcome(&mux, "other_address").await, 1.0);
    assert_eq!(outcome(&mux, "unknown").await, 3.0);
    assert_eq!(community.sessions(), 0, "nothing was passed on");
}

#[tokio::test]
async fn a_client_that_is_refused_is_told_so_in_its_stream() {
    for (limits, reason) in
        [("capacity = 1", "capacity"), ("tunnel_sessions = 1", "tunnel_sessions"), ("per_address = 1", "per_address")]
    {
        let mux = mux::start(&format!("[limits]\n{limits}\n")).await;
        let mut present = Client::connect(Transport::Streaming, mux.raw()).await;
        present.log_in("bob").await;
        for request in [streaming::get(""), format!("GET /communityCBR/ HTTP/1.1\r\n{HEADERS}\r\n").into_bytes()] {
            let (mut down, _keep) = open_with(http::connect(mux.raw(), false).await, &request).await;
            let rest = read_rest(&mut down).await;
            let farewell = in_time("a frame", Frame::read(&mut &rest[..])).await.expect("a farewell message");
            assert_eq!(farewell.reason(), 0x8000_020B, "{limits}");
            assert_eq!(rest.len(), farewell.bytes().len());
            assert_eq!(upload(&mux, &down.name.clone(), b"x").await.status, 404, "there is no such session");
        }
        let refused = format!("sametime_mux_sessions_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(mux.metric(&refused).await, 2.0, "{limits}");
    }
}

#[tokio::test]
async fn status_and_metrics_have_the_transport() {
    let mux = mux::start("[admin]\nlisten = \"127.0.0.1:9533\"\n").await;
    let mut client = Client::connect(Transport::StreamingTls, mux.raw()).await;
    client.log_in("bob").await;
    let status: serde_json::Value = serde_json::from_slice(&mux.get("/api/status").await.body).unwrap();
    assert_eq!(status["sessions"]["by_transport"]["http_streaming"], 1, "inside TLS, it is the tunnel's");
    let port = mux.raw().port();
    let opened = format!("sametime_mux_sessions_opened_total{{port=\"{port}\",transport=\"http_streaming\"}}");
    assert_eq!(mux.metric(&opened).await, 1.0);
    let connections = "sametime_mux_connections";
    wait_until("the last request's connection is closed", || mux.server.sessions() == 1).await;
    assert!(mux.metric(connections).await <= 1.0, "a session's connection is not counted twice");
}

/// Two requests at the same time keep the order of their arrival, and a request whose connection breaks stays taken.
#[tokio::test(flavor = "multi_thread")]
async fn requests_keep_the_order_of_their_arrival() {
    let reads = Arc::new(AtomicBool::new(false));
    let community = slow_community(&reads).await;
    let mux = mux::start(&community.setting()).await;
    let (mut down, _keep) = open(&mux).await;
    let (hello, answer) = log_in();
    let name = down.name.clone();
    upload(&mux, &name, &hello).await;
    read(&mut down, answer).await;
    // Until a request waits.
    let filler = frames::message(1, &[1; 60_000]).bytes();
    let route = Route::from(mux.raw());
    let mut fillers = 0;
    loop {
        let sending = send(&route, false, &name, &filler);
        fillers += 1;
        if tokio::time::timeout(Duration::from_secs(1), sending).await.is_err() {
            break;
        }
    }
    // The connection of the last one has been closed. It still comes first.
    let mut waiting = Vec::new();
    for n in 0..3u32 {
        let (route, name) = (route.clone(), name.clone());
        let message = frames::message(100 + n, b"later").bytes();
        waiting.push(tokio::spawn(async move { send(&route, false, &name, &message).await }));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let fifth = send(&route, false, &name, &filler).await.unwrap();
    assert_eq!(fifth.status, 503, "no more than four wait");
    reads.store(true, Relaxed);
    for request in waiting {
        assert_taken(&in_time("a response", request).await.unwrap().unwrap(), &name);
    }
    let later: Vec<u8> = (0..3).flat_map(|n| frames::message(100 + n, b"later").bytes()).collect();
    let expected = hello.len() + fillers * filler.len() + later.len();
    wait_until("all of it", || community.received(0).len() >= expected).await;
    let received = community.received(0);
    assert_eq!(received.len(), expected);
    assert!(received.ends_with(&[&filler[..], &later].concat()));
}

/// Its own messages, and those of others behind the same proxy, make a client wait and never fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_used_up_its_addresss_limit_goes_on() {
    let community = Community::start_echo().await;
    let mux = mux::start(&format!("{}[limits]\nheld_bytes_per_address = 65536\n", community.setting())).await;
    for tls in [false, true] {
        let request = format!("GET /communityCBR/ HTTP/1.1\r\n{HEADERS}\r\n").into_bytes();
        let (mut down, _keep) = open_with(http::connect(mux.raw(), tls).await, &request).await;
        let (hello, answer) = log_in();
        let name = down.name.clone();
        upload(&mux, &name, &hello).await;
        read(&mut down, answer).await;
        // Another request, whose body is on its way, leaves little of the limit.
        let begun = body(&name, &[7; 60_000]);
        let head = format!("POST /communityCBR/ HTTP/1.1\r\n{HEADERS}Content-Length: 99999\r\n\r\n");
        let mut other = http::connect(mux.raw(), tls).await;
        other.write_all(&[head.as_bytes(), &begun].concat()).await.unwrap();
        other.flush().await.unwrap();
        in_time("the other body", async {
            while mux.metric("sametime_mux_held_bytes").await < 50_000.0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        // More than is left, and more than the limit, on the path without hyper and on that with it.
        for size in [30_000, 140_000] {
            let message = frames::message(1, &vec![7; size]).bytes();
            let taken = async { assert_taken(&upload(&mux, &name, &message).await, &name) };
            let ((), echo) = tokio::join!(taken, read(&mut down, message.len()));
            assert!(echo == message);
            let request = body(&name, &message);
            let head = format!("POST /communityCBR/ HTTP/1.1\r\n{HEADERS}Transfer-Encoding: chunked\r\n\r\n");
            let chunk = format!("{:x}\r\n", request.len());
            let post = [head.as_bytes(), chunk.as_bytes(), &request, b"\r\n0\r\n\r\n"].concat();
            let mut connection = http::connect(mux.raw(), tls).await;
            let exchange = in_time("a response", http::exchange(&mut connection, &post));
            let taken = async { assert_taken(&exchange.await.unwrap(), &name) };
            let ((), echo) = tokio::join!(taken, read(&mut down, message.len()));
            assert!(echo == message);
        }
    }
}

/// A client behind trusted proxies is known by X-Forwarded-For, on both paths.
#[tokio::test]
async fn the_client_behind_a_trusted_proxy_is_known() {
    let mux = mux::start("[listeners]\nforwarded_for_from = [\"127.0.0.1/32\"]\n[limits]\nper_address = 1\n").await;
    let connect = |client: &str, more: &str| {
        let get = format!("GET /communityCBR/ HTTP/1.1\r\n{HEADERS}X-Forwarded-For: {client}\r\n{more}\r\n");
        let to: SocketAddr = mux.raw();
        async move { open_with(http::connect(to, false).await, get.as_bytes()).await }
    };
    let _one = connect("10.0.0.1", "").await;
    let _two = connect("10.0.0.2", "Upgrade: x\r\nConnection: upgrade\r\n").await;
    assert_eq!(mux.server.sessions(), 2);
    let (mut refused, _keep) = connect("10.0.0.2", "").await;
    assert_eq!(read_rest(&mut refused).await.len(), 20, "a farewell message");
}

/// A proxy that repeats a request on its own, because the connection ended before the response: nothing tells the copy
/// from a new message with the same text, see `docs/notes/streaming.md`.
#[tokio::test]
async fn a_request_that_a_proxy_repeats_arrives_twice() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let (mut down, _keep) = open(&mux).await;
    let (hello, answer) = log_in();
    let name = down.name.clone();
    upload(&mux, &name, &hello).await;
    read(&mut down, answer).await;
    let message = frames::message(7, b"once or twice").bytes();
    let mut lost = http::connect(mux.raw(), false).await;
    lost.write_all(&streaming::post("", &body(&name, &message))).await.unwrap();
    wait_until("the first copy", || community.received(0).ends_with(&message)).await;
    drop(lost);
    assert_taken(&upload(&mux, &name, &message).await, &name);
    wait_until("the second", || community.received(0).ends_with(&[&message[..], &message].concat())).await;
    assert_eq!(read(&mut down, 2 * message.len()).await, [&message[..], &message].concat());
    assert_eq!(mux.server.sessions(), 1, "the session continues");
}
