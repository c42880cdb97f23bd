//! Ends of a trunk that flood, or break the rules of HTTP/2. They write frames themselves.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{chat, far_end, near_end};
use crate::support::{
    client::{Client, Transport},
    community::Community,
    frames, in_time,
    mux::Mux,
};
use sametime_mux::net::Section;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// Types of frames, RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// An attacker that is not shut out after so many bytes has succeeded.
const ENDLESS: usize = 256 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The request for a stream to `target`, in HPACK without compression.
fn connect_request(stream: u32, target: SocketAddr) -> Vec<u8> {
    let authority = target.to_string();
    let method = [&[0x02, 7][..], b"CONNECT"].concat();
    let authority = [&[0x01, authority.len() as u8][..], authority.as_bytes()].concat();
    frame(HEADERS, END_HEADERS, stream, &[method, authority].concat())
}

/// What an attacker sends as the first, the second, and so on.
type Next = Box<dyn FnMut(u32) -> Vec<u8>>;

/// Sends `begin`, and then what `next` returns for 0, 1, and so on, until it is shut out. What comes back is discarded.
async fn attack(far: SocketAddr, begin: &[u8], mut next: impl FnMut(u32) -> Vec<u8>) {
    let (mut from, mut into) = TcpStream::connect(far).await.unwrap().into_split();
    let discard = tokio::spawn(async move { while from.read(&mut [0; 65_536]).await.is_ok_and(|n| n > 0) {} });
    let flood = async {
        into.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), begin].concat()).await?;
        let (mut sent, mut n) = (0, 0);
        while sent < ENDLESS {
            let mut batch = Vec::new();
            for _ in 0..100 {
                batch.extend(next(n));
                n += 1;
            }
            into.write_all(&batch).await?;
            sent += batch.len();
        }
        std::io::Result::Ok(())
    };
    assert!(in_time("the end of the attack", flood).await.is_err(), "nobody has shut it out");
    discard.abort();
}

async fn closed(mux: &Mux, reason: &str) -> f64 {
    mux.metric(&format!("sametime_mux_trunk_connections_closed_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn a_near_end_that_floods_is_shut_out_and_the_others_go_on() {
    let community = Community::start_echo().await;
    let target = community.address;
    let far = far_end(target, None).await;
    let address = far.port(Section::TrunkListener);
    let honest = near_end(address, target, "", "tls = false").await;
    let mut client = Client::connect(Transport::Raw, honest.raw()).await;
    client.log_in("bob").await;
    let channel = client.open_chat("echo").await;
    let stream = |n: u32| 2 * n + 1;
    let endless_headers = frame(HEADERS, 0, 1, &[&[0x02, 7][..], b"CONNECT"].concat());
    let floods: [(&str, Vec<u8>, Next); 7] = [
        ("PING", vec![], Box::new(|_| frame(PING, 0, 0, &[7; 8]))),
        ("SETTINGS", vec![], Box::new(|_| frame(SETTINGS, 0, 0, &[]))),
        ("PRIORITY", vec![], Box::new(|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]))),
        ("DATA without bytes", connect_request(1, target), Box::new(|_| frame(DATA, 0, 1, &[]))),
        ("frames of an unknown type", vec![], Box::new(|_| frame(99, 0, 0, b"?"))),
        ("CONTINUATION without end", endless_headers, Box::new(|_| frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']))),
        (
            "requests that are reset at once",
            vec![],
            Box::new(move |n| [connect_request(stream(n), target), frame(RESET, 0, stream(n), &[0, 0, 0, 8])].concat()),
        ),
    ];
    for (at, (what, begin, next)) in floods.into_iter().enumerate() {
        println!("{what}");
        attack(address, &begin, next).await;
        in_time("the count", async {
            while closed(&far, "flood").await < (at + 1) as f64 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        client.send_text(channel, what.as_bytes()).await;
        assert_eq!(in_time("an echo", client.recv()).await.unwrap().text(), what.as_bytes());
    }
    assert_eq!(honest.metric_sum("sametime_mux_trunk_connections_closed_total").await, 0.0);
}

#[tokio::test]
async fn a_near_end_that_breaks_the_rules_is_shut_out() {
    let community = Community::start_echo().await;
    let far = far_end(community.address, None).await;
    let address = far.port(Section::TrunkListener);
    let window = |size: u32| [&[0, 4][..], &size.to_be_bytes()].concat();
    let wrong = [
        ("SETTINGS that are too long", frame(SETTINGS, 0, 0, &[0; 60_000])),
        ("a window that is too large", frame(SETTINGS, 0, 0, &window(1 << 31))),
        ("a frame that is too long", frame(DATA, 0, 1, &[0; 100_000])),
        ("a PING of nine bytes", frame(PING, 0, 0, &[7; 9])),
        ("an increment of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("an even stream", connect_request(2, community.address)),
    ];
    for (at, (what, wrong)) in wrong.into_iter().enumerate() {
        attack(address, &wrong, |_| wrong.clone()).await;
        in_time("the count", async {
            while closed(&far, "protocol").await < (at + 1) as f64 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        println!("{what}");
    }
    assert_eq!(closed(&far, "flood").await, 0.0);
}

#[tokio::test]
async fn a_near_end_that_takes_nothing_holds_little_and_is_shut_out_without_a_sign_of_life() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let far = far_end(target, None).await;
    let mut near = TcpStream::connect(far.port(Section::TrunkListener)).await.unwrap();
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    near.write_all(&[PREFACE, &no_window, &connect_request(1, target)].concat()).await.unwrap();
    let flooding = async {
        // The far end's checks connect, too.
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut sent = 0;
        while let Ok(Ok(())) = timeout(Duration::from_secs(2), tcp.write_all(&[7; 10_000])).await {
            sent += 10_000;
        }
        (sent, tcp)
    };
    let (sent, _tcp) = in_time("a stop", flooding).await;
    // The buffers of the kernel, and one read.
    assert!(sent < 16 << 20, "{sent}");
    in_time("the end", async {
        while closed(&far, "no_pong").await < 1.0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_far_end_that_floods_is_left_and_its_clients_get_a_reason() {
    let community = Community::start_echo().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hostile = listener.local_addr().unwrap();
    let flooding = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut into) = tcp.into_split();
                tokio::spawn(async move { while from.read(&mut [0; 65_536]).await.is_ok_and(|n| n > 0) {} });
                let _ = into.write_all(&frame(SETTINGS, 0, 0, &[])).await;
                while into.write_all(&frame(PING, 0, 0, &[7; 8]).repeat(100)).await.is_ok() {}
            });
        }
    });
    let near = near_end(hostile, community.address, "", "tls = false").await;
    let mut client = Client::connect(Transport::Raw, near.raw()).await;
    client.send_frame(&frames::handshake()).await;
    let refused = in_time("a refusal", client.recv()).await.unwrap();
    assert_eq!(refused.kind, frames::DESTROY);
    let status = String::from_utf8(near.get("/api/status").await.body).unwrap();
    assert!(status.contains("too many frames that carry nothing"), "{status}");
    flooding.abort();
    // Another one is not affected.
    let far = far_end(community.address, None).await;
    let near = near_end(far.port(Section::TrunkListener), community.address, "", "tls = false").await;
    in_time("a conversation", chat(&near, Transport::Hybrid)).await;
}
