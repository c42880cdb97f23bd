//! The admin endpoint under clients that keep it busy: probes always get through.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use support::{
    http, in_time,
    peer::text,
    program::{Program, Setup, local},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Connections that the endpoint has at the same time, and some more.
const MANY: usize = 100;

/// Opens many connections, each of which says `words` and then nothing more.
async fn hold(to: SocketAddr, words: &str) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..MANY {
        let mut tcp = http::tcp(to).await;
        // The endpoint may have closed it.
        let _ = tcp.write_all(words.as_bytes()).await;
        held.push(tcp);
    }
    held
}

async fn probes_get_through(program: &Program, what: &str) {
    for path in ["/healthz", "/readyz"] {
        for _ in 0..10 {
            assert_eq!(program.request(&format!("GET {path}")).await.status, 200, "{path}, {what}");
        }
    }
}

async fn closed(program: &Program, reason: &str) -> f64 {
    program.metric(&format!("sametime_mux_admin_connections_closed_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_no_probe_out() {
    let started = Instant::now();
    let program = Setup::new("").start();
    let to = local(program.admin);
    let descriptors = async || program.metric("sametime_mux_open_file_descriptors").await;
    let before = descriptors().await;
    // Who says nothing; half a head; the head of a second request; who asks for much and reads nothing.
    let asks = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut held = Vec::new();
    for words in ["", "GET /metrics HTTP/1.1\r\nHo", &format!("{asks}GET /"), &asks.repeat(200)] {
        held.push(hold(to, words).await);
        probes_get_through(&program, words).await;
    }
    // A bound stays.
    let more = descriptors().await - before;
    assert!(more < 80.0, "{more} descriptors for {} connections", held.len() * MANY);
    // On a slow machine, some have been idle for too long before their places were needed.
    let (evicted, idle) = (closed(&program, "evicted").await, closed(&program, "idle").await);
    let all = evicted + idle + closed(&program, "stalled").await;
    assert!(evicted > 0.0 && all >= (3 * MANY) as f64, "{evicted} evicted, {idle} idle, {all} in all");
    let line = "admin: a connection was closed";
    program.wait_for_log(line);
    let seconds = started.elapsed().as_secs() as usize;
    let lines = program.log.lock().matches(line).count();
    assert!(lines <= seconds + 2, "{lines} lines in {seconds} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_come_all_the_time_keep_no_probe_out() {
    let program = Setup::new("").start();
    let (to, over) = (local(program.admin), Arc::new(AtomicBool::new(false)));
    // From an address of their own, as an attacker is; each is held for as long as it may.
    let flood: Vec<_> = (0..3)
        .map(|_| {
            let over = Arc::clone(&over);
            tokio::spawn(async move {
                let mut held = std::collections::VecDeque::new();
                while !over.load(Relaxed) {
                    let socket = tokio::net::TcpSocket::new_v4().unwrap();
                    socket.bind(SocketAddr::from(([127, 0, 0, 66], 0))).unwrap();
                    if let Ok(tcp) = socket.connect(to).await {
                        held.push_back(tcp);
                    }
                    if held.len() > MANY {
                        held.pop_front();
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        probes_get_through(&program, "a flood").await;
    }
    over.store(true, Relaxed);
    for one in flood {
        in_time("the end of the flood", one).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_and_one_that_is_used_is_not() {
    let program = Setup::new("").start();
    let to = local(program.admin);
    let mut silent = http::tcp(to).await;
    let mut kept = http::tcp(to).await;
    let mut used_once = http::tcp(to).await;
    let ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut rest = Vec::new();
    assert_eq!(http::exchange(&mut used_once, ask).await.unwrap().status, 200);
    let ended = tokio::spawn(async move {
        in_time("the end of an idle connection", silent.read_to_end(&mut rest)).await.unwrap();
        in_time("the end of one that was used", used_once.read_to_end(&mut rest)).await
    });
    while !ended.is_finished() {
        assert_eq!(http::exchange(&mut kept, ask).await.unwrap().status, 200);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(ended.await.unwrap().unwrap(), 0);
    assert_eq!(http::exchange(&mut kept, ask).await.unwrap().status, 200);
    assert!(closed(&program, "idle").await >= 2.0);
}

#[tokio::test]
async fn a_token_file_that_can_not_be_read_is_not_a_line_for_each_who_asks() {
    let setup = Setup::new("");
    std::fs::remove_file(setup.folder.path().join("token")).unwrap();
    let started = Instant::now();
    let program = setup.start();
    for _ in 0..200 {
        let answer = program.reload("any").await;
        assert_eq!(answer.status, 403, "{}", text(&answer.body));
    }
    let line = "the token file can't be read";
    program.wait_for_log(line);
    let seconds = started.elapsed().as_secs() as usize;
    let lines = program.log.lock().matches(line).count();
    assert!(lines <= seconds + 2, "{lines} lines in {seconds} s");
}
