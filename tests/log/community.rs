//! Lines about sessions and Community servers.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    TIMES, assert_throttled, flood, lines_with, send_and_leave,
    support::{
        community::{Community, Connection},
        frames::{self, Frame},
        has, http,
        peer::free_address,
        program::{PROGRAM, Setup, local},
        wait_until,
    },
};

/// A Handshake that is whole, and unlike those of real clients. As in those, no address is written into it.
fn odd_handshake() -> Vec<u8> {
    let mut body = [7; 40];
    body[8..12].fill(0);
    Frame::new(frames::HANDSHAKE, 0, &body).bytes()
}

/// A server that answers each Handshake, except odd ones, on which it closes. Counts its connections.
async fn closes_on_odd_handshakes() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            count.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                if Frame::read(&mut tcp).await.is_some_and(|frame| !frame.body.ends_with(&[7; 20])) {
                    let _ = tcp.write_all(&Frame::new(frames::HANDSHAKE_ACK, 0, &[0; 8]).bytes()).await;
                    let _ = tcp.read(&mut [0; 256]).await;
                }
            });
        }
    });
    (address, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_handshakes_cause_few_lines_and_few_checks() {
    let ((a, to_a), (b, to_b)) = (closes_on_odd_handshakes().await, closes_on_odd_handshakes().await);
    let setup = Setup::new(&format!("[community]\nservers = [\"{a}\", \"{b}\"]\n"));
    let to = local(setup.raw);
    let program = setup.start();
    wait_until("both servers", || lines_with(&program, "is up") == 2).await;
    let start = Instant::now();
    flood(to, odd_handshake()).await;
    assert_throttled(&program, "session closed", 1, start);
    assert_throttled(&program, "does not answer", 2, start);
    assert_throttled(&program, "server=", 6, start);
    for (server, connections) in [(a, to_a), (b, to_b)] {
        let (connections, checks) = (connections.load(Relaxed), 2 * start.elapsed().as_secs() as usize + 10);
        assert!(connections <= TIMES + checks, "{server}: {connections} connections for {TIMES} clients");
    }
    // Other clients are served meanwhile and afterwards.
    assert_eq!(program.status().await["community"][0]["state"], "up");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_handshake_is_tried_on_three_servers_and_no_more() {
    let mut servers = Vec::new();
    for _ in 0..6 {
        servers.push(closes_on_odd_handshakes().await);
    }
    let list: Vec<_> = servers.iter().map(|(address, _)| address.to_string()).collect();
    let setup = Setup::new(&format!("[community]\nservers = {list:?}\ncheck_interval = \"0s\"\n"));
    let to = local(setup.raw);
    let program = setup.start();
    wait_until("all servers", || lines_with(&program, "is up") == 6).await;
    let all = || servers.iter().map(|(_, connections)| connections.load(Relaxed)).sum::<usize>();
    wait_until("the first check of each server", || all() == 6).await;
    send_and_leave(to, &odd_handshake()).await;
    wait_until("the line", || lines_with(&program, "session closed") == 1).await;
    // Each of the three is checked afterwards.
    assert!(all() <= 6 + 6, "{} connections for one client", all() - 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_server_cause_few_lines() {
    let setup = Setup::new(&format!("[community]\nservers = [\"{}\"]\n", free_address()));
    let to = local(setup.raw);
    let (program, start) = (setup.start(), Instant::now());
    flood(to, frames::handshake().bytes()).await;
    assert_throttled(&program, "session closed", 1, start);
    assert_throttled(&program, "Community server", 2, start);
    // A flood of one kind does not hide the first line of another.
    flood_briefly(to).await;
    wait_until("a line of another kind", || lines_with(&program, "not_a_handshake") > 0).await;
}

async fn flood_briefly(to: SocketAddr) {
    for _ in 0..20 {
        send_and_leave(to, &frames::handshake().bytes()).await;
        send_and_leave(to, &frames::log_out().bytes()).await;
    }
}

async fn acknowledge(mut connection: Connection) {
    connection.accept_login().await;
    while connection.recv().await.is_some_and(|frame| frame.kind != frames::DESTROY) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_log_in_cause_few_lines_and_those_that_do_have_one_each() {
    let community = Community::start(acknowledge).await;
    let setup = Setup::new(&community.setting());
    let to = local(setup.raw);
    let (program, start) = (setup.start(), Instant::now());
    flood(to, frames::handshake().bytes()).await;
    assert_throttled(&program, "session closed", 2, start);
    let mut counted = 0;
    for line in program.log.lock().lines().filter(|line| line.contains("session closed")) {
        let more = line.split(" more=").nth(1).map_or("0", |rest| rest.split(' ').next().unwrap());
        counted += 1 + more.parse::<usize>().unwrap();
    }
    assert!(counted > 1, "the lines say how many are missing");
    for _ in 0..50 {
        let mut tcp = TcpStream::connect(to).await.unwrap();
        let both = [frames::handshake().bytes(), frames::login("bob", "secret").bytes()].concat();
        tcp.write_all(&both).await.unwrap();
        assert_eq!(Frame::read(&mut tcp).await.unwrap().kind, frames::HANDSHAKE_ACK);
        assert_eq!(Frame::read(&mut tcp).await.unwrap().kind, frames::LOGIN_ACK);
        tcp.write_all(&frames::log_out().bytes()).await.unwrap();
        let _ = tcp.read(&mut [0; 256]).await;
    }
    wait_until("a line for each client that logged in", || lines_with(&program, "reason=\"log_out\"") == 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_a_server_that_is_down_causes_few_lines_and_no_work() {
    if !has("prlimit", "util-linux") {
        return;
    }
    let setup = Setup::new(&format!("[community]\nservers = [\"{}\"]\n", free_address()));
    let to = local(setup.raw);
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64:64", PROGRAM]);
    let program = setup.spawn_with(command);
    program.wait_for_log("ready");
    program.wait_for_log("is down");
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(http::tcp(to).await);
    }
    program.wait_for_log("out of descriptors or memory");
    let start = Instant::now();
    let before = lines_with(&program, "Community server");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let lines = lines_with(&program, "Community server") - before;
    let most = 2 * (start.elapsed().as_secs() as usize + 2);
    assert!(lines <= most, "{lines} lines in {:?}", start.elapsed());
    drop(silent);
}
