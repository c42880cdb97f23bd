//! The contenders. Each runs as a process of its own, with two threads or workers and a configuration that is usual
//! for it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

/// What is between the clients and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    Nothing,
    Mux,
    /// Another build of the multiplexer, given by `--before`.
    Before,
    HaProxy,
    Nginx,
    Hyper,
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no proxy",
            Self::Mux => "sametime-mux",
            Self::Before => "sametime-mux before",
            Self::HaProxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Hyper => "bare hyper",
        }
    }

    /// Its program and its Debian package, unless this crate builds it.
    fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::HaProxy => Some(("haproxy", "haproxy")),
            Self::Nginx => Some(("nginx", "nginx and libnginx-mod-stream")),
            _ => None,
        }
    }

    /// Why it cannot run on this machine; `None`: it can.
    pub fn missing(self) -> Option<String> {
        let (program, package) = self.program()?;
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
        if !found.status.success() {
            return Some(format!("{} is not installed (Debian package {package})", self.name()));
        }
        (self == Self::Nginx && !Path::new(NGINX_STREAM).exists())
            .then(|| "nginx has no stream module (Debian package libnginx-mod-stream)".to_owned())
    }

    /// Its version, as it prints it.
    pub fn version(self) -> Option<String> {
        let (program, arguments) = match self {
            Self::Mux => (MUX, "--version"),
            Self::HaProxy => ("haproxy", "-v"),
            Self::Nginx => ("nginx", "-v"),
            Self::Nothing | Self::Before | Self::Hyper => return None,
        };
        let output = Command::new(program).arg(arguments).output().ok()?;
        let text = String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout });
        Some(text.lines().next()?.trim_start_matches("nginx version: ").to_owned())
    }
}

/// What clients do, which decides how a contender is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    Raw,
    /// Raw, without a log line for each client, because the other contenders write none.
    Quiet,
    Tls,
    Http,
    /// The streaming tunnel. HAProxy passes it on as HTTP, to a server that ends the tunnel.
    Streaming,
}

pub const MUX: &str = env!("CARGO_BIN_EXE_sametime-mux");
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// The temporary files of a run, with one certificate for all contenders.
pub struct Folder {
    folder: tempfile::TempDir,
    /// The program of [`Contender::Before`].
    pub before: Option<PathBuf>,
}

impl Folder {
    pub fn new(before: Option<PathBuf>) -> Self {
        let folder = Self { folder: tempfile::tempdir().unwrap(), before };
        let mut authority = rcgen::CertificateParams::new(vec![]).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.path("ca.pem"), authority.pem()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = names.signed_by(&key, &authority).unwrap().pem();
        let key = key.serialize_pem();
        fs::write(folder.path("server.pem"), &certificate).unwrap();
        fs::write(folder.path("server.key"), &key).unwrap();
        fs::write(folder.path("both.pem"), certificate + &key).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A process that is killed when dropped.
pub struct Process {
    child: Child,
    _alive: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // On SIGTERM nginx ends its workers. The others have no child processes.
        let _ = Command::new("kill").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(300) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for id in self.ids() {
            let _ = Command::new("kill").args(["-9", &id.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts this program in another role. It prints its port, and ends when this value is dropped.
    pub fn role(role: &str) -> (Self, SocketAddr) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--role", role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap();
        let alive = child.stdin.take();
        (Self { child, _alive: alive }, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The ids of the process and of its children, which are nginx's workers.
    fn ids(&self) -> Vec<u32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children = children.split_whitespace().map(|id| id.parse().unwrap());
        std::iter::once(id).chain(children).collect()
    }

    /// CPU time so far in seconds, user and system mode, of all threads and workers.
    pub fn cpu(&self) -> f64 {
        self.seconds(|user, system| user + system)
    }

    /// The part of the CPU time in user mode.
    fn user(&self) -> f64 {
        self.seconds(|user, _| user)
    }

    fn seconds(&self, of: impl Fn(u64, u64) -> u64) -> f64 {
        let ticks: u64 = self.ids().iter().map(|id| ticks(*id)).map(|(user, system)| of(user, system)).sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// The proportional set size in bytes, of all workers.
    pub fn memory(&self) -> f64 {
        self.ids().iter().map(|id| pss(*id)).sum::<u64>() as f64
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

/// User and system time in clock ticks: fields 14 and 15 of /proc/PID/stat (proc(5)). The name in field 2 may contain
/// spaces.
fn ticks(id: u32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    let mut ticks = fields.split(' ').skip(11).map(|field| field.parse::<u64>().unwrap());
    (ticks.next().unwrap(), ticks.next().unwrap())
}

fn pss(id: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

/// A contender that runs in front of a new echo server.
pub struct Running {
    pub proxy: Option<Process>,
    /// The address that clients connect to.
    pub address: SocketAddr,
    /// The address of the echo server.
    pub community: SocketAddr,
    _community: Process,
    /// The time from the start of the proxy's process until it accepted a connection.
    pub started_in: Duration,
}

impl Running {
    pub fn cpu(&self) -> f64 {
        self.proxy.as_ref().map_or(f64::NAN, Process::cpu)
    }

    pub fn memory(&self) -> f64 {
        self.proxy.as_ref().map_or(f64::NAN, Process::memory)
    }

    /// The near end of a trunk, and its far end in front of an echo server. There are two connections between them, with
    /// TLS and certificates at both ends.
    pub fn trunk(folder: &Folder) -> (Self, Process) {
        let (community_process, community) = Process::role("community");
        let (trunk, port) = (free_port(), free_port());
        let here = folder.path("").display().to_string();
        let mux = |ports: &[u16], servers: SocketAddr| {
            let limits = "capacity = 9900";
            mux_configuration(&here, ports, &[servers], false).replace(limits, "capacity = 19500\nlogging_in = 19500")
        };
        let file = folder.path("far.toml");
        let listener = format!(
            "[trunk_listener]\nhost_name = \"127.0.0.1\"\nports = [{trunk}]\ntarget = \"{community}\"\nclient_ca = \"{here}ca.pem\"\n"
        );
        fs::write(&file, mux(&[free_port()], community) + &listener).unwrap();
        let far = ready(&file, &folder.path("log-far"));
        let file = folder.path("near.toml");
        let near = mux(&[port], local(trunk)).replace("[community]\n", "[community]\nlink = \"trunk\"\n");
        let near = format!(
            "{near}[trunk]\nconnections = 2\ntarget = \"{community}\"\ncertificate_authority = \"{here}ca.pem\"\ncertificate = \"{here}server.pem\"\nprivate_key = \"{here}server.key\"\n"
        );
        fs::write(&file, near).unwrap();
        let proxy = Some(ready(&file, &folder.path("log-near")));
        let address = local(port);
        let near = Self { proxy, address, community, _community: community_process, started_in: Duration::ZERO };
        (near, far)
    }
}

/// Starts `contender` for `workload`, and an echo server. Returns when the contender accepts connections.
pub fn start(contender: Contender, workload: Workload, folder: &Folder) -> Running {
    let ends_tunnel = workload == Workload::Streaming && contender == Contender::HaProxy;
    let (community_process, community) = Process::role(if ends_tunnel { "streaming" } else { "community" });
    let (proxy, address, started_in) = match contender {
        Contender::Nothing => (None, community, Duration::ZERO),
        Contender::Hyper => {
            let (proxy, address) = Process::role("hyper");
            (Some(proxy), address, Duration::ZERO)
        }
        _ => {
            let port = free_port();
            let (mut command, address) = (command(contender, workload, folder, port, community), local(port));
            let since = Instant::now();
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            let mut proxy = Process { child, _alive: None };
            while std::net::TcpStream::connect(address).is_err() {
                assert!(proxy.is_alive(), "{} does not start: {}", contender.name(), log(folder));
                assert!(since.elapsed() < Duration::from_secs(20), "{} takes no connections", contender.name());
                std::thread::sleep(Duration::from_micros(200));
            }
            (Some(proxy), address, since.elapsed())
        }
    };
    Running { proxy, address, community, _community: community_process, started_in }
}

/// Several multiplexers on the same ports, or one other contender.
pub struct Cluster {
    proxies: Vec<Process>,
    _community: Option<Process>,
    pub addresses: Vec<SocketAddr>,
}

impl Cluster {
    /// Starts `count` multiplexers, which share `ports` ports, in front of `communities`. Returns when all are ready.
    pub fn start(folder: &Folder, count: usize, communities: &[SocketAddr], ports: usize) -> Self {
        let ports: Vec<u16> = (0..ports).map(|_| free_port()).collect();
        let file = folder.path("cluster.toml");
        fs::write(&file, mux_configuration(&folder.path("").display().to_string(), &ports, communities, true)).unwrap();
        let start = |i: usize| ready(&file, &folder.path(&format!("log-{i}")));
        Self {
            proxies: (0..count).map(start).collect(),
            _community: None,
            addresses: ports.into_iter().map(local).collect(),
        }
    }

    /// Two nodes of a cluster, each with its own port. Returns when both are ready.
    pub fn nodes(folder: &Folder, community: SocketAddr) -> Self {
        let [ports, listens]: [[u16; 2]; 2] = std::array::from_fn(|_| [free_port(), free_port()]);
        let secret = folder.path("secret");
        fs::write(&secret, "a secret of benchmarks alone").unwrap();
        let start = |i: usize| {
            let file = folder.path(&format!("node-{i}.toml"));
            let one = mux_configuration(&folder.path("").display().to_string(), &[ports[i]], &[community], false);
            let cluster = format!(
                "[cluster]\nnode = \"node-{i}\"\nlisten = \"127.0.0.1:{}\"\nsecret_file = \"{}\"\n\
                 peer = {{ node-0 = \"http://127.0.0.1:{}\", node-1 = \"http://127.0.0.1:{}\" }}\n",
                listens[i],
                secret.display(),
                listens[0],
                listens[1]
            );
            fs::write(&file, one + &cluster).unwrap();
            ready(&file, &folder.path(&format!("log-{i}")))
        };
        Self { proxies: (0..2).map(start).collect(), _community: None, addresses: ports.map(local).to_vec() }
    }

    /// One other contender; without a proxy, the echo server, which is then measured instead.
    pub fn peer(running: Running) -> Self {
        let Running { proxy, address, _community: community, .. } = running;
        let (proxy, community) = match proxy {
            Some(proxy) => (proxy, Some(community)),
            None => (community, None),
        };
        Self { proxies: vec![proxy], _community: community, addresses: vec![address] }
    }

    pub fn cpu(&self) -> f64 {
        self.proxies.iter().map(Process::cpu).sum()
    }

    pub fn user(&self) -> f64 {
        self.proxies.iter().map(Process::user).sum()
    }

    pub fn memory(&self) -> f64 {
        self.proxies.iter().map(Process::memory).sum()
    }
}

/// Starts a multiplexer with this configuration, and waits until it is ready.
fn ready(configuration: &Path, log: &Path) -> Process {
    let mut command = Command::new(MUX);
    command.args(["run", "--config"]).arg(configuration).stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.stderr(fs::File::create(log).unwrap()).spawn().unwrap();
    let (mut proxy, since) = (Process { child, _alive: None }, Instant::now());
    while !fs::read_to_string(log).unwrap().contains(" ready ") {
        assert!(proxy.is_alive(), "not started: {}", fs::read_to_string(log).unwrap());
        assert!(since.elapsed() < Duration::from_secs(20), "not ready");
        std::thread::sleep(Duration::from_millis(2));
    }
    proxy
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn log(folder: &Folder) -> String {
    fs::read_to_string(folder.path("log")).unwrap_or_default()
}

fn command(contender: Contender, workload: Workload, folder: &Folder, port: u16, community: SocketAddr) -> Command {
    let here = folder.path("");
    let here = here.display();
    let (file, text) = match contender {
        Contender::Mux | Contender::Before => {
            let text = mux_configuration(&here.to_string(), &[port], &[community], false);
            ("mux.toml", if workload == Workload::Quiet { text + "[log]\nlevel = \"warn\"\n" } else { text })
        }
        Contender::HaProxy => {
            let tls = if workload == Workload::Tls { format!(" ssl crt {here}both.pem") } else { String::new() };
            // A request on each connection: the connections to the server are kept and shared.
            let mode = if workload == Workload::Streaming { "http\n http-reuse always" } else { "tcp" };
            let text = format!(
                "global\n nbthread 2\n maxconn 9900\ndefaults\n mode {mode}\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
                 frontend clients\n bind 127.0.0.1:{port} backlog 4096{tls}\n default_backend community\n\
                 backend community\n server one {community}\n"
            );
            ("haproxy.cfg", text)
        }
        Contender::Nginx => ("nginx.conf", nginx_configuration(&here.to_string(), workload, port, community)),
        Contender::Nothing | Contender::Hyper => unreachable!("not configured by a file"),
    };
    let file = folder.path(file);
    fs::write(&file, text).unwrap();
    let mut command = match contender {
        Contender::Mux => Command::new(MUX),
        Contender::Before => Command::new(folder.before.as_ref().expect("only with --before")),
        Contender::HaProxy => Command::new("haproxy"),
        _ => Command::new("nginx"),
    };
    match contender {
        Contender::Mux | Contender::Before => command.args(["run", "--config"]).arg(file),
        Contender::HaProxy => command.args(["-db", "-f"]).arg(file),
        _ => command.arg("-e").arg(folder.path("log")).arg("-c").arg(file),
    };
    command.stderr(fs::File::create(folder.path("log")).unwrap());
    command
}

/// The default configuration, except ports and addresses, and time-outs that let idle tunnel sessions stay.
fn mux_configuration(here: &str, ports: &[u16], communities: &[SocketAddr], share: bool) -> String {
    let servers: Vec<String> = communities.iter().map(|address| format!("\"{address}\"")).collect();
    let servers = servers.join(", ");
    let several = if share { "balance = \"round-robin\"\n[listeners]\nshare_ports = true\n" } else { "" };
    format!(
        "[client_connections]\nhost_name = \"127.0.0.1\"\nports = {ports:?}\n\
         [http_tunneled_client_connections]\nports = []\n[https_tunneled_client_connections]\nports = []\n\
         [community]\nservers = [{servers}]\n{several}[tls]\ncertificate = \"{here}server.pem\"\nprivate_key = \"{here}server.key\"\n\
         [tunnel]\nhold = \"2m\"\nsession_timeout = \"10m\"\n[limits]\ncapacity = 9900\n[admin]\nlisten = \"\"\n"
    )
}

fn nginx_configuration(here: &str, workload: Workload, port: u16, community: SocketAddr) -> String {
    let main = format!(
        "daemon off;\nworker_processes 2;\nworker_rlimit_nofile 20000;\npid {here}nginx.pid;\nerror_log {here}log error;\n\
         load_module {NGINX_STREAM};\nevents {{ worker_connections 19000; }}\n"
    );
    match workload {
        Workload::Http => format!(
            "{main}http {{\n access_log off;\n keepalive_requests 100000000;\n keepalive_timeout 1h;\n client_body_temp_path {here}body;\n\
             proxy_temp_path {here}proxy;\n fastcgi_temp_path {here}fastcgi;\n uwsgi_temp_path {here}uwsgi;\n scgi_temp_path {here}scgi;\n\
             server {{\n listen 127.0.0.1:{port} backlog=4096;\n default_type application/octet-stream;\n\
             add_header Cache-Control \"no-cache, no-store\";\n add_header Pragma no-cache;\n return 200 \"{}\";\n }}\n}}\n",
            String::from_utf8_lossy(&super::echo::POLL_ANSWER)
        ),
        Workload::Raw | Workload::Quiet | Workload::Tls | Workload::Streaming => {
            let (ssl, pair) = if workload == Workload::Tls {
                let pair = format!(" ssl_certificate {here}server.pem;\n ssl_certificate_key {here}server.key;\n");
                (" ssl", pair)
            } else {
                ("", String::new())
            };
            format!(
                "{main}stream {{\n server {{\n listen 127.0.0.1:{port}{ssl} backlog=4096;\n{pair} proxy_timeout 1h;\n proxy_pass {community};\n }}\n}}\n"
            )
        }
    }
}
