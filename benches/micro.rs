//! Microbenchmarks of the parts that every message passes: the frame scanner, and the tunnel's envelope, session
//! and registry.
//!
//! ```text
//! cargo bench --bench micro
//! ```
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

#[path = "support/tunnel.rs"]
mod support;

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sametime_mux::{
    ingress::tunnel::{
        Service,
        session::{Accepted, TunnelSession},
    },
    wire::{
        frame::{self, Scanner},
        tunnel::{
            envelope::{self, TunnelKind},
            name::SessionName,
        },
    },
};
use support::{Client, FROM, Keep, agreed, settings};

/// The body of a frame of 104 bytes, a usual size in chats.
const BODY: [u8; 92] = [b'm'; 92];

fn scan(c: &mut Criterion) {
    let mut group = c.benchmark_group("scan");
    for (name, frames, length) in
        [("one chat message", 1, 92), ("600 chat messages", 600, 92), ("one of 60 KB", 1, 60_000)]
    {
        let bytes = frame::build(4, 1, &vec![b'm'; length]).repeat(frames);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| {
            let mut scanner = Scanner::new();
            b.iter(|| {
                let mut seen = 0u32;
                scanner.scan(black_box(&bytes), 1 << 20, |head| seen += head.length).unwrap();
                seen
            });
        });
    }
    group.finish();
}

fn envelope(c: &mut Criterion) {
    let record = envelope::record(1, &BODY);
    let request = [&[0, 0, 0, 0, 0, 0, 0, 8][..], &[9; 8], &record].concat();
    let path = "/st01/CommunityCBR/CC.39.0123456789abcdef0123456789abcdef/";
    let mut group = c.benchmark_group("envelope");
    group.bench_function("read a path", |b| b.iter(|| envelope::address(black_box(path))));
    group.bench_function("read a request", |b| {
        b.iter(|| {
            let later = envelope::later(black_box(&request)).unwrap();
            let mut bytes = 0;
            envelope::each_record(later.payload, |_, data| bytes += data.len()).unwrap();
            bytes
        });
    });
    group.bench_function("write a response", |b| {
        b.iter(|| envelope::response(&[1; 5], &envelope::record(1, black_box(&BODY))));
    });
    group.finish();
}

fn session(c: &mut Criterion) {
    let mut group = c.benchmark_group("tunnel session");
    for (name, kind, version) in [
        ("polling", TunnelKind::Polling, 0),
        ("hybrid", TunnelKind::Hybrid, 0),
        ("hybrid, encrypted", TunnelKind::Hybrid, 1),
    ] {
        // A request with a message, and its response with another one.
        group.bench_function(name, |b| {
            let open_session = || {
                let (agreement, client_cipher) = agreed();
                let token = [1; 5];
                (
                    TunnelSession::new(kind, version, 1, agreement.cipher, token),
                    Client::of(kind, version, client_cipher, token),
                )
            };
            let (mut session, mut client) = open_session();
            let mut token = 0u32;
            b.iter_batched(
                || {
                    token += 1;
                    let mut next = [7; 5];
                    next[..4].copy_from_slice(&token.to_be_bytes());
                    let body = client.request(&BODY);
                    client.token = next;
                    (body, next)
                },
                |(body, token)| {
                    let accepted = session.accept(&body).unwrap();
                    assert!(matches!(accepted, Accepted::New(_)));
                    session.push(&BODY);
                    session.respond(token)
                },
                BatchSize::NumIterations(1),
            );
        });
    }
    group.finish();
}

/// A session is found by its name among many. The request is then refused, because its body is empty.
fn registry(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = c.benchmark_group("registry");
    for sessions in [10, 1_000] {
        let (service, names) = runtime.block_on(async {
            let service = Service::start(settings(Duration::ZERO), Arc::new(Keep::default()));
            let names: Vec<SessionName> =
                (0..sessions).map(|_| Client::open(&service, TunnelKind::Polling).name.unwrap()).collect();
            (service, names)
        });
        let mut next_name = names.iter().cycle();
        group.bench_function(format!("found among {sessions}"), |b| {
            b.iter(|| runtime.block_on(service.request(TunnelKind::Polling, *next_name.next().unwrap(), b"", FROM)));
        });
        group.bench_function(format!("not among {sessions}"), |b| {
            let name = SessionName::parse("0123456789abcdef0123456789abcdef").unwrap();
            b.iter(|| runtime.block_on(service.request(TunnelKind::Polling, black_box(name), b"", FROM)));
        });
    }
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50)
}

criterion_group!(name = parts; config = quick(); targets = scan, envelope, session, registry);
criterion_main!(parts);
