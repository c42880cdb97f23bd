//! A multiplexer that is its own Community server: directly, through a name that moves, through a proxy, through
//! another multiplexer.

use std::{
    fs,
    net::SocketAddr,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    dns::{Answer, Dns},
    namespaces,
    support::{
        client::{Client, Transport},
        community::Community,
        frames::{self, Frame},
        in_time,
        mux::{self, Mux},
        peer::{free_address, text},
        program::{Sandbox, Setup, local},
    },
};

fn check(setup: &Setup) -> Output {
    setup.command(&["check"])
}

#[tokio::test]
async fn a_server_that_is_a_port_of_this_program_is_refused_when_it_is_checked() {
    let raw = free_address().port();
    for server in ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]"] {
        let mut setup = Setup::new(&format!("[community]\nservers = [\"{server}:{raw}\"]\n"));
        setup.raw = raw;
        setup.write(&[raw]);
        let output = check(&setup);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{server}: {}{said}", text(&output.stdout));
        assert!(said.contains(": community.servers: ") && said.contains("this program itself"), "{server}: {said}");
        assert!(said.contains("client_connections"), "it names the port: {said}");
        assert!(said.contains("stconfig.toml:"), "it names the line: {said}");
    }
}

#[tokio::test]
async fn a_web_back_end_that_is_a_port_of_this_program_is_refused_when_it_is_checked() {
    let setup = Setup::new("");
    let ports = [setup.raw, setup.http, setup.https, setup.admin];
    for port in ports {
        let mut setup = Setup::new(&format!("[http_backend]\nurl = \"http://localhost:{port}\"\n"));
        [setup.raw, setup.http, setup.https, setup.admin] = ports;
        setup.write(&[setup.raw]);
        let output = check(&setup);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{port}: {said}");
        assert!(said.contains(": http_backend.url: ") && said.contains("this program itself"), "{said}");
    }
}

#[tokio::test]
async fn an_address_of_another_machine_or_of_another_port_is_fine() {
    for server in ["192.0.2.1", "chat.invalid"] {
        let raw = free_address().port();
        let mut setup = Setup::new(&format!("[community]\nservers = [\"{server}:{raw}\"]\n"));
        setup.raw = raw;
        setup.write(&[raw]);
        let output = check(&setup);
        assert_eq!(output.status.code(), Some(0), "{server}: {}", text(&output.stderr));
    }
    let other = free_address();
    let output = check(&Setup::new(&format!("[community]\nservers = [\"{other}\"]\n")));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

async fn refusal(to: SocketAddr) -> Frame {
    let mut client = Client::connect(Transport::Raw, to).await;
    client.send_frame(&frames::handshake()).await;
    client.recv().await.expect("a frame")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_moves_to_this_program_is_not_followed() {
    if !namespaces::inside("loops::a_name_that_moves_to_this_program_is_not_followed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.1\noptions timeout:3 attempts:2\n").unwrap();
    namespaces::run(&format!("mount --bind {} /etc/resolv.conf", file.display()));
    let dns = Dns::start(Answer::Address([127, 0, 0, 2].into()));
    let raw = free_address().port();
    let _served = Sandbox::start_at(SocketAddr::from(([127, 0, 0, 2], raw))).await;
    // The program listens on 127.0.0.1 only, so that the server can have the same port.
    let mut setup = Setup::new(&format!("[community]\nservers = [\"chat.test:{raw}\"]\ncheck_interval = \"200ms\"\n"));
    setup.raw = raw;
    let with_host = |toml: String| toml.replacen("ports =", "host_name = \"127.0.0.1\"\nports =", 1);
    fs::write(setup.file(), with_host(setup.toml(&[raw]))).unwrap();
    let program = setup.start();
    Client::connect(Transport::Raw, local(raw)).await.log_in("bob").await;
    dns.set(Answer::Address([127, 0, 0, 1].into()));
    let status = in_time("the server's end", async {
        loop {
            let status = program.status().await;
            if status["community"][0]["state"] == "down" {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let error = status["community"][0]["last_error"].as_str().unwrap().to_owned();
    assert!(error.contains("127.0.0.1") && error.contains("this program itself"), "{error}");
    assert_eq!(refusal(local(raw)).await.kind, frames::DESTROY);
    let opened = program.metric("sametime_mux_sessions_opened_total").await;
    assert!(opened <= 3.0, "two clients became {opened} sessions");
    // The name moves back.
    dns.set(Answer::Address([127, 0, 0, 2].into()));
    in_time("a log-in", async { while refusal(local(raw)).await.kind != frames::HANDSHAKE_ACK {} }).await;
}

/// A proxy that copies bytes to a place that is set later. Counts its connections.
struct Proxy {
    address: SocketAddr,
    to: Arc<Mutex<Option<SocketAddr>>>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Self { address, to: Arc::default(), connections: Arc::default() };
        let (to, connections) = (Arc::clone(&this.to), Arc::clone(&this.connections));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let Some(to) = *to.lock() else { continue };
                let connections = Arc::clone(&connections);
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    let mut first = [0];
                    if near.peek(&mut first).await.is_ok_and(|n| n > 0) {
                        connections.fetch_add(1, Relaxed);
                    }
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        this
    }

    fn lead_to(&self, to: SocketAddr) {
        *self.to.lock() = Some(to);
    }
}

async fn community(mux: &Mux, server: usize) -> Value {
    let status: Value = serde_json::from_slice(&mux.get("/api/status").await.body).unwrap();
    status["community"][server].clone()
}

/// More sessions than a chain that is cut at once has: the client's own, the one that comes back, and those of checks,
/// which are made again and again.
const FEW: f64 = 40.0;

async fn assert_cut(mux: &Mux, server: usize) {
    let opened = mux.metric_sum("sametime_mux_sessions_opened_total").await;
    assert!(opened <= FEW, "one client became {opened} sessions");
    let refused = mux.metric("sametime_mux_sessions_refused_total{reason=\"loop\"}").await;
    assert!(refused >= 1.0, "a connection that came back is refused for that reason");
    let status = community(mux, server).await;
    assert_eq!(status["state"], "down", "{status}");
    assert!(status["last_error"].as_str().unwrap().contains("this program itself"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_through_a_proxy_is_cut_where_it_comes_back() {
    let proxy = Proxy::start().await;
    let mux = mux::start(&format!("[community]\nservers = [\"{}\"]\n", proxy.address)).await;
    proxy.lead_to(mux.raw());
    let answer = refusal(mux.raw()).await;
    assert_eq!(answer.kind, frames::DESTROY, "{answer:x?}");
    assert_cut(&mux, 0).await;
    // The proxy is corrected: the server is used again.
    let fine = Community::start_echo().await;
    proxy.lead_to(fine.address);
    in_time("a log-in", async { while refusal(mux.raw()).await.kind != frames::HANDSHAKE_ACK {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_over_another_multiplexer_is_cut_where_it_comes_back() {
    let proxy = Proxy::start().await;
    let other = mux::start(&format!("[community]\nservers = [\"{}\"]\n", proxy.address)).await;
    let mux = mux::start(&format!("[community]\nservers = [\"{}\"]\n", other.raw())).await;
    proxy.lead_to(mux.raw());
    let answer = refusal(mux.raw()).await;
    assert_eq!(answer.kind, frames::DESTROY, "{answer:x?}");
    // The second one sees first that the client has passed a multiplexer, and that its server leads back.
    assert_cut(&other, 0).await;
    let opened = mux.metric_sum("sametime_mux_sessions_opened_total").await;
    assert!(opened <= FEW, "one client became {opened} sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_another_server_where_the_first_one_leads_back() {
    let (proxy, fine) = (Proxy::start().await, Community::start_echo().await);
    let servers = format!("servers = [\"{}\", \"{}\"]", proxy.address, fine.address);
    let mux = mux::start(&format!("[community]\n{servers}\nbalance = \"failover\"\n")).await;
    proxy.lead_to(mux.raw());
    for _ in 0..5 {
        Client::connect(Transport::Raw, mux.raw()).await.log_in("bob").await;
    }
    assert_cut(&mux, 0).await;
    assert_eq!(community(&mux, 1).await["state"], "up");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_another_multiplexer_in_front_are_not_taken_for_a_loop() {
    // All clients have the same address and the same Handshake, and the one in front writes the address into it.
    let fine = Community::start_echo().await;
    let behind = mux::start(&(fine.setting() + "[listeners]\nproxy_protocol_from = [\"127.0.0.1\"]\n")).await;
    let front = format!("[community]\nservers = [\"{}\"]\nsend_proxy_protocol = true\n", behind.raw());
    let front = mux::start(&front).await;
    let to = front.raw();
    let clients: Vec<_> = (0..300)
        .map(|_| tokio::spawn(async move { Client::connect(Transport::Raw, to).await.log_in("bob").await }))
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    for mux in [&front, &behind] {
        assert_eq!(community(mux, 0).await["state"], "up");
        assert_eq!(mux.metric("sametime_mux_sessions_refused_total{reason=\"loop\"}").await.to_bits(), 0);
    }
}
