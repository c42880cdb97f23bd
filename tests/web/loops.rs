//! A multiplexer that is its own web back end: directly, through a relay, through another multiplexer. A request goes
//! round once at most.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use sametime_mux::server::Server;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use crate::{
    BackEnd, mux_before,
    support::{
        http::{self, Response},
        in_time,
        mux::{self, Mux},
        peer::free_address,
    },
};

async fn get(to: SocketAddr, headers: &str) -> Response {
    let request = format!("GET /a HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    let mut stream = http::tcp(to).await;
    in_time("a response", http::exchange(&mut stream, request.as_bytes())).await.expect("a response")
}

async fn loops(mux: &Mux) -> f64 {
    mux.metric("sametime_mux_http_requests_refused_total{reason=\"loop\"}").await
}

/// Relays connections to `to`, which is set later. Counts them.
async fn relay() -> (SocketAddr, tokio::sync::watch::Sender<Option<SocketAddr>>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (to, mut target) = tokio::sync::watch::channel(None);
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Relaxed);
            let Some(to) = *target.wait_for(Option::is_some).await.unwrap() else { return };
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let _ = copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    (address, to, connections)
}

#[tokio::test]
async fn a_back_end_that_leads_back_through_a_relay_is_cut_at_the_first_hop() {
    let (address, to, connections) = relay().await;
    let mux = mux_before(address, "").await;
    to.send(Some(mux.raw())).unwrap();
    for n in 1..=3 {
        let response = get(mux.raw(), "").await;
        assert_eq!(response.status, 508);
        assert_eq!(loops(&mux).await, f64::from(n), "each request comes back once");
    }
    assert!(connections.load(Relaxed) <= 3, "{connections:?}");
}

#[tokio::test]
async fn a_back_end_that_leads_back_through_another_multiplexer_is_cut_at_the_first_hop() {
    let (address, to, connections) = relay().await;
    let first = mux_before(address, "").await;
    let second = mux_before(first.raw(), "").await;
    to.send(Some(second.raw())).unwrap();
    assert_eq!(get(first.raw(), "").await.status, 508);
    assert_eq!((loops(&first).await, loops(&second).await, connections.load(Relaxed)), (1.0, 0.0, 1));
}

#[tokio::test]
async fn an_address_of_this_program_is_not_connected_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = mux::settings("", folder.path());
    // As if a name had moved here after it was checked.
    let own = free_address();
    settings.ingress.listeners[0].port = own.port();
    settings.ingress.http_backend = Some(format!("http://{own}").parse().unwrap());
    let mux = Mux { server: Server::start(settings).await.unwrap(), folder };
    let response = get(own, "").await;
    assert_eq!((response.status, response.header("connection")), (508, Some("close")));
    assert_eq!(loops(&mux).await, 1.0);
}

#[tokio::test]
async fn via_is_passed_on_with_one_more_member() {
    let back_end = BackEnd::plain().await;
    let mux = mux_before(back_end.address, "").await;
    for (given, count) in [("", 1), ("Via: 1.0 fred, 1.1 sametime-mux-0123456789abcdef\r\nVia: 1.1 p (x)\r\n", 3)] {
        assert_eq!(get(mux.raw(), given).await.status, 200);
        let head = back_end.last();
        let via: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("via: ")).collect();
        assert_eq!(via.len(), count, "{head}");
        assert!(via.last().unwrap().starts_with("1.1 sametime-mux-"), "{head}");
        assert!(given.is_empty() || via[0] == "1.0 fred, 1.1 sametime-mux-0123456789abcdef", "{head}");
    }
}
