//! Health checks of load balancers on the client ports: none is a line of the log, and none is an error. The tunnel's
//! page says whether clients can be served.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{fs, io::Write, process::Command, sync::Arc, time::Duration};

use sametime_mux::{load::any_certificate, wire::proxy_protocol};
use socket2::SockRef;
use support::{
    client::{Client, Transport},
    has,
    http::{self, Stream, tls_over},
    in_time,
    peer::{Process, free_address, text},
    program::{Program, Sandbox, Setup, local, servers},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::rustls::{ClientConnection, pki_types::ServerName};

/// Trusted proxies are at one address, so that the same ports have checks with and without a PROXY header.
const PROXY: [u8; 4] = [127, 0, 0, 9];
const TRUSTS: &str = "[listeners]\nproxy_protocol_from = [\"127.0.0.9\"]\n";

/// How a check ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Close,
    Reset,
}

async fn connect(port: u16, from_proxy: bool) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    if from_proxy {
        socket.bind((PROXY, 0).into()).unwrap();
    }
    socket.connect(local(port)).await.unwrap()
}

/// From now on, the end of the connection is this one.
fn ends(tcp: &TcpStream, end: End) {
    if end == End::Reset {
        SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// The first message of a TLS handshake.
fn client_hello() -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(any_certificate()), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// Every request that a check may be, with the status of its response where no web server is configured.
fn requests() -> Vec<(String, u16)> {
    let mut requests = Vec::new();
    for method in ["GET", "HEAD", "OPTIONS"] {
        for (path, status) in [("/", 404), ("/CommunityCBR", 200)] {
            for head in [
                // HAProxy's; that of AWS and of Kubernetes; one on a connection that is kept.
                "HTTP/1.0\r\n",
                "HTTP/1.1\r\nHost: 127.0.0.1:1533\r\nUser-Agent: kube-probe/1.31\r\nAccept: */*\r\nConnection: close\r\n",
                "HTTP/1.1\r\nHost: 127.0.0.1:1533\r\n",
            ] {
                requests.push((format!("{method} {path} {head}\r\n"), status));
            }
        }
    }
    requests
}

/// The status of the response to `request`, of which a HEAD has no body.
async fn status(stream: &mut Stream, request: &str) -> u16 {
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time("a response", stream.read_u8()).await.unwrap());
    }
    text(&head).split(' ').nth(1).unwrap().parse().unwrap()
}

/// Nothing was logged since the program was ready, and nothing was counted as an error.
async fn assert_quiet(program: &Program, checks: u64) {
    in_time("the end of each check", async {
        let accepted = async || {
            let status = program.status().await;
            let listeners = status["listeners"].as_array().unwrap().iter();
            listeners.map(|listener| listener["accepted_total"].as_u64().unwrap()).sum::<u64>()
        };
        while accepted().await < checks || program.metric("sametime_mux_connections").await > 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let log = program.log.lock().clone();
    let since = log.split_once(" ready").unwrap().1;
    let is_ours = |line: &&str| !line.contains("Community server is up");
    let lines: Vec<&str> = since.lines().skip(1).filter(is_ours).collect();
    assert!(lines.is_empty(), "{checks} checks: {lines:#?}");
    let metrics = text(&program.request("GET /metrics").await.body);
    let is_error = |line: &&str| {
        let counts = ["connections_dropped", "http_requests_refused", "tls_handshakes", "accept_errors"];
        counts.iter().any(|name| line.starts_with(&format!("sametime_mux_{name}_total{{")))
            && !["closed_early", "abandoned", "accepted"].iter().any(|fine| line.contains(&format!("\"{fine}\"")))
            && !line.ends_with(" 0")
    };
    let errors: Vec<&str> = metrics.lines().filter(is_error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_connects_or_begins_and_closes_is_neither_a_line_nor_an_error() {
    let program = Setup::new(TRUSTS).start();
    let (mut checks, port) = (0, program.status().await["listeners"][0]["port"].as_u64().unwrap() as u16);
    let v2 = proxy_protocol::v2("198.51.100.9:5".parse().unwrap(), "127.0.0.1:1533".parse().unwrap());
    let v2_local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0".to_vec();
    let hello = client_hello();
    let after_header = |bytes: &[u8]| [&v2_local[..], bytes].concat();
    let begun = [
        (false, Vec::new()),
        (false, vec![0x16]),
        (false, hello[..20].to_vec()),
        (false, hello.clone()),
        (true, Vec::new()),
        (true, b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 1533\r\n".to_vec()),
        (true, b"PROXY UNKNOWN\r\n".to_vec()),
        (true, b"PROXY TCP4".to_vec()),
        (true, v2),
        (true, v2_local.clone()),
        (true, after_header(&hello)),
    ];
    for end in [End::Close, End::Reset] {
        for (from_proxy, bytes) in &begun {
            for waits in [false, true] {
                let mut tcp = connect(port, *from_proxy).await;
                tcp.write_all(bytes).await.unwrap();
                if waits && bytes.ends_with(&hello) {
                    // It ends when the server has answered.
                    in_time("a server's hello", tcp.read_u8()).await.unwrap();
                } else if waits {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ends(&tcp, end);
                checks += 1;
            }
        }
        for says_goodbye in [false, true] {
            let tcp = connect(port, false).await;
            let mut tls = tls_over(tcp).await.unwrap();
            if says_goodbye {
                tls.shutdown().await.unwrap();
            }
            ends(tls.get_ref().0, end);
            checks += 1;
        }
    }
    assert_quiet(&program, checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_by_http_is_neither_a_line_nor_an_error() {
    let program = Setup::new(TRUSTS).start();
    let (mut checks, port) = (0, program.status().await["listeners"][0]["port"].as_u64().unwrap() as u16);
    for end in [End::Close, End::Reset] {
        for (request, expected) in requests() {
            for (from_proxy, tls, reads) in
                [(false, false, true), (true, false, true), (false, true, true), (false, false, false)]
            {
                let mut tcp = connect(port, from_proxy).await;
                if from_proxy {
                    tcp.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
                }
                ends(&tcp, end);
                let mut stream: Stream = if tls { Box::new(tls_over(tcp).await.unwrap()) } else { Box::new(tcp) };
                if reads {
                    assert_eq!(status(&mut stream, &request).await, expected, "{request}");
                } else {
                    stream.write_all(request.as_bytes()).await.unwrap();
                }
                checks += 1;
            }
        }
    }
    assert_quiet(&program, checks).await;
}

/// The statuses of the tunnel's page, by each method that a check may use, and of `/readyz`.
async fn readiness(program: &Program, port: u16) -> Vec<u16> {
    let mut statuses = vec![program.request("GET /readyz").await.status];
    for method in ["GET", "HEAD", "OPTIONS"] {
        for path in ["/CommunityCBR", "/st01/communityCBR/", "/CommunityCBR/CC.39.abc/"] {
            let mut stream = http::connect(local(port), false).await;
            statuses.push(status(&mut stream, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await);
        }
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tunnels_page_says_whether_clients_can_be_served() {
    let community = free_address();
    let setup = Setup::new(&servers(&[community], "check_interval = \"200ms\"\n"));
    let (raw, http) = (setup.raw, setup.http);
    let mut program = setup.start();
    let becomes = async |program: &Program, expected: u16| {
        in_time("readiness", async {
            while program.request("GET /readyz").await.status != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    };
    becomes(&program, 503).await;
    for port in [raw, http] {
        assert_eq!(readiness(&program, port).await, [503; 10], "no Community server is up");
    }
    let mut stream = http::connect(local(http), false).await;
    let page = http::exchange(&mut stream, b"GET /CommunityCBR HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(page.header("retry-after").is_some(), "{}", page.head);
    assert_eq!(text(&page.body), "Sametime Community tunnel: clients can't be served now.\n");

    let _sandbox = Sandbox::start_at(community).await;
    becomes(&program, 200).await;
    assert_eq!(readiness(&program, http).await, [200; 10]);
    let methods = http::exchange(&mut stream, b"OPTIONS /CommunityCBR HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!((methods.status, methods.header("allow")), (200, Some("POST, GET, HEAD, OPTIONS")));

    let mut client = Client::connect(Transport::Raw, local(raw)).await;
    client.log_in("bob").await;
    program.signal("TERM");
    becomes(&program, 503).await;
    assert_eq!(readiness(&program, http).await, [503; 10], "draining");
    client.log_out().await;
    assert_eq!(program.exit_code(), Some(0));
}

/// A balancer with each check that docs/interop.md names: all of them see a server that is up.
#[tokio::test(flavor = "multi_thread")]
async fn the_checks_of_haproxy_see_a_server_that_is_up_and_leave_no_line() {
    if !has("haproxy", "haproxy") {
        return;
    }
    let setup = Setup::new(TRUSTS);
    let (raw, folder) = (setup.raw, setup.folder.path().to_owned());
    let program = setup.start();
    let stats = free_address();
    let backends = [
        ("tcp", "", "check"),
        ("tls", "", "check check-ssl verify none"),
        ("proxy1", "source 127.0.0.9", "check send-proxy"),
        ("proxy2", "source 127.0.0.9", "check send-proxy-v2 check-send-proxy"),
        ("options", "option httpchk OPTIONS /CommunityCBR", "check"),
        ("get", "option httpchk GET /CommunityCBR", "check"),
        ("head", "option httpchk HEAD /CommunityCBR HTTP/1.1\\r\\nHost:\\ x", "check"),
        ("https", "option httpchk GET /CommunityCBR", "check check-ssl verify none"),
        ("http_by_proxy", "option httpchk GET /CommunityCBR\n  source 127.0.0.9", "check check-send-proxy"),
    ];
    let file = folder.join("haproxy.cfg");
    let mut to = fs::File::create(&file).unwrap();
    writeln!(
        to,
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n  timeout check 5s\n\
         frontend stats\n  mode http\n  bind {stats}\n  stats enable\n  stats uri /"
    )
    .unwrap();
    for (name, more, server) in backends {
        writeln!(to, "backend {name}\n  {more}\n  server mux 127.0.0.1:{raw} {server} inter 100ms").unwrap();
    }
    let _haproxy = Process::start(Command::new("haproxy").args(["-db", "-f"]).arg(&file));
    in_time("HAProxy", async {
        while TcpStream::connect(stats).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // Some checks of each.
    in_time("checks", async {
        while program.status().await["listeners"][0]["accepted_total"].as_u64().unwrap() < 20 * backends.len() as u64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut stream = http::connect(stats, false).await;
    let table =
        http::exchange(&mut stream, b"GET /;csv HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let table = text(&table.body);
    for (name, ..) in backends {
        let line = table.lines().find(|line| line.starts_with(&format!("{name},mux,"))).unwrap();
        assert_eq!(line.split(',').nth(17), Some("UP"), "{line}");
    }
    drop(_haproxy);
    assert_quiet(&program, 0).await;
}
