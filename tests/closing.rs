//! How sessions close: what one side sent before it closed reaches the other side, although that one is slow, although
//! a write to the closed side fails meanwhile, and although bytes are left that nobody wants. Then comes the reason.
//!
//! Each test fills every buffer on the way first, so that bytes wait in the system of the multiplexer, where a session
//! that ends too early would lose them.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use support::{
    client::{Client, Transport},
    community::{Community, Connection},
    frames::{self, Frame},
    http, in_time,
    mux::{self, Mux},
    tunnel, wait_until,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

const BROKEN: u32 = 0x8000_0221;
const TOO_LARGE: u32 = 0x8000_0209;

/// How much text a message has.
const TEXT: usize = 16_000;
/// When nothing has moved for so long, all buffers are full. Should they not be, the test is weaker and does not fail.
const FULL: Duration = Duration::from_millis(500);
/// How long a slow reader rests after each message.
const REST: Duration = Duration::from_millis(2);

/// Something that has happened, for the other side of a test.
#[derive(Debug, Clone, Default)]
struct Flag(Arc<AtomicBool>);

impl Flag {
    fn set(&self) {
        self.0.store(true, Relaxed);
    }

    async fn wait(&self, what: &str) {
        wait_until(what, || self.0.load(Relaxed)).await;
    }
}

/// How many bytes `from` has sent that the system at `to` has not received.
fn on_the_way(from: SocketAddr, to: SocketAddr) -> usize {
    let text = |address: SocketAddr| {
        let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
        format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port())
    };
    let wanted = format!(" {} {} ", text(from), text(to));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().find(|line| line.contains(&wanted)).unwrap_or_else(|| panic!("no connection{wanted}"));
    let queues = line.split_ascii_whitespace().nth(4).unwrap();
    usize::from_str_radix(queues.split_once(':').unwrap().0, 16).unwrap()
}

/// Sends numbered messages until all buffers on the way are full, sets `full`, and completes the last message. Returns
/// how many there are.
async fn fill(into: &mut (impl AsyncWrite + Unpin), full: &Flag) -> u32 {
    for n in 0.. {
        let message = frames::message(n, &[7; TEXT]).bytes();
        let mut at = 0;
        while at < message.len() {
            match timeout(FULL, into.write(&message[at..])).await {
                Ok(written) => at += written.unwrap(),
                Err(_) => {
                    full.set();
                    into.write_all(&message[at..]).await.unwrap();
                    into.flush().await.unwrap();
                    return n + 1;
                }
            }
        }
    }
    unreachable!()
}

/// Sends keep-alives until they cannot be sent any more.
async fn send_on(into: &mut (impl AsyncWrite + Unpin)) {
    while into.write_all(&[0x80; 100]).await.is_ok() && into.flush().await.is_ok() {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Reads numbered messages slowly. Returns how many came, and what came after them: another frame, or the end.
async fn read_slowly(from: &mut (impl AsyncRead + Unpin)) -> (u32, Option<Frame>) {
    let mut n = 0;
    loop {
        match in_time("a message, or the end", Frame::read(from)).await {
            Some(frame) if frame.kind == frames::SEND => {
                assert_eq!((frame.channel, frame.text().len()), (n, TEXT), "no message is lost in the middle");
                n += 1;
            }
            other => return (n, other),
        }
        sleep(REST).await;
    }
}

/// The connection of a raw or TLS client, with its address.
async fn connect(transport: Transport, mux: &Mux) -> (Client, SocketAddr) {
    let tcp = http::tcp(mux.raw()).await;
    let address = tcp.local_addr().unwrap();
    let stream: http::Stream = match transport {
        Transport::Tls => Box::new(http::tls_over(tcp).await.unwrap()),
        _ => Box::new(tcp),
    };
    (Client::on_stream(stream), address)
}

/// From now on, to drop this connection is to reset it.
fn reset_when_dropped(tcp: &TcpStream) {
    socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

/// The one session is over, and for this reason.
async fn ended_as(mux: &Mux, reason: &str) {
    wait_until("the end of the session", || mux.server.sessions() == 0).await;
    let name = format!("sametime_mux_sessions_closed_total{{reason=\"{reason}\"}}");
    let text = String::from_utf8(mux.get("/metrics").await.body).unwrap();
    let ended: Vec<&str> =
        text.lines().filter(|l| l.starts_with("sametime_mux_sessions_closed") && l.ends_with(" 1")).collect();
    assert_eq!(ended, [format!("{name} 1")]);
    assert_eq!(mux.metric("sametime_mux_held_bytes").await, 0.0);
}

/// What a Community server does that sends until all buffers are full, and closes when everything has reached the
/// multiplexer.
#[derive(Clone, Default)]
struct Sender {
    full: Flag,
    closed: Flag,
    sent: Arc<Mutex<Option<u32>>>,
}

impl Sender {
    async fn send(self, mut connection: Connection, close: impl FnOnce(Connection)) {
        connection.accept_login().await;
        let sent = fill(&mut connection.into, &self.full).await;
        *self.sent.lock() = Some(sent);
        let (here, there) = (connection.into.local_addr().unwrap(), connection.into.peer_addr().unwrap());
        wait_until("the last byte", || on_the_way(here, there) == 0).await;
        close(connection);
        self.closed.set();
    }

    fn sent(&self) -> u32 {
        self.sent.lock().expect("everything was sent")
    }
}

fn close(connection: Connection) {
    drop(connection);
}

fn reset(connection: Connection) {
    reset_when_dropped(connection.into.as_ref());
    // Otherwise the write half would send a FIN first.
    connection.into.forget();
}

#[tokio::test]
async fn what_the_community_sent_before_it_closed_reaches_a_slow_client_that_still_writes() {
    for transport in Transport::ALL {
        let sender = Sender::default();
        let serve = sender.clone();
        let community = Community::start(move |connection| serve.clone().send(connection, close)).await;
        let mux = mux::start(&community.setting()).await;
        let mut client = Client::connect(transport, mux.raw()).await;
        client.log_in("bob").await;
        sender.full.wait("full buffers").await;
        let (mut from, mut into) = client.split();
        let closed = sender.closed.clone();
        let writes = tokio::spawn(async move {
            closed.wait("the close").await;
            send_on(&mut into).await;
        });
        let (received, after) = read_slowly(&mut from).await;
        assert_eq!((received, after), (sender.sent(), None), "{transport:?}");
        writes.abort();
        let _ = writes.await;
        drop(from);
        ended_as(&mux, "community_closed").await;
    }
}

#[tokio::test]
async fn what_had_arrived_before_the_community_reset_its_connection_reaches_a_slow_client_and_then_the_reason() {
    for transport in Transport::ALL {
        let sender = Sender::default();
        let serve = sender.clone();
        let community = Community::start(move |connection| serve.clone().send(connection, reset)).await;
        let mux = mux::start(&community.setting()).await;
        let mut client = Client::connect(transport, mux.raw()).await;
        client.log_in("bob").await;
        sender.full.wait("full buffers").await;
        let (mut from, mut into) = client.split();
        let closed = sender.closed.clone();
        let writes = tokio::spawn(async move {
            closed.wait("the reset").await;
            send_on(&mut into).await;
        });
        let (received, after) = read_slowly(&mut from).await;
        assert_eq!(received, sender.sent(), "{transport:?}");
        assert_eq!(after.expect("a farewell message").reason(), BROKEN, "{transport:?}");
        assert!(in_time("the end", Frame::read(&mut from)).await.is_none());
        writes.abort();
        let _ = writes.await;
        drop(from);
        ended_as(&mux, "community_broken").await;
    }
}

/// A Community server that reads slowly, once `full` is set, and writes all the time from when `closed` is set, until it
/// has read everything.
async fn slow_community(full: Flag, closed: Flag) -> Community {
    Community::start(move |connection: Connection| {
        let (full, closed) = (full.clone(), closed.clone());
        async move {
            let Connection { mut from, mut into } = connection;
            for answer in [Frame::new(frames::HANDSHAKE_ACK, 0, &[0; 8]), Frame::new(frames::LOGIN_ACK, 0, &[0; 30])] {
                Frame::read(&mut from).await.unwrap();
                into.write_all(&answer.bytes()).await.unwrap();
            }
            let writes = async {
                closed.wait("the client's close").await;
                send_on(&mut into).await;
                std::future::pending::<()>().await;
            };
            let reads = async {
                full.wait("full buffers").await;
                read_slowly(&mut from).await;
            };
            tokio::select! {
                () = writes => (),
                () = reads => (),
            }
        }
    })
    .await
}

/// The bytes of a client that logs in and sends `n` messages, as the Community receives them.
fn expected(n: u32) -> Vec<u8> {
    let mut handshake = frames::handshake().bytes();
    handshake[20..24].copy_from_slice(&[127, 0, 0, 1]);
    let mut all = [handshake, frames::login("bob", "secret").bytes()].concat();
    (0..n).for_each(|n| all.extend(frames::message(n, &[7; TEXT]).bytes()));
    all
}

#[tokio::test]
async fn what_a_client_sent_before_it_logged_out_reaches_a_slow_community_that_still_writes() {
    for transport in [Transport::Raw, Transport::Tls] {
        let (full, closed) = (Flag::default(), Flag::default());
        let community = slow_community(full.clone(), closed.clone()).await;
        let mux = mux::start(&community.setting()).await;
        let (mut client, address) = connect(transport, &mux).await;
        client.log_in("bob").await;
        let (from, mut into) = client.split();
        let sent = fill(&mut into, &full).await;
        into.write_all(&frames::log_out().bytes()).await.unwrap();
        into.flush().await.unwrap();
        wait_until("the last byte", || on_the_way(address, mux.raw()) == 0).await;
        drop((from, into));
        closed.set();
        let all = [expected(sent), frames::log_out().bytes()].concat();
        wait_until("the end of the session", || mux.server.sessions() == 0).await;
        assert_eq!(community.received(0).len(), all.len(), "{transport:?}");
        assert!(community.received(0) == all);
        ended_as(&mux, "log_out").await;
    }
}

#[tokio::test]
async fn what_had_arrived_before_a_client_reset_its_connection_reaches_a_slow_community() {
    let (full, closed) = (Flag::default(), Flag::default());
    let community = slow_community(full.clone(), closed.clone()).await;
    let mux = mux::start(&community.setting()).await;
    let tcp = http::tcp(mux.raw()).await;
    reset_when_dropped(&tcp);
    let address = tcp.local_addr().unwrap();
    let mut client = Client::on_stream(Box::new(tcp));
    client.log_in("bob").await;
    let (from, mut into) = client.split();
    let sent = fill(&mut into, &full).await;
    wait_until("the last byte", || on_the_way(address, mux.raw()) == 0).await;
    drop((from, into));
    closed.set();
    wait_until("the end of the session", || mux.server.sessions() == 0).await;
    assert_eq!(community.received(0).len(), expected(sent).len());
    assert!(community.received(0) == expected(sent));
    ended_as(&mux, "client_broken").await;
}

#[tokio::test]
async fn what_a_client_sent_before_an_invalid_frame_reaches_a_slow_community_that_still_writes() {
    for transport in [Transport::Raw, Transport::Tls] {
        let (full, closed) = (Flag::default(), Flag::default());
        let community = slow_community(full.clone(), closed.clone()).await;
        let mux = mux::start(&community.setting()).await;
        let (mut client, _) = connect(transport, &mux).await;
        client.log_in("bob").await;
        closed.set();
        let (mut from, mut into) = client.split();
        let sent = fill(&mut into, &full).await;
        into.write_all(&[0x7F, 0, 0, 0]).await.unwrap();
        into.flush().await.unwrap();
        let reason = in_time("the farewell message", Frame::read(&mut from)).await.expect("a farewell message");
        assert_eq!(reason.reason(), TOO_LARGE, "{transport:?}");
        drop((from, into));
        wait_until("the end of the session", || mux.server.sessions() == 0).await;
        assert_eq!(community.received(0).len(), expected(sent).len(), "{transport:?}");
        assert!(community.received(0) == expected(sent));
        ended_as(&mux, "frame_too_long").await;
    }
}

#[tokio::test]
async fn what_a_tunnel_brought_before_its_session_timed_out_reaches_a_slow_community_that_still_writes() {
    let mut cases = tokio::task::JoinSet::new();
    for kind in [tunnel::Kind::Polling, tunnel::Kind::Hybrid] {
        for logs_out in [false, true] {
            cases.spawn(bring_and_time_out(kind, logs_out));
        }
    }
    cases.join_all().await;
}

async fn bring_and_time_out(kind: tunnel::Kind, logs_out: bool) {
    const MESSAGES: u32 = 400;
    let (full, closed) = (Flag::default(), Flag::default());
    let community = slow_community(full.clone(), closed.clone()).await;
    let limits = "[limits]\nmax_frame = 8388608\n[tunnel]\nsession_timeout = \"5s\"\nwindow = 4096\nhold = \"100ms\"\n";
    let mux = mux::start(&format!("{}{limits}", community.setting())).await;
    let mut stream = http::tcp(mux.raw()).await;
    let mut session = tunnel::Session::new(kind);
    let first = http::exchange(&mut stream, &http::post(&session.path(), &session.opening())).await.unwrap();
    session.opened(&first.body);
    // The log-in, and then everything in one request.
    let mut all = expected(MESSAGES);
    if logs_out {
        all.extend(frames::log_out().bytes());
    }
    let (log_in, messages) = all.split_at(expected(0).len());
    let mut log_in = log_in.to_vec();
    // The program writes the client's address.
    log_in[20..24].fill(0);
    for data in [&log_in, messages] {
        let body = session.request(data);
        let response = http::exchange(&mut stream, &http::post(&session.path(), &body)).await.unwrap();
        assert_eq!(response.status, 200);
        session.response(&response.body);
    }
    closed.set();
    // No request comes for longer than the session's time-out.
    sleep(Duration::from_secs(7)).await;
    full.set();
    wait_until("the end of the session", || mux.server.sessions() == 0).await;
    assert_eq!(community.received(0).len(), all.len(), "{kind:?}, logs out: {logs_out}");
    assert!(community.received(0) == all);
    ended_as(&mux, if logs_out { "log_out" } else { "session_timeout" }).await;
}

#[tokio::test]
async fn both_sides_may_close_at_once_and_each_receives_what_the_other_sent() {
    for transport in [Transport::Raw, Transport::Tls] {
        let (full, filled) = (Flag::default(), Flag::default());
        let (served, sent_there) = (filled.clone(), Arc::new(Mutex::new(None)));
        let (there, also_full) = (Arc::clone(&sent_there), full.clone());
        let community = Community::start(move |connection: Connection| {
            let (filled, there, full) = (served.clone(), Arc::clone(&there), also_full.clone());
            async move {
                let Connection { mut from, mut into } = connection;
                for answer in
                    [Frame::new(frames::HANDSHAKE_ACK, 0, &[0; 8]), Frame::new(frames::LOGIN_ACK, 0, &[0; 30])]
                {
                    Frame::read(&mut from).await.unwrap();
                    into.write_all(&answer.bytes()).await.unwrap();
                }
                let writes = async {
                    let sent = fill(&mut into, &filled).await;
                    into.shutdown().await.unwrap();
                    sent
                };
                let reads = async {
                    full.wait("full buffers").await;
                    read_slowly(&mut from).await
                };
                let (sent, (received, after)) = tokio::join!(writes, reads);
                *there.lock() = Some((sent, received, after));
            }
        })
        .await;
        let mux = mux::start(&community.setting()).await;
        let mut client = Client::connect(transport, mux.raw()).await;
        client.log_in("bob").await;
        let (mut from, mut into) = client.split();
        let writes = async {
            let sent = fill(&mut into, &full).await;
            into.shutdown().await.unwrap();
            sent
        };
        let reads = async {
            filled.wait("full buffers").await;
            read_slowly(&mut from).await
        };
        let (sent, received) = tokio::join!(writes, reads);
        wait_until("the end of the session", || mux.server.sessions() == 0).await;
        wait_until("the end of the Community's script", || sent_there.lock().is_some()).await;
        let (sent_there, received_there, after_there) = sent_there.lock().clone().unwrap();
        assert_eq!(received, (sent_there, None), "{transport:?}: to the client");
        assert_eq!((received_there, after_there), (sent, None), "{transport:?}: to the Community");
    }
}

#[tokio::test]
async fn a_session_that_the_community_closed_is_counted_as_that_over_every_transport() {
    for transport in Transport::ALL {
        let community = Community::start(|mut connection: Connection| async move {
            connection.accept_login().await;
            connection.recv().await;
        })
        .await;
        let mux = mux::start(&community.setting()).await;
        let mut client = Client::connect(transport, mux.raw()).await;
        client.log_in("bob").await;
        client.send_text(1, b"go").await;
        assert!(client.recv().await.is_none(), "{transport:?}: the end");
        drop(client);
        ended_as(&mux, "community_closed").await;
    }
}
