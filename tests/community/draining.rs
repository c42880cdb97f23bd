//! Draining a Community server: by a command, over HTTP and by the file.

use std::{fs, net::SocketAddr, process::Output, time::Duration};

use crate::support::{
    client::{Client, Transport},
    community::Community,
    frames, http, in_time,
    peer::text,
    program::{Program, Setup, local, servers},
};

/// Two servers that get clients in turn, and the configuration with them.
async fn two(more: &str) -> (Community, Community, Setup) {
    let (one, other) = (Community::start_echo().await, Community::start_echo().await);
    let setup = Setup::new(&servers(&[one.address, other.address], more));
    (one, other, setup)
}

/// Asks the admin endpoint for a change, with the token.
async fn post(program: &Program, page: &str) -> http::Response {
    let mut tcp = http::tcp(local(program.admin)).await;
    let head = format!(
        "POST {page} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer open sesame\r\nConnection: close\r\n\r\n"
    );
    in_time("an answer", http::exchange(&mut tcp, head.as_bytes())).await.unwrap()
}

async fn log_in(transport: Transport, to: SocketAddr) -> Client {
    let mut client = Client::connect(transport, to).await;
    client.log_in("bob").await;
    client
}

/// The state and the sessions of each server.
async fn states(program: &Program) -> Vec<(String, u64)> {
    let status = program.status().await;
    let servers = status["community"].as_array().unwrap().iter();
    servers.map(|one| (one["state"].as_str().unwrap().to_owned(), one["sessions"].as_u64().unwrap())).collect()
}

async fn until_states(program: &Program, expected: &[(&str, u64)]) {
    in_time("the states", async {
        while states(program).await.iter().map(|(state, n)| (&**state, *n)).ne(expected.iter().copied()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_drained_loses_its_clients_over_a_time_and_gets_none_until_it_is_resumed() {
    let (one, other, setup) = two("drain_timeout = \"2s\"").await;
    let raw = local(setup.raw);
    let program = setup.start();
    until_states(&program, &[("up", 0), ("up", 0)]).await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for transport in Transport::ALL.into_iter().flat_map(|transport| [transport; 2]) {
        let (mut client, tell) = (log_in(transport, raw).await, tell.clone());
        tokio::spawn(async move {
            let frame = client.recv().await;
            let _ = tell.send((transport, frame));
        });
    }
    until_states(&program, &[("up", 8), ("up", 8)]).await;

    let answer = post(&program, &format!("/api/drain?server={}", one.address)).await;
    assert_eq!((answer.status, text(&answer.body).contains("\"sessions\": 8")), (200, true), "{}", text(&answer.body));
    let stays = log_in(Transport::Raw, raw).await;
    until_states(&program, &[("draining", 0), ("up", 9)]).await;
    program.wait_for_log("Community server is drained");
    assert_eq!(program.metric("sametime_mux_sessions_closed_total{reason=\"server_drained\"}").await, 8.0);
    drop(tell);
    for _ in 0..8 {
        let (transport, frame) = in_time("a reason", told.recv()).await.expect("a client");
        assert_eq!(frame.expect("a reason").reason(), 0x8000_0221, "{transport:?}");
    }
    assert!(told.try_recv().is_err(), "the clients of the other server go on");
    drop(stays);
    assert_eq!((one.sessions(), other.sessions()), (8, 9));

    let answer = post(&program, &format!("/api/resume?server={}", one.address)).await;
    assert_eq!(answer.status, 200, "{}", text(&answer.body));
    for _ in 0..2 {
        log_in(Transport::Raw, raw).await.log_out().await;
    }
    assert_eq!((one.sessions(), other.sessions()), (9, 10));
}

fn run(program: &Program, command: &str, server: &str, token: &str) -> Output {
    let admin = format!("http://127.0.0.1:{}", program.admin);
    let mut process = std::process::Command::new(env!("CARGO_BIN_EXE_sametime-mux"));
    process.args([command, "--server", server, "--admin", &admin, "--token-file", token]).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_by_command_outlasts_a_reload_and_one_by_the_file_ends_with_the_file() {
    let (one, other, setup) = two("").await;
    let (raw, file, token) = (local(setup.raw), setup.file(), setup.folder.path().join("token"));
    let token = token.to_str().unwrap();
    let plain = setup.toml(&[setup.raw]);
    let program = setup.start();
    until_states(&program, &[("up", 0), ("up", 0)]).await;
    let name = one.address.to_string();
    let drained = run(&program, "drain", &name, token);
    assert!(drained.status.success(), "{drained:?}");
    assert!(text(&drained.stdout).starts_with(&format!("{name}: no new clients")), "{drained:?}");
    assert_eq!(program.reload("open sesame").await.status, 200);
    until_states(&program, &[("draining", 0), ("up", 0)]).await;
    assert!(run(&program, "resume", &name, token).status.success());
    until_states(&program, &[("up", 0), ("up", 0)]).await;

    fs::write(&file, plain.replace(&format!("\"{name}\""), &format!("\"{name} weight=2 drain\""))).unwrap();
    assert_eq!(program.reload("open sesame").await.status, 200);
    until_states(&program, &[("draining", 0), ("up", 0)]).await;
    let refused = run(&program, "resume", &name, token);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("remove the word \"drain\" there and reload"), "{refused:?}");
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(log_in(Transport::Raw, raw).await);
    }
    assert_eq!((one.sessions(), other.sessions()), (0, 3));
    fs::write(&file, plain).unwrap();
    assert_eq!(program.reload("open sesame").await.status, 200);
    until_states(&program, &[("up", 0), ("up", 3)]).await;
}

#[tokio::test]
async fn a_drain_needs_the_token_and_the_name_of_a_server() {
    let (one, other, setup) = two("").await;
    let raw = local(setup.raw);
    let program = setup.start();
    let drain = format!("/api/drain?server={}", one.address);
    assert_eq!(program.request(&format!("POST {drain}")).await.status, 401);
    assert_eq!(program.request(&format!("GET {drain}")).await.status, 405);
    assert_eq!(post(&program, "/api/drain").await.status, 400);
    assert_eq!(post(&program, "/api/drain?server=%zz").await.status, 400);
    let unknown = post(&program, "/api/drain?server=nobody:1533").await;
    assert_eq!(unknown.status, 422);
    let why =
        format!("\"nobody:1533\" is no server of community.servers, which has {}, {}", one.address, other.address);
    assert!(text(&unknown.body).starts_with(&why), "{}", text(&unknown.body));
    let encoded = drain.replace(':', "%3A");
    assert_eq!(post(&program, &encoded).await.status, 200);
    until_states(&program, &[("draining", 0), ("up", 0)]).await;
    let all = post(&program, &format!("/api/drain?server={}", other.address)).await;
    assert_eq!(all.status, 200);
    assert_eq!(program.request("GET /readyz").await.status, 503, "no server gets clients");
    let mut client = Client::connect(Transport::Raw, raw).await;
    client.send_frame(&frames::handshake()).await;
    assert_eq!(client.recv().await.expect("a reason").reason(), 0x8000_020D);
    program.wait_for_log(": draining");
}
