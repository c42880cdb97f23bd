//! The program as an admin runs it: a process with a configuration database and a log.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    http, in_time,
    peer::{Process, free_address},
    wait_until,
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_sametime-mux");

/// Ports that are free now, all different.
pub fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| free_address().port())
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub struct Program {
    pub child: Child,
    pub log: Arc<Mutex<String>>,
    pub folder: TempDir,
    pub admin: u16,
}

/// The configuration of a test. All other settings have their defaults, on ports that are free. If `more` has no
/// `[community]`, clients are sent to the sandbox.
pub struct Setup {
    pub folder: TempDir,
    pub raw: u16,
    pub http: u16,
    pub https: u16,
    pub admin: u16,
    /// Further lines of the configuration database.
    pub more: String,
}

impl Setup {
    pub fn new(more: &str) -> Self {
        let [raw, http, https, admin] = free_ports();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "open sesame\n").unwrap();
        let this = Self { folder, raw, http, https, admin, more: more.to_owned() };
        this.write(&[raw]);
        this
    }

    /// The configuration database.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("stconfig.toml")
    }

    /// The text of the configuration database, with the Community ports `raw`.
    pub fn toml(&self, raw: &[u16]) -> String {
        let folder = self.folder.path().display();
        let sandbox = if self.more.contains("[community]") { "" } else { "[community]\nservers = [\"sandbox\"]\n" };
        format!(
            "[client_connections]\nports = {raw:?}\n[http_tunneled_client_connections]\nports = [{}]\n[https_tunneled_client_connections]\nports = [{}]\n[tls]\ncertificate = \"{folder}/server.pem\"\nprivate_key = \"{folder}/server.key\"\n{sandbox}[admin]\nlisten = \"127.0.0.1:{}\"\ntoken_file = \"{folder}/token\"\n{}",
            self.http, self.https, self.admin, self.more
        )
    }

    pub fn write(&self, raw: &[u16]) {
        fs::write(self.file(), self.toml(raw)).unwrap();
    }

    /// Runs a command of the program to its end.
    pub fn command(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).args(arguments).env("SAMETIME_MUX_CONFIG", self.file()).output().unwrap()
    }

    /// Starts the program and waits until it is ready.
    pub fn start(self) -> Program {
        let program = self.spawn();
        program.wait_for_log("ready");
        program
    }

    /// Starts the program.
    pub fn spawn(self) -> Program {
        let mut command = Command::new(PROGRAM);
        command.stdout(Stdio::null());
        self.spawn_with(command)
    }

    /// As [`Self::spawn`], with a command that runs the program with the arguments that are added to it.
    pub fn spawn_with(self, mut command: Command) -> Program {
        let mut child = command.args(["run", "--config"]).arg(self.file()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                into.lock().push_str(&(line + "\n"));
            }
        });
        Program { child, log, admin: self.admin, folder: self.folder }
    }
}

impl Program {
    /// Waits until the log contains `what`, and panics when it takes longer than a minute.
    pub fn wait_for_log(&self, what: &str) {
        let since = Instant::now();
        while !self.log.lock().contains(what) {
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "the log does not contain {what:?}:\n{}",
                self.log.lock()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal, for example `HUP`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until the program ends; `None` if a signal ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(since.elapsed() < Duration::from_secs(60), "still running:\n{}", self.log.lock());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a request to the admin endpoint, for example `GET /readyz`.
    pub async fn request(&self, request: &str) -> http::Response {
        let mut tcp = http::tcp(local(self.admin)).await;
        let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        in_time("an answer", http::exchange(&mut tcp, request.as_bytes())).await.unwrap()
    }

    pub async fn status(&self) -> Value {
        serde_json::from_slice(&self.request("GET /api/status").await.body).unwrap()
    }

    /// The sum of a metric over all label sets; with labels in `name`, the value for these.
    pub async fn metric(&self, name: &str) -> f64 {
        let body = self.request("GET /metrics").await.body;
        let lines = String::from_utf8(body).unwrap();
        let lines =
            lines.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The resident memory of the process, in bytes.
    pub fn resident(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
    }

    /// Asks the admin endpoint for a reload.
    pub async fn reload(&self, token: &str) -> http::Response {
        let mut tcp = http::tcp(local(self.admin)).await;
        let head = format!(
            "POST /api/reload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        in_time("an answer", http::exchange(&mut tcp, head.as_bytes())).await.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sandbox Community server as a process. It has the same address after each start.
pub struct Sandbox {
    pub address: SocketAddr,
    process: Option<Process>,
}

impl Sandbox {
    pub async fn start() -> Self {
        Self::start_at(free_address()).await
    }

    pub async fn start_at(address: SocketAddr) -> Self {
        let mut this = Self { address, process: None };
        this.start_again().await;
        this
    }

    pub async fn start_again(&mut self) {
        let mut command = Command::new(PROGRAM);
        self.process = Some(Process::start(command.args(["community", "--listen", &self.address.to_string()])));
        let address = self.address;
        wait_until("the Community's port", || std::net::TcpStream::connect(address).is_ok()).await;
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends a signal, `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let id = self.process.as_ref().unwrap().0.id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), id]).status().unwrap().success());
    }
}

/// The configuration with which the multiplexer sends clients to all of `servers`, one after the other.
pub fn servers(servers: &[SocketAddr], more: &str) -> String {
    let servers: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
    format!("[community]\nservers = {servers:?}\nbalance = \"round-robin\"\n{more}\n")
}
