//! The configurations of deploy/ for HAProxy and nginx in front of a cluster, with the real programs.
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use sametime_mux::{cluster::secret::Secret, net::Section};
use support::{
    client::{Client, Transport},
    has, in_time,
    mux::{self, Mux},
    peer::{Process, free_address, text},
    program::free_ports,
    wait_until,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

const SECRET: &str = "a secret of tests alone";
const NAMES: [&str; 2] = ["mux-0", "mux-1"];

/// Two nodes of a cluster.
struct Nodes {
    nodes: Vec<Mux>,
    folder: TempDir,
}

impl Nodes {
    /// `trusted` says which addresses of the balancer the nodes believe.
    async fn start(trusted: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, SECRET).unwrap();
        let listens = NAMES.map(|_| free_address());
        let mut nodes = Vec::new();
        for (at, name) in NAMES.iter().enumerate() {
            nodes.push(
                mux::start(&format!(
                    "[listeners]\n{trusted}\n[cluster]\nnode = \"{name}\"\npeer = {{ mux-0 = \"http://{}\", mux-1 = \"http://{}\" }}\nlisten = \"{}\"\nsecret_file = \"{}\"\n",
                    listens[0],
                    listens[1],
                    listens[at],
                    secret.display()
                ))
                .await,
            );
        }
        Self { nodes, folder }
    }

    fn raw(&self, node: usize) -> String {
        self.nodes[node].raw().to_string()
    }

    fn http(&self, node: usize) -> String {
        self.nodes[node].port(Section::HttpTunneledClientConnections).to_string()
    }

    async fn sum(&self, metric: &str) -> f64 {
        let mut sum = 0.0;
        for node in &self.nodes {
            sum += node.metric_sum(metric).await;
        }
        sum
    }
}

fn tag(node: &str) -> String {
    Secret::new(SECRET.as_bytes()).tag(node).to_string()
}

/// Replaces each text, which has to be there.
fn with(mut configuration: String, replacements: &[(&str, String)]) -> String {
    for (from, to) in replacements {
        assert!(configuration.contains(from), "{from}");
        configuration = configuration.replace(from, to);
    }
    configuration
}

async fn converse(transport: Transport, to: SocketAddr) {
    let mut client = Client::connect(transport, to).await;
    client.log_in("bob").await;
    let channel = client.open_chat("echo").await;
    for n in 0..10 {
        let said = format!("message {n}");
        client.send_text(channel, said.as_bytes()).await;
        assert_eq!(client.recv().await.unwrap().text(), said.as_bytes(), "{transport:?}");
    }
    client.log_out().await;
}

/// Conversations at the same time, each over a transport through a port. Returns when all have succeeded.
async fn converse_all(conversations: impl Iterator<Item = (Transport, u16)>) {
    let mut all: JoinSet<()> = conversations
        .map(|(transport, port)| async move { in_time("a conversation", converse(transport, local(port))).await })
        .collect();
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
}

/// Every conversation that there may be through the Community port, the port for TLS, and the ports for tunnels.
async fn converse_everywhere([community, tls, tunnels @ ..]: [u16; 4]) {
    let on_community = Transport::ALL.map(|transport| (transport, community));
    let with_tls = [Transport::Tls, Transport::PollingTls, Transport::HybridTls, Transport::StreamingTls];
    let in_tunnels = [Transport::Polling, Transport::Hybrid, Transport::Streaming];
    let in_tunnels = tunnels.into_iter().flat_map(|port| in_tunnels.map(|transport| (transport, port)).repeat(4));
    converse_all(on_community.into_iter().chain(with_tls.map(|transport| (transport, tls))).chain(in_tunnels)).await;
}

/// Conversations of polling and hybrid clients.
async fn converse_by_name(port: u16) {
    converse_all([Transport::Polling, Transport::Hybrid].map(|transport| (transport, port)).repeat(4).into_iter())
        .await;
}

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).unwrap()
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

const PASSED: &str = "sametime_mux_cluster_requests_passed_total";

#[tokio::test]
async fn haproxy_serves_every_transport_passes_nothing_and_notices_a_drain() {
    if !has("haproxy", "haproxy") {
        return;
    }
    let nodes = Nodes::start("proxy_protocol_from = [\"127.0.0.1\"]").await;
    let [community, tls, http, http_8082] = free_ports();
    let configuration = with(
        read("haproxy.cfg"),
        &[
            ("10.0.0.1:1533", nodes.raw(0)),
            ("10.0.0.2:1533", nodes.raw(1)),
            ("10.0.0.1:80\n", nodes.http(0) + "\n"),
            ("10.0.0.2:80\n", nodes.http(1) + "\n"),
            ("bind :1533\n", format!("bind 127.0.0.1:{community}\n")),
            ("bind :443\n", format!("bind 127.0.0.1:{tls}\n")),
            ("bind :80\n", format!("bind 127.0.0.1:{http}\n")),
            ("bind :8082\n", format!("bind 127.0.0.1:{http_8082}\n")),
            ("maxconn 60000", "maxconn 4000".to_owned()),
        ],
    );
    let file = nodes.folder.path().join("haproxy.cfg");
    fs::write(&file, configuration).unwrap();
    let haproxy = |arguments: &[&str]| {
        let mut command = Command::new("haproxy");
        command.args(arguments).arg(&file).env("MUX_0_TAG", tag("mux-0")).env("MUX_1_TAG", tag("mux-1"));
        command
    };
    let checked = haproxy(&["-c", "-f"]).output().unwrap();
    let said = text(&checked.stdout) + &text(&checked.stderr);
    assert!(checked.status.success() && !said.contains("WARNING"), "{said}");
    let _haproxy = Process::start(&mut haproxy(&["-db", "-f"]));
    let ports = [community, tls, http, http_8082];
    wait_until("the proxy's ports", || ports.iter().all(|port| std::net::TcpStream::connect(local(*port)).is_ok()))
        .await;

    // The name of a session leads to its node.
    let before = nodes.sum(PASSED).await;
    converse_by_name(http).await;
    assert_eq!(nodes.sum(PASSED).await - before, 0.0);
    converse_everywhere(ports).await;

    // A node that drains gets no new clients, and its session goes on.
    let mut stays = Client::connect(Transport::Raw, local(community)).await;
    stays.log_in("ann").await;
    let draining = usize::from(nodes.nodes[0].server.sessions() == 0);
    let server = nodes.nodes[draining].server.clone();
    let drain = tokio::spawn(async move { server.drain().await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    for _ in 0..6 {
        in_time("a conversation", converse(Transport::Raw, local(community))).await;
    }
    let channel = stays.open_chat("echo").await;
    stays.send_text(channel, b"still here").await;
    assert_eq!(stays.recv().await.unwrap().text(), b"still here");
    drop(stays);
    in_time("the drain", drain).await.unwrap();
}

#[tokio::test]
async fn nginx_serves_every_transport_and_tells_the_clients_addresses() {
    if !has("nginx", "nginx-light") {
        return;
    }
    let trusted = "proxy_protocol_from = [\"127.0.0.9\"]\nforwarded_for_from = [\"127.0.0.1\"]";
    let nodes = Nodes::start(trusted).await;
    let [community, tls, http, http_8082] = free_ports();
    let here = nodes.folder.path().display();
    let configuration = with(
        read("nginx.conf"),
        &[
            ("10.0.0.1:1533", nodes.raw(0)),
            ("10.0.0.2:1533", nodes.raw(1)),
            ("10.0.0.1:80", nodes.http(0)),
            ("10.0.0.2:80", nodes.http(1)),
            ("proxy_bind 10.0.0.9", "proxy_bind 127.0.0.9".to_owned()),
            ("TAG-OF-MUX-0", tag("mux-0")),
            ("TAG-OF-MUX-1", tag("mux-1")),
            ("listen 1533;", format!("listen 127.0.0.1:{community};")),
            ("listen 443;", format!("listen 127.0.0.1:{tls};")),
            ("listen 80;", format!("listen 127.0.0.1:{http};")),
            ("listen 8082;", format!("listen 127.0.0.1:{http_8082};")),
            ("worker_rlimit_nofile 130000;\n", format!("pid {here}/pid;\nerror_log {here}/log;\ndaemon off;\n")),
            ("worker_connections 60000", "worker_connections 2000".to_owned()),
            (
                "    access_log off;\n",
                format!(
                    "    access_log off;\n    client_body_temp_path {here}/body;\n    proxy_temp_path {here}/proxy;\n    fastcgi_temp_path {here}/fastcgi;\n    uwsgi_temp_path {here}/uwsgi;\n    scgi_temp_path {here}/scgi;\n"
                ),
            ),
        ],
    );
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = if Path::new(module).exists() { format!("load_module {module};\n") } else { String::new() };
    let file = nodes.folder.path().join("nginx.conf");
    fs::write(&file, load + &configuration).unwrap();
    let nginx = |arguments: &[&str]| {
        let mut command = Command::new("nginx");
        command.args(["-e", &format!("{here}/log")]).args(arguments).arg("-c").arg(&file);
        command
    };
    let checked = nginx(&["-t"]).output().unwrap();
    let said = text(&checked.stderr);
    assert!(checked.status.success() && !said.contains("[warn]"), "{said}");
    let _nginx = Process::start(&mut nginx(&[]));
    let ports = [community, tls, http, http_8082];
    wait_until("the proxy's ports", || ports.iter().all(|port| std::net::TcpStream::connect(local(*port)).is_ok()))
        .await;
    converse_by_name(http).await;
    assert_eq!(nodes.sum(PASSED).await, 0.0, "the name of a session leads to its node");
    converse_everywhere(ports).await;
}
