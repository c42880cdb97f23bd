//! What outsiders can make the program write into its log, and do: each line that they can cause comes at most once per
//! second and kind, and the next one says how many are missing.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use support::{in_time, program::Program};

#[path = "log/community.rs"]
mod community;
#[path = "log/ports.rs"]
mod ports;
#[path = "log/source.rs"]
mod source;
mod support;

/// How often each line is provoked.
const TIMES: usize = 10_000;
/// Clients at the same time.
const AT_ONCE: usize = 20;

/// A client that sends `bytes`, waits until the program answers or closes, and is gone.
async fn send_and_leave(to: SocketAddr, bytes: &[u8]) {
    let Ok(mut tcp) = TcpStream::connect(to).await else { return };
    let _ = tcp.write_all(bytes).await;
    let _ = tcp.read(&mut [0; 256]).await;
}

/// [`TIMES`] clients that send `bytes`.
async fn flood(to: SocketAddr, bytes: Vec<u8>) {
    let bytes = Arc::new(bytes);
    let floods: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let bytes = Arc::clone(&bytes);
            tokio::spawn(async move {
                for _ in 0..TIMES / AT_ONCE {
                    send_and_leave(to, &bytes).await;
                }
            })
        })
        .collect();
    for flood in floods {
        flood.await.unwrap();
    }
}

fn lines_with(program: &Program, what: &str) -> usize {
    program.log.lock().lines().filter(|line| line.contains(what)).count()
}

/// Asserts that there is at most one line with `what` for each second since `start`, and for each of `kinds`.
fn assert_throttled(program: &Program, what: &str, kinds: usize, start: Instant) {
    let (lines, most) = (lines_with(program, what), kinds * (start.elapsed().as_secs() as usize + 2));
    assert!(lines <= most, "{lines} lines with {what:?} in {:?}, of which {most} are allowed", start.elapsed());
}

/// How many events the lines with `what` stand for: each for itself and for `more` others.
fn counted(program: &Program, what: &str) -> u64 {
    let more = |line: &str| match line.split_once(" more=") {
        Some((_, rest)) => rest.split(' ').next().unwrap().parse::<u64>().unwrap(),
        None => 0,
    };
    program.log.lock().lines().filter(|line| line.contains(what)).map(|line| 1 + more(line)).sum()
}

/// Asserts that the lines with `what` were few since `start`, and that the line of a further event completes their count:
/// it is that of `metric`. `provoke` is called until it has caused the event.
async fn assert_throttled_and_counted(
    program: &Program,
    what: &str,
    metric: &str,
    start: Instant,
    provoke: impl AsyncFn(),
) {
    assert_throttled(program, what, 1, start);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = program.metric(metric).await;
    assert!(before > TIMES as f64 / 2.0, "only {before} events of {metric}:\n{}", program.log.lock());
    in_time("a line that completes the count", async {
        while counted(program, what) as f64 <= before {
            provoke().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // Further events may have no line yet.
    let (lines, after) = (counted(program, what) as f64, program.metric(metric).await);
    assert!(lines <= after, "the lines with {what:?} stand for {lines} events, and {metric} is {after}");
}
