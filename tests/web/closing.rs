//! How connections end: clients that half-close, bodies that arrive slowly, bodies that nobody reads.

use std::{net::SocketAddr, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    BackEnd, mux_before,
    support::{
        community::{Community, Connection},
        frames,
        http::{self, Response, Stream, post},
        in_time, mux,
        tunnel::{Kind, Session},
    },
};

/// Sends a request, closes the sending side, and reads the response.
async fn half_close(stream: &mut Stream, request: &[u8]) -> Response {
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    in_time("a response", http::read_response(stream)).await.expect("a response")
}

#[tokio::test]
async fn a_client_that_half_closes_gets_the_response_of_the_tunnel() {
    let mux = mux::start("").await;
    for tls in [false, true] {
        for form in ["", "Accept: */*\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"] {
            let session = Session::new(Kind::Polling);
            let request = String::from_utf8_lossy(&post(&session.path(), b"")).into_owned();
            assert!(request.contains("Content-Length: 0\r\n"));
            let opening = session.opening();
            let head =
                request.replace("Content-Length: 0\r\n", &format!("{form}Content-Length: {}\r\n", opening.len()));
            let mut stream = http::connect(mux.raw(), tls).await;
            let response = half_close(&mut stream, &[head.as_bytes(), &opening].concat()).await;
            assert_eq!(response.status, 200, "tls: {tls}, {form:?}");
            let mut rest = Vec::new();
            in_time("the end", stream.read_to_end(&mut rest)).await.unwrap();
            assert!(rest.is_empty());
        }
    }
}

#[tokio::test]
async fn a_held_request_of_a_client_that_half_closed_is_answered_with_what_comes() {
    let (go, wait) = tokio::sync::oneshot::channel();
    let wait = std::sync::Arc::new(parking_lot::Mutex::new(Some(wait)));
    let community = Community::start(move |mut connection: Connection| {
        let wait = wait.lock().take();
        async move {
            connection.accept_login().await;
            let _ = wait.expect("one session").await;
            connection.send(&[0x80]).await;
            connection.read_to_end().await;
        }
    })
    .await;
    let mux =
        mux::start(&format!("{}[tunnel]\nhold = \"100s\"\nsession_timeout = \"200s\"\n", community.setting())).await;
    let mut session = Session::new(Kind::Hybrid);
    let mut stream = http::connect(mux.raw(), false).await;
    let opened = http::exchange(&mut stream, &post(&session.path(), &session.opening())).await.unwrap();
    session.opened(&opened.body);
    let hello = [frames::handshake().bytes(), frames::login("bob", "secret").bytes()].concat();
    let mut got = 0;
    let mut request = session.request(&hello);
    while got < 20 + 42 {
        let response = http::exchange(&mut stream, &post(&session.path(), &request)).await.unwrap();
        assert_eq!(response.status, 200);
        got += session.response(&response.body).len();
        request = session.request(b"");
    }
    // The connection of a request that waits.
    stream.write_all(&post(&session.path(), &request)).await.unwrap();
    stream.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    go.send(()).unwrap();
    let response = in_time("a response", http::read_response(&mut stream)).await.expect("a response");
    assert_eq!((response.status, session.response(&response.body)), (200, vec![0x80]));
}

#[tokio::test]
async fn a_client_that_half_closes_gets_a_page_and_the_response_of_the_back_end() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
    let slow = BackEnd::start(Duration::from_millis(300), ok, 1).await;
    let mux = mux_before(slow.address, "").await;
    for tls in [false, true] {
        for (path, body) in [("/a", "ok\n"), ("/CommunityCBR", "Sametime")] {
            for version in ["1.0", "1.1"] {
                let mut stream = http::connect(mux.raw(), tls).await;
                let request = format!("GET {path} HTTP/{version}\r\nHost: x\r\n\r\n");
                let response = half_close(&mut stream, request.as_bytes()).await;
                assert_eq!(response.status, 200, "{path}");
                assert!(String::from_utf8(response.body).unwrap().starts_with(body), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn a_tunnel_body_may_drip_as_long_as_it_does_not_pause() {
    let mux = mux::start("[limits]\nlogin_timeout = \"2s\"\n").await;
    for tls in [false, true] {
        let session = Session::new(Kind::Polling);
        let request = post(&session.path(), &session.opening());
        let begun = request.len() - 40;
        let mut stream = http::connect(mux.raw(), tls).await;
        stream.write_all(&request[..begun]).await.unwrap();
        // This takes longer than one pause may.
        for byte in &request[begun..] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.write_all(&[*byte]).await.unwrap();
            stream.flush().await.unwrap();
        }
        let response = in_time("a response", http::read_response(&mut stream)).await.unwrap();
        assert_eq!(response.status, 200);
        // One that stops is not waited for.
        let mut stream = http::connect(mux.raw(), tls).await;
        stream.write_all(&request[..begun]).await.unwrap();
        let response = in_time("a response", http::read_response(&mut stream)).await.unwrap();
        assert_eq!(response.status, 408);
    }
}

const BIG: usize = 8 * 1024 * 1024;

/// Writes the whole request, as simple clients do, and only then reads the response.
async fn write_all_then_read(to: SocketAddr, tls: bool, request: &[u8]) -> Response {
    let mut stream = http::connect(to, tls).await;
    in_time("the request", stream.write_all(request)).await.expect("the request is taken");
    in_time("the request", stream.flush()).await.expect("the request is taken");
    // The response is on its way, and so is the end.
    tokio::time::sleep(Duration::from_millis(30)).await;
    in_time("a response", http::read_response(&mut stream)).await.expect("a readable response")
}

/// A request with a long body, whose head has `line` and these headers.
fn big(line: &str, headers: &str) -> Vec<u8> {
    let head = format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {BIG}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; BIG]].concat()
}

#[tokio::test]
async fn the_response_to_a_body_that_is_not_read_is_readable() {
    let mux = mux::start("").await;
    let back_end = BackEnd::plain().await;
    let with_back_end = mux_before(back_end.address, "").await;
    let bad_chunk = |line: &str| {
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nbad\n");
        [head.into_bytes(), vec![b'x'; BIG]].concat()
    };
    for tls in [false, true] {
        for (mux, request, status) in [
            (&mux, big("POST /upload", ""), 404),
            (&mux, big("POST /CommunityCBR/CC.39.0123456789abcdef0123456789abcdef/", ""), 413),
            (&mux, big("POST /CommunityCBR/CC.99.x/", ""), 404),
            (&mux, big("PUT /CommunityCBR/CC.39./", ""), 405),
            (&mux, bad_chunk("POST /CommunityCBR/CC.39./"), 400),
            (&mux, big("POST /a", "Bad name: x\r\n"), 400),
            (&with_back_end, big("POST /a", "Expect: nothing\r\n"), 417),
            (&with_back_end, big("TRACE /a", ""), 405),
        ] {
            for _ in 0..3 {
                let response = write_all_then_read(mux.raw(), tls, &request).await;
                assert_eq!(response.status, status, "tls: {tls}, {}", request[..60].escape_ascii());
            }
        }
    }
}

#[tokio::test]
async fn the_response_of_a_back_end_that_answers_early_and_closes_is_readable() {
    // It does not read the body, so that its system resets the connection.
    let early = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbig\n";
    let back_end = BackEnd::start(Duration::ZERO, early, 1).await;
    let mux = mux_before(back_end.address, "").await;
    for tls in [false, true] {
        for _ in 0..10 {
            let response = write_all_then_read(mux.raw(), tls, &big("POST /a", "")).await;
            assert_eq!((response.status, &response.body[..]), (413, &b"big\n"[..]));
        }
    }
}
