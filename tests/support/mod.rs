//! The test kit: clients over every transport, a Community server that follows a script of the test, and the
//! multiplexer between them.
//!
//! A new test of a conversation takes about ten lines. `docs/testing.md` shows two and describes each module.
#![allow(dead_code, clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod client;
pub mod community;
pub mod frames;
pub mod http;
pub mod mux;
pub mod peer;
pub mod program;
pub mod record;
pub mod route;
pub mod streaming;
pub mod tunnel;

use std::time::Duration;

/// Waits for `work`, and panics when it takes longer than a minute. The time is generous: a test fails because of what
/// it observes, never because of speed.
pub async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

/// Waits until `is_true` returns true, and panics when it takes longer than a minute.
pub async fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    in_time(what, async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Reports that a test is skipped because `peer` is missing. `tests/run` lists these reports at its end, so that a
/// missing program does not look like a passed test.
pub fn skip(peer: &str, why: &str) {
    assert!(std::env::var_os("SAMETIME_MUX_REQUIRE_PEERS").is_none(), "{peer} is required: {why}");
    println!("SKIPPED: {peer}: {why}");
    if let Some(file) = std::env::var_os("SAMETIME_MUX_SKIPPED") {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        writeln!(file, "{peer}: {why}").unwrap();
    }
}

/// Whether `program` is installed. Reports it if not.
pub fn has(program: &str, package: &str) -> bool {
    let there = std::process::Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !there.status.success() {
        skip(program, &format!("not installed (Debian package {package})"));
    }
    there.status.success()
}

/// The bytes of hexadecimal text. An odd number of digits gets a leading 0.
pub fn hex(text: &str) -> Vec<u8> {
    let text = if text.len() % 2 == 1 { format!("0{text}") } else { text.to_owned() };
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// A small generator of random numbers. It has a seed, so that a failure can be repeated.
pub struct Random(pub u64);

impl Random {
    /// A number from 0 up to but not including `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
