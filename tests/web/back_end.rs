//! What reaches the web back end, and what its client is answered.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::{
    BackEnd, mux_before,
    support::{
        http::{self, Response},
        in_time, wait_until,
    },
};

/// The response to a request on a connection of its own.
async fn ask(to: std::net::SocketAddr, tls: bool, request: &str) -> Response {
    let mut stream = http::connect(to, tls).await;
    in_time("a response", http::exchange(&mut stream, request.as_bytes())).await.expect("a response")
}

/// The value of a header of a head in lower case.
fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut values = head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let value = values.next();
    assert_eq!(values.next(), None, "{name} twice: {head}");
    value
}

const FORGED: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil.example\r\n\
                      Forwarded: for=6.6.6.6;proto=gopher;host=evil.example\r\nX-Real-IP: 6.6.6.6\r\n$WSRU: root\r\n\
                      X-Forwarded-Port: 666\r\n";

#[tokio::test]
async fn the_back_end_learns_who_asked_for_which_host_and_whether_with_tls() {
    let back_end = BackEnd::plain().await;
    let mux = mux_before(back_end.address, "").await;
    for (tls, proto) in [(false, "http"), (true, "https")] {
        for forged in ["", FORGED] {
            let request = format!("GET /a HTTP/1.1\r\nHost: web.example:81\r\n{forged}\r\n");
            assert_eq!(ask(mux.raw(), tls, &request).await.status, 200);
            let head = back_end.last();
            assert_eq!(header(&head, "x-forwarded-for"), Some("127.0.0.1"));
            assert_eq!(header(&head, "x-forwarded-proto"), Some(proto), "{head}");
            assert_eq!(header(&head, "x-forwarded-host"), Some("web.example:81"));
            let forwarded = format!("for=127.0.0.1;host=\"web.example:81\";proto={proto}");
            assert_eq!(header(&head, "forwarded"), Some(&*forwarded));
            assert!(!head.contains("6.6.6") && !head.contains("evil") && !head.contains("root"), "{head}");
            assert_eq!(header(&head, "x-forwarded-port"), None);
        }
    }
}

#[tokio::test]
async fn the_back_end_learns_what_a_trusted_proxy_says() {
    let back_end = BackEnd::plain().await;
    let trusting = "[listeners]\nforwarded_for_from = [\"127.0.0.1\"]\n";
    let mux = mux_before(back_end.address, trusting).await;
    let request = "GET /a HTTP/1.1\r\nHost: inner\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
                   X-Forwarded-Host: chat.example\r\nX-Forwarded-Port: 8443\r\n\r\n";
    assert_eq!(ask(mux.raw(), false, request).await.status, 200);
    let head = back_end.last();
    for (name, value) in [
        ("x-forwarded-for", "192.0.2.7, 127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "chat.example"),
        ("x-forwarded-port", "8443"),
        ("forwarded", "for=192.0.2.7;host=\"chat.example\";proto=https, for=127.0.0.1"),
        ("host", "inner"),
    ] {
        assert_eq!(header(&head, name), Some(value), "{head}");
    }
}

#[tokio::test]
async fn an_upgrade_is_ignored() {
    let back_end = BackEnd::plain().await;
    let mux = mux_before(back_end.address, "").await;
    for tls in [false, true] {
        for version in ["1.0", "1.1"] {
            // The second one comes with every request of Apache HttpClient 5.
            for to in ["h2c", "TLS/1.2", "websocket", "h2c, TLS/1.3, IRC/6.9", "x"] {
                let request =
                    format!("GET /a HTTP/{version}\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {to}\r\n\r\n");
                assert_eq!(ask(mux.raw(), tls, &request).await.status, 200, "{to}");
                let head = back_end.last();
                assert!(!head.contains("upgrade"), "{head}");
                let page = request.replace("/a", "/CommunityCBR");
                assert_eq!(ask(mux.raw(), tls, &page).await.status, 200, "{to}");
            }
        }
    }
}

#[tokio::test]
async fn a_request_is_sent_again_when_the_back_end_has_just_closed_its_kept_connection() {
    // It closes each connection after the response, without a word. So every kept connection is closed.
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nok\n";
    let back_end = BackEnd::start(Duration::ZERO, ok, 1).await;
    let mux = mux_before(back_end.address, "").await;
    let mut stream = http::connect(mux.raw(), false).await;
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "GET", "GET", "GET"] {
        let mut request = format!("{method} /a HTTP/1.1\r\nHost: x\r\n");
        if method == "HEAD" {
            // A response to HEAD has no body, so the connection is of no more use to this test's reader.
            request += "Connection: close\r\n";
        }
        request += "\r\n";
        if method == "HEAD" {
            let mut other = http::connect(mux.raw(), false).await;
            other.write_all(request.as_bytes()).await.unwrap();
            let mut head = Vec::new();
            in_time("the end", tokio::io::AsyncReadExt::read_to_end(&mut other, &mut head)).await.unwrap();
            assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", head.escape_ascii());
            continue;
        }
        let response = in_time("a response", http::exchange(&mut stream, request.as_bytes())).await.unwrap();
        assert_eq!(response.status, 200, "{method}");
    }
    assert_eq!(mux.metric_sum("sametime_mux_http_backend_errors_total").await, 0.0);
}

/// A back end that closes a kept connection when the second request on it has come, as one does whose time-out passes at
/// that moment.
async fn closes_on_the_second_request() -> (std::net::SocketAddr, std::sync::Arc<parking_lot::Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, lines) = (listener.local_addr().unwrap(), std::sync::Arc::<parking_lot::Mutex<Vec<_>>>::default());
    let all = std::sync::Arc::clone(&lines);
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let all = std::sync::Arc::clone(&all);
            tokio::spawn(async move {
                for n in 0..2 {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = tokio::io::AsyncReadExt::read_u8(&mut tcp).await else { return };
                        head.push(byte);
                    }
                    let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_owned();
                    all.lock().push(line);
                    if n == 0 {
                        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").await.unwrap();
                    }
                }
            });
        }
    });
    (address, lines)
}

#[tokio::test]
async fn only_a_request_that_may_be_repeated_is_sent_again() {
    let (address, lines) = closes_on_the_second_request().await;
    let mux = mux_before(address, "").await;
    let mut stream = http::connect(mux.raw(), false).await;
    let mut ask = async |request: &str| {
        let response = in_time("a response", http::exchange(&mut stream, request.as_bytes())).await.unwrap();
        response.status
    };
    assert_eq!(ask("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").await, 200);
    assert_eq!(ask("GET /2 HTTP/1.1\r\nHost: x\r\n\r\n").await, 200, "on a new connection");
    assert_eq!(ask("GET /3 HTTP/1.1\r\nHost: x\r\n\r\n").await, 200);
    assert_eq!(ask("POST /4 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await, 502, "it may have been done");
    let expected = ["GET /1", "GET /2", "GET /2", "GET /3", "POST /4"].map(|line| format!("{line} HTTP/1.1"));
    assert_eq!(*lines.lock(), expected);
}

#[tokio::test]
async fn a_method_that_is_not_passed_on_is_answered_with_those_that_are() {
    let back_end = BackEnd::plain().await;
    let mux = mux_before(back_end.address, "").await;
    for request in ["TRACE /a HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n"] {
        let response = ask(mux.raw(), false, request).await;
        assert_eq!(response.status, 405);
        assert_eq!(response.header("allow"), Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
}

#[tokio::test]
async fn a_body_that_is_cut_off_and_a_path_of_no_tunnel_are_counted() {
    let back_end = BackEnd::start(Duration::from_secs(100), "", 1).await;
    let mux = mux_before(back_end.address, "").await;
    let mut stream = http::tcp(mux.raw()).await;
    stream.write_all(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(in_time("a response", http::read_response(&mut stream)).await.unwrap().status, 400);
    let refused = "sametime_mux_http_requests_refused_total{reason=\"body_cut_off\"}";
    assert_eq!(mux.metric(refused).await, 1.0);
    // The framing guard counts what it finds itself.
    let chunk = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabad";
    assert_eq!(ask(mux.raw(), false, chunk).await.status, 400);
    assert_eq!(mux.metric(refused).await, 1.0);
    assert_eq!(mux.metric("sametime_mux_http_requests_refused_total{reason=\"chunk\"}").await, 1.0);
    let request = "POST /CommunityCBR/CC.40.x/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(mux.raw(), false, request).await.status, 404);
    let path = "sametime_mux_tunnel_requests_total{kind=\"unknown\",outcome=\"no_such_path\"}";
    assert_eq!(mux.metric(path).await, 1.0);
    wait_until("the request", || back_end.heads.lock().len() >= 2).await;
}
