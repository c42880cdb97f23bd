//! Programs of other projects: how a test starts and stops them, and reads their output.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{has, skip, wait_until};

/// A process that is killed when this value is dropped, together with the processes that it started.
pub struct Process(pub Child);

impl Process {
    /// Starts `command` as the leader of its own process group. Its output is discarded.
    pub fn start(command: &mut Command) -> Self {
        Self(command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// As [`Self::start`], with its output in the file `log`.
    pub fn start_logged(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let (out, error) = (file.try_clone().unwrap(), file);
        Self(command.process_group(0).stdin(Stdio::null()).stdout(out).stderr(error).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // This has no effect on a process that leads no group.
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The longest time of a program. testssl takes half a minute on two idle cores, and a minute on busy ones.
const PROGRAM: Duration = Duration::from_secs(300);

/// Runs a program to its end.
pub async fn run(command: &mut Command) -> Output {
    let mut command = tokio::process::Command::from(std::mem::replace(command, Command::new("true")));
    let output = tokio::time::timeout(PROGRAM, command.kill_on_drop(true).output()).await;
    output.expect("the program's end").unwrap()
}

/// An address on loopback where no program listens now, a different one each time. Its port is below those that the
/// kernel gives to outgoing connections, so that it is still free when a program binds it.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 100) as u16 * 100;
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], first + NEXT.fetch_add(1, Relaxed)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Starts a proxy with the command that `start` returns for a free port, and waits until it accepts connections.
pub async fn proxy(start: impl FnOnce(u16) -> Command) -> (Process, SocketAddr) {
    let address = free_address();
    let process = Process::start(&mut start(address.port()));
    wait_until("the proxy's port", || TcpStream::connect(address).is_ok()).await;
    (process, address)
}

/// The client of `tests/peers/meanwhile.c`, which is built once; `None` if it cannot be built here.
pub fn meanwhile() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build_meanwhile).as_deref()
}

fn build_meanwhile() -> Option<PathBuf> {
    if !has("pkg-config", "pkg-config") || !has("cc", "gcc") {
        return None;
    }
    let flags = Command::new("pkg-config").args(["--cflags", "--libs", "meanwhile", "glib-2.0"]).output().unwrap();
    if !flags.status.success() {
        skip("libmeanwhile", "not installed (Debian package libmeanwhile-dev)");
        return None;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("meanwhile");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/meanwhile.c");
    let flags = text(&flags.stdout);
    let built = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-error=deprecated-declarations", "-o"])
        .args([&program, &source])
        .args(flags.split_whitespace())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", text(&built.stderr));
    Some(program)
}

/// Runs libmeanwhile's client against `to`, with the arguments `through` for a proxy. Returns its exit code and its
/// output.
pub async fn run_meanwhile(
    through: &[&str],
    to: SocketAddr,
    name: &str,
    password: &str,
    steps: &[&str],
) -> (Option<i32>, String) {
    let mut command = Command::new(meanwhile().unwrap());
    command.args(through).args([to.ip().to_string(), to.port().to_string(), name.to_owned(), password.to_owned()]);
    let output = run(command.args(steps)).await;
    (output.status.code(), text(&output.stdout))
}

/// Steps of libmeanwhile's client that make a chat.
pub const CHAT: &[&str] = &["say", "echo", "hello", "say", "echo", "gr\u{fc}\u{df} dich"];

/// Asserts that libmeanwhile's client logged in and made the chat [`CHAT`].
pub fn assert_chat((code, said): (Option<i32>, String)) {
    let expected = "logged in\nopened echo\nheard echo: hello\ndone say\nheard echo: gr\u{fc}\u{df} dich\ndone say\n";
    assert!(said.starts_with(expected), "{said}");
    assert_eq!(code, Some(0), "{said}");
}
