//! The sandbox has limits: a client that is over one is disconnected with a reason, and the others continue.

use std::{fs, net::SocketAddr};

use crate::support::{
    client::{Client, Transport},
    frames::{self, Frame, string},
    in_time,
    peer::{Process, free_address},
    program::PROGRAM,
    wait_until,
};

const AWARENESS: u32 = 0x11;
const FULL: u32 = 0x8000_020B;
const TOO_LARGE: u32 = 0x8000_0209;

struct Alone {
    process: Process,
    address: SocketAddr,
}

impl Alone {
    /// The sandbox as a process, without a multiplexer in front.
    async fn start() -> Self {
        let address = free_address();
        let mut command = std::process::Command::new(PROGRAM);
        let process = Process::start(command.args(["community", "--listen", &address.to_string()]));
        wait_until("the sandbox", || std::net::TcpStream::connect(address).is_ok()).await;
        Self { process, address }
    }

    async fn log_in(&self, name: &str) -> Client {
        let mut client = Client::connect(Transport::Raw, self.address).await;
        client.log_in(name).await;
        client
    }

    /// Resident memory in MiB.
    fn memory(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.process.0.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64 / (1 << 20)
    }
}

fn create(channel: u32, service: u32) -> Frame {
    let mut body = [&[0; 4][..], &channel.to_be_bytes(), &string(b""), &string(b"")].concat();
    for word in [service, 0x11, 0x0003_0005, 0] {
        body.extend(word.to_be_bytes());
    }
    body.extend(frames::opaque(b""));
    body.extend([0, 0, 0]);
    body.extend(frames::opaque(b""));
    Frame::new(frames::CREATE, 0, &body)
}

/// A message on an awareness channel that adds `names`.
fn add(channel: u32, names: impl Iterator<Item = String>) -> Frame {
    let (mut data, mut count) = (Vec::new(), 0u32);
    for name in names {
        data.extend([0, 2]);
        data.extend(string(name.as_bytes()));
        data.extend(string(b""));
        count += 1;
    }
    let data = [&count.to_be_bytes()[..], &data].concat();
    Frame::new(frames::SEND, channel, &[&[0, 0x68][..], &frames::opaque(&data)].concat())
}

/// Reads until the farewell message. Returns its reason.
async fn farewell(client: &mut Client) -> u32 {
    in_time("the farewell message", async {
        loop {
            match client.recv().await {
                Some(frame) if frame.kind == frames::DESTROY && frame.channel == 0 => return frame.reason(),
                Some(_) => (),
                None => panic!("closed without a reason"),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_cannot_fill_the_sandbox_with_names() {
    let sandbox = Alone::start().await;
    let mut other = sandbox.log_in("ann").await;
    let before = sandbox.memory();
    let mut client = sandbox.log_in("bob").await;
    client.send_frame(&create(1, AWARENESS)).await;
    assert_eq!(client.recv().await.unwrap().kind, frames::ACCEPT);
    // 12 MB of names in frames that are legal.
    let (mut from, mut into) = client.split();
    let sending = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        for round in 0..24 {
            let names = (0..40_000).map(|n| format!("{round:02}{n:05}"));
            if into.write_all(&add(1, names).bytes()).await.is_err() {
                return;
            }
        }
    });
    let mut last = None;
    in_time("the end", async {
        while let Some(frame) = Frame::read(&mut from).await {
            last = Some(frame);
        }
    })
    .await;
    let _ = sending.await;
    let grown = sandbox.memory().saturating_sub(before);
    assert!(grown < 24, "12 MB of names need {grown} MiB");
    let last = last.expect("a farewell message");
    assert_eq!((last.kind, last.channel), (frames::DESTROY, 0), "{:x?}", (last.kind, last.channel));
    assert_eq!(last.reason(), FULL);
    // The other client is not affected.
    let channel = other.open_chat("echo").await;
    other.send_text(channel, b"hello").await;
    assert_eq!(other.recv().await.unwrap().text(), b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_names_and_many_channels_end_the_client_that_has_them() {
    let sandbox = Alone::start().await;
    let mut client = Client::connect(Transport::Raw, sandbox.address).await;
    client.handshake().await;
    client.send_frame(&frames::login(&"n".repeat(20_000), "secret")).await;
    assert_eq!(farewell(&mut client).await, TOO_LARGE);
    let mut client = sandbox.log_in("bob").await;
    for channel in 1..=5000 {
        client.send_frame(&frames::create_chat(channel, "echo")).await;
        let frame = client.recv().await.unwrap();
        if frame.channel == 0 && frame.kind == frames::DESTROY {
            assert_eq!(frame.reason(), FULL);
            return;
        }
    }
    panic!("5000 channels");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_ended_and_holds_little() {
    let sandbox = Alone::start().await;
    let (mut ann, mut bob) = (sandbox.log_in("ann").await, sandbox.log_in("bob").await);
    ann.send_frame(&frames::create_chat(1, "bob")).await;
    let offer = bob.recv().await.unwrap();
    let channel = u32::from_be_bytes(offer.body[4..8].try_into().unwrap());
    bob.send_frame(&Frame::new(frames::ACCEPT, channel, b"accepted")).await;
    assert_eq!(ann.recv().await.unwrap().kind, frames::ACCEPT);
    let before = sandbox.memory();
    // Bob reads nothing more, and Ann sends 100 MB.
    let mut most = 0;
    for _ in 0..400 {
        ann.send_frame(&frames::message(1, &vec![b'x'; 250_000])).await;
        most = most.max(sandbox.memory());
    }
    assert!(most - before < 32, "a client that does not read holds {} MiB", most - before);
    assert_eq!(farewell_or_channel_end(&mut ann).await, frames::DESTROY);
    let channel = ann.open_chat("echo").await;
    ann.send_text(channel, b"hello").await;
    assert_eq!(ann.recv().await.unwrap().text(), b"hello");
}

async fn farewell_or_channel_end(client: &mut Client) -> u16 {
    let frame = client.recv().await.expect("the end of the channel");
    assert_eq!(frame.channel, 1, "of the channel, not of the session");
    frame.kind
}
