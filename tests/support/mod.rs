//! What the tests share: clients over every way in, a Community server that does what a test
//! says, and the multiplexer in between.
//!
//! A new conversation takes ten lines; `docs/testing.md` shows two and says what each module gives.
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
pub mod tunnel;

use std::time::Duration;

/// Waits for what must come. Generous: a test fails by what it sees, not by how fast.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

/// Waits until `there`.
pub async fn until(what: &str, mut there: impl FnMut() -> bool) {
    soon(what, async {
        while !there() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Notes that a peer is missing: named at the end of `tests/run`, never a pass in silence.
pub fn skip(peer: &str, why: &str) {
    assert!(std::env::var_os("SAMETIME_MUX_REQUIRE_PEERS").is_none(), "{peer} is required: {why}");
    println!("SKIPPED: {peer}: {why}");
    if let Some(file) = std::env::var_os("SAMETIME_MUX_SKIPPED") {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        writeln!(file, "{peer}: {why}").unwrap();
    }
}

/// Whether `program` is there; notes that it is not.
pub fn has(program: &str, package: &str) -> bool {
    let there = std::process::Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !there.status.success() {
        skip(program, &format!("not installed (Debian package {package})"));
    }
    there.status.success()
}

pub fn hex(text: &str) -> Vec<u8> {
    let text = if text.len() % 2 == 1 { format!("0{text}") } else { text.to_owned() };
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// A small generator for tests: seeded, so that a failure comes again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
