//! Least privilege: the systemd unit, the rights that the program needs, and secrets in the log.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use support::{
    client::{Client, Transport},
    frames, has, http,
    peer::{Process, text},
    program::{PROGRAM, Setup, local},
    skip,
    tunnel::{Kind, Session},
    wait_until,
};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/sametime-mux.service");

/// The unit, with this build in place of the installed program.
fn unit(folder: &Path) -> PathBuf {
    let unit = fs::read_to_string(UNIT).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/sametime-mux run "), "{unit}");
    let path = folder.join("sametime-mux.service");
    fs::write(&path, unit.replace("/usr/bin/sametime-mux", PROGRAM)).unwrap();
    path
}

#[test]
fn the_unit_is_valid_and_has_a_good_security_score() {
    if !has("systemd-analyze", "systemd") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = unit(folder.path());
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
    let said = text(&verified.stderr);
    assert!(verified.status.success() && !said.contains("sametime-mux.service:"), "{said}");
    let marked = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(&unit)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let said = text(&marked.stdout);
    let line = said.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{said}"));
    let mark: f64 = line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    println!("exposure {mark}");
    assert!(mark < 2.0, "{said}");
}

/// `systemd-analyze verify` on units in a folder.
fn verify(folder: &Path, units: &[&str]) {
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(units.iter().map(|unit| folder.join(unit)));
    let verified = verify.env("SYSTEMD_UNIT_PATH", format!("{}:", folder.display())).output().unwrap();
    let said = text(&verified.stderr);
    assert!(verified.status.success() && !said.contains("sametime-mux"), "{said}");
}

#[test]
fn the_socket_unit_and_the_instances_are_valid() {
    if !has("systemd-analyze", "systemd") {
        return;
    }
    let (folder, deploy) = (tempfile::tempdir().unwrap(), Path::new(UNIT).parent().unwrap());
    unit(folder.path());
    let copy = |from: &str, to: &str| {
        let to = folder.path().join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(deploy.join(from), to).unwrap();
    };
    copy("sametime-mux.socket", "sametime-mux.socket");
    verify(folder.path(), &["sametime-mux.socket", "sametime-mux.service"]);
    fs::rename(folder.path().join("sametime-mux.service"), folder.path().join("sametime-mux@.service")).unwrap();
    copy("instances/service.conf", "sametime-mux@.service.d/instance.conf");
    copy("instances/socket.conf", "sametime-mux.socket.d/instances.conf");
    copy("instances/sametime-mux-ports.service", "sametime-mux-ports.service");
    verify(folder.path(), &["sametime-mux.socket", "sametime-mux@9532.service", "sametime-mux-ports.service"]);
}

#[test]
fn the_socket_unit_has_the_ports_of_the_configuration_that_comes_with_it() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/stconfig.toml");
    let settings = sametime_mux::config::parse(&fs::read_to_string(&file).unwrap(), &file, std::iter::empty()).unwrap();
    let wanted: Vec<String> = settings.ingress.listeners.iter().map(|listener| listener.port.to_string()).collect();
    let unit = fs::read_to_string(Path::new(UNIT).with_extension("socket")).unwrap();
    let lines: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    assert_eq!(lines, wanted.iter().flat_map(|port| [port, port]).collect::<Vec<_>>(), "each for two cores");
}

#[test]
fn the_unit_for_newer_systemd_leaves_sighup_to_it() {
    if !has("systemd-analyze", "systemd") {
        return;
    }
    let version = Command::new("systemd-analyze").arg("--version").output().unwrap();
    let version: u32 = text(&version.stdout).split_whitespace().nth(1).unwrap().parse().unwrap();
    if version < 253 {
        return skip("systemd 253", &format!("Type=notify-reload is not known to systemd {version}"));
    }
    let folder = tempfile::tempdir().unwrap();
    unit(folder.path());
    let to = folder.path().join("sametime-mux.service.d");
    fs::create_dir(&to).unwrap();
    let from = Path::new(UNIT).with_extension("service.d").join("notify-reload.conf");
    fs::copy(from, to.join("notify-reload.conf")).unwrap();
    verify(folder.path(), &["sametime-mux.service"]);
}

/// The system calls of a set, including those of the sets in it.
fn system_calls(set: &str) -> BTreeSet<String> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", set]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    let lines = said.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .flat_map(|line| if line.starts_with('@') { system_calls(line) } else { BTreeSet::from([line.to_owned()]) })
        .collect()
}

#[tokio::test]
async fn the_unit_allows_every_system_call_that_the_program_makes() {
    if !has("systemd-analyze", "systemd") || !has("strace", "strace") {
        return;
    }
    let unit = fs::read_to_string(UNIT).unwrap();
    let filters: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).collect();
    assert_eq!(filters.len(), 2, "one that allows calls, one that takes calls away");
    let mut allowed: BTreeSet<String> = filters[0].split(' ').flat_map(system_calls).collect();
    let taken: BTreeSet<String> = filters[1].strip_prefix('~').unwrap().split(' ').flat_map(system_calls).collect();
    allowed.retain(|call| !taken.contains(call));
    assert!(allowed.contains("accept4") && !allowed.contains("reboot"), "{allowed:?}");
    let setup = Setup::new("");
    let (raw, trace) = (setup.raw, setup.folder.path().join("trace"));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o"]).arg(&trace).arg(PROGRAM).args(["run", "--config"]).arg(setup.file());
    // As systemd starts it.
    let notify = setup.folder.path().join("notify");
    let _manager = UnixDatagram::bind(&notify).unwrap();
    strace.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "30000000");
    let log = setup.folder.path().join("log");
    let mut process = Process::start_logged(&mut strace, &log);
    wait_until("ready, or why not", || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        said.contains("ready") || said.contains("strace: ")
    })
    .await;
    let said = fs::read_to_string(&log).unwrap();
    if !said.contains("ready") {
        return skip("strace", &format!("may not trace here: {said}"));
    }
    for transport in Transport::ALL {
        let mut client = Client::connect(transport, local(raw)).await;
        client.log_in("bob").await;
        client.log_out().await;
    }
    let pid = fs::read_to_string(&trace).unwrap().split(' ').next().unwrap().to_owned();
    for (signal, expected) in [("HUP", "revision=2"), ("TERM", "stopped")] {
        Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap();
        wait_until(expected, || fs::read_to_string(&log).unwrap().contains(expected)).await;
    }
    wait_until("the end", || process.0.try_wait().unwrap().is_some()).await;
    // A line is `PID call(arguments) = result`. A line about a resumed call is skipped: the call
    // was counted when it began.
    let trace = fs::read_to_string(&trace).unwrap();
    let name = |line: &str| {
        let (call, _) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then(|| call.to_owned())
    };
    let mut made: BTreeSet<String> = trace.lines().filter_map(name).collect();
    assert!(made.len() > 30 && made.contains("accept4"), "{made:?}");
    // strace starts the program with this call. systemd starts it before the filter is in force.
    made.remove("execve");
    let refused: Vec<_> = made.difference(&allowed).collect();
    assert!(refused.is_empty(), "the unit refuses {refused:?}");
}

/// A free port below 1024.
fn low_port() -> u16 {
    (600..1024).rev().find(|port| TcpListener::bind(("::", *port)).is_ok()).expect("a free port")
}

#[tokio::test]
async fn the_program_runs_without_root_with_one_capability_and_leaves_no_core_dump() {
    if !rustix::process::geteuid().is_root() {
        return skip("root", "only root may start the program as somebody else with a capability");
    }
    if !has("setpriv", "util-linux") {
        return;
    }
    let mut setup = Setup::new("");
    setup.http = low_port();
    setup.write(&[setup.raw]);
    let (raw, low, folder) = (setup.raw, setup.http, setup.folder.path().to_owned());
    // A copy that another user may run, in a folder where this user may write a certificate.
    let program = folder.join("sametime-mux");
    fs::copy(PROGRAM, &program).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let start = |rights: &str| {
        let mut setpriv = Command::new("setpriv");
        setpriv
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
            .args([
                format!("--inh-caps={rights}"),
                format!("--ambient-caps={rights}"),
                format!("--bounding-set={rights}"),
            ])
            .arg(&program)
            .args(["run", "--config"])
            .arg(setup.file());
        Process::start_logged(&mut setpriv, &folder.join(rights))
    };
    let with = start("-all,+net_bind_service");
    let log = || fs::read_to_string(folder.join("-all,+net_bind_service")).unwrap();
    wait_until("ready", || log().contains("ready")).await;
    assert!(!log().contains("port is down") && !log().contains("as root"), "{}", log());
    for (transport, port) in [(Transport::Raw, raw), (Transport::Hybrid, low), (Transport::Tls, low)] {
        Client::connect(transport, local(port)).await.log_in("bob").await;
    }
    let process = format!("/proc/{}", with.0.id());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(line("Uid:"), ["65534"; 4].join("\t"));
    // Bit 10 is CAP_NET_BIND_SERVICE.
    for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(set), format!("{:016x}", 1 << 10), "{set}");
    }
    assert_eq!(line("NoNewPrivs:"), "1");
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    // The files in /proc of a process that is not dumpable belong to root (proc(5)).
    assert_eq!(fs::metadata(format!("{process}/maps")).unwrap().uid(), 0);
    // The program can read its own files in /proc nevertheless.
    let metrics = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let shown = http::exchange(&mut http::tcp(local(setup.admin)).await, metrics).await.unwrap();
    let shown = text(&shown.body);
    let open = shown.lines().find_map(|line| line.strip_prefix("sametime_mux_open_file_descriptors ")).unwrap();
    assert!(open.parse::<f64>().unwrap() > 5.0, "{open}");
    drop(with);
    // Without the capability the port is down, and all else works.
    let _without = start("-all");
    let log = || fs::read_to_string(folder.join("-all")).unwrap();
    wait_until("ready", || log().contains("ready")).await;
    assert!(log().contains("CAP_NET_BIND_SERVICE"), "{}", log());
    Client::connect(Transport::Raw, local(raw)).await.log_in("bob").await;
}

#[tokio::test]
async fn no_secret_and_no_name_is_in_the_log_however_much_is_logged() {
    let setup = Setup::new("[log]\nlevel = \"trace\"\n");
    let raw = setup.raw;
    let program = setup.start();
    for transport in Transport::ALL {
        let mut client = Client::connect(transport, local(raw)).await;
        client.log_in("Very Particular Name").await;
        let channel = client.open_chat("echo").await;
        client.send_text(channel, b"between us").await;
        assert_eq!(client.recv().await.expect("an echo").text(), b"between us");
        client.log_out().await;
    }
    // Refused requests are logged, too.
    let mut session = Session::new(Kind::Polling);
    let mut tcp = http::tcp(local(raw)).await;
    session.opened(&http::exchange(&mut tcp, &http::post(&session.path(), &session.opening())).await.unwrap().body);
    let guess = [&[0; 4][..], &frames::opaque(b"8 bytes."), &frames::login("bob", "secret").bytes()].concat();
    let fresh = Session::new(Kind::Polling).path();
    for (path, status) in [(session.path(), 404), (fresh, 400)] {
        assert_eq!(http::exchange(&mut tcp, &http::post(&path, &guess)).await.unwrap().status, status);
    }
    program.wait_for_log("tunnel: a request is refused");
    program.wait_for_log("tunnel: a first request is refused");
    assert_eq!(program.reload("wrong").await.status, 401);
    assert_eq!(program.reload("open sesame").await.status, 200);
    program.wait_for_log("revision=2");
    let log = program.log.lock().clone();
    assert!(log.contains("DEBUG") && log.contains("session closed"), "{log}");
    assert!(!log.contains(&session.name), "{log}");
    // The client's name and password, the admin's token and a message, each as text and as a list of bytes.
    for secret in ["Particular", "secret", "open sesame", "between us"] {
        let bytes = format!("{:?}", secret.as_bytes());
        assert!(!log.contains(secret) && !log.contains(bytes.trim_matches(['[', ']'])), "{secret} in {log}");
    }
    // Session names have 32 hexadecimal digits.
    let words = log.split(|c: char| !c.is_ascii_alphanumeric());
    let names: Vec<_> = words.filter(|word| word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit())).collect();
    assert!(names.is_empty(), "{names:?}");
    assert!(!log.contains("BEGIN PRIVATE KEY"), "{log}");
}

#[test]
fn the_account_of_the_unit_is_the_one_that_is_created() {
    let unit = fs::read_to_string(UNIT).unwrap();
    let account = unit.lines().find_map(|line| line.strip_prefix("User=")).unwrap();
    let made = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/sametime-mux.sysusers")).unwrap();
    assert!(made.lines().any(|line| line.starts_with(&format!("u {account} "))), "{made}");
    if !has("systemd-sysusers", "systemd") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc")).unwrap();
    let made = Command::new("systemd-sysusers")
        .arg(format!("--root={}", root.path().display()))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/sametime-mux.sysusers"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let passwd = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    assert!(passwd.lines().any(|line| line.starts_with(&format!("{account}:x:"))), "{passwd}");
}
