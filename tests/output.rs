//! Every command, with an output that can't be written: a pipe that its reader has closed, a device that is full, a
//! descriptor that is closed. No command panics, and each exit code is the documented one.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
};

use support::{
    peer::text,
    program::{PROGRAM, Setup, free_ports},
};

/// Where an output of a command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    /// To the test, which reads it.
    Read,
    /// Into a pipe that has no reader any more.
    ClosedPipe,
    /// To a device that is full.
    Full,
    /// Nowhere: the descriptor is closed.
    Closed,
}

impl Sink {
    fn stdio(self) -> Stdio {
        match self {
            Self::Read => Stdio::piped(),
            Self::ClosedPipe => {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                writer.into()
            }
            Self::Full => File::options().write(true).open("/dev/full").unwrap().into(),
            // The shell closes it.
            Self::Closed => Stdio::null(),
        }
    }
}

/// Stdout and stderr of each try.
const SINKS: [(Sink, Sink); 9] = [
    (Sink::Read, Sink::Read),
    (Sink::ClosedPipe, Sink::Read),
    (Sink::Full, Sink::Read),
    (Sink::Closed, Sink::Read),
    (Sink::Read, Sink::ClosedPipe),
    (Sink::Read, Sink::Full),
    (Sink::Read, Sink::Closed),
    (Sink::ClosedPipe, Sink::ClosedPipe),
    (Sink::Full, Sink::Full),
];

/// Starts the program with these outputs.
fn start(arguments: &[&str], (out, error): (Sink, Sink)) -> Child {
    let close = |sink: Sink, how| if sink == Sink::Closed { how } else { "" };
    let script = format!("exec \"$0\" \"$@\" {} {}", close(out, ">&-"), close(error, "2>&-"));
    let mut command = Command::new("sh");
    command.args(["-c", &script, PROGRAM]).args(arguments).env_remove("SAMETIME_MUX_CONFIG");
    command.stdin(Stdio::null()).stdout(out.stdio()).stderr(error.stdio()).spawn().unwrap()
}

/// How a command ends by the documentation.
#[derive(Debug, Clone, Copy)]
struct Expected {
    code: i32,
    /// Whether it has a result, which is lost where stdout is full.
    has_result: bool,
}

const HAS_RESULT: Expected = Expected { code: 0, has_result: true };
const BAD_USAGE: Expected = Expected { code: 2, has_result: false };
const FAILS: Expected = Expected { code: 1, has_result: false };

/// Waits for the end of a command, and checks how it ended.
fn ends(child: Child, what: &str, sinks: (Sink, Sink), expected: Expected) {
    let output = child.wait_with_output().unwrap();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    let what = format!("{what} with {sinks:?}:\n{out}{error}");
    assert!(!out.contains("panicked") && !error.contains("panicked"), "{what}");
    let is_lost = expected.has_result && sinks.0 == Sink::Full;
    let code = if is_lost { 1 } else { expected.code };
    assert_eq!((output.status.code(), output.status.signal()), (Some(code), None), "{what}");
    if sinks.0 == Sink::Read {
        assert_eq!(!out.is_empty(), expected.has_result, "{what}");
    }
    if sinks.1 == Sink::Read {
        if is_lost {
            assert!(error.contains("the result can't be written"), "{what}");
        } else if code != 0 && !expected.has_result {
            assert!(!error.is_empty(), "an error says why: {what}");
        } else {
            assert!(!error.contains("written"), "{what}");
        }
    }
}

/// Tries a command with every output.
fn every_way(arguments: &[&str], expected: Expected) {
    std::thread::scope(|scope| {
        for sinks in SINKS {
            scope.spawn(move || ends(start(arguments, sinks), &format!("{arguments:?}"), sinks, expected));
        }
    });
}

#[test]
fn help_and_version_are_given_or_the_loss_is_reported() {
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["help", "load"],
        &["--version"],
        &["run", "--help"],
        &["check", "--help"],
        &["community", "--help"],
        &["load", "--help"],
        &["status", "--help"],
    ] {
        every_way(arguments, HAS_RESULT);
    }
}

#[test]
fn wrong_arguments_have_their_exit_code() {
    for arguments in [
        &["no-such-command"][..],
        &["--no-such-argument"],
        &["run", "--config"],
        &["check", "more"],
        &["community", "--listen", "nowhere"],
        &["load", "--clients", "many"],
        &["load", "--target", "127.0.0.1:99999"],
        &["load", "--scenario", "/nowhere.toml"],
        &["status", "--admin", "ftp://127.0.0.1"],
        &["status", "--admin", "http://127.0.0.1:99999"],
    ] {
        every_way(arguments, BAD_USAGE);
    }
}

#[test]
fn check_has_its_exit_code() {
    let setup = Setup::new("");
    let file = setup.file();
    let file = file.to_str().unwrap();
    every_way(&["check", "--config", file], HAS_RESULT);
    every_way(&["check", "--config", "/nowhere.toml"], BAD_USAGE);
    fs::write(file, "[limits]\ncapacity = 0\n").unwrap();
    every_way(&["check", "--config", file], BAD_USAGE);
    every_way(&["run", "--config", file], BAD_USAGE);
}

#[tokio::test]
async fn status_has_its_exit_code() {
    let program = Setup::new("").start();
    let url = format!("http://127.0.0.1:{}", program.admin);
    every_way(&["status", "--admin", &url], HAS_RESULT);
    every_way(&["status", "--admin", "http://127.0.0.1:1"], FAILS);
    every_way(&["status", "--admin", &url, "--token-file", "/nowhere"], FAILS);
}

#[tokio::test]
async fn load_has_its_exit_code() {
    let setup = Setup::new("");
    let raw = format!("127.0.0.1:{}", setup.raw);
    let _program = setup.start();
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let short = ["load", "--clients", "2", "--ramp-up", "100ms", "--duration", "1s", "--raw", "1", "--target"];
    let with = |more: &[&'static str]| [&short[..], &[&raw], more].concat();
    every_way(&with(&[]), HAS_RESULT);
    every_way(&with(&["--json", "-"]), HAS_RESULT);
    // The other result is written all the same.
    let arguments = [&with(&[])[..], &["--html", page.to_str().unwrap()]].concat();
    let sinks = (Sink::Full, Sink::Read);
    ends(start(&arguments, sinks), "a page", sinks, HAS_RESULT);
    assert!(fs::read_to_string(&page).unwrap().contains("</html>"));
    every_way(&with(&["--html", "/dev/full"]), FAILS);
    every_way(&with(&["--json", "/dev/full"]), FAILS);
    // What went wrong is the result.
    let [nobody] = free_ports();
    let nobody = format!("127.0.0.1:{nobody}");
    every_way(&[&short[..], &[&nobody]].concat(), Expected { code: 1, has_result: true });
}

#[test]
fn run_and_community_have_their_exit_codes() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    every_way(&["community", "--listen", &format!("127.0.0.1:{port}")], FAILS);
    let setup = Setup::new("");
    setup.write(&[port]);
    every_way(&["run", "--config", setup.file().to_str().unwrap()], FAILS);
    for sinks in SINKS {
        let setup = Setup::new("");
        let [own] = free_ports();
        let file = setup.file();
        let servers =
            [(vec!["run", "--config", file.to_str().unwrap()], setup.raw), (vec!["community", "--listen"], own)];
        for (mut arguments, port) in servers {
            let address = format!("127.0.0.1:{port}");
            if arguments[0] == "community" {
                arguments.push(&address);
            }
            let mut child = start(&arguments, sinks);
            while std::net::TcpStream::connect(&address).is_err() {
                assert!(child.try_wait().unwrap().is_none(), "{arguments:?} ended with {sinks:?}");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let stopped = Command::new("kill").arg(child.id().to_string()).status().unwrap();
            assert!(stopped.success());
            ends(child, arguments[0], sinks, Expected { code: 0, has_result: false });
        }
    }
}
