//! Names with several addresses.

use std::{fs, net::SocketAddr, time::Duration};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    namespaces,
    support::{
        client::{Client, Transport},
        frames,
        peer::free_address,
        program::{Program, Sandbox, Setup, local},
        wait_until,
    },
};

const CANNOT_CONNECT: u32 = 0x8000_020D;

/// A listener whose queue of connections is full: the system drops what arrives, so that a client waits in silence.
pub struct Silent(#[allow(dead_code)] Socket, #[allow(dead_code)] Vec<Socket>);

impl Silent {
    pub fn at(address: SocketAddr) -> Self {
        let socket = || Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&address.into()).unwrap();
        listener.listen(1).unwrap();
        let mut waiting = Vec::new();
        loop {
            let client = socket();
            let done = client.connect_timeout(&SockAddr::from(address), Duration::from_millis(300)).is_ok();
            waiting.push(client);
            if !done {
                return Self(listener, waiting);
            }
        }
    }
}

/// Starts the program in a namespace where `chat.test` has the addresses 127.0.0.2 and 127.0.0.3.
fn start(port: u16) -> (Program, SocketAddr, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hosts");
    fs::write(&file, "127.0.0.1 localhost\n127.0.0.2 chat.test\n127.0.0.3 chat.test\n").unwrap();
    namespaces::run(&format!("mount --bind {} /etc/hosts", file.display()));
    let setup = Setup::new(&format!("[community]\nservers = [\"chat.test:{port}\"]\ncheck_interval = \"200ms\"\n"));
    let to = local(setup.raw);
    (setup.start(), to, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_first_address_is_silent_the_second_one_serves() {
    if !namespaces::inside("addresses::where_the_first_address_is_silent_the_second_one_serves") {
        return;
    }
    let port = free_address().port();
    let at = |last: u8| SocketAddr::from(([127, 0, 0, last], port));
    let _silent = Silent::at(at(2));
    let _served = Sandbox::start_at(at(3)).await;
    let (program, to, _folder) = start(port);
    for n in 0..20 {
        let mut client = Client::connect(Transport::Raw, to).await;
        client.send_frame(&frames::handshake()).await;
        let ack = client.recv().await.expect("an answer");
        assert_eq!(ack.kind, frames::HANDSHAKE_ACK, "client {n}: {ack:x?}\n{}", program.log.lock());
    }
    assert_eq!(program.status().await["community"][0]["state"], "up");
    assert!(!program.log.lock().contains("is down"), "{}", program.log.lock());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_addresses_refuse_the_client_and_the_status_are_told() {
    if !namespaces::inside("addresses::where_all_addresses_refuse_the_client_and_the_status_are_told") {
        return;
    }
    let port = free_address().port();
    let (program, to, _folder) = start(port);
    let mut client = Client::connect(Transport::Raw, to).await;
    client.send_frame(&frames::handshake()).await;
    assert_eq!(client.recv().await.expect("a farewell message").reason(), CANNOT_CONNECT);
    let status = program.status().await;
    let error = status["community"][0]["last_error"].as_str().unwrap();
    for address in ["127.0.0.2", "127.0.0.3"] {
        assert!(error.contains(&format!("{address}:{port}: Connection refused")), "{error}");
    }
    // One of the two serves: clients are served again.
    let _served = Sandbox::start_at(SocketAddr::from(([127, 0, 0, 3], port))).await;
    wait_until("the server", || program.log.lock().contains("Community server is up")).await;
    Client::connect(Transport::Raw, to).await.log_in("bob").await;
}
