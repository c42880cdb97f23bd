//! A web back end that fails: its clients learn it, it is counted, and the log has few lines.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    BackEnd, mux_before,
    support::{
        http, in_time,
        peer::free_address,
        program::{Setup, local},
    },
};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";

async fn count(mux: &crate::support::mux::Mux, reason: &str) -> f64 {
    mux.metric(&format!("sametime_mux_http_backend_errors_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn a_back_end_that_stalls_in_its_response_loses_its_place() {
    // It sends the head and a part of the body, and then nothing.
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let back_end = BackEnd::start(Duration::ZERO, response, usize::MAX).await;
        let few = "response_timeout = \"300ms\"\nconnections = 1\n";
        let mux = mux_before(back_end.address, few).await;
        for n in 1..=2 {
            let mut stream = http::tcp(mux.raw()).await;
            stream.write_all(GET).await.unwrap();
            let mut said = Vec::new();
            let _ = in_time("the end", stream.read_to_end(&mut said)).await;
            let said = String::from_utf8(said).unwrap();
            assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("abc"), "{said}");
            assert!(!said.ends_with("0\r\n\r\n"), "it does not look complete: {said}");
            assert_eq!(count(&mux, "stalled").await, f64::from(n), "the second one has the place of the first");
        }
    }
}

#[tokio::test]
async fn a_slow_response_that_does_not_pause_arrives() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mux = mux_before(listener.local_addr().unwrap(), "response_timeout = \"2s\"\n").await;
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n").await.unwrap();
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            tcp.write_all(b"x").await.unwrap();
        }
        tcp.read_to_end(&mut Vec::new()).await
    });
    let mut stream = http::tcp(mux.raw()).await;
    let response = in_time("a response", http::exchange(&mut stream, GET)).await.unwrap();
    assert_eq!(response.body.len(), 40);
    assert_eq!(mux.metric_sum("sametime_mux_http_backend_errors_total").await, 0.0);
}

#[tokio::test]
async fn each_failure_of_the_back_end_has_its_status_and_is_counted() {
    for (response, reason, status) in [
        ("garbage\r\n\r\n", "no_response", 502),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "switched_protocols", 502),
        ("", "too_slow", 504),
    ] {
        let back_end = BackEnd::start(Duration::ZERO, response, usize::MAX).await;
        let mux = mux_before(back_end.address, "response_timeout = \"300ms\"\n").await;
        let mut stream = http::tcp(mux.raw()).await;
        let answer = in_time("a response", http::exchange(&mut stream, GET)).await.unwrap();
        assert_eq!(answer.status, status, "{reason}");
        assert_eq!(count(&mux, reason).await, 1.0, "{reason}");
    }
    let cut_off = BackEnd::start(Duration::ZERO, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", 1).await;
    let mux = mux_before(cut_off.address, "").await;
    let mut stream = http::tcp(mux.raw()).await;
    stream.write_all(GET).await.unwrap();
    let _ = in_time("the end", stream.read_to_end(&mut Vec::new())).await;
    assert_eq!(count(&mux, "cut_off").await, 1.0);
}

/// How often each line is provoked.
const TIMES: usize = 10_000;
/// Clients at the same time.
const AT_ONCE: usize = 20;

/// Sends [`TIMES`] requests on kept connections. All of them get `status`.
async fn flood(to: SocketAddr, request: &'static [u8], status: u16) {
    let floods: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            tokio::spawn(async move {
                let mut stream = http::tcp(to).await;
                for _ in 0..TIMES / AT_ONCE {
                    let mut answer = http::exchange(&mut stream, request).await;
                    if answer.is_err() {
                        // The last response closed the connection.
                        stream = http::tcp(to).await;
                        answer = http::exchange(&mut stream, request).await;
                    }
                    assert_eq!(answer.unwrap().status, status);
                }
            })
        })
        .collect();
    for flood in floods {
        flood.await.unwrap();
    }
}

#[tokio::test]
async fn each_line_that_a_request_can_cause_is_limited_and_counted() {
    let closed = free_address();
    let setup = Setup::new(&format!("[http_backend]\nurl = \"http://{closed}\"\n"));
    let to = local(setup.raw);
    let program = setup.start();
    for (request, status, line) in [
        (GET, 502, "reason=\"unreachable\""),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "reason=host"),
        (b"GET /a HTTP/1.1\r\nBad name: y\r\n\r\n", 400, "reason=header"),
    ] {
        let start = Instant::now();
        flood(to, request, status).await;
        let lines = program.log.lock().lines().filter(|logged| logged.contains(line)).count();
        let most = start.elapsed().as_secs() as usize + 2;
        assert!((1..=most).contains(&lines), "{lines} lines with {line} in {:?}", start.elapsed());
    }
}
