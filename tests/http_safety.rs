//! Requests that two parsers could read differently do not reach the web back end.
//!
//! Each attack is written byte by byte to a client port, with a plain request after it. One back end records every
//! byte, which a parser of the strict form reads; nginx and Apache log what they understand. Each must see the requests
//! that the multiplexer passed on, and nothing else. `docs/http-safety.md` has the result as a table, which
//! `SAMETIME_MUX_WRITE_DOCS=1` writes.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

#[path = "../fuzz/src/framing.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod framing;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use support::{
    has, http, in_time,
    mux::{self, Mux},
    peer::free_address,
    skip, wait_until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::AbortHandle,
};

/// In place of the type that reads choices from a fuzzer's input. The parser of `framing` does not use it.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    #[allow(dead_code)]
    fn below(&mut self, _: usize) -> usize {
        0
    }
}

/// The plain request that follows each attack.
const LAST: &[u8] = b"GET /last HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n";
/// A request that an attacker hides in another.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: web.example\r\n\r\n";

/// An attack, and its expected outcome.
struct Attack {
    name: &'static str,
    bytes: Vec<u8>,
    /// The statuses of the responses, in order, up to the one for `/last`.
    answers: &'static [u16],
    /// The requests that the back end understands.
    seen: &'static [&'static str],
    /// Whether the back end may see the beginning of a request that is then cut off.
    cut_off: bool,
}

/// A request line, a Host header, and `rest`.
fn post(rest: &str) -> Vec<u8> {
    format!("POST /a HTTP/1.1\r\nHost: web.example\r\n{rest}").into_bytes()
}

fn attacks() -> Vec<Attack> {
    let refused = |name, bytes: Vec<u8>| Attack { name, bytes, answers: &[400], seen: &[], cut_off: false };
    let passed = |name, bytes: Vec<u8>, answers, seen| Attack { name, bytes, answers, seen, cut_off: false };
    let chunk = |name, chunks: &str| Attack {
        cut_off: true,
        ..refused(name, post(&format!("Transfer-Encoding: chunked\r\n\r\n{chunks}{HIDDEN}")))
    };
    let n = HIDDEN.len();
    let te = |name, coding: &str| refused(name, post(&format!("{coding}\r\n\r\n0\r\n\r\n{HIDDEN}")));
    let both = |name, coding: &str, length: usize| {
        refused(name, post(&format!("Content-Length: {length}\r\n{coding}\r\n\r\n0\r\n\r\n{HIDDEN}")))
    };
    let head = |name, line: &[u8]| {
        refused(name, [&post("Content-Length: 0\r\n")[..], line, b"\r\n\r\n", HIDDEN.as_bytes()].concat())
    };
    let line = |name, line: &[u8]| refused(name, [line, b"\r\nHost: web.example\r\n\r\n", HIDDEN.as_bytes()].concat());
    vec![
        // Two lengths.
        both("CL.TE: Content-Length covers what the chunks do not", "Transfer-Encoding: chunked", 5 + n),
        refused(
            "TE.CL: Transfer-Encoding first, a short Content-Length",
            post(&format!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{n:x}\r\n{HIDDEN}\r\n0\r\n\r\n")),
        ),
        te("TE.TE: two codings in two lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        te("TE.TE: the same twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        te("TE.TE: a list", "Transfer-Encoding: gzip, chunked"),
        te("TE.TE: an unknown coding", "Transfer-Encoding: xchunked"),
        te("TE.TE: quotes", "Transfer-Encoding: \"chunked\""),
        te("TE.TE: a vertical tab", "Transfer-Encoding: \x0bchunked"),
        te("TE.TE: a space before the colon", "Transfer-Encoding : chunked"),
        te("TE.TE: a folded line", "Transfer-Encoding:\r\n chunked"),
        te("TE.TE: a bare LF in front", "X: y\nTransfer-Encoding: chunked"),
        te("TE.0: identity alone", "Transfer-Encoding: identity"),
        both("CL.TE with an obfuscated coding", "Transfer-Encoding: xchunked", 5 + n),
        refused(
            "Transfer-Encoding in HTTP/1.0",
            format!("POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}").into_bytes(),
        ),
        refused("CL.CL: two that differ", post(&format!("Content-Length: 0\r\nContent-Length: {n}\r\n\r\n{HIDDEN}"))),
        refused("CL.CL: two that agree", post("Content-Length: 1\r\nContent-Length: 1\r\n\r\na")),
        refused("CL.CL: a list", post("Content-Length: 1, 1\r\n\r\na")),
        refused("CL: a plus sign", post("Content-Length: +1\r\n\r\na")),
        refused("CL: hexadecimal", post("Content-Length: 0x1\r\n\r\na")),
        refused("CL: negative", post("Content-Length: -1\r\n\r\na")),
        refused("CL: empty", post("Content-Length:\r\n\r\na")),
        refused("CL: more than 64 bits hold", post("Content-Length: 18446744073709551617\r\n\r\na")),
        passed(
            "Content_Length and Transfer_Encoding are headers like any other",
            post(&format!("Content-Length: 1\r\nContent_Length: {n}\r\nTransfer_Encoding: chunked\r\n\r\na")),
            &[200, 200],
            &["POST /a", "GET /last"],
        ),
        // Lines.
        refused("bare LF after every line", b"GET /a HTTP/1.1\nHost: web.example\n\n".to_vec()),
        head("bare LF between two headers", b"X: y\nTransfer-Encoding: chunked"),
        head("bare CR in a value", b"X: y\rTransfer-Encoding: chunked"),
        head("CR CR LF", b"X: y\r"),
        head("a folded line", b"X: y\r\n Transfer-Encoding: chunked"),
        head("a folded line by a tab", b"X: y\r\n\tz"),
        head("a space before the first header's name", b" X: y"),
        head("a space before the colon", b"X : y"),
        head("a header without a name", b": y"),
        head("a header without a colon", b"X"),
        head("0x00 in a value", b"X: a\0b"),
        head("0x00 in a name", b"X\0: y"),
        head("a control byte in a value", b"X: a\x01b"),
        head("a name that is no token", b"X(y): z"),
        passed("bytes over 0x7F in a value", [&b"GET /a HTTP/1.1\r\nHost: x\r\nX: \xE9\r\n\r\n"[..]].concat(), &[200, 200], &[
            "GET /a",
            "GET /last",
        ]),
        passed(
            "an empty line behind a body",
            post("Content-Length: 1\r\n\r\na\r\n"),
            &[200, 200],
            &["POST /a", "GET /last"],
        ),
        // Chunks.
        passed(
            "a chunk extension",
            post("Transfer-Encoding: chunked\r\n\r\n1;a=b;c=\"d\"\r\na\r\n0;e\r\n\r\n"),
            &[200, 200],
            &["POST /a", "GET /last"],
        ),
        chunk("a chunk extension that ends with a bare LF", "1;a\na\r\n0\r\n\r\n"),
        chunk("a chunk extension beyond any use", &format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(4000))),
        chunk("a chunk's size beyond 64 bits", "10000000000000001\r\na\r\n0\r\n\r\n"),
        chunk("a chunk's size beyond 32 bits", "100000001\r\na\r\n0\r\n\r\n"),
        chunk("a chunk's size with 0x", "0x1\r\na\r\n0\r\n\r\n"),
        chunk("a chunk's size that is negative", "-1\r\na\r\n0\r\n\r\n"),
        chunk("a chunk's size that is empty", "\r\na\r\n0\r\n\r\n"),
        chunk("junk behind a chunk's size", "1 x\r\na\r\n0\r\n\r\n"),
        chunk("a space behind a chunk's size", "1 \r\na\r\n0\r\n\r\n"),
        chunk("a bare LF behind a chunk's size", "1\na\r\n0\r\n\r\n"),
        chunk("a chunk longer than its size", "1\r\nab\r\n0\r\n\r\n"),
        chunk("a bare LF behind a chunk", "1\r\na\n0\r\n\r\n"),
        passed(
            "a trailer",
            post("Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n"),
            &[200, 200],
            &["POST /a", "GET /last"],
        ),
        chunk("a trailer that is a length", "1\r\na\r\n0\r\nContent-Length: 9\r\n\r\n"),
        passed(
            "GET with chunks",
            b"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n".to_vec(),
            &[200, 200],
            &["GET /a", "GET /last"],
        ),
        passed("GET with a Content-Length", b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na".to_vec(), &[200, 200], &[
            "GET /a",
            "GET /last",
        ]),
        // The request line.
        line("HTTP/0.9: no version", b"GET /a"),
        line("HTTP/2.0 in the request line", b"GET /a HTTP/2.0"),
        line("HTTP/1.2", b"GET /a HTTP/1.2"),
        line("a small http/1.1", b"GET /a http/1.1"),
        line("a space in the target", b"GET /a HTTP/1.1 HTTP/1.1"),
        line("two spaces", b"GET  /a HTTP/1.1"),
        line("a tab for a space", b"GET\t/a HTTP/1.1"),
        line("a space behind the version", b"GET /a HTTP/1.1 "),
        line("a control byte in the target", b"GET /a\x01b HTTP/1.1"),
        line("0x00 in the target", b"GET /a\0b HTTP/1.1"),
        line("a byte over 0x7F in the target", b"GET /a\xE9 HTTP/1.1"),
        line("0x7F in the target", b"GET /a\x7F HTTP/1.1"),
        line("a fragment in the target", b"GET /a#b HTTP/1.1"),
        line("a fragment behind the query", b"GET /a?b#c HTTP/1.1"),
        line("a quote in the target", b"GET /a\"b HTTP/1.1"),
        line("a less-than sign in the target", b"GET /a<b HTTP/1.1"),
        line("a greater-than sign in the query", b"GET /a?b>c HTTP/1.1"),
        line("a backslash in the path", b"GET /a\\..\\hidden HTTP/1.1"),
        line("a backslash in a URL's host", b"GET http://web.example\\@other/a HTTP/1.1"),
        line("a backtick in the path", b"GET /a`b HTTP/1.1"),
        passed(
            "brackets, braces and a caret are passed on as they are",
            b"GET /a[b]{c}^d?e[]={f}^ HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            &[200, 200],
            &["GET /a[b]{c}^d?e[]={f}^", "GET /last"],
        ),
        passed(
            "empty lines in front of the first request",
            b"\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            &[200, 200],
            &["GET /a", "GET /last"],
        ),
        line("a method that is no token", b"G(T /a HTTP/1.1"),
        line("no target", b"GET HTTP/1.1"),
        line("a target that is neither path nor URL", b"GET web.example/a HTTP/1.1"),
        line("a host and port for a target", b"GET web.example:80 HTTP/1.1"),
        line("a URL of another scheme", b"GET ftp://web.example/a HTTP/1.1"),
        line("a user in a URL", b"GET http://user:secret@web.example/a HTTP/1.1"),
        line("the asterisk", b"OPTIONS * HTTP/1.1"),
        refused("the HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        Attack {
            answers: &[405],
            ..refused("CONNECT", format!("CONNECT web.example:443 HTTP/1.1\r\nHost: web.example\r\n\r\n{HIDDEN}").into())
        },
        Attack {
            answers: &[405],
            ..refused("TRACE", b"TRACE /a HTTP/1.1\r\nHost: x\r\nCookie: secret\r\n\r\n".to_vec())
        },
        passed("a method nobody knows", b"BREW /a HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[200, 200], &["BREW /a", "GET /last"]),
        // Who is meant.
        refused("no Host", b"GET /a HTTP/1.1\r\n\r\n".to_vec()),
        passed("no Host, in HTTP/1.0", b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_vec(), &[200, 200], &[
            "GET /a",
            "GET /last",
        ]),
        refused("two Hosts", b"GET /a HTTP/1.1\r\nHost: web.example\r\nHost: other\r\n\r\n".to_vec()),
        refused("an empty Host", b"GET /a HTTP/1.1\r\nHost:\r\n\r\n".to_vec()),
        refused("a Host with a path", b"GET /a HTTP/1.1\r\nHost: web.example/b\r\n\r\n".to_vec()),
        refused("a Host with a user", b"GET /a HTTP/1.1\r\nHost: a@web.example\r\n\r\n".to_vec()),
        refused("a Host with a space", b"GET /a HTTP/1.1\r\nHost: web.example other\r\n\r\n".to_vec()),
        refused("a Host that is a list", b"GET /a HTTP/1.1\r\nHost: web.example, other\r\n\r\n".to_vec()),
        passed(
            "a URL with another Host: the URL's host is passed on",
            b"GET http://web.example/a HTTP/1.1\r\nHost: other\r\n\r\n".to_vec(),
            &[200, 200],
            &["GET /a", "GET /last"],
        ),
        passed("a URL without a path", b"GET http://web.example?q HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[200, 200], &[
            "GET /?q",
            "GET /last",
        ]),
        passed(
            "Connection names Content-Length and Host",
            post("Connection: Content-Length, Host, X\r\nX: y\r\nContent-Length: 1\r\n\r\na"),
            &[200, 200],
            &["POST /a", "GET /last"],
        ),
        // Much.
        Attack {
            answers: &[431],
            ..refused("a head of 100 KB", post(&format!("X: {}\r\n\r\n", "y".repeat(100_000))))
        },
        Attack { answers: &[431], ..refused("300 headers", post(&format!("{}\r\n", "X: y\r\n".repeat(300)))) },
        Attack {
            answers: &[404],
            ..refused(
                "CVE-2008-2499: a session's name of 5,000 bytes",
                format!(
                    "POST /CommunityCBR/CC.39.{}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                    "A".repeat(5000)
                )
                .into(),
            )
        },
        Attack {
            answers: &[431],
            ..refused(
                "CVE-2008-2499: of 100,000 bytes",
                format!("POST /CommunityCBR/CC.39.{}/ HTTP/1.1\r\nHost: x\r\n\r\n", "A".repeat(100_000)).into(),
            )
        },
        refused(
            "CVE-2008-2499: of 5,000 bytes, without an HTTP version",
            format!("POST /CommunityCBR/CC.39.{}/\r\n\r\n", "A".repeat(5000)).into(),
        ),
        Attack {
            answers: &[431],
            ..refused(
                "CVE-2008-2499: of 100,000 bytes, without an HTTP version",
                format!("POST /CommunityCBR/CC.39.{}/\r\n\r\n", "A".repeat(100_000)).into(),
            )
        },
        // Several.
        passed(
            "three requests at once",
            [&post("Content-Length: 1\r\n\r\na")[..], b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"].concat(),
            &[200, 200, 200],
            &["POST /a", "GET /b", "GET /last"],
        ),
        Attack {
            answers: &[200, 400],
            seen: &["GET /b"],
            ..refused(
                "a faulty request behind a good one",
                [&b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"[..], &post("Content-Length: 0\r\nContent-Length: 1\r\n\r\na")].concat(),
            )
        },
        passed(
            "a body that looks like a request",
            post(&format!("Content-Length: {n}\r\n\r\n{HIDDEN}")),
            &[200, 200],
            &["POST /a", "GET /last"],
        ),
        passed(
            "Expect: 100-continue",
            post("Expect: 100-continue\r\nContent-Length: 1\r\n\r\na"),
            &[200, 200],
            &["POST /a", "GET /last"],
        ),
        Attack { answers: &[417], ..refused("another expectation", post("Expect: x\r\nContent-Length: 1\r\n\r\na")) },
        passed(
            "Upgrade: websocket is not passed on",
            b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec(),
            &[200, 200],
            &["GET /a", "GET /last"],
        ),
        passed(
            "Upgrade: h2c is not passed on",
            b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
                .to_vec(),
            &[200, 200],
            &["GET /a", "GET /last"],
        ),
        Attack {
            answers: &[408],
            cut_off: true,
            ..refused("a body that stops half-way", post(&format!("Content-Length: {}\r\n\r\na", 10_000)))
        },
    ]
}

/// One response on the client's connection.
#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    /// Whether it is a response of the back end.
    passed_on: bool,
}

/// Writes an attack and reads all responses, except interim ones.
async fn attack(mux: &Mux, bytes: &[u8]) -> Vec<Answer> {
    let (mut read, mut write) = http::tcp(mux.raw()).await.into_split();
    let bytes = [bytes, LAST].concat();
    // The multiplexer may respond and close before it has read everything.
    let writing = tokio::spawn(async move {
        let _ = write.write_all(&bytes).await;
        write
    });
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = in_time("the end of the connection", read.read(&mut buffer)).await {
        said.extend_from_slice(&buffer[..n]);
    }
    drop(writing.await);
    answers(&said)
}

/// Splits the bytes of a connection into responses.
fn answers(mut said: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !said.is_empty() {
        let end =
            said.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("{}", said.escape_ascii()));
        let head = String::from_utf8_lossy(&said[..end]).to_lowercase();
        said = &said[end + 4..];
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        if status < 200 {
            continue;
        }
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        if let Some(length) = header("content-length") {
            said = &said[length.parse::<usize>().unwrap()..];
        } else if header("transfer-encoding").is_some() {
            let end = said.windows(5).position(|five| five == b"0\r\n\r\n").unwrap();
            said = &said[end + 5..];
        } else if status != 204 && status != 304 {
            said = &[];
        }
        answers.push(Answer { status, passed_on: header("server").is_some() });
    }
    answers
}

/// A back end that responds to requests of the strict form and keeps every byte.
struct Recorder {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
    task: AbortHandle,
}

impl Recorder {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
        let all = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    let at = {
                        let mut all = all.lock();
                        all.push(Vec::new());
                        all.len() - 1
                    };
                    let mut unanswered = Vec::new();
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = tcp.read(&mut buffer).await {
                        all.lock()[at].extend_from_slice(&buffer[..n]);
                        unanswered.extend_from_slice(&buffer[..n]);
                        let (whole, rest) = requests(&unanswered);
                        unanswered = rest;
                        for _ in whole {
                            let answer = b"HTTP/1.1 200 OK\r\nServer: recorder\r\nContent-Length: 3\r\n\r\nok\n";
                            if tcp.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { address, connections, task: task.abort_handle() }
    }

    /// The whole requests of every connection, in order.
    fn whole(&self) -> Vec<framing::Request> {
        self.connections.lock().iter().flat_map(|record| requests(record).0).collect()
    }

    /// The bytes of each connection after its whole requests.
    fn rests(&self) -> Vec<Vec<u8>> {
        let rests = self.connections.lock().iter().map(|record| requests(record).1).collect::<Vec<_>>();
        rests.into_iter().filter(|rest| !rest.is_empty()).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Splits the bytes of a connection into whole requests and the rest.
fn requests(bytes: &[u8]) -> (Vec<framing::Request>, Vec<u8>) {
    let (mut rest, mut requests) = (bytes, Vec::new());
    while let Some(request) = framing::request(&mut rest) {
        requests.push(request);
    }
    (requests, rest.to_vec())
}

async fn mux_before(backend: SocketAddr) -> Mux {
    mux::start(&format!("[limits]\nlogin_timeout = \"2s\"\n[http_backend]\nurl = \"http://{backend}\"\n")).await
}

/// The items with commas between them, or "nothing".
fn list_or_nothing(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<String> = items.into_iter().collect();
    if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
}

#[tokio::test]
async fn the_back_end_reads_what_the_multiplexer_read() {
    let recorder = Recorder::start().await;
    let mux = mux_before(recorder.address).await;
    let mut table = String::from("| attack | response | what the back end saw |\n|---|---|---|\n");
    let (mut refused, mut known) = (0, Vec::new());
    for Attack { name, bytes, answers: expected, seen, .. } in attacks() {
        let before = mux.metric_sum("sametime_mux_http_requests_refused_total").await;
        let got = attack(&mux, &bytes).await;
        let statuses: Vec<u16> = got.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, expected, "{name}");
        // Connections are used again, so new requests may be at the end of an older connection.
        let mut whole = recorder.whole();
        for request in &known {
            let at = whole.iter().position(|seen| seen == request).unwrap();
            whole.remove(at);
        }
        known.extend(whole.iter().cloned());
        let lines: Vec<String> = whole.iter().map(|request| format!("{} {}", request.line.0, request.line.1)).collect();
        assert_eq!(lines, seen, "{name}");
        assert_eq!(got.iter().filter(|answer| answer.passed_on).count(), lines.len(), "{name}");
        for request in &whole {
            let hosts: Vec<&[u8]> =
                request.headers.iter().filter(|(name, _)| name == "host").map(|(_, value)| &value[..]).collect();
            assert_eq!(hosts.len(), 1, "{name}: {request:?}");
            assert_ne!(hosts[0], b"other", "{name}");
            for gone in ["connection", "upgrade", "expect", "te", "trailer", "http2-settings"] {
                assert!(!request.headers.iter().any(|(name, _)| name == gone), "{name}: {request:?}");
            }
        }
        let odd = mux.metric_sum("sametime_mux_http_requests_refused_total").await - before;
        if statuses.iter().any(|status| [400, 405, 408, 417, 431].contains(status)) {
            assert!((odd - 1.0).abs() < 0.5, "{name}: counted {odd} times");
            refused += 1;
        }
        let answers = list_or_nothing(statuses.iter().map(u16::to_string));
        let _ = writeln!(
            table,
            "| {name} | {answers} | {} |",
            list_or_nothing(lines.iter().map(|line| format!("`{line}`")))
        );
    }
    assert!(refused > 50, "only {refused}");
    for rest in recorder.rests() {
        // This is the beginning of a request that was passed on and cut off, never of the hidden request.
        assert!(rest.starts_with(b"POST /a HTTP/1.1\r\n"), "{}", rest.escape_ascii());
        assert!(!rest.windows(6).any(|six| six == b"hidden"), "{}", rest.escape_ascii());
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/http-safety.md");
    let text = fs::read_to_string(&file).unwrap();
    let (intro, rest) = text.split_once("<!-- table -->\n").unwrap();
    let (there, end) = rest.split_once("<!-- end of table -->\n").unwrap();
    if std::env::var_os("SAMETIME_MUX_WRITE_DOCS").is_some() {
        fs::write(file, format!("{intro}<!-- table -->\n{table}<!-- end of table -->\n{end}")).unwrap();
    } else {
        assert_eq!(there, table, "docs/http-safety.md is not what was seen");
    }
}

/// A process that is killed when this value is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of an access log: the request line and the status.
type Logged = (String, u16);

/// Runs every attack with a real server as back end. Each line of its access log `log` is `"LINE" STATUS`.
async fn attack_back_end(name: &str, backend: SocketAddr, log: &Path) {
    let mux = mux_before(backend).await;
    let read = || -> Vec<Logged> {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines = text.lines().filter(|line| !line.contains("/up "));
        lines
            .map(|line| {
                let (request, status) = line.strip_prefix('"').unwrap().rsplit_once("\" ").unwrap();
                (request.to_owned(), status.trim().parse().unwrap())
            })
            .collect()
    };
    let mut logged = read().len();
    let mut seen = 0;
    for Attack { name: what, bytes, answers, seen: expected, cut_off } in attacks() {
        let got = attack(&mux, &bytes).await;
        let passed_on = got.iter().filter(|answer| answer.passed_on).count();
        // A real server may respond before it has read the whole request, which is then cut off.
        let early = usize::from(cut_off && passed_on == expected.len() + 1);
        assert_eq!(passed_on, expected.len() + early, "{name}, {what}: {got:?}");
        assert!(early == 1 || got.len() == answers.len(), "{name}, {what}: {got:?}");
        wait_until("the log", || read().len() >= logged + expected.len()).await;
        if cut_off {
            // A request that was cut off is logged when its connection ends.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let lines = read().split_off(logged);
        logged += lines.len();
        let whole: Vec<&Logged> = lines.iter().filter(|(line, _)| !(cut_off && line.starts_with("POST /a "))).collect();
        let asked: Vec<&str> = whole.iter().map(|(line, _)| line.strip_suffix(" HTTP/1.1").unwrap_or(line)).collect();
        assert_eq!(asked, expected, "{name}, {what}: {lines:?}");
        assert!(lines.len() <= expected.len() + 1, "{name}, {what}: {lines:?}");
        assert!(lines.iter().all(|(line, _)| !line.contains("hidden")), "{name}, {what}: {lines:?}");
        seen += asked.len();
    }
    assert!(seen > 20, "{name} saw only {seen} requests");
}

/// Waits until a server accepts connections.
async fn wait_for_port(name: &str, address: SocketAddr) {
    wait_until(name, || std::net::TcpStream::connect(address).is_ok()).await;
}

#[tokio::test]
async fn nginx_reads_what_the_multiplexer_read() {
    if !has("nginx", "nginx-light") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let address = free_address();
    let config = format!(
        "worker_processes 1; pid {path}/pid; error_log {path}/error.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ log_format line '\"$request\" $status'; access_log {path}/access.log line;\n\
         client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/fastcgi;\n\
         uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n\
         server {{ listen {address}; location / {{ return 200 'ok'; }} }} }}\n"
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let nginx = Command::new("nginx")
        .args(["-p", &path.to_string(), "-c"])
        .arg(&file)
        .args(["-e", &format!("{path}/error.log"), "-g", "daemon off; master_process off;"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _nginx = Process(nginx);
    wait_for_port("nginx", address).await;
    attack_back_end("nginx", address, &folder.path().join("access.log")).await;
}

#[tokio::test]
async fn apache_reads_what_the_multiplexer_read() {
    if !has("apache2", "apache2-bin") {
        return;
    }
    let modules = Path::new("/usr/lib/apache2/modules");
    if !modules.join("mod_mpm_event.so").exists() {
        return skip("apache2", "its modules are not in /usr/lib/apache2/modules (Debian package apache2-bin)");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let address = free_address();
    let load: String = ["mpm_event", "authz_core", "alias"].iter().fold(String::new(), |load, name| {
        load + &format!("LoadModule {name}_module {}/mod_{name}.so\n", modules.display())
    });
    fs::create_dir(folder.path().join("www")).unwrap();
    let config = format!(
        "ServerRoot {path}\nServerName localhost\nPidFile {path}/pid\nErrorLog {path}/error.log\nListen {address}\n{load}\
         DefaultRuntimeDir {path}\nStartServers 1\nLogFormat \"\\\"%r\\\" %>s\" line\nCustomLog {path}/access.log line\n\
         DocumentRoot {path}/www\n<Directory {path}/www>\nRequire all granted\n</Directory>\nRedirect 410 /\n"
    );
    let file = folder.path().join("apache2.conf");
    fs::write(&file, config).unwrap();
    let apache = Command::new("apache2")
        // Only one process, so that no other is left.
        .args(["-X", "-f"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _apache = Process(apache);
    wait_for_port("apache2", address).await;
    attack_back_end("Apache", address, &folder.path().join("access.log")).await;
}

#[tokio::test]
async fn a_request_head_that_never_ends_times_out() {
    let recorder = Recorder::start().await;
    let mux = mux_before(recorder.address).await;
    let mut stream = http::tcp(mux.raw()).await;
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    // A new header every moment does not extend the time.
    let ended = in_time("the end", async {
        loop {
            let mut answer = [0; 64];
            tokio::select! {
                read = stream.read(&mut answer) => if matches!(read, Ok(0) | Err(_)) { return },
                () = tokio::time::sleep(Duration::from_millis(50)) => (),
            }
            let _ = stream.write_all(b"X: y\r\n").await;
        }
    });
    ended.await;
    assert!(recorder.whole().is_empty());
}

#[tokio::test]
async fn a_slow_body_is_passed_on_and_one_that_stops_times_out() {
    let recorder = Recorder::start().await;
    let mux = mux_before(recorder.address).await;
    let mut stream = http::tcp(mux.raw()).await;
    stream.write_all(&post("Content-Length: 40\r\n\r\n")).await.unwrap();
    // The body takes longer than one pause may be.
    for _ in 0..40 {
        stream.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(70)).await;
    }
    assert_eq!(in_time("an answer", http::read_response(&mut stream)).await.unwrap().status, 200);
    stream.write_all(&post("Content-Length: 40\r\n\r\nx")).await.unwrap();
    assert_eq!(in_time("an answer", http::read_response(&mut stream)).await.unwrap().status, 408);
    // A request of the tunnel, too.
    let mut stream = http::tcp(mux.raw()).await;
    stream.write_all(b"POST /CommunityCBR/CC.35./ HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n").await.unwrap();
    assert_eq!(in_time("an answer", http::read_response(&mut stream)).await.unwrap().status, 408);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_disconnected() {
    // This back end sends far more than the sockets can hold, until its connection ends.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        let _ = tcp.read(&mut head).await.unwrap();
        let mut written = 0_u64;
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
        while tcp.write_all(&[0; 65_536]).await.is_ok() {
            written += 65_536;
        }
        written
    });
    let mux = mux_before(backend).await;
    let mut stream = http::tcp(mux.raw()).await;
    stream.write_all(LAST).await.unwrap();
    let written = in_time("the end of the back end's connection", served).await.unwrap();
    assert!(written < 1_000_000_000, "{written}");
}
