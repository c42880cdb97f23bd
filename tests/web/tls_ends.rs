//! Ends of TLS connections that this program chooses: they come with close_notify, so that a client can tell them from an
//! attack.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    BackEnd, mux_before,
    support::{frames, http, in_time, mux},
};

/// What the server still says until it ends the connection with close_notify. An end without one is an error.
async fn until_close_notify(what: &str, stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> Vec<u8> {
    let mut said = Vec::new();
    let end = in_time("the end", stream.read_to_end(&mut said)).await;
    assert!(end.is_ok(), "{what}: {end:?} after {}", said.escape_ascii());
    said
}

#[tokio::test]
async fn every_end_that_this_program_chooses_comes_with_close_notify() {
    let mux = mux::start("[limits]\nlogin_timeout = \"500ms\"\nidle_timeout = \"700ms\"\n").await;
    let page = "GET /CommunityCBR HTTP/1.1\r\nHost: x\r\n";
    for (what, bytes, begins) in [
        ("nothing inside TLS", String::new(), &b"\0\0\0"[..]),
        ("a protocol that nobody knows", "1234".to_owned(), b"\0\0\0"),
        ("a connection that is idle behind a response", format!("{page}\r\n"), b"HTTP/1.1 200 "),
        ("half a head", page.to_owned(), b""),
        ("half a request line", "GET /Comm".to_owned(), b""),
        ("a bad request", format!("{page}Bad name: x\r\n\r\n"), b"HTTP/1.1 400 "),
        ("a head that is too long", format!("{page}X: {}\r\n\r\n", "y".repeat(100_000)), b"HTTP/1.1 431 "),
        ("Connection: close", format!("{page}Connection: close\r\n\r\n"), b"HTTP/1.1 200 "),
        ("HTTP/1.0", "GET /CommunityCBR HTTP/1.0\r\n\r\n".to_owned(), b"HTTP/1.0 200 "),
        ("a body that stops", format!("{}Content-Length: 9\r\n\r\n", page.replace("GET", "POST")), b"HTTP/1.1 4"),
        ("not a Handshake", "\0\0\0\x04\0\0\0\0".to_owned(), b"\0\0\0"),
    ] {
        let mut stream = http::connect_tls(mux.raw()).await;
        let _ = stream.write_all(bytes.as_bytes()).await;
        let _ = stream.flush().await;
        let said = until_close_notify(what, &mut stream).await;
        assert!(said.starts_with(begins), "{what}: {}", said.escape_ascii());
    }
    // A session that is idle for too long.
    let mut stream = http::connect_tls(mux.raw()).await;
    stream.write_all(&[frames::handshake().bytes(), frames::login("bob", "s").bytes()].concat()).await.unwrap();
    assert!(!until_close_notify("an idle session", &mut stream).await.is_empty());
}

#[tokio::test]
async fn a_client_that_is_refused_gets_close_notify() {
    let mux = mux::start("[limits]\ncapacity = 1\n").await;
    let mut first = http::connect_tls(mux.raw()).await;
    first.write_all(&frames::handshake().bytes()).await.unwrap();
    assert!(frames::Frame::read(&mut first).await.is_some());
    let mut second = http::connect_tls(mux.raw()).await;
    second.write_all(&frames::handshake().bytes()).await.unwrap();
    assert!(!until_close_notify("over the limit", &mut second).await.is_empty());
    // The Community's last bytes.
    first.write_all(&frames::login("bob", "wrong").bytes()).await.unwrap();
    assert!(!until_close_notify("the Community closes", &mut first).await.is_empty());
}

#[tokio::test]
async fn a_response_that_breaks_off_does_not_end_with_close_notify() {
    // In HTTP/1.0, the end of the connection is the end of the response.
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let back_end = BackEnd::start(Duration::ZERO, chunked, 1).await;
    let mux = mux_before(back_end.address, "").await;
    let mut stream = http::connect_tls(mux.raw()).await;
    stream.write_all(b"GET /a HTTP/1.0\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    assert!(in_time("the end", stream.read_to_end(&mut said)).await.is_err(), "{}", said.escape_ascii());
    assert!(said.ends_with(b"abc"), "{}", said.escape_ascii());
}

/// The hello of SSL 2.0 that old clients begin with. `version` is the highest that they offer.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let hello = [&[1, version[0], version[1], 0, 6, 0, 0, 0, 16, 0, 0, 0x2F, 0, 0, 5][..], &[7; 16]].concat();
    [&[0x80, hello.len() as u8][..], &hello].concat()
}

#[tokio::test]
async fn a_hello_of_ssl_2_gets_an_alert() {
    let mux = mux::start("").await;
    for (n, version) in [[0, 2], [3, 0], [3, 1], [3, 3]].into_iter().enumerate() {
        for at_once in [false, true] {
            let hello = old_hello(version);
            let mut tcp = http::tcp(mux.raw()).await;
            for piece in if at_once { vec![&hello[..]] } else { hello.chunks(1).collect() } {
                tcp.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut said = Vec::new();
            in_time("the end", tcp.read_to_end(&mut said)).await.unwrap();
            // A fatal alert: protocol_version.
            assert_eq!(said, [0x15, 3, 1, 0, 2, 2, 70], "{version:?}");
        }
        let dropped = mux.metric("sametime_mux_connections_dropped_total{reason=\"old_ssl\"}").await;
        assert_eq!(dropped, 2.0 * (n + 1) as f64);
    }
}

#[tokio::test]
async fn a_failed_handshake_ends_with_an_alert_that_arrives() {
    let mux = mux::start("").await;
    for _ in 0..10 {
        let mut tcp = http::tcp(mux.raw()).await;
        // A hello of TLS 1.0, and more bytes that nobody reads.
        let hello = [&[1, 0, 0, 41, 3, 1][..], &[7; 32], &[0, 0, 2, 0, 0x2F, 1, 0]].concat();
        let bytes = [&[0x16, 3, 1, 0, hello.len() as u8][..], &hello, &[0x17; 200_000]].concat();
        let _ = tcp.write_all(&bytes).await;
        let mut said = Vec::new();
        in_time("the end", tcp.read_to_end(&mut said)).await.expect("no reset");
        assert_eq!((said.first(), said.get(5)), (Some(&0x15), Some(&2)), "{said:?}");
    }
}
