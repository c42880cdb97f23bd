//! The hot paths on one thread and without sockets, for an instruction counter. `tests/instructions.rs` runs this
//! program under callgrind with two counts of messages, and compares the difference with the record in
//! `instructions.toml`.
//!
//! ```text
//! instructions PATH COUNT        PATH: scan, relay, polling, hybrid
//! ```
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "support/tunnel.rs"]
mod support;

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration, time::Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sametime_mux::{
    ingress::tunnel::Service,
    mux::{Mux, MuxSettings},
    runtime::scratch,
    stream::{Arrival, Community, Core, Lease, Link, Linking, MoreFromClient, Stream, Via},
    telemetry::Telemetry,
    wire::{
        Transport,
        frame::{self, Scanner},
        tunnel::envelope::TunnelKind,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const BODY: [u8; 92] = [b'm'; 92];
const MESSAGE: usize = 104;
const HANDSHAKE_BODY: [u8; 20] = [0; 20];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(path), Some(Ok(count))) = (arguments.first(), arguments.get(1).map(|n| n.parse::<usize>())) else {
        println!("run by tests/instructions.rs: PATH COUNT");
        return ExitCode::SUCCESS;
    };
    match path.as_str() {
        "scan" => scan(count),
        path => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                match path {
                    "relay" => relay(count).await,
                    "polling" => tunnel(TunnelKind::Polling, count).await,
                    "hybrid" => tunnel(TunnelKind::Hybrid, count).await,
                    other => panic!("no such path: {other}"),
                }
            });
        }
    }
    ExitCode::SUCCESS
}

/// Messages arrive in reads of 32 KiB, which end anywhere in a message.
fn scan(count: usize) {
    let bytes = frame::build(4, 1, &BODY).repeat(count);
    let (mut scanner, mut seen) = (Scanner::new(), 0);
    for read in bytes.chunks(scratch::SIZE) {
        scanner.scan(read, 1 << 20, |_| seen += 1).unwrap();
    }
    assert_eq!(seen, count);
}

/// A Community that keeps its ends of the links that the core opens.
#[derive(Default)]
struct Links(Mutex<Vec<DuplexStream>>);

#[derive(Debug)]
struct NoLease;

impl Lease for NoLease {
    fn broken(&self) {}
}

impl Community for Links {
    fn connect<'a>(&'a self, _: SocketAddr, hello: &'a [u8], _: MoreFromClient<'a>) -> Linking<'a> {
        Box::pin(async {
            let (mut near, far) = tokio::io::duplex(64 * 1024);
            near.write_all(hello).await.unwrap();
            self.0.lock().push(far);
            let link = Link { stream: Stream::other(near), server: "memory".into(), lease: Box::new(NoLease) };
            Ok((link, Vec::new()))
        })
    }
}

fn core() -> (Mux, Arc<Links>) {
    let links = Arc::new(Links::default());
    let settings = MuxSettings {
        capacity: 10,
        per_address: 0,
        logging_in: 10,
        logging_in_per_address: 0,
        held_bytes: 1 << 30,
        held_bytes_per_address: 0,
        exempt: vec![],
        login_timeout: Duration::from_secs(600),
        logging_in_timeout: None,
        idle_timeout: None,
        max_frame: 1 << 20,
        drain_timeout: Duration::ZERO,
    };
    let community: Arc<dyn Community> = Arc::clone(&links) as _;
    (Mux::start(settings, community, Telemetry::new("instructions")), links)
}

/// The Community's end of the one session, after its Handshake is read.
async fn link_of(links: &Links) -> DuplexStream {
    let mut link = loop {
        if let Some(link) = links.0.lock().pop() {
            break link;
        }
        tokio::task::yield_now().await;
    };
    let mut handshake = [0; frame::LENGTH + frame::HEADER + HANDSHAKE_BODY.len()];
    link.read_exact(&mut handshake).await.unwrap();
    link
}

/// Each message is relayed to the Community, and its echo back.
async fn relay(count: usize) {
    let (mux, links) = core();
    let (mut client, near) = tokio::io::duplex(64 * 1024);
    let via = Via {
        client: SocketAddr::from(([127, 0, 0, 1], 5000)),
        port: 1533.into(),
        transport: Transport::Raw,
        accepted: Instant::now(),
    };
    assert!(mux.take(Arrival { stream: Stream::other(near), first: Bytes::new(), via }).is_ok(), "room");
    client.write_all(&frame::build(0, 0, &HANDSHAKE_BODY)).await.unwrap();
    let mut link = link_of(&links).await;
    let (message, mut buffer) = (frame::build(4, 1, &BODY), [0; MESSAGE]);
    for _ in 0..count {
        client.write_all(&message).await.unwrap();
        link.read_exact(&mut buffer).await.unwrap();
        link.write_all(&buffer).await.unwrap();
        client.read_exact(&mut buffer).await.unwrap();
    }
}

/// Each request carries a message, and its response carries another one. The work of the client is counted, too.
async fn tunnel(kind: TunnelKind, count: usize) {
    let (mux, links) = core();
    let service = Service::start(support::settings(Duration::from_secs(600)), Arc::new(mux));
    let mut client = support::Client::open(&service, kind);
    let name = client.name.unwrap();
    let (message, mut buffer) = (frame::build(4, 1, &BODY), [0; MESSAGE]);
    let first = client.request(&frame::build(0, 0, &HANDSHAKE_BODY));
    let (response, mut link) = tokio::join!(service.request(kind, name, &first, support::FROM), async {
        let mut link = link_of(&links).await;
        link.write_all(&message).await.unwrap();
        link
    });
    assert_eq!(client.take(&response).len(), MESSAGE);
    for _ in 0..count {
        let body = client.request(&message);
        let (response, ()) = tokio::join!(service.request(kind, name, &body, support::FROM), async {
            link.read_exact(&mut buffer).await.unwrap();
            link.write_all(&buffer).await.unwrap();
        });
        assert_eq!(client.take(&response).len(), MESSAGE);
    }
}
