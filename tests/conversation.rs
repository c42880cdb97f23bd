//! One conversation, over every transport and on every section's port: the Community receives the same bytes, and so
//! does the client.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use sametime_mux::net::Section;
use support::{
    Random,
    client::{Client, Transport},
    community::{Community, Connection},
    frames::{self, Frame},
    in_time, mux, wait_until,
};
use tokio::io::AsyncWriteExt;

const MESSAGES: usize = 1_000;

/// Texts of 1 byte to 60 KB. Most are short, as those of people are.
fn texts() -> Vec<Vec<u8>> {
    let mut random = Random(42);
    (0..MESSAGES)
        .map(|n| {
            let size = match n % 50 {
                0 => 1,
                49 => 60_000,
                n if n % 10 == 9 => 1 + random.below(20_000),
                _ => 1 + random.below(500),
            };
            (0..size).map(|_| u8::try_from(random.below(256)).unwrap()).collect()
        })
        .collect()
}

/// Logs in and chats, with sending and receiving at the same time. Returns the bytes of the echoes.
async fn converse(transport: Transport, to: std::net::SocketAddr) -> Vec<u8> {
    let mut client = Client::connect(transport, to).await;
    let mut got = Vec::new();
    client.log_in("bob").await;
    let channel = client.open_chat("echo").await;
    let (mut from, mut into) = client.split();
    let sending = tokio::spawn(async move {
        for text in texts() {
            into.write_all(&frames::message(channel, &text).bytes()).await.unwrap();
            into.flush().await.unwrap();
        }
        into
    });
    for text in texts() {
        let frame = in_time("an echo", Frame::read(&mut from)).await.expect("an echo");
        assert_eq!(frame, frames::message(channel, &text), "in order and whole");
        got.extend(frame.bytes());
    }
    let mut into = sending.await.unwrap();
    into.write_all(&frames::log_out().bytes()).await.unwrap();
    into.flush().await.unwrap();
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn all_transports_carry_the_same_bytes() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let mut expected: Option<(Vec<u8>, Vec<u8>)> = None;
    let mut sessions = 0;
    for section in Section::ALL {
        for transport in Transport::ALL {
            let got = converse(transport, mux.port(section)).await;
            let log_out = frames::log_out().bytes();
            wait_until("the log-out at the Community", || community.received(sessions).ends_with(&log_out)).await;
            let seen = community.received(sessions);
            sessions += 1;
            assert_eq!(community.sessions(), sessions, "one session each");
            match &expected {
                None => expected = Some((seen, got)),
                Some((first_seen, first_got)) => {
                    assert!(*first_seen == seen, "the Community received other bytes over {transport:?} on {section}");
                    assert!(*first_got == got, "the client got other bytes over {transport:?} on {section}");
                }
            }
        }
    }
    assert_eq!(sessions, 24);
}

/// A server that sends a client to its home server (AuthPassed 0x0018, with a host and a server's name) and logs it in
/// when it answers with LoginCont.
async fn redirect(mut connection: Connection) {
    let redirect = [frames::string(b"home.example"), frames::string(b"CN=Home/O=Example")].concat();
    while let Some(frame) = connection.recv().await {
        match frame.kind {
            frames::HANDSHAKE => connection.send(&Frame::new(frames::HANDSHAKE_ACK, 0, &[0; 8]).bytes()).await,
            frames::LOGIN => connection.send(&Frame::new(AUTH_PASSED, 0, &redirect).bytes()).await,
            LOGIN_CONT => connection.send(&Frame::new(frames::LOGIN_ACK, 0, &[0; 30]).bytes()).await,
            _ => return,
        }
    }
}

const AUTH_PASSED: u16 = 0x0018;
const LOGIN_CONT: u16 = 0x0016;

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_a_home_server_and_its_answer_pass_untouched() {
    let community = Community::start(redirect).await;
    let mux = mux::start(&community.setting()).await;
    for (session, transport) in Transport::ALL.into_iter().enumerate() {
        let mut client = Client::connect(transport, mux.raw()).await;
        client.send_frame(&frames::handshake()).await;
        assert_eq!(client.recv().await.expect("an answer").kind, frames::HANDSHAKE_ACK);
        let login = frames::login("bob", "secret");
        client.send_frame(&login).await;
        let redirect = client.recv().await.expect("a redirect");
        let body = [frames::string(b"home.example"), frames::string(b"CN=Home/O=Example")].concat();
        assert_eq!(redirect, Frame::new(AUTH_PASSED, 0, &body), "{transport:?}");
        let answer = Frame::new(LOGIN_CONT, 0, &[]);
        client.send_frame(&answer).await;
        assert_eq!(client.recv().await.expect("an answer").kind, frames::LOGIN_ACK, "{transport:?}");
        client.log_out().await;
        let sent = [login.bytes(), answer.bytes(), frames::log_out().bytes()].concat();
        wait_until("the log-out", || community.received(session).ends_with(&sent)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_chat_across_transports_in_the_sandbox() {
    let mux = mux::start("").await;
    let mut bob = Client::connect(Transport::Hybrid, mux.raw()).await;
    bob.log_in("bob").await;
    let mut ann = Client::connect(Transport::Tls, mux.raw()).await;
    ann.log_in("ann").await;
    ann.send_frame(&frames::create_chat(1, "bob")).await;
    let offer = bob.recv().await.expect("a CreateCnl");
    assert_eq!(offer.kind, frames::CREATE);
    let theirs = u32::from_be_bytes(offer.body[4..8].try_into().unwrap());
    assert!(theirs & 0x8000_0000 != 0, "made by the server side");
    bob.send_frame(&Frame::new(frames::ACCEPT, theirs, b"with pleasure")).await;
    let accept = ann.recv().await.expect("an AcceptCnl");
    assert_eq!(accept, Frame::new(frames::ACCEPT, 1, b"with pleasure"));
    ann.send_text(1, b"hello bob").await;
    assert_eq!(bob.recv().await.expect("a message").text(), b"hello bob");
    bob.send_text(theirs, b"hello ann").await;
    assert_eq!(ann.recv().await.expect("a message").text(), b"hello ann");
    bob.log_out().await;
    let over = ann.recv().await.expect("a DestroyCnl");
    assert_eq!((over.kind, over.channel), (frames::DESTROY, 1));
}
