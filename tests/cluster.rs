//! Several nodes as one: requests that come to the wrong node, nodes that are gone, and strangers.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use sametime_mux::{
    cluster::{
        hello::{Hello, greeting, read_answer},
        secret::Secret,
    },
    config,
    net::Section,
    server::Server,
};
use support::{
    client::{Client, Transport},
    frames::{self, Frame},
    has,
    http::{self, Response, Stream},
    in_time,
    mux::{self, Mux},
    peer::{self, free_address},
    program::{Program, Setup, free_ports, local},
    streaming,
    tunnel::{Kind, Pace, Session},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::sleep,
};

const SECRET: &str = "a secret of tests alone";
const NAMES: [&str; 3] = ["mux-0", "mux-1", "mux-2"];
/// Messages of each client behind the balancer.
const MESSAGES: usize = 20;

/// Nodes in this process.
struct Nodes {
    nodes: Vec<Mux>,
    /// Of every node of the configuration, also of those that do not run.
    listens: Vec<SocketAddr>,
    _folder: TempDir,
}

impl Nodes {
    /// Starts a node with each of `secrets`. The nodes of the configuration that get none do not run.
    async fn start(secrets: &[&str], more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listens: Vec<SocketAddr> = NAMES.iter().map(|_| free_address()).collect();
        let table: Vec<String> =
            NAMES.iter().zip(&listens).map(|(name, listen)| format!("{name} = \"http://{listen}\"")).collect();
        let mut nodes = Vec::new();
        for (at, secret) in secrets.iter().enumerate() {
            let file = folder.path().join(format!("secret-{at}"));
            fs::write(&file, secret).unwrap();
            let (name, listen, table) = (NAMES[at], listens[at], table.join(", "));
            nodes.push(
                mux::start(&format!(
                    "[cluster]\nnode = \"{name}\"\npeer = {{ {table} }}\nlisten = \"{listen}\"\nsecret_file = \"{}\"\n{more}",
                    file.display()
                ))
                .await,
            );
        }
        Self { nodes, listens, _folder: folder }
    }

    fn port(&self, node: usize) -> SocketAddr {
        self.nodes[node].port(Section::HttpTunneledClientConnections)
    }

    async fn metric(&self, node: usize, name: &str) -> f64 {
        self.nodes[node].metric(name).await
    }
}

async fn post_from(from: &str, to: SocketAddr, path: &str, body: &[u8]) -> Response {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut tcp = socket.connect(to).await.unwrap();
    in_time("a response", http::exchange(&mut tcp, &http::post(path, body))).await.unwrap()
}

async fn post(to: SocketAddr, path: &str, body: &[u8]) -> Response {
    post_from("127.0.0.1", to, path, body).await
}

async fn open(kind: Kind, to: SocketAddr) -> Session {
    let mut session = Session::new(kind);
    let opened = post(to, &session.path(), &session.opening()).await;
    assert_eq!(opened.status, 200, "{}", opened.head);
    session.opened(&opened.body);
    session
}

/// Sends a Handshake by one node after the other, beginning with `first`, until the Community's answer is there.
async fn handshake(nodes: &Nodes, session: &mut Session, first: usize) {
    let mut received = Vec::new();
    let mut data = frames::handshake().bytes();
    for step in 0..50 {
        if !received.is_empty() {
            return;
        }
        let body = session.request(&std::mem::take(&mut data));
        let to = nodes.port((first + step) % nodes.nodes.len());
        let response = post(to, &session.path(), &body).await;
        assert_eq!(response.status, 200, "{}", response.head);
        received.extend(session.response(&response.body));
    }
    panic!("no HandshakeAck");
}

#[tokio::test]
async fn a_request_reaches_its_session_by_any_node() {
    let nodes = Nodes::start(&[SECRET; 3], "[tunnel]\nhold = \"1s\"\n").await;
    for kind in [Kind::Polling, Kind::Hybrid] {
        let mut session = open(kind, nodes.port(0)).await;
        assert_eq!(session.name.len(), 32, "as long as without a cluster");
        handshake(&nodes, &mut session, 1).await;
    }
    assert!(nodes.metric(1, "sametime_mux_cluster_requests_passed_total").await >= 2.0);
    assert!(nodes.metric(0, "sametime_mux_cluster_requests_received_total").await >= 2.0);
    let status: serde_json::Value = serde_json::from_slice(&nodes.nodes[1].get("/api/status").await.body).unwrap();
    assert_eq!(status["cluster"]["node"], "mux-1");
    assert_eq!(status["cluster"]["nodes"][1]["name"], "mux-0");
}

#[tokio::test]
async fn a_repeated_request_is_taken_once_whichever_node_gets_it() {
    let nodes = Nodes::start(&[SECRET; 2], "").await;
    let mut session = open(Kind::Polling, nodes.port(0)).await;
    let body = session.request(&frames::handshake().bytes());
    let first = post(nodes.port(1), &session.path(), &body).await;
    let again = post(nodes.port(0), &session.path(), &body).await;
    let third = post(nodes.port(1), &session.path(), &body).await;
    // The same payload, behind a new token each time.
    let payload = |response: &Response| response.body[9..].to_vec();
    assert_eq!((first.status, payload(&again), payload(&third)), (200, payload(&first), payload(&first)));
    let retries = "sametime_mux_tunnel_requests_total{kind=\"http_polling\",outcome=\"retry\"}";
    assert_eq!(nodes.metric(0, retries).await, 2.0);
}

#[tokio::test]
async fn a_streaming_clients_post_reaches_the_node_with_its_get() {
    let nodes = Nodes::start(&[SECRET; 3], "").await;
    let (mut down, _get) = streaming::open(&nodes.port(0).into(), false).await.unwrap();
    for at in [1, 2, 0] {
        let name = down.name.clone();
        let data = if at == 1 { frames::handshake().bytes() } else { Vec::new() };
        let response = streaming::send(&nodes.port(at).into(), false, &name, &data).await.unwrap();
        assert_eq!((response.status, &response.body[3..]), (200, &name[..]), "by node {at}");
    }
    let mut some = [0; 100];
    assert!(in_time("the HandshakeAck", down.read(&mut some)).await.unwrap() > 0);
}

#[tokio::test]
async fn the_clients_address_goes_with_the_request() {
    let nodes = Nodes::start(&[SECRET; 2], "[tunnel]\nsame_address = true\n").await;
    let mut session = open(Kind::Polling, nodes.port(0)).await;
    let body = session.request(&[]);
    assert_eq!(post_from("127.0.0.2", nodes.port(1), &session.path(), &body).await.status, 404);
    let other = "sametime_mux_tunnel_requests_total{kind=\"http_polling\",outcome=\"other_address\"}";
    assert_eq!(nodes.metric(0, other).await, 1.0);
    assert_eq!(post(nodes.port(1), &session.path(), &body).await.status, 200);
}

/// A name of a session of this node that nobody has.
fn name_on(node: &str) -> String {
    format!("{}{}", Secret::new(SECRET.as_bytes()).tag(node), "7".repeat(28))
}

#[tokio::test]
async fn a_client_of_a_node_that_is_gone_starts_anew() {
    let nodes = Nodes::start(&[SECRET], "").await;
    for _ in 0..3 {
        let response = post(nodes.port(0), &format!("/CommunityCBR/CC.35.{}/", name_on("mux-2")), &[0; 8]).await;
        assert_eq!(response.status, 404);
    }
    let gone = "sametime_mux_cluster_failures_total{reason=\"gone\"}";
    assert_eq!(nodes.metric(0, gone).await, 3.0);
    assert_eq!(nodes.metric(0, "sametime_mux_cluster_node_up{node=\"mux-2\"}").await, 0.0);
    let of_kind = "sametime_mux_tunnel_requests_total{kind=\"http_polling\",outcome=\"node_gone\"}";
    assert_eq!(nodes.metric(0, of_kind).await, 3.0);
}

#[tokio::test]
async fn nodes_with_different_secrets_pass_nothing() {
    let nodes = Nodes::start(&[SECRET, "another secret of tests"], "").await;
    let response = post(nodes.port(0), &format!("/CommunityCBR/CC.39.{}/", name_on("mux-1")), &[0; 8]).await;
    assert_eq!(response.status, 404);
    assert_eq!(nodes.metric(0, "sametime_mux_cluster_failures_total{reason=\"not_proven\"}").await, 1.0);
    assert_eq!(nodes.metric(1, "sametime_mux_cluster_requests_received_total").await, 0.0);
}

#[test]
fn a_template_and_names_say_how_each_node_is_reached() {
    let parse = |cluster: &str| {
        let text = format!("[community]\nservers = [\"sandbox\"]\n[cluster]\n{cluster}\n");
        config::parse(&text, Path::new("st.toml"), std::iter::empty()).map_err(|errors| errors.to_string())
    };
    let rest = "listen = \"127.0.0.1:9534\"\nsecret_file = \"secret\"";
    let template = "peer = \"http://{node}.mux:9534\"";
    let settings = parse(&format!("node = \"Mux-1\"\nnodes = [\"mux-0\", \"MUX-1\"]\n{template}\n{rest}")).unwrap();
    let cluster = settings.cluster.unwrap();
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| (&*node.name, &*node.address)).collect();
    assert_eq!(cluster.node, "mux-1");
    assert_eq!(nodes, [("mux-0", "mux-0.mux:9534"), ("mux-1", "mux-1.mux:9534")]);
    assert!(parse("").unwrap().cluster.is_none(), "alone");
    // The name of this machine.
    let own = rustix::system::uname().nodename().to_str().unwrap().to_lowercase();
    let settings = parse(&format!("peer = {{ {own} = \"http://127.0.0.1:1\" }}\n{rest}")).unwrap();
    assert_eq!(settings.cluster.unwrap().node, own);
    for (cluster, what) in [
        (format!("node = \"a\"\n{template}\nnodes = [\"b\"]\n{rest}"), "\"a\" is not among the nodes"),
        (format!("node = \"b\"\n{template}\nnodes = [\"b\"]"), "cluster.listen: cluster.peer is set"),
        (format!("node = \"b\"\n{template}\nnodes = [\"b\"]"), "cluster.secret_file: cluster.peer is set"),
        (rest.to_owned(), "cluster.peer: cluster.listen is set, but not how other nodes are reached"),
        (
            format!("node = \"b\"\npeer = {{ b = \"http://b:1\" }}\nnodes = [\"b\"]\n{rest}"),
            "has the names of all nodes",
        ),
        (format!("node = \"b\"\npeer = {{ b = \"b:1\" }}\n{rest}"), "does not begin with http://"),
        (format!("node = \"b\"\n{template}\nnodes = [\"b\"]\n{}", rest.replace("9534", "1533")), "port 1533 stands in"),
        (format!("node = \"b\"\n{template}\nnodes = [\"b\"]\n{}", rest.replace("9534", "9533")), "it is admin.listen"),
    ] {
        let errors = parse(&cluster).err().unwrap_or_else(|| panic!("legal: {cluster}"));
        assert!(errors.contains(what), "{errors}");
    }
}

#[tokio::test]
async fn a_reload_adds_a_node() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other, secret) = (free_address(), free_address(), folder.path().join("secret"));
    fs::write(&secret, SECRET).unwrap();
    let toml = |table: &str| {
        format!(
            "[cluster]\nnode = \"mux-0\"\npeer = {{ mux-0 = \"http://{own}\"{table} }}\nlisten = \"{own}\"\nsecret_file = \"{}\"\n",
            secret.display()
        )
    };
    let mux = mux::start(&toml("")).await;
    let known = "sametime_mux_cluster_node_up{node=\"mux-1\"}";
    assert_eq!(mux.metric(known).await, 0.0);
    let more = toml(&format!(", mux-1 = \"http://{other}\""));
    mux.server.reload(mux::settings(&more, mux.folder.path())).await.unwrap();
    assert_eq!(mux.metric(known).await, 1.0, "it was not needed yet");
}

#[tokio::test]
async fn a_node_without_a_usable_secret_or_port_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let (secret, taken) = (folder.path().join("secret"), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let start = async |listen: SocketAddr| {
        let toml = format!(
            "[cluster]\nnode = \"a\"\npeer = {{ a = \"http://a:1\" }}\nlisten = \"{listen}\"\nsecret_file = \"{}\"\n",
            secret.display()
        );
        Server::start(mux::settings(&toml, folder.path())).await.err().expect("refused").to_string()
    };
    assert!(start(free_address()).await.contains("[cluster]: "), "there is no file");
    fs::write(&secret, "short").unwrap();
    assert!(start(free_address()).await.contains("fewer than 16 characters"));
    fs::write(&secret, SECRET).unwrap();
    assert!(start(taken.local_addr().unwrap()).await.contains("can't be bound"));
}

/// Connects to `listen` as the node `own`, with this secret, up to the last line.
async fn prove(listen: SocketAddr, own: &str, secret: &str) -> (TcpStream, String) {
    let (mut tcp, secret) = (http::tcp(listen).await, Secret::new(secret.as_bytes()));
    let its_nonce = [5; 16];
    tcp.write_all(greeting(own, &its_nonce).as_bytes()).await.unwrap();
    let line = in_time("the answer", http::read_line(&mut tcp)).await.unwrap();
    let (nonce, _) = read_answer(line.trim_end().as_bytes()).unwrap();
    let last = Hello { connects: own, its_nonce, accepts: "mux-0", nonce }.last(&secret);
    (tcp, last)
}

/// Whether a node closes the connection without a response.
async fn is_closed(mut tcp: TcpStream) -> bool {
    let mut all = Vec::new();
    let _ = in_time("the close", tcp.read_to_end(&mut all)).await;
    !all.starts_with(b"HTTP")
}

#[tokio::test]
async fn strangers_are_refused_and_what_was_heard_is_worth_nothing() {
    let nodes = Nodes::start(&[SECRET], "").await;
    let listen = nodes.listens[0];
    let request = format!("POST /CommunityCBR/CC.35.{}/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n", name_on("mux-0"));
    let mut tcp = http::tcp(listen).await;
    tcp.write_all(request.as_bytes()).await.unwrap();
    assert!(is_closed(tcp).await, "no proof");
    let mut tcp = http::tcp(listen).await;
    tcp.write_all("x".repeat(5000).as_bytes()).await.unwrap();
    assert!(is_closed(tcp).await, "a line without an end");
    let mut tcp = http::tcp(listen).await;
    tcp.write_all(greeting("mux-9", &[5; 16]).as_bytes()).await.unwrap();
    assert!(is_closed(tcp).await, "no node");
    let (mut tcp, last) = prove(listen, "mux-1", "the secret of a stranger").await;
    tcp.write_all(format!("{last}{request}").as_bytes()).await.unwrap();
    assert!(is_closed(tcp).await, "the wrong secret");
    // The proof of one connection is sent again on another.
    let (first, last) = prove(listen, "mux-1", SECRET).await;
    let (mut tcp, _) = prove(listen, "mux-1", SECRET).await;
    tcp.write_all(format!("{last}{request}").as_bytes()).await.unwrap();
    assert!(is_closed(tcp).await, "a proof of another connection");
    drop(first);
    assert!(is_closed(http::tcp(listen).await).await, "silence");
    for (reason, count) in [("not_a_node", 2.0), ("unknown_node", 1.0), ("not_proven", 2.0), ("too_slow", 1.0)] {
        let name = format!("sametime_mux_cluster_peers_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(nodes.metric(0, &name).await, count, "{reason}");
    }
    assert_eq!(nodes.metric(0, "sametime_mux_cluster_requests_received_total").await, 0.0);
}

#[tokio::test]
async fn a_node_passes_nothing_on_that_was_passed_to_it() {
    let nodes = Nodes::start(&[SECRET; 2], "").await;
    let (mut tcp, last) = prove(nodes.listens[0], "mux-2", SECRET).await;
    let path = format!("/CommunityCBR/CC.35.{}/", name_on("mux-1"));
    tcp.write_all(last.as_bytes()).await.unwrap();
    let response = in_time("a response", http::exchange(&mut tcp, &http::post(&path, &[0; 8]))).await.unwrap();
    assert_eq!(response.status, 404);
    let refused = "sametime_mux_tunnel_requests_total{kind=\"http_polling\",outcome=\"not_this_node\"}";
    assert_eq!(nodes.metric(0, refused).await, 1.0);
    assert_eq!(nodes.metric(1, "sametime_mux_cluster_requests_received_total").await, 0.0);
}

#[tokio::test]
async fn a_node_that_proves_itself_and_then_sends_rubbish_is_noticed() {
    let nodes = Nodes::start(&[SECRET], "").await;
    let rubbish = TcpListener::bind(nodes.listens[1]).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = rubbish.accept().await {
            let line = http::read_line(&mut tcp).await.unwrap();
            let nonce = line.trim_end().rsplit(' ').next().unwrap();
            let its_nonce = std::array::from_fn(|at| u8::from_str_radix(&nonce[2 * at..2 * at + 2], 16).unwrap());
            let hello = Hello { connects: "mux-0", its_nonce, accepts: "mux-1", nonce: [1; 16] };
            tcp.write_all(hello.answer(&Secret::new(SECRET.as_bytes())).as_bytes()).await.unwrap();
            http::read_line(&mut tcp).await.unwrap();
            let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(100_000));
            let _ = tcp.write_all(endless.as_bytes()).await;
        }
    });
    let response = post(nodes.port(0), &format!("/CommunityCBR/CC.35.{}/", name_on("mux-1")), &[0; 8]).await;
    assert_eq!(response.status, 503, "the client repeats it");
    assert_eq!(nodes.metric(0, "sametime_mux_cluster_failures_total{reason=\"no_response\"}").await, 1.0);
}

#[tokio::test]
async fn a_node_that_drains_goes_on_with_its_sessions() {
    let nodes = Nodes::start(&[SECRET; 2], "").await;
    let mut session = open(Kind::Polling, nodes.port(0)).await;
    let draining = nodes.nodes[0].server.clone();
    let drain = tokio::spawn(async move { draining.drain().await });
    in_time("the drain's begin", async {
        while !nodes.nodes[0].server.is_draining() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused =
        post(nodes.port(0), &Session::new(Kind::Polling).path(), &Session::new(Kind::Polling).opening()).await;
    assert_eq!(refused.status, 503, "no new session");
    for _ in 0..3 {
        let body = session.request(&[]);
        let response = post(nodes.port(1), &session.path(), &body).await;
        assert_eq!(response.status, 200, "{}", response.head);
        session.response(&response.body);
    }
    assert!(!drain.is_finished(), "the session is present");
    drain.abort();
}

/// Processes on the same ports. Returns them with the port of tunnels.
fn processes_on_the_same_ports() -> ([Program; 2], SocketAddr) {
    let [raw, http, https] = free_ports();
    let listens = [free_address(), free_address()];
    let start = |at: usize| {
        let mut setup = Setup::new("");
        (setup.raw, setup.http, setup.https) = (raw, http, https);
        let secret = setup.folder.path().join("secret");
        fs::write(&secret, SECRET).unwrap();
        setup.more = format!(
            "[listeners]\nshare_ports = true\n[cluster]\nnode = \"{}\"\npeer = {{ mux-0 = \"http://{}\", mux-1 = \"http://{}\" }}\nlisten = \"{}\"\nsecret_file = \"{}\"\n",
            NAMES[at],
            listens[0],
            listens[1],
            listens[at],
            secret.display()
        );
        setup.write(&[raw]);
        setup.start()
    };
    ([start(0), start(1)], local(http))
}

#[tokio::test]
async fn processes_on_the_same_ports_are_one_and_one_that_is_killed_ends_only_its_own_sessions() {
    let ([stays, mut killed], port) = processes_on_the_same_ports();
    let tags = [0, 1].map(|at| Secret::new(SECRET.as_bytes()).tag(NAMES[at]).to_string());
    let mut sessions: [Vec<Session>; 2] = [Vec::new(), Vec::new()];
    // The kernel chooses the process of each connection.
    in_time("sessions on both", async {
        while sessions.iter().any(|of_node| of_node.len() < 4) {
            let session = open(Kind::Polling, port).await;
            let node = tags.iter().position(|tag| session.path().contains(&format!("CC.35.{tag}"))).unwrap();
            sessions[node].push(session);
        }
    })
    .await;
    let poll = async |session: &mut Session| {
        let body = session.request(&[]);
        let response = post(port, &session.path(), &body).await;
        if response.status == 200 {
            session.response(&response.body);
        }
        response.status
    };
    for session in sessions.iter_mut().flatten() {
        for _ in 0..8 {
            assert_eq!(poll(session).await, 200);
        }
    }
    let passed = "sametime_mux_cluster_requests_passed_total";
    assert!(stays.metric(passed).await > 0.0 && killed.metric(passed).await > 0.0);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let [of_stays, of_killed] = &mut sessions;
    for session in of_killed {
        assert_eq!(poll(session).await, 404, "its client starts anew");
    }
    for session in of_stays {
        for _ in 0..3 {
            assert_eq!(poll(session).await, 200, "its client notices nothing");
        }
    }
    assert!(stays.metric("sametime_mux_cluster_failures_total{reason=\"gone\"}").await >= 4.0);
}

async fn converse(transport: Transport, balancer: SocketAddr, at: usize) {
    let mut client = Client::connect(transport, balancer).await;
    client.log_in(&format!("user-{at}")).await;
    let channel = client.open_chat("echo").await;
    for n in 0..MESSAGES {
        let text = format!("{at}-{n}");
        client.send_text(channel, text.as_bytes()).await;
        let echo = client.recv().await.unwrap_or_else(|| panic!("{transport:?} {at}: the session ended at {n}"));
        assert_eq!(echo.text(), text.as_bytes(), "{transport:?}");
    }
}

/// HAProxy in TCP mode in front of `servers`, with these lines in its defaults, and these words at each server.
async fn haproxy(servers: &[SocketAddr], options: &str, words: &str) -> (peer::Process, SocketAddr, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("haproxy.cfg");
    let (process, address) = peer::proxy(|port| {
        let servers: String =
            servers.iter().enumerate().map(|(at, server)| format!(" server node-{at} {server} {words}\n")).collect();
        let text = format!(
            "defaults\n mode tcp\n{options} timeout connect 5s\n timeout client 5m\n timeout server 5m\nlisten all\n bind 127.0.0.1:{port}\n maxconn 9000\n balance roundrobin\n{servers}"
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&file);
        command
    })
    .await;
    (process, address, folder)
}

#[tokio::test]
async fn clients_of_every_transport_lose_nothing_behind_a_tcp_balancer() {
    if !has("haproxy", "haproxy") {
        return;
    }
    let nodes = Nodes::start(&[SECRET; 3], "").await;
    let (_haproxy, balancer, _folder) = haproxy(&[0, 1, 2].map(|at| nodes.port(at)), "", "").await;
    let mut clients = JoinSet::new();
    for at in 0..48 {
        clients.spawn(converse(Transport::ALL[at % Transport::ALL.len()], balancer, at));
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    for at in 0..3 {
        assert!(nodes.metric(at, "sametime_mux_cluster_requests_passed_total").await > 10.0, "node {at}");
        assert_eq!(nodes.nodes[at].metric_sum("sametime_mux_cluster_failures_total").await, 0.0, "node {at}");
    }
}

/// Three processes that are nodes of a cluster, and HAProxy in TCP mode in front of them.
struct Cluster {
    nodes: [Option<Program>; 3],
    ports: [[u16; 3]; 3],
    listens: [SocketAddr; 3],
    balancer: SocketAddr,
    _haproxy: peer::Process,
    _folder: TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let (ports, listens) = ([free_ports(), free_ports(), free_ports()], std::array::from_fn(|_| free_address()));
        let options = " retries 9\n option redispatch 1\n";
        let servers = ports.map(|[_, http, _]| local(http));
        let (haproxy, balancer, folder) = haproxy(&servers, options, "check inter 100ms fall 1 rise 1").await;
        let mut this = Self { nodes: [None, None, None], ports, listens, balancer, _haproxy: haproxy, _folder: folder };
        (0..3).for_each(|at| this.start_node(at));
        this
    }

    fn start_node(&mut self, at: usize) {
        let mut setup = Setup::new("");
        [setup.raw, setup.http, setup.https] = self.ports[at];
        let secret = setup.folder.path().join("secret");
        fs::write(&secret, SECRET).unwrap();
        let table: Vec<String> =
            NAMES.iter().zip(self.listens).map(|(name, listen)| format!("{name} = \"http://{listen}\"")).collect();
        setup.more = format!(
            "[limits]\nexempt = [\"127.0.0.0/8\"]\ndrain_timeout = \"4s\"\n[cluster]\nnode = \"{}\"\npeer = {{ {} }}\nlisten = \"{}\"\nsecret_file = \"{}\"\n",
            NAMES[at],
            table.join(", "),
            self.listens[at],
            secret.display()
        );
        setup.write(&[setup.raw]);
        self.nodes[at] = Some(setup.start());
    }

    fn node(&mut self, at: usize) -> &mut Program {
        self.nodes[at].as_mut().unwrap()
    }

    async fn sessions(&self, at: usize) -> usize {
        self.nodes[at].as_ref().unwrap().metric("sametime_mux_sessions").await as usize
    }
}

/// What the clients of a test do, and what has happened to them.
#[derive(Default)]
struct Crowd {
    /// Clients say nothing while they rest.
    rests: AtomicBool,
    stops: AtomicBool,
    /// How many wait for the echo of a message, or log in.
    busy: AtomicUsize,
    logged_in: AtomicUsize,
    /// How often a session has ended.
    ended: AtomicUsize,
    echoes: AtomicUsize,
}

impl Crowd {
    /// Logs in and says one thing after the other. When its session ends, it logs in anew.
    async fn client(self: Arc<Self>, transport: Transport, balancer: SocketAddr, at: usize) {
        while !self.stops.load(Relaxed) {
            self.busy.fetch_add(1, Relaxed);
            let session = self.log_in(transport, balancer, at).await;
            self.busy.fetch_sub(1, Relaxed);
            let Some((mut from, mut into)) = session else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            self.logged_in.fetch_add(1, Relaxed);
            for n in 0.. {
                while self.rests.load(Relaxed) {
                    sleep(Duration::from_millis(50)).await;
                }
                if self.stops.load(Relaxed) {
                    return;
                }
                self.busy.fetch_add(1, Relaxed);
                let text = format!("{at}-{n}");
                let echo = async {
                    into.write_all(&frames::message(1, text.as_bytes()).bytes()).await.ok()?;
                    into.flush().await.ok()?;
                    in_time("an echo", Frame::read(&mut from)).await
                };
                let echo = echo.await;
                self.busy.fetch_sub(1, Relaxed);
                match echo {
                    // The sandbox, or the multiplexer, says why it ends the session.
                    Some(frame) if frame.kind == frames::DESTROY => break,
                    Some(frame) => assert_eq!(frame.text(), text.as_bytes(), "{transport:?}"),
                    None => break,
                }
                self.echoes.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(700 + (at as u64 * 37) % 600)).await;
            }
            self.logged_in.fetch_sub(1, Relaxed);
            self.ended.fetch_add(1, Relaxed);
        }
    }

    async fn log_in(&self, transport: Transport, balancer: SocketAddr, at: usize) -> Option<Ends> {
        let pace = Pace { idle: Duration::from_millis(500), held_timeout: Duration::from_secs(2), ..Pace::default() };
        let client = Client::connect_through(transport, &balancer.into(), pace).await.ok()?;
        let (mut from, mut into) = client.split();
        let says =
            [frames::handshake(), frames::login(&format!("user-{at}"), "secret"), frames::create_chat(1, "echo")];
        for (frame, answer) in says.iter().zip([frames::HANDSHAKE_ACK, frames::LOGIN_ACK, frames::ACCEPT]) {
            into.write_all(&frame.bytes()).await.ok()?;
            into.flush().await.ok()?;
            let frame = in_time("an answer", Frame::read(&mut from)).await?;
            if frame.kind != answer {
                return None;
            }
        }
        Some((from, into))
    }

    async fn all_logged_in(&self, clients: usize) {
        in_time("log-ins", async {
            while self.logged_in.load(Relaxed) < clients {
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

type Ends = (ReadHalf<Stream>, WriteHalf<Stream>);

/// `SAMETIME_MUX_CLIENTS` sets how many clients there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_be_drained_or_killed_and_the_clients_of_the_others_notice_nothing() {
    if !has("haproxy", "haproxy") {
        return;
    }
    let clients: usize = std::env::var("SAMETIME_MUX_CLIENTS").map_or(600, |clients| clients.parse().unwrap());
    let mut cluster = Cluster::start().await;
    let crowd = Arc::<Crowd>::default();
    let mut tasks = JoinSet::new();
    for at in 0..clients {
        let transport = Transport::ALL[at % Transport::ALL.len()];
        tasks.spawn(Arc::clone(&crowd).client(transport, cluster.balancer, at));
    }
    crowd.all_logged_in(clients).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(crowd.ended.load(Relaxed), 0, "every request may land on a wrong node");
    for at in 0..3 {
        let passed = cluster.node(at).metric("sametime_mux_cluster_requests_passed_total").await;
        assert!(passed > 100.0, "node {at}: {passed}");
    }

    let drained = cluster.sessions(0).await;
    cluster.node(0).signal("TERM");
    assert_eq!(cluster.node(0).exit_code(), Some(0));
    crowd.all_logged_in(clients).await;
    assert_eq!(crowd.ended.load(Relaxed), drained, "those of the node that was drained, and no others");
    cluster.start_node(0);
    sleep(Duration::from_secs(2)).await;

    // A request that is on its way on the node that is killed is lost. The tunnels repeat it, but a streaming client can't.
    crowd.rests.store(true, Relaxed);
    in_time("a rest", async {
        while crowd.busy.load(Relaxed) > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let killed = cluster.sessions(1).await;
    cluster.node(1).child.kill().unwrap();
    cluster.node(1).child.wait().unwrap();
    sleep(Duration::from_millis(500)).await;
    crowd.rests.store(false, Relaxed);
    in_time("ends", async {
        while crowd.ended.load(Relaxed) < drained + killed {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    crowd.all_logged_in(clients).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(crowd.ended.load(Relaxed), drained + killed, "those of the node that was killed, and no others");
    crowd.stops.store(true, Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    println!("{drained} drained, {killed} killed, {} echoes", crowd.echoes.load(Relaxed));
}
