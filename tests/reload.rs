//! Reloads and starts that must not be believed, with the real program: files that are cut off or empty, the way to the
//! sandbox, certificates that are gone, and signals in the middle of a start.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use sametime_mux::{config::Settings, ingress::ListenerSettings, server::Server, telemetry::outcome::ReloadRefusal};
use support::{
    Random,
    community::Community,
    http, mux,
    peer::text,
    program::{PROGRAM, Program, Setup, free_ports, local},
};

const TOKEN: &str = "open sesame";

/// The servers that clients are sent to.
async fn servers(program: &Program) -> Vec<String> {
    let status = program.status().await;
    let servers = status["community"].as_array().unwrap().iter();
    servers
        .filter(|server| server["state"] != "draining")
        .map(|server| server["address"].as_str().unwrap().to_owned())
        .collect()
}

/// Reloads, and expects that it is refused. Returns the reason for the admin.
async fn is_refused(program: &Program) -> String {
    let refused = program.reload(TOKEN).await;
    let why = text(&refused.body);
    assert_eq!(refused.status, 422, "{why}");
    why
}

async fn refusals(program: &Program, reason: &str) -> f64 {
    program.metric(&format!("sametime_mux_reloads_refused_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn a_file_that_is_cut_off_anywhere_sends_nobody_to_another_place() {
    let community = Community::start_echo().await;
    let address = community.address.to_string();
    let more = format!("{}\n[limits]\ncapacity = 500\n\n[tunnel]\nhold = \"20s\"\n", community.setting());
    let setup = Setup::new(&more);
    let (file, whole) = (setup.file(), setup.toml(&[setup.raw]));
    let program = setup.start();
    let before = program.status().await;
    // The last section's header, and what is behind it.
    let last = whole.rfind("hold = ").unwrap();
    for end in 0..whole.len() {
        fs::write(&file, &whole[..end]).unwrap();
        let reloaded = program.reload(TOKEN).await;
        let why = text(&reloaded.body);
        if end == last {
            // A last section without its keys: somebody may have meant that.
            assert_eq!(reloaded.status, 200, "{why}");
            continue;
        }
        assert_eq!(reloaded.status, 422, "cut off after {:?}: {why}", &whole[..end]);
        assert!(!why.trim().is_empty());
    }
    assert_eq!(servers(&program).await, [address]);
    let after = program.status().await;
    assert_eq!(after["listeners"], before["listeners"], "no port was closed or opened");
    assert!(refusals(&program, "sections_lost").await > 0.0);
    assert!(refusals(&program, "cut_off").await > 0.0);
    fs::write(&file, &whole).unwrap();
    assert_eq!(program.reload(TOKEN).await.status, 200);
}

#[tokio::test]
async fn what_a_reload_loses_is_named_and_what_to_do_is_said() {
    let community = Community::start_echo().await;
    let setup = Setup::new(&format!("{}[limits]\ncapacity = 500\n[tunnel]\nhold = \"20s\"\n", community.setting()));
    let (file, whole) = (setup.file(), setup.toml(&[setup.raw]));
    let program = setup.start();
    fs::write(&file, whole.split("[limits]").next().unwrap()).unwrap();
    let why = is_refused(&program).await;
    assert!(why.contains("[limits]") && why.contains("[tunnel]") && !why.contains("[tls]"), "{why}");
    assert!(why.contains("restart"), "an admin who means it is told how: {why}");
    assert_eq!(program.status().await["configuration"]["last_error"].as_str().unwrap().trim(), why.trim());
    program.wait_for_log("reason=sections_lost");
    // Sections that are there and empty are meant to be so.
    let empty = whole.replace("capacity = 500\n", "").replace("hold = \"20s\"\n", "");
    fs::write(&file, empty).unwrap();
    assert_eq!(program.reload(TOKEN).await.status, 200);

    fs::write(&file, whole.trim_end()).unwrap();
    let why = is_refused(&program).await;
    assert!(why.contains("line end") && why.contains("cut off"), "{why}");
    program.wait_for_log("reason=cut_off");
}

#[tokio::test]
async fn a_reload_sends_nobody_to_the_sandbox_whose_file_did_not_name_it() {
    let community = Community::start_echo().await;
    let real = community.address.to_string();
    let setup = Setup::new(&community.setting());
    let (file, whole) = (setup.file(), setup.toml(&[setup.raw]));
    let program = setup.start();
    for to in ["[\"sandbox\"]".to_owned(), format!("[\"{real}\", \"sandbox\"]")] {
        fs::write(&file, whole.replace(&format!("[\"{real}\"]"), &to)).unwrap();
        let why = is_refused(&program).await;
        assert!(why.contains("sandbox") && why.contains("any password") && why.contains("restart"), "{why}");
        assert_eq!(servers(&program).await, [real.as_str()]);
    }
    program.wait_for_log("reason=to_sandbox");
    assert!((refusals(&program, "to_sandbox").await - 2.0).abs() < 0.1);
    // Without the key, and without the section.
    for gone in [whole.replace(&format!("servers = [\"{real}\"]\n"), ""), whole.replace(&community.setting(), "")] {
        fs::write(&file, gone).unwrap();
        let why = is_refused(&program).await;
        assert!(why.contains("community.servers"), "{why}");
        assert_eq!(servers(&program).await, [real.as_str()]);
    }
}

#[tokio::test]
async fn the_sandbox_is_left_by_a_reload_and_not_entered_again() {
    let community = Community::start_echo().await;
    let real = community.address.to_string();
    let setup = Setup::new("[community]\nservers = [\"sandbox\"]\n");
    let (file, sandbox) = (setup.file(), setup.toml(&[setup.raw]));
    let program = setup.start();
    assert_eq!(servers(&program).await, ["sandbox"]);
    fs::write(&file, sandbox.replace("\"sandbox\"", &format!("\"{real}\""))).unwrap();
    assert_eq!(program.reload(TOKEN).await.status, 200);
    assert_eq!(servers(&program).await, [real.as_str()]);
    fs::write(&file, sandbox).unwrap();
    is_refused(&program).await;
    assert_eq!(servers(&program).await, [real.as_str()]);
}

#[test]
fn a_file_that_names_no_servers_does_not_start() {
    for file in ["", "[limits]\ncapacity = 5\n", "[community]\nbalance = \"failover\"\n"] {
        let setup = Setup::new("");
        fs::write(setup.file(), file).unwrap();
        for command in ["check", "run"] {
            let output = setup.command(&[command]);
            let says = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command} of {file:?}: {says}");
            assert!(says.contains("community.servers: ") && says.contains("\"sandbox\""), "{says}");
        }
    }
    // The variable is enough.
    let setup = Setup::new("");
    fs::write(setup.file(), "").unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["check", "--config"]).arg(setup.file()).env("SAMETIME_MUX__COMMUNITY__SERVERS", "chat.example:1533");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

/// All that is in a folder, with its content.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default()))
        .collect()
}

/// The certificate that a port shows.
async fn certificate(port: u16) -> Vec<u8> {
    let stream = http::connect_tls(local(port)).await;
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

#[tokio::test]
async fn a_reload_never_replaces_a_certificate_by_one_of_its_own() {
    let setup = Setup::new("[community]\nservers = [\"sandbox\"]\n");
    let (raw, file, toml) = (setup.raw, setup.file(), setup.toml(&[setup.raw]));
    let folder = setup.folder.path().to_owned();
    let program = setup.start();
    let good = certificate(raw).await;
    for name in ["server.pem", "server.key"] {
        fs::rename(folder.join(name), folder.join(format!("{name}.away"))).unwrap();
    }
    let before = files(&folder);
    let why = is_refused(&program).await;
    assert!(why.contains("server.pem") && why.contains("server.key"), "{why}");
    program.wait_for_log("reason=tls");
    assert_eq!(files(&folder), before, "a refused reload writes nothing");
    assert_eq!(certificate(raw).await, good);

    // The same when the file names another place.
    fs::write(&file, toml.replace("/server.", "/elsewhere/server.")).unwrap();
    let before = files(&folder);
    is_refused(&program).await;
    assert_eq!(files(&folder), before, "a refused reload writes nothing");
    assert_eq!(certificate(raw).await, good);

    // And when the files are back, all is well.
    fs::write(&file, toml).unwrap();
    for name in ["server.pem", "server.key"] {
        fs::rename(folder.join(format!("{name}.away")), folder.join(name)).unwrap();
    }
    assert_eq!(program.reload(TOKEN).await.status, 200);
    assert_eq!(certificate(raw).await, good);
}

/// Starts the program on `file` and ends it again when it is ready. Returns what it logged.
fn starts(setup: &Setup) -> String {
    let mut child =
        Command::new(PROGRAM).args(["run", "--config"]).arg(setup.file()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = String::new();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    for line in lines.by_ref().map_while(Result::ok) {
        log += &(line + "\n");
        if log.contains(" ready") {
            signal(child.id(), "TERM");
            break;
        }
    }
    for line in lines.map_while(Result::ok) {
        log += &(line + "\n");
    }
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    log
}

fn signal(process: u32, name: &str) {
    // It may have ended.
    let _ = Command::new("kill").args([format!("-{name}"), process.to_string()]).stderr(Stdio::null()).status();
}

#[test]
fn a_first_start_that_fails_half_way_is_completed_by_the_next() {
    // The certificate can't be written: its folder is a file.
    let setup = Setup::new("[community]\nservers = [\"sandbox\"]\n");
    let folder = setup.folder.path();
    let toml = setup.toml(&[setup.raw]).replace("/server.pem", "/public/server.pem");
    fs::write(setup.file(), toml).unwrap();
    fs::write(folder.join("public"), "").unwrap();
    let failed = setup.command(&["run"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    assert!(text(&failed.stderr).contains("public/server.pem"), "{}", text(&failed.stderr));
    fs::remove_file(folder.join("public")).unwrap();
    starts(&setup);

    // The machine was lost between the two files.
    let key = fs::read(folder.join("server.key")).unwrap();
    fs::remove_file(folder.join("public/server.pem")).unwrap();
    let log = starts(&setup);
    assert!(log.contains("self-signed"), "{log}");
    assert_eq!(fs::read(folder.join("server.key")).unwrap(), key, "the key is used");
    assert!(folder.join("public/server.pem").exists());

    // A key that the program did not make is an admin's, whose certificate is still to come.
    let foreign = rcgen::KeyPair::generate().unwrap().serialize_pem();
    fs::write(folder.join("server.key"), &foreign).unwrap();
    fs::remove_file(folder.join("public/server.pem")).unwrap();
    let refused = setup.command(&["run"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("server.pem is not"), "{}", text(&refused.stderr));
    assert!(!folder.join("public/server.pem").exists(), "nothing is made");
    assert_eq!(fs::read_to_string(folder.join("server.key")).unwrap(), foreign);
}

#[test]
fn a_first_start_that_is_killed_at_any_moment_blocks_none_that_follows() {
    let mut random = Random(7);
    for _ in 0..20 {
        let setup = Setup::new("[community]\nservers = [\"sandbox\"]\n");
        let mut child =
            Command::new(PROGRAM).args(["run", "--config"]).arg(setup.file()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        starts(&setup);
        let left: Vec<String> = files(setup.folder.path()).into_keys().collect();
        // At the most the temporary file of the start that was killed.
        assert!(left.len() <= 5, "{left:?}");
    }
}

/// A configuration database that the program reads only when the test writes it: a named pipe.
struct SlowFile(std::path::PathBuf);

impl SlowFile {
    fn new(setup: &Setup) -> Self {
        let path = setup.folder.path().join("slow.toml");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        Self(path)
    }

    fn run(&self) -> std::process::Child {
        Command::new(PROGRAM).args(["run", "--config"]).arg(&self.0).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until the program has opened the file, which it then waits for.
    fn opened(&self) -> fs::File {
        fs::OpenOptions::new().write(true).open(&self.0).unwrap()
    }
}

/// How a process ended; `None` while it runs after a while.
fn ended(child: &mut std::process::Child, within: Duration) -> Option<ExitStatus> {
    let since = Instant::now();
    while since.elapsed() < within {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

#[test]
fn a_reload_that_is_asked_for_before_the_file_is_read_kills_nothing_and_is_done_later() {
    let setup = Setup::new("[community]\nservers = [\"sandbox\"]\n");
    let toml = setup.toml(&[setup.raw]);
    let slow = SlowFile::new(&setup);
    let mut child = slow.run();
    let mut file = slow.opened();
    for _ in 0..3 {
        signal(child.id(), "HUP");
    }
    let status = ended(&mut child, Duration::from_millis(200));
    assert!(status.is_none(), "SIGHUP ended it: {status:?}");
    file.write_all(toml.as_bytes()).unwrap();
    drop(file);
    let (mut log, mut again) = (String::new(), Some(slow));
    for line in std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap())).map_while(Result::ok) {
        log += &(line + "\n");
        if log.contains(" ready")
            && let Some(slow) = again.take()
        {
            // The file may have changed since it was read: it is read again.
            slow.opened().write_all(toml.as_bytes()).unwrap();
        }
        if log.contains("revision=2") {
            signal(child.id(), "TERM");
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(0), "{log}");
    assert!(log.contains("revision=2"), "{log}");
}

#[test]
fn a_signal_to_stop_ends_a_start_with_0() {
    let setup = Setup::new("[community]\nservers = [\"sandbox\"]\n");
    let slow = SlowFile::new(&setup);
    for name in ["TERM", "INT"] {
        let mut child = slow.run();
        let _file = slow.opened();
        signal(child.id(), name);
        let status = ended(&mut child, Duration::from_secs(60)).expect("an end");
        assert_eq!((status.code(), status.signal()), (Some(0), None), "SIG{name}");
    }
}

/// Whether a process catches SIGHUP (proc(5)); `None` if it is gone.
fn catches_hangup(process: u32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    Some(u64::from_str_radix(caught.trim(), 16).ok()? & 1 == 1)
}

#[test]
fn a_reload_at_any_moment_of_the_start_kills_nothing() {
    let mut random = Random(3);
    for _ in 0..40 {
        let setup = Setup::new("[community]\nservers = [\"sandbox\"]\n");
        let mut child =
            Command::new(PROGRAM).args(["run", "--config"]).arg(setup.file()).stderr(Stdio::null()).spawn().unwrap();
        // Before that, its own code has not begun, and the system decides.
        while catches_hangup(child.id()) == Some(false) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        signal(child.id(), "HUP");
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        signal(child.id(), "HUP");
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        signal(child.id(), "TERM");
        let status = ended(&mut child, Duration::from_secs(60)).expect("an end");
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}

/// Settings with a Community port at each of these numbers.
fn on_ports(ports: &[u16], folder: &Path) -> Settings {
    let mut settings = mux::settings("", folder);
    let one = settings.ingress.listeners[0].clone();
    settings.ingress.listeners = ports.iter().map(|&port| ListenerSettings { port, ..one.clone() }).collect();
    settings
}

#[tokio::test]
async fn a_reload_after_the_ports_were_closed_opens_nothing() {
    let (folder, [first, second]) = (tempfile::tempdir().unwrap(), free_ports());
    let server = Server::start(on_ports(&[first], folder.path())).await.unwrap();
    let is_open = |port| std::net::TcpStream::connect(local(port)).is_ok();
    assert!(is_open(first));
    server.drain().await;
    let admin = server.admin_address().expect("the admin endpoint still answers");
    for ports in [&[first][..], &[first, second]] {
        // A request that moves the admin endpoint, too.
        let mut settings = on_ports(ports, folder.path());
        settings.admin.listen = Some(local(0));
        let refused = server.reload(settings).await.expect_err("the server is being stopped");
        assert_eq!(refused.reason, ReloadRefusal::Stopping, "{refused}");
        assert!(!is_open(first) && !is_open(second));
    }
    assert_eq!(server.admin_address(), Some(admin));
    assert!(server.listeners().is_empty());
    server.stop();
    let refused = server.reload(on_ports(&[first], folder.path())).await.expect_err("it has stopped");
    assert_eq!(refused.reason, ReloadRefusal::Stopping);
    assert!(!is_open(first) && server.admin_address().is_none());
}
