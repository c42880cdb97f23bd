//! Sockets that a service manager passes, and what it is told: a process takes the place of another one while clients
//! log in, and nobody is refused.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use support::{
    client::{Client, Transport},
    community::Community,
    has,
    peer::{Process, free_address, text},
    program::{PROGRAM, Program, Setup, local},
    skip, wait_until,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Clients of each transport that log in again and again.
const CLIENTS: usize = 2;

/// Sockets that stay open, as those of a service manager do.
struct Sockets(Vec<TcpListener>);

impl Sockets {
    /// Two on one address, as with `ReusePort=yes`.
    fn two_on(address: SocketAddr) -> Self {
        let listen = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(1024).unwrap();
            socket.into()
        };
        Self(vec![listen(), listen()])
    }

    /// One on each address.
    fn on(addresses: &[SocketAddr]) -> Self {
        Self(addresses.iter().map(|address| TcpListener::bind(address).unwrap()).collect())
    }

    /// The command that passes them, at most two, to the program.
    fn pass(&self) -> Command {
        pass(self.0.iter().map(|socket| socket.try_clone().unwrap().into()).collect())
    }
}

/// The command that passes these descriptors to the program: as its standard input and output, which a test can replace
/// without unsafe code.
fn pass(descriptors: Vec<OwnedFd>) -> Command {
    let mut program = Command::new(PROGRAM);
    program.env("LISTEN_FDS", descriptors.len().to_string()).env("LISTEN_FDS_FIRST_FD", "0");
    let mut descriptors = descriptors.into_iter();
    program.stdin(descriptors.next().unwrap());
    program.stdout(descriptors.next().map_or_else(Stdio::null, Stdio::from));
    program
}

/// The configuration database with Community ports alone, on 127.0.0.1.
fn setup(ports: &[u16], admin: u16, more: &str) -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup { folder, raw: 0, http: 0, https: 0, admin, more: String::new() };
    write(&setup.file(), ports, admin, more);
    setup
}

fn write(file: &Path, ports: &[u16], admin: u16, more: &str) {
    let folder = file.parent().unwrap().display();
    let sandbox = if more.contains("[community]") { "" } else { "[community]\nservers = [\"sandbox\"]\n" };
    let toml = format!(
        "[client_connections]\nhost_name = \"127.0.0.1\"\nports = {ports:?}\n[http_tunneled_client_connections]\nports = []\n[https_tunneled_client_connections]\nports = []\n[tls]\ncertificate = \"{folder}/server.pem\"\nprivate_key = \"{folder}/server.key\"\n[admin]\nlisten = \"127.0.0.1:{admin}\"\ntoken_file = \"{folder}/token\"\n{sandbox}{more}"
    );
    fs::write(file, toml).unwrap();
    fs::write(file.with_file_name("token"), "open sesame\n").unwrap();
}

/// Clients that log in, chat and log out, again and again. Each of them panics if it is refused or cut off.
struct Visitors {
    tasks: JoinSet<()>,
    stops: Arc<AtomicBool>,
    visits: Arc<Vec<AtomicUsize>>,
}

impl Visitors {
    fn start(transports: &[Transport], to: SocketAddr) -> Self {
        let stops = Arc::new(AtomicBool::new(false));
        let visits: Arc<Vec<AtomicUsize>> = Arc::new(transports.iter().map(|_| AtomicUsize::default()).collect());
        let mut tasks = JoinSet::new();
        for (at, transport) in transports.iter().copied().enumerate() {
            for number in 0..CLIENTS {
                let (stops, visits) = (Arc::clone(&stops), Arc::clone(&visits));
                tasks.spawn(async move {
                    while !stops.load(Relaxed) {
                        let mut client = Client::connect(transport, to).await;
                        // Some have a connection, and are not known as clients for a moment.
                        tokio::time::sleep(Duration::from_millis(40) * number as u32).await;
                        client.log_in("bob").await;
                        let channel = client.open_chat("echo").await;
                        client.send_text(channel, b"still here").await;
                        assert_eq!(client.recv().await.expect("an echo").text(), b"still here", "{transport:?}");
                        client.log_out().await;
                        client.recv_all().await;
                        visits[at].fetch_add(1, Relaxed);
                    }
                });
            }
        }
        Self { tasks, stops, visits }
    }

    /// Waits until clients of every transport have been there `more` times.
    async fn wait_for(&mut self, more: usize) {
        let before: Vec<usize> = self.visits.iter().map(|visits| visits.load(Relaxed)).collect();
        wait_until("further log-ins of every transport", || {
            if let Some(ended) = self.tasks.try_join_next() {
                ended.unwrap();
            }
            self.visits.iter().zip(&before).all(|(now, before)| now.load(Relaxed) >= before + more)
        })
        .await;
    }

    async fn stop(mut self) -> usize {
        self.stops.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.visits.iter().map(|visits| visits.load(Relaxed)).sum()
    }
}

/// Sends SIGTERM, and waits until the program has ended by itself, without having refused or cut off anybody.
async fn ends_in_peace(mut program: Program) {
    program.signal("TERM");
    wait_until("the old process's end", || program.child.try_wait().unwrap().is_some()).await;
    let log = program.log.lock().clone();
    assert_eq!(program.exit_code(), Some(0), "{log}");
    assert!(log.contains("left to the next process") && log.contains("every session has ended by itself"), "{log}");
    let after = log.split("left to the next process").last().unwrap();
    assert!(!log.contains("client refused") && !after.contains("WARN") && !after.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_is_replaced_while_clients_of_every_transport_log_in_and_none_is_refused() {
    let (community, folder) = (Community::start_echo().await, tempfile::tempdir().unwrap());
    let (address, names) = (free_address(), ["a", "b", "c", "d"]);
    let sockets = Sockets::two_on(address);
    let secret = folder.path().join("secret");
    fs::write(&secret, "a secret of tests alone").unwrap();
    let listens: Vec<SocketAddr> = names.iter().map(|_| free_address()).collect();
    let peers: Vec<String> =
        names.iter().zip(&listens).map(|(name, listen)| format!("{name} = \"http://{listen}\"")).collect();
    // A request of the tunnel that comes to the new process is passed to the old one, if that has the session.
    let start = |at: usize| {
        let more = format!(
            "{}[cluster]\nnode = \"{}\"\npeer = {{ {} }}\nlisten = \"{}\"\nsecret_file = \"{}\"\n[limits]\ndrain_timeout = \"10m\"\n",
            community.setting(),
            names[at],
            peers.join(", "),
            listens[at],
            secret.display()
        );
        let program = setup(&[address.port()], free_address().port(), &more).spawn_with(sockets.pass());
        program.wait_for_log("ready");
        program
    };
    let mut program = start(0);
    let mut visitors = Visitors::start(&Transport::ALL, address);
    visitors.wait_for(1).await;
    for next in 1..names.len() {
        let successor = start(next);
        ends_in_peace(std::mem::replace(&mut program, successor)).await;
        visitors.wait_for(1).await;
    }
    let accepted = program.metric("sametime_mux_sessions_opened_total").await;
    let visits = visitors.stop().await;
    assert!(accepted > 0.0 && visits > 0);
    for refused in ["sametime_mux_sessions_refused_total", "sametime_mux_connections_dropped_total"] {
        assert_eq!(program.metric(refused).await, 0.0, "{refused}");
    }
    println!("{visits} log-ins while the program was replaced {} times", names.len() - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_wait_while_no_process_runs_and_none_is_refused() {
    let (community, address) = (Community::start_echo().await, free_address());
    let sockets = Sockets::two_on(address);
    let start = || {
        let more = format!("{}[limits]\ndrain_timeout = \"10m\"\n", community.setting());
        let program = setup(&[address.port()], free_address().port(), &more).spawn_with(sockets.pass());
        program.wait_for_log("ready");
        program
    };
    let mut program = start();
    // A session of the tunnel does not outlive its process, so these are clients that keep their connection.
    let mut visitors = Visitors::start(&[Transport::Raw, Transport::Tls], address);
    for _ in 0..3 {
        visitors.wait_for(3).await;
        ends_in_peace(program).await;
        program = start();
    }
    visitors.wait_for(3).await;
    visitors.stop().await;
    assert_eq!(program.metric("sametime_mux_sessions_refused_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_connection_was_accepted_before_the_stop_is_served() {
    let address = free_address();
    let sockets = Sockets::on(&[address]);
    let mut program = setup(&[address.port()], free_address().port(), "").spawn_with(sockets.pass());
    program.wait_for_log("ready");
    let mut early = Client::connect(Transport::Raw, address).await;
    while program.metric("sametime_mux_connections").await == 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    program.signal("TERM");
    program.wait_for_log("draining");
    early.log_in("bob").await;
    let reload = program.reload("open sesame").await;
    let why = text(&reload.body);
    assert!(reload.status != 200 && why.contains("its ports are left to the next process"), "{why}");
    // This one waits in the queue for the next process.
    let mut late = Client::connect(Transport::Raw, address).await;
    let successor = setup(&[address.port()], free_address().port(), "").spawn_with(sockets.pass());
    late.log_in("eve").await;
    early.log_out().await;
    early.recv_all().await;
    assert_eq!(program.exit_code(), Some(0), "{}", program.log.lock());
    assert_eq!(successor.metric("sametime_mux_sessions").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_passed_sockets_and_names_those_that_no_listener_has() {
    let (first, second, admin) = (free_address(), free_address(), free_address().port());
    let sockets = Sockets::on(&[first, second]);
    let setup = setup(&[first.port(), second.port()], admin, "");
    let file = setup.file();
    let program = setup.spawn_with(sockets.pass());
    program.wait_for_log("ready");
    Client::connect(Transport::Raw, second).await.log_in("bob").await;
    assert!(!program.log.lock().contains("in vain"));
    write(&file, &[first.port()], admin, "");
    program.signal("HUP");
    program.wait_for_log("revision=2");
    program.wait_for_log(&format!("passed sockets that no listener of the file has: their clients wait in vain; remove them from the socket unit, or add the ports to the file sockets=[{second}]"));
    Client::connect(Transport::Raw, first).await.log_in("bob").await;
    let mut waits = Client::connect(Transport::Raw, second).await;
    write(&file, &[first.port(), second.port()], admin, "");
    program.signal("HUP");
    program.wait_for_log("revision=3");
    waits.log_in("eve").await;
    // Again with nothing changed.
    program.signal("HUP");
    program.wait_for_log("revision=4");
    Client::connect(Transport::Raw, second).await.log_in("bob").await;
    assert_eq!(program.log.lock().matches("in vain").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_empty_host_takes_a_socket_of_each_family() {
    let port = free_address().port();
    let listen = |domain, address: SocketAddr| -> TcpListener {
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        socket.listen(16).unwrap();
        socket.into()
    };
    let four = listen(Domain::IPV4, SocketAddr::from(([0; 4], port)));
    let six = listen(Domain::IPV6, SocketAddr::from(([0; 16], port)));
    let setup = setup(&[port], free_address().port(), "");
    let toml = fs::read_to_string(setup.file()).unwrap();
    fs::write(setup.file(), toml.replace("host_name = \"127.0.0.1\"", "host_name = \"\"")).unwrap();
    let program = setup.spawn_with(Sockets(vec![four, six]).pass());
    program.wait_for_log(&format!("port open section=client_connections address=[::]:{port}"));
    for host in ["127.0.0.1", "::1"] {
        Client::connect(Transport::Raw, SocketAddr::new(host.parse().unwrap(), port)).await.log_in("bob").await;
    }
    assert!(!program.log.lock().contains("in vain"));
}

#[tokio::test]
async fn the_port_of_a_cluster_may_be_passed_and_one_socket_is_enough_for_the_admin_endpoint() {
    let (cluster, admin, folder) = (free_address(), free_address(), tempfile::tempdir().unwrap());
    let secret = folder.path().join("secret");
    fs::write(&secret, "a secret of tests alone").unwrap();
    let more = format!(
        "[cluster]\nnode = \"a\"\npeer = {{ a = \"http://{cluster}\" }}\nlisten = \"{cluster}\"\nsecret_file = \"{}\"\n",
        secret.display()
    );
    let sockets = Sockets::on(&[cluster, admin]);
    let program = setup(&[free_address().port()], admin.port(), &more).spawn_with(sockets.pass());
    program.wait_for_log("ready");
    assert_eq!(program.request("GET /healthz").await.status, 200);
    assert!(!program.log.lock().contains("in vain"));
    let admin = free_address();
    let mut several = setup(&[free_address().port()], admin.port(), "").spawn_with(Sockets::two_on(admin).pass());
    assert_eq!(several.exit_code(), Some(1));
    let log = several.log.lock().clone();
    assert!(
        log.contains("admin.listen: the service manager passed several sockets on this address: one is enough"),
        "{log}"
    );
}

#[tokio::test]
async fn a_socket_on_an_address_that_overlaps_is_an_error_of_its_own() {
    let every = SocketAddr::from(([0, 0, 0, 0], free_address().port()));
    let sockets = Sockets::on(&[every]);
    let mut program = setup(&[every.port()], free_address().port(), "").spawn_with(sockets.pass());
    assert_eq!(program.exit_code(), Some(1));
    let log = program.log.lock().clone();
    let says = format!(
        "the service manager passed a socket on {every}, which overlaps with 127.0.0.1:{}: give ListenStream= of the socket unit and host_name the same address",
        every.port()
    );
    assert!(log.contains(&says), "{log}");
}

#[tokio::test]
async fn what_is_not_a_tcp_socket_that_listens_is_refused_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let cases: [(OwnedFd, &str); 4] = [
        (UdpSocket::bind("127.0.0.1:0").unwrap().into(), "fd 0 is not a valid tcp socket"),
        (UnixListener::bind(folder.path().join("socket")).unwrap().into(), "fd 0 is not a valid tcp socket"),
        (fs::File::open("/dev/null").unwrap().into(), "fd 0 is not a socket"),
        (connected.into(), "does not listen"),
    ];
    let refused = |command: Command, says: &str| {
        let mut program = setup(&[free_address().port()], free_address().port(), "").spawn_with(command);
        assert_eq!(program.exit_code(), Some(1), "{says}");
        let log = program.log.lock().clone();
        assert!(log.contains("not started: the service manager passed a descriptor") && log.contains(says), "{log}");
        assert!(log.contains("ListenStream= with a port or an IP address"), "{log}");
    };
    for (descriptor, says) in cases {
        refused(pass(vec![descriptor]), says);
    }
    // Nothing is open there.
    let mut closed = Command::new(PROGRAM);
    closed.env("LISTEN_FDS", "1").stdout(Stdio::null());
    refused(closed, "fd 3 is not a socket");
    // What is for another process is not used.
    let mut other = pass(vec![listener.into()]);
    other.env("LISTEN_PID", "1");
    let program = setup(&[free_address().port()], free_address().port(), "").spawn_with(other);
    program.wait_for_log("ready");
    assert!(!program.log.lock().contains("service manager"));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_starts_the_program_at_the_first_connection_and_passes_client_and_admin_ports() {
    if !has("systemd-socket-activate", "systemd") {
        return;
    }
    let (address, admin) = (free_address(), free_address());
    let mut activate = Command::new("systemd-socket-activate");
    activate.stdout(Stdio::null());
    activate.args([format!("--listen={address}"), format!("--listen={admin}"), PROGRAM.to_owned()]);
    let setup = setup(&[address.port()], admin.port(), "");
    let program = setup.spawn_with(activate);
    program.wait_for_log("Listening on");
    for transport in Transport::ALL {
        Client::connect(transport, address).await.log_in("bob").await;
    }
    assert_eq!(program.request("GET /readyz").await.status, 200);
    assert_eq!(program.status().await["listeners"].as_array().unwrap().len(), 1);
    assert!(!program.log.lock().contains("ERROR"), "{}", program.log.lock());
}

/// A systemd of its own, as a user's manager, with the units of `deploy/`.
struct Systemd {
    folder: TempDir,
    _process: Process,
}

impl Systemd {
    /// Starts it in a mount namespace in which this machine seems to run systemd; `None`: that is not possible here.
    async fn start() -> Option<Self> {
        const SYSTEMD: &str = "/lib/systemd/systemd";
        if !Path::new(SYSTEMD).exists() || !has("systemctl", "systemd") || !has("unshare", "util-linux") {
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            skip("root", "a systemd of the test's own needs a mount namespace");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| folder.path().join(name);
        fs::create_dir_all(of("systemd/user")).unwrap();
        fs::create_dir(of("run")).unwrap();
        let mut start = Command::new("unshare");
        start.args(["--mount", "sh", "-c"]);
        start.arg(format!(
            "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec {SYSTEMD} --user --unit=basic.target"
        ));
        start.env("XDG_CONFIG_HOME", folder.path()).env("XDG_RUNTIME_DIR", of("run")).env("HOME", folder.path());
        start.env("SYSTEMD_LOG_TARGET", "console");
        let process = Process::start_logged(&mut start, &of("log"));
        let this = Self { folder, _process: process };
        let began = Instant::now();
        while this.command(&["show", "--value", "--property=ActiveState", "basic.target"]).0.trim() != "active" {
            if began.elapsed() > Duration::from_secs(20) {
                let log = fs::read_to_string(this.folder.path().join("log")).unwrap();
                skip("systemd", &format!("no manager can be started here: {log}"));
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(this)
    }

    /// Installs a file of `deploy/` as the unit `name`, without what needs the system's manager.
    fn install(&self, file: &str, name: &str, replace: &[(&str, &str)]) {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap();
        let restricts =
            ["User=", "Group=", "StateDirectory", "ConfigurationDirectory", "Working", "Ambient", "Capability"];
        let restricts_more =
            ["Protect", "Private", "Proc", "Restrict", "System", "Socket", "Device", "Lock", "Memory", "Limit"];
        let kept = text.lines().filter(|line| {
            let is = |names: &[&str]| names.iter().any(|name| line.starts_with(name));
            line.starts_with("Sockets=") || !(is(&restricts) || is(&restricts_more))
        });
        let mut text = kept.collect::<Vec<_>>().join("\n") + "\n";
        for (from, to) in replace {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replace(from, to);
        }
        let path = self.folder.path().join("systemd/user").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs `systemctl --user`. Returns its output, and whether it succeeded.
    fn command(&self, arguments: &[&str]) -> (String, bool) {
        let mut systemctl = Command::new("systemctl");
        systemctl.arg("--user").args(arguments).env("XDG_RUNTIME_DIR", self.folder.path().join("run"));
        let output = systemctl.output().unwrap();
        (text(&output.stdout) + &text(&output.stderr), output.status.success())
    }

    fn must(&self, arguments: &[&str]) -> String {
        let (said, is_done) = self.command(arguments);
        let log = || fs::read_to_string(self.folder.path().join("program.log")).unwrap_or_default();
        assert!(is_done, "{arguments:?}: {said}\n{}", log());
        said
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.must(&["show", "--value", "--property", name, unit]).trim().to_owned()
    }

    /// Installs the service under `name`, with the configuration `file`.
    fn install_service(&self, name: &str, file: &Path) {
        let start = format!("{PROGRAM} run --config {}", file.display());
        let log = format!("[Service]\nStandardError=append:{}", self.folder.path().join("program.log").display());
        self.install(
            "sametime-mux.service",
            name,
            &[("/usr/bin/sametime-mux run --config /etc/sametime-mux/stconfig.toml", &start), ("[Service]", &log)],
        );
    }

    fn install_socket(&self, address: SocketAddr) {
        let line = format!("ListenStream={address}");
        let lines = [
            ("ListenStream=1533", &*line),
            ("ListenStream=80\n", ""),
            ("ListenStream=8082\n", ""),
            ("ListenStream=443\n", ""),
        ];
        self.install("sametime-mux.socket", "sametime-mux.socket", &lines);
        self.must(&["daemon-reload"]);
        self.must(&["start", "sametime-mux.socket"]);
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Its services are not in its process group.
        self.command(&["kill", "--signal=KILL", "sametime-mux*"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_replaces_the_program_while_clients_log_in_and_none_is_refused() {
    let Some(systemd) = Systemd::start().await else { return };
    let (address, admin) = (free_address(), free_address().port());
    // Clients that connect meanwhile wait until the last session has ended, which is soon.
    let setup = setup(&[address.port()], admin, "[limits]\ndrain_timeout = \"10m\"\n");
    systemd.install_service("sametime-mux.service", &setup.file());
    systemd.install_socket(address);
    // The first client starts the service.
    Client::connect(Transport::Raw, address).await.log_in("bob").await;
    let mut visitors = Visitors::start(&[Transport::Raw, Transport::Tls], address);
    for _ in 0..3 {
        visitors.wait_for(3).await;
        let before = systemd.property("sametime-mux.service", "MainPID");
        systemd.must(&["restart", "sametime-mux.service"]);
        assert_ne!(systemd.property("sametime-mux.service", "MainPID"), before);
    }
    visitors.wait_for(3).await;
    systemd.must(&["reload", "sametime-mux.service"]);
    wait_until("the status of the reload", || {
        let status = systemd.property("sametime-mux.service", "StatusText");
        status == "serving; open ports: 1; configuration revision: 2"
    })
    .await;
    assert_eq!(systemd.property("sametime-mux.service", "WatchdogUSec"), "30s");
    visitors.stop().await;
    assert_eq!(systemd.property("sametime-mux.service", "NRestarts"), "0");
    let log = fs::read_to_string(systemd.folder.path().join("program.log")).unwrap();
    assert!(!log.contains("client refused") && log.matches("left to the next process").count() == 3, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_under_systemd_takes_the_place_of_another_one_without_a_pause() {
    let Some(systemd) = Systemd::start().await else { return };
    let (address, admins) = (free_address(), [free_address().port(), free_address().port()]);
    let setup = setup(&[address.port()], 0, "[limits]\ndrain_timeout = \"10m\"\n");
    systemd.install_service("sametime-mux@.service", &setup.file());
    systemd.install("instances/service.conf", "sametime-mux@.service.d/instance.conf", &[]);
    systemd.install("instances/socket.conf", "sametime-mux.socket.d/instances.conf", &[]);
    systemd.install("instances/sametime-mux-ports.service", "sametime-mux-ports.service", &[]);
    systemd.install_socket(address);
    let instances = admins.map(|admin| format!("sametime-mux@{admin}.service"));
    systemd.must(&["start", &instances[0]]);
    let mut visitors = Visitors::start(&[Transport::Raw, Transport::Tls], address);
    for turn in 0..4 {
        visitors.wait_for(3).await;
        let (old, new) = (&instances[turn % 2], &instances[(turn + 1) % 2]);
        systemd.must(&["start", new]);
        // It stays until its last client has left.
        systemd.must(&["stop", old]);
        visitors.wait_for(3).await;
        assert_eq!(systemd.property(old, "ActiveState"), "inactive", "a connection does not start it again");
        assert_eq!(systemd.property(new, "ActiveState"), "active");
    }
    visitors.stop().await;
    let log = fs::read_to_string(systemd.folder.path().join("program.log")).unwrap();
    assert!(!log.contains("client refused") && log.matches("every session has ended by itself").count() == 4, "{log}");
}

/// What a service manager is told.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { socket, folder }
    }

    /// Starts the program as a service.
    fn start_program(&self, setup: Setup, watchdog: &str) -> Program {
        let mut program = Command::new(PROGRAM);
        program.stdout(Stdio::null()).env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        setup.spawn_with({
            program.env("WATCHDOG_USEC", watchdog);
            program
        })
    }

    /// The lines of the next message other than WATCHDOG.
    fn next(&self) -> Vec<String> {
        loop {
            let message = self.any();
            if message != ["WATCHDOG=1"] {
                return message;
            }
        }
    }

    fn any(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let n = self.socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned).collect()
    }
}

/// The value of a line.
fn value<'m>(message: &'m [String], name: &str) -> &'m str {
    let line = message.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name} in {message:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told_of_the_start_of_reloads_and_of_the_end() {
    let (manager, address, admin) = (Manager::start(), free_address(), free_address().port());
    let more = "[limits]\ndrain_timeout = \"2h\"\n";
    let setup = setup(&[address.port()], admin, more);
    let file = setup.file();
    let mut program = manager.start_program(setup, "0");
    let ready = manager.any();
    assert_eq!(value(&ready, "READY"), "1");
    assert_eq!(value(&ready, "STATUS"), "serving; open ports: 1; configuration revision: 1");
    // A client can connect when READY is sent.
    let mut client = Client::connect(Transport::Raw, address).await;
    client.log_in("bob").await;
    let reload = |reloading: &[String]| {
        assert_eq!(value(reloading, "RELOADING"), "1");
        value(reloading, "MONOTONIC_USEC").parse::<u64>().unwrap()
    };
    program.signal("HUP");
    let first = reload(&manager.any());
    let mut message = manager.any();
    // The status may be sent before, by itself.
    if !message.contains(&"READY=1".to_owned()) {
        message = manager.any();
    }
    assert_eq!(value(&message, "STATUS"), "serving; open ports: 1; configuration revision: 2");
    program.wait_for_log("revision=2");
    fs::write(&file, "[client_connections]\nports = [0]\n").unwrap();
    program.signal("HUP");
    let mut reloading = manager.any();
    if !reloading.contains(&"RELOADING=1".to_owned()) {
        reloading = manager.any();
    }
    assert!(reload(&reloading) > first);
    let ready = manager.any();
    assert_eq!(value(&ready, "READY"), "1");
    let status = value(&ready, "STATUS");
    assert!(
        status.starts_with("serving; open ports: 1; configuration revision: 2; the last reload was refused: "),
        "{status}"
    );
    program.signal("TERM");
    let stopping = manager.any();
    assert_eq!(value(&stopping, "STOPPING"), "1");
    assert_eq!(value(&stopping, "STATUS"), "draining for at most 2h; clients: 1");
    assert_eq!(value(&stopping, "EXTEND_TIMEOUT_USEC"), "7215000000");
    client.log_out().await;
    assert_eq!(program.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_fed_and_a_reload_does_not_stop_it() {
    let manager = Manager::start();
    let setup = setup(&[free_address().port()], free_address().port(), "");
    let program = manager.start_program(setup, "400000");
    assert_eq!(value(&manager.any(), "READY"), "1");
    for _ in 0..3 {
        assert_eq!(manager.any(), ["WATCHDOG=1"]);
    }
    program.signal("HUP");
    assert_eq!(value(&manager.next(), "RELOADING"), "1");
    for _ in 0..3 {
        while manager.any() != ["WATCHDOG=1"] {}
    }
    // A process that stands still is noticed.
    program.signal("STOP");
    manager.socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut buffer = [0; 64];
    while manager.socket.recv(&mut buffer).is_ok() {}
    manager.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    program.signal("CONT");
    assert_eq!(manager.any(), ["WATCHDOG=1"]);
}

#[tokio::test]
async fn a_service_manager_that_is_gone_stops_nothing() {
    let (manager, address) = (Manager::start(), free_address());
    let folder = manager.folder.path().to_owned();
    let setup = setup(&[address.port()], free_address().port(), "");
    let mut command = Command::new(PROGRAM);
    command.stdout(Stdio::null()).env("NOTIFY_SOCKET", folder.join("nobody"));
    let mut program = setup.spawn_with(command);
    program.wait_for_log("ready");
    program.wait_for_log("the service manager can't be notified");
    Client::connect(Transport::Raw, local(address.port())).await.log_in("bob").await;
    program.signal("TERM");
    assert_eq!(program.exit_code(), Some(0));
}
