//! Namespaces for one test: a network and mounts that no other process sees.

use std::process::Command;

use crate::support::{has, peer::text, skip};

const INSIDE: &str = "SAMETIME_MUX_INSIDE_NAMESPACES";

/// Whether this process has namespaces of its own (network and mounts), with loopback up. If not, the test `name` is run
/// in a process that has them, or skipped if that is not permitted; then the caller has nothing more to do.
pub fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return true;
    }
    if !has("unshare", "util-linux") || !has("ip", "iproute2") {
        return false;
    }
    let as_root: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["--map-root-user"] };
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount"]).args(as_root);
        command
    };
    if !unshare().args(["ip", "link", "set", "lo", "up"]).output().unwrap().status.success() {
        skip("unshare --net --mount", "namespaces are not permitted");
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let output = unshare().arg(this).args([name, "--exact", "--nocapture"]).env(INSIDE, "1").output().unwrap();
    print!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("1 passed"), "the test did not run: {}", text(&output.stdout));
    false
}

/// Runs a shell command, which must succeed.
pub fn run(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", text(&output.stderr));
}
