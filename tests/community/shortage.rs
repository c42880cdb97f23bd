//! A machine that is out of descriptors says nothing about a server. Each test runs in a process of its own, in which it
//! takes every descriptor.

use std::{
    fs::File,
    net::{Ipv6Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, setrlimit};
use sametime_mux::{
    community::{Balance, Check, CommunitySettings, Pool, ServerAddress, ServerState},
    net::own::OwnListeners,
    stream::{Community as _, LinkFailure},
    telemetry::Telemetry,
    trunk::{TrunkSettings, Trunks},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use crate::support::{
    frames::{self, Frame},
    http::{self, exchange},
    mux,
    peer::text,
    wait_until,
};

const INSIDE: &str = "SAMETIME_MUX_INSIDE_SHORTAGE";

/// Whether this process is one in which the test `name` may take every descriptor. If not, the test is run in one, and
/// the caller has nothing more to do.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        setrlimit(Resource::Nofile, Rlimit { current: Some(128), maximum: Some(128) }).unwrap();
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this).args([name, "--exact", "--nocapture"]).env(INSIDE, "1").output().unwrap();
    print!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("1 passed"), "the test did not run: {}", text(&output.stdout));
    false
}

/// Every descriptor that is left.
fn all_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// A server that answers each Handshake.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut tcp, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            tokio::spawn(async move {
                if Frame::read(&mut tcp).await.is_some() {
                    let _ = tcp.write_all(&Frame::new(frames::HANDSHAKE_ACK, 0, &[0; 8]).bytes()).await;
                }
            });
        }
    });
    address
}

fn settings(server: String) -> CommunitySettings {
    CommunitySettings {
        servers: vec![ServerAddress::Address(server).into()],
        balance: Balance::Failover,
        recalculate_after: 1,
        slow_start: Duration::ZERO,
        send_proxy_protocol: false,
        trunk: TrunkSettings::unused(),
        connect_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(5),
        check: Check::Handshake,
        check_interval: Some(Duration::from_millis(100)),
    }
}

#[tokio::test]
async fn a_name_that_is_not_resolved_without_descriptors_takes_no_server_down() {
    if !inside("shortage::a_name_that_is_not_resolved_without_descriptors_takes_no_server_down") {
        return;
    }
    let port = server().await.port();
    let taken = all_descriptors();
    let pool = Pool::start(
        settings(format!("localhost:{port}")),
        None,
        OwnListeners::default(),
        Trunks::new(vec![tokio::runtime::Handle::current()], Telemetry::new("0")),
    );
    let client = SocketAddr::from(([192, 0, 2, 1], 4000));
    for _ in 0..3 {
        let hello = frames::handshake().bytes();
        let more = std::pin::pin!(std::future::pending());
        let Err(error) = pool.connect(client, &hello, more).await else { panic!("connected") };
        assert_eq!(error.failure, LinkFailure::System, "{}", error.detail);
        let server = &pool.status()[0];
        assert_eq!((&server.last_error, server.state), (&None, ServerState::Down), "it was not tried yet");
    }
    drop(taken);
    wait_until("the server is up", || pool.any_up()).await;
    // The name was resolved, and its addresses stay in use.
    let taken = all_descriptors();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(pool.any_up(), "{:?}", pool.status());
    drop(taken);
    drop(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await);
}

#[tokio::test]
async fn a_web_server_is_not_blamed_for_a_connection_that_takes_a_descriptor_too_many() {
    if !inside("shortage::a_web_server_is_not_blamed_for_a_connection_that_takes_a_descriptor_too_many") {
        return;
    }
    for host in ["127.0.0.1", "localhost"] {
        let mux = mux::start(&format!("[http_backend]\nurl = \"http://{host}:9\"\n")).await;
        let mut tcp = http::tcp(mux.raw()).await;
        let request = b"GET / HTTP/1.1\r\nHost: chat.example\r\n\r\n";
        let taken = all_descriptors();
        assert_eq!(exchange(&mut tcp, request).await.unwrap().status, 503, "{host}");
        drop(taken);
        assert_eq!(exchange(&mut tcp, request).await.unwrap().status, 502, "{host}");
        for reason in ["shortage", "unreachable"] {
            let metric = format!("sametime_mux_http_backend_errors_total{{reason=\"{reason}\"}}");
            assert_eq!(mux.metric(&metric).await, 1.0, "{host}: {reason}");
        }
    }
}
