//! Which bytes may begin a connection, and which a target may have.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    BackEnd, mux_before,
    support::{
        frames::Frame,
        http::{self, post},
        in_time, mux,
        tunnel::{Kind, Session},
    },
};

#[tokio::test]
async fn empty_lines_may_come_before_the_first_request() {
    let mux = mux::start("").await;
    let session = Session::new(Kind::Polling);
    let opening = post(&session.path(), &session.opening());
    let page = b"GET /CommunityCBR HTTP/1.1\r\nHost: x\r\n\r\n";
    for tls in [false, true] {
        for lines in ["\r\n", "\r\n\r\n", "\r\n\r\n\r\n\r\n"] {
            for request in [&opening[..], page] {
                for at_once in [false, true] {
                    let mut stream = http::connect(mux.raw(), tls).await;
                    let bytes = [lines.as_bytes(), request].concat();
                    let pieces = if at_once { vec![&bytes[..]] } else { bytes.chunks(1).collect() };
                    for piece in pieces {
                        stream.write_all(piece).await.unwrap();
                        stream.flush().await.unwrap();
                        tokio::task::yield_now().await;
                    }
                    let response = in_time("a response", http::read_response(&mut stream)).await.unwrap();
                    assert_eq!(response.status, 200, "tls: {tls}, {lines:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn empty_lines_may_come_behind_the_header_of_a_trusted_proxy() {
    let mux = mux::start("[listeners]\nproxy_protocol_from = [\"127.0.0.1\"]\n").await;
    let mut stream = http::connect(mux.raw(), false).await;
    let header = "PROXY TCP4 192.0.2.7 127.0.0.1 5000 1533\r\n";
    let request = format!("{header}\r\n\r\nGET /CommunityCBR HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(in_time("a response", http::exchange(&mut stream, request.as_bytes())).await.unwrap().status, 200);
}

#[tokio::test]
async fn lines_without_end_and_lines_before_anything_else_are_of_no_protocol() {
    let mux = mux::start("").await;
    for bytes in [&b"\r\n".repeat(10_000)[..], b"\r\n\0\0\0\x14", b"\r\n\x16\x03\x01", b"\r\r\n", b"\n\n"] {
        let mut stream = http::tcp(mux.raw()).await;
        let _ = stream.write_all(bytes).await;
        let farewell = in_time("a farewell", Frame::read(&mut stream)).await;
        assert_eq!(
            farewell.map(|frame| frame.reason()),
            Some(0x8000_020F),
            "{}",
            bytes[..4.min(bytes.len())].escape_ascii()
        );
    }
}

/// Bytes that no target may have: every browser and every library for URLs encodes them.
fn is_refused(byte: u8, in_query: bool) -> bool {
    !(0x21..=0x7E).contains(&byte) || b"\"#<>".contains(&byte) || (!in_query && b"\\`".contains(&byte))
}

#[tokio::test]
async fn a_target_is_passed_on_byte_for_byte_or_refused() {
    let back_end = BackEnd::plain().await;
    let mux = mux_before(back_end.address, "").await;
    let mut passed = 0;
    for byte in 0..=255u8 {
        for in_query in [false, true] {
            let target = [if in_query { &b"/a?b"[..] } else { b"/A" }, &[byte], b"c"].concat();
            for prefix in ["", "http://web.example"] {
                let before = back_end.heads.lock().len();
                let request = [b"GET ", prefix.as_bytes(), &target, b" HTTP/1.1\r\nHost: x\r\n\r\n"].concat();
                let mut stream = http::tcp(mux.raw()).await;
                let response = in_time("a response", http::exchange(&mut stream, &request)).await.unwrap();
                let what = target.escape_ascii();
                let expected = if is_refused(byte, in_query) { 400 } else { 200 };
                assert_eq!(response.status, expected, "{prefix}{what}");
                if expected == 200 {
                    let line = [b"get ", &target.to_ascii_lowercase()[..], b" http/1.1\r\n"].concat();
                    assert!(back_end.last().as_bytes().starts_with(&line), "{prefix}{what}: {}", back_end.last());
                    passed += 1;
                } else {
                    assert_eq!(back_end.heads.lock().len(), before, "{prefix}{what}");
                }
            }
        }
    }
    assert!(passed > 300, "{passed}");
}

#[tokio::test]
async fn what_browsers_and_java_send_is_passed_on() {
    let back_end = BackEnd::plain().await;
    let mux = mux_before(back_end.address, "").await;
    for target in [
        // Browsers encode none of these in a path: the URL Standard's path percent-encode set does not have them, or did
        // not have `^` until lately.
        "/a|b/[c]/d^e/f'g(h)*!$&+,;=:@~",
        // Nor these in a query.
        "/a?b[]=1&c={d}&e=f|g&h=`i`&j=k\\l&m=n^o&p=q'r",
        "/%",
        "/%zz?%",
        "//a//b/../c/./d",
        "/a?",
        "/?a?b",
        // A Java client that does not encode what it is given.
        "/servlet/{token}",
        "/st01/stlinks.nsf/(view)?OpenView&Start=1",
    ] {
        let mut stream = http::tcp(mux.raw()).await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let response = in_time("a response", http::exchange(&mut stream, request.as_bytes())).await.unwrap();
        assert_eq!(response.status, 200, "{target}");
        let line = format!("get {} http/1.1\r\n", target.to_lowercase());
        assert!(back_end.last().starts_with(&line), "{target}: {}", back_end.last());
    }
}

#[tokio::test]
async fn a_request_that_begins_with_a_line_end_is_refused_if_the_line_end_is_bare() {
    let mux = mux::start("").await;
    let mut stream = http::tcp(mux.raw()).await;
    // Behind the first request, too.
    let request = b"GET /CommunityCBR HTTP/1.1\r\nHost: x\r\n\r\n\nGET /CommunityCBR HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut said = Vec::new();
    in_time("the end", tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut said)))
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8(said).unwrap();
    assert_eq!((said.matches("HTTP/1.1 200 ").count(), said.matches("HTTP/1.1 400 ").count()), (1, 1), "{said}");
}
