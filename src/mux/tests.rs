//! Whole sessions on streams in memory, on a clock that stands still while there is something to do: how they close.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::{Instant, sleep, timeout},
};

use super::{admission::Ticket, *};
use crate::{
    runtime::scratch,
    stream::{Lease, Link, Linking, MoreFromClient, Stream, Via},
    telemetry::outcome::SessionEnd,
    wire::{Transport, frame, message, message::kind, reason::Reason},
};

mod opening;

/// How many bytes a connection takes that the other end has not read.
const BUFFER: usize = 1000;
const SECOND: Duration = Duration::from_secs(1);

/// What a stream fails with.
#[derive(Debug, Clone, Default)]
struct Faults(Arc<Mutex<[Option<Errno>; 2]>>);

impl Faults {
    /// From now on, reads fail after the bytes that have arrived.
    fn reads(&self, errno: Errno) {
        self.0.lock()[0] = Some(errno);
    }

    /// From now on, writes fail.
    fn writes(&self, errno: Errno) {
        self.0.lock()[1] = Some(errno);
    }
}

/// A stream that fails as a socket does.
struct Faulty {
    inner: DuplexStream,
    faults: Faults,
}

impl AsyncRead for Faulty {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        match self.faults.0.lock()[0] {
            Some(errno) if buf.filled().len() == before => Poll::Ready(Err(errno.into())),
            _ => read,
        }
    }
}

impl AsyncWrite for Faulty {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(errno) = self.faults.0.lock()[1] {
            return Poll::Ready(Err(errno.into()));
        }
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf));
        Poll::Ready(written.map_err(|_| Errno::PIPE.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn stream(buffer: usize) -> (Stream, DuplexStream, Faults) {
    let ((near, far), faults) = (duplex(buffer), Faults::default());
    (Stream::other(Faulty { inner: near, faults: faults.clone() }), far, faults)
}

/// A Community whose one server has accepted the Handshake.
struct OneServer {
    link: Mutex<Option<Stream>>,
    place: Arc<Places>,
}

/// What happened to the places at the server.
#[derive(Debug, Default)]
struct Places {
    /// How often a link was reported as broken.
    broken: AtomicUsize,
    /// How many were given back.
    free: AtomicUsize,
}

#[derive(Debug)]
struct Place(Arc<Places>);

impl Lease for Place {
    fn broken(&self) {
        self.0.broken.fetch_add(1, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Relaxed);
    }
}

impl Community for OneServer {
    fn connect<'a>(&'a self, _: SocketAddr, hello: &'a [u8], _: MoreFromClient<'a>) -> Linking<'a> {
        let mut stream = self.link.lock().take().expect("one session");
        let lease = Box::new(Place(Arc::clone(&self.place)));
        Box::pin(async move {
            stream.write_all(hello).await.expect("room");
            Ok((Link { stream, server: "one".into(), lease }, Vec::new()))
        })
    }
}

pub(super) fn settings() -> MuxSettings {
    MuxSettings {
        capacity: 2,
        per_address: 0,
        logging_in: 2,
        logging_in_per_address: 0,
        held_bytes: 1 << 20,
        held_bytes_per_address: 0,
        exempt: Vec::new(),
        login_timeout: SECOND * 30,
        logging_in_timeout: None,
        idle_timeout: None,
        max_frame: 1 << 20,
        drain_timeout: Duration::ZERO,
    }
}

/// The ticket of a client that is logging in.
pub(super) fn ticket(telemetry: &Arc<Telemetry>) -> Ticket {
    let admission = Arc::new(Admission::new(Arc::clone(telemetry), Budget::new(1 << 20, 0, &[])));
    let client = SocketAddr::from(([192, 0, 2, 1], 4000));
    let via = Via { client, port: 1533.into(), transport: Transport::Raw, accepted: Instant::now().into_std() };
    admission.admit(&settings(), &via).expect("room")
}

/// A session between two ends that the test has.
struct Session {
    client: DuplexStream,
    client_faults: Faults,
    server: DuplexStream,
    server_faults: Faults,
    program: Program,
}

/// The program with the session.
struct Program {
    mux: Mux,
    place: Arc<Places>,
}

async fn start() -> Session {
    start_with(settings(), BUFFER).await
}

async fn start_with(settings: MuxSettings, link_buffer: usize) -> Session {
    let ((to_client, mut client, client_faults), (link, mut server, server_faults)) =
        (stream(BUFFER), stream(link_buffer));
    let place = Arc::<Places>::default();
    let community = Arc::new(OneServer { link: Mutex::new(Some(link)), place: Arc::clone(&place) });
    let mux = Mux::start(settings, community, Telemetry::new("0"));
    let address = SocketAddr::from(([192, 0, 2, 1], 4000));
    let via =
        Via { client: address, port: 1533.into(), transport: Transport::Raw, accepted: Instant::now().into_std() };
    mux.take(Arrival { stream: to_client, first: Bytes::new(), via }).expect("there is room");
    let handshake = message::handshake();
    client.write_all(&handshake).await.expect("room");
    client.write_all(&said(0)).await.expect("room");
    let first = read(&mut server, handshake.len() + 100).await;
    assert_eq!(first[handshake.len()..], said(0), "the link is open");
    Session { client, client_faults, server, server_faults, program: Program { mux, place } }
}

impl Program {
    /// The reason for which the session is over; `None`: it is not decided yet.
    fn reason(&self) -> Option<SessionEnd> {
        let metrics = self.mux.0.telemetry.encode();
        let line = |end: &SessionEnd| format!("sametime_mux_sessions_closed_total{{reason=\"{}\"}} 1\n", end.name());
        SessionEnd::ALL.iter().copied().find(|end| metrics.contains(&line(end)))
    }

    /// Waits until the session is gone, which was for `reason`. Returns how many seconds it took.
    async fn ends_as(&self, reason: SessionEnd) -> f64 {
        let since = Instant::now();
        while self.mux.sessions() > 0 {
            assert!(since.elapsed() < SECOND * 600, "the session never ends");
            sleep(SECOND / 10).await;
        }
        assert_eq!((self.reason(), self.mux.held_bytes()), (Some(reason), 0));
        since.elapsed().as_secs_f64()
    }
}

/// A message of 100 bytes.
fn said(n: u32) -> Vec<u8> {
    frame::build(kind::SEND_ON_CNL, n + 1, &[7; 88])
}

/// Many messages: more than the buffers on the way and one read take.
fn much() -> Vec<u8> {
    (0..400).flat_map(said).collect()
}

/// How many bytes one side can send while the other reads none: two buffers and one read.
const ON_THE_WAY: usize = 3 * BUFFER;

async fn read(from: &mut DuplexStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    timeout(SECOND * 5, from.read_exact(&mut bytes)).await.expect("in time").expect("bytes");
    bytes
}

/// Reads up to the end.
async fn read_to_end(from: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    read_slowly(from, 1 << 20, Duration::ZERO).await
}

/// Reads at most `chunk` bytes, then rests, and so on up to the end.
async fn read_slowly(from: &mut (impl AsyncRead + Unpin), chunk: usize, rest: Duration) -> Vec<u8> {
    let (mut bytes, mut some) = (Vec::new(), vec![0; chunk]);
    loop {
        match from.read(&mut some).await.expect("bytes") {
            0 => return bytes,
            n => bytes.extend_from_slice(&some[..n]),
        }
        sleep(rest).await;
    }
}

/// Writes `bytes`, and then calls `end` on the stream.
fn write_then(mut into: DuplexStream, bytes: Vec<u8>, end: impl FnOnce(DuplexStream) + Send + 'static) {
    tokio::spawn(async move {
        into.write_all(&bytes).await.expect("written");
        end(into);
    });
}

/// Writes a keep-alive again and again, until it cannot be written any more.
fn write_on(mut into: impl AsyncWrite + Unpin + Send + 'static, rest: Duration) {
    tokio::spawn(async move {
        while into.write_all(&[0x80]).await.is_ok() {
            sleep(rest).await;
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_gets_everything_after_the_community_has_closed() {
    let Session { client, server, program, .. } = start().await;
    write_then(server, much(), drop);
    let (mut from, into) = tokio::io::split(client);
    write_on(into, SECOND * 7);
    let since = Instant::now();
    assert!(read_slowly(&mut from, 500, SECOND).await == much());
    assert!(since.elapsed() > SECOND * 60, "longer than a session waits when nothing moves");
    drop(from);
    program.ends_as(SessionEnd::CommunityClosed).await;
    assert_eq!(program.place.broken.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_community_gets_everything_after_the_client_has_closed() {
    let Session { client, server, program, .. } = start().await;
    write_then(client, much(), drop);
    let (mut from, into) = tokio::io::split(server);
    write_on(into, SECOND * 7);
    let since = Instant::now();
    assert!(read_slowly(&mut from, 500, SECOND).await == much());
    assert!(since.elapsed() > SECOND * 60);
    drop(from);
    program.ends_as(SessionEnd::ClientClosed).await;
}

#[tokio::test(start_paused = true)]
async fn both_sides_may_close_at_once() {
    let Session { client, server, program, .. } = start().await;
    let ends = [client, server].map(|end| {
        let (mut from, mut into) = tokio::io::split(end);
        tokio::spawn(async move {
            let writes = async {
                into.write_all(&much()).await.expect("written");
                into.shutdown().await.expect("shut down");
            };
            let ((), received) = tokio::join!(writes, read_slowly(&mut from, 500, SECOND));
            assert!(received == much());
        })
    });
    for end in ends {
        end.await.expect("an end");
    }
    program.ends_as(SessionEnd::CommunityClosed).await;
}

#[tokio::test(start_paused = true)]
async fn who_reads_nothing_holds_a_session_for_thirty_seconds() {
    for client_is_stuck in [true, false] {
        let Session { client, server, program, .. } = start().await;
        let (mut stuck, sends) = if client_is_stuck { (client, server) } else { (server, client) };
        stuck.shutdown().await.expect("shut down");
        write_then(sends, much()[..ON_THE_WAY].to_vec(), std::mem::forget);
        let took = program.ends_as(SessionEnd::HalfClosed).await;
        assert!((30.0..35.0).contains(&took), "{took}: last bytes have a little time more");
    }
}

#[tokio::test(start_paused = true)]
async fn a_side_that_goes_on_after_the_other_has_closed_has_five_minutes() {
    for client_goes_on in [true, false] {
        let Session { mut client, mut server, program, .. } = start().await;
        let (goes_on, closes) = if client_goes_on { (&mut client, &mut server) } else { (&mut server, &mut client) };
        closes.shutdown().await.expect("shut down");
        let since = Instant::now();
        for n in 0.. {
            if goes_on.write_all(&said(n)).await.is_err() {
                break;
            }
            let mut message = [0; 100];
            if closes.read_exact(&mut message).await.is_err() {
                break;
            }
            sleep(SECOND * 20).await;
        }
        let took = since.elapsed().as_secs_f64();
        assert!((300.0..325.0).contains(&took), "{took}");
        program.ends_as(SessionEnd::HalfClosed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_follow_a_close_is_waited_for() {
    for client_stays in [true, false] {
        let Session { mut client, mut server, program, .. } = start().await;
        let (stays, closes) = if client_stays { (&mut client, &mut server) } else { (&mut server, &mut client) };
        closes.shutdown().await.expect("shut down");
        assert!(read_to_end(stays).await.is_empty());
        // What it says still arrives.
        for n in 0..4 {
            sleep(SECOND * 20).await;
            stays.write_all(&said(n)).await.expect("room");
            assert_eq!(read(closes, 100).await, said(n));
        }
        let took = program.ends_as(SessionEnd::HalfClosed).await;
        assert!((30.0..35.0).contains(&took), "{took}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_had_arrived_before_a_reset_is_delivered_and_then_the_reason() {
    for write_fails_first in [true, false] {
        let Session { client, server, server_faults, program, .. } = start().await;
        let faults = server_faults.clone();
        write_then(server, much()[..ON_THE_WAY].to_vec(), move |server| {
            faults.writes(Errno::CONNRESET);
            // After a failed write, the system reports the end of the stream.
            if !write_fails_first {
                faults.reads(Errno::CONNRESET);
            }
            drop(server);
        });
        let (mut from, mut into) = tokio::io::split(client);
        sleep(SECOND).await;
        if write_fails_first {
            into.write_all(&said(1)).await.expect("room");
            sleep(SECOND).await;
        }
        assert_eq!(program.reason(), None, "everything is kept, or has arrived");
        let received = read_slowly(&mut from, 300, SECOND / 10).await;
        drop((from, into));
        assert!(received == [&much()[..ON_THE_WAY], &Reason::ConnectionBroken.destroy()].concat());
        program.ends_as(SessionEnd::CommunityBroken).await;
        assert_eq!(program.place.broken.load(Relaxed), 1, "the server is checked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_link_is_over_has_its_place_back_while_the_client_stays() {
    for is_reset in [true, false] {
        let Session { mut client, mut server, server_faults, program, .. } = start().await;
        if is_reset {
            server_faults.reads(Errno::CONNRESET);
            drop(server);
        } else {
            server.write_all(&message::destroy(0, 0)).await.expect("room");
            drop(server);
        }
        read_to_end(&mut client).await;
        sleep(SECOND / 10).await;
        assert_eq!((program.place.free.load(Relaxed), program.mux.sessions()), (1, 1));
        drop(client);
        program.ends_as(if is_reset { SessionEnd::CommunityBroken } else { SessionEnd::CommunityClosed }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_its_reset_is_delivered() {
    for write_fails_first in [true, false] {
        let Session { client, client_faults, mut server, program, .. } = start().await;
        let faults = client_faults.clone();
        write_then(client, much()[..ON_THE_WAY].to_vec(), move |client| {
            faults.writes(Errno::CONNRESET);
            if !write_fails_first {
                faults.reads(Errno::CONNRESET);
            }
            drop(client);
        });
        sleep(SECOND).await;
        if write_fails_first {
            server.write_all(&said(1)).await.expect("room");
            sleep(SECOND).await;
        }
        assert_eq!(program.reason(), None, "everything is kept, or has arrived");
        assert!(read_slowly(&mut server, 300, SECOND / 10).await == much()[..ON_THE_WAY]);
        drop(server);
        let took = program.ends_as(SessionEnd::ClientBroken).await;
        assert!(took < 2.0, "{took}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_to_a_community_that_has_closed_is_no_fault_and_no_farewell_follows() {
    let Session { mut client, mut server, server_faults, program, .. } = start().await;
    server.write_all(&said(1)).await.expect("room");
    server_faults.writes(Errno::PIPE);
    client.write_all(&said(2)).await.expect("room");
    assert_eq!(read(&mut client, 100).await, said(1));
    server.write_all(&said(3)).await.expect("room");
    assert_eq!(read(&mut client, 100).await, said(3), "it was only the other direction");
    drop(server);
    assert!(read_to_end(&mut client).await.is_empty());
    drop(client);
    program.ends_as(SessionEnd::CommunityClosed).await;
    assert_eq!(program.place.broken.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_no_farewell_message_after_the_end_of_its_stream() {
    let Session { mut client, mut server, server_faults, program, .. } = start().await;
    server.shutdown().await.expect("shut down");
    assert!(read_to_end(&mut client).await.is_empty());
    server_faults.writes(Errno::TIMEDOUT);
    client.write_all(&said(1)).await.expect("room");
    sleep(SECOND).await;
    drop(client);
    program.ends_as(SessionEnd::CommunityClosed).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_no_farewell_message_in_the_middle_of_a_frame() {
    let Session { mut client, mut server, server_faults, program, .. } = start().await;
    server.write_all(&said(1)[..50]).await.expect("room");
    server_faults.reads(Errno::CONNRESET);
    drop(server);
    assert_eq!(read_to_end(&mut client).await, &said(1)[..50]);
    drop(client);
    program.ends_as(SessionEnd::CommunityBroken).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_farewell_message_a_client_has_three_seconds_to_close() {
    for (farewell_by_client, reason) in [(false, SessionEnd::CommunityClosed), (true, SessionEnd::LogOut)] {
        let Session { mut client, mut server, program, .. } = start().await;
        let farewell = message::destroy(0, 0);
        if farewell_by_client {
            client.write_all(&farewell).await.expect("room");
            assert_eq!(read(&mut server, farewell.len()).await, farewell);
        } else {
            server.write_all(&farewell).await.expect("room");
            assert_eq!(read(&mut client, farewell.len()).await, farewell);
        }
        assert_eq!(program.reason(), None);
        drop(server);
        assert!(read_to_end(&mut client).await.is_empty(), "one farewell message is enough");
        let took = program.ends_as(reason).await;
        assert!((3.0..4.0).contains(&took), "{took}");
        drop(client);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_the_communitys_farewell_message_still_arrives() {
    let Session { client, mut server, program, .. } = start().await;
    write_then(client, much()[..ON_THE_WAY].to_vec(), drop);
    sleep(SECOND).await;
    server.write_all(&message::destroy(0, 0)).await.expect("room");
    server.shutdown().await.expect("shut down");
    sleep(SECOND).await;
    assert!(read_slowly(&mut server, 500, SECOND / 4).await == much()[..ON_THE_WAY]);
    drop(server);
    program.ends_as(SessionEnd::CommunityClosed).await;
}

#[tokio::test(start_paused = true)]
async fn a_community_that_must_write_before_it_reads_gets_the_clients_last_bytes() {
    let Session { client, client_faults, server, program, .. } = start().await;
    let faults = client_faults.clone();
    write_then(client, much()[..ON_THE_WAY].to_vec(), move |client| {
        faults.reads(Errno::CONNRESET);
        faults.writes(Errno::CONNRESET);
        drop(client);
    });
    let (mut from, mut into) = tokio::io::split(server);
    sleep(SECOND).await;
    // Each message is read when much was accepted in the other direction.
    let mut received = Vec::new();
    for n in 0..30 {
        into.write_all(&said(n).repeat(20)).await.expect("written");
        let mut message = [0; 100];
        from.read_exact(&mut message).await.expect("a message");
        received.extend_from_slice(&message);
    }
    assert!(received == much()[..ON_THE_WAY]);
    drop((from, into));
    program.ends_as(SessionEnd::ClientBroken).await;
}

#[tokio::test(start_paused = true)]
async fn an_invalid_frame_ends_both_directions_after_what_was_sent_before() {
    for (of_client, reason, farewell) in [
        (true, SessionEnd::FrameTooShort, Reason::ProtocolError),
        (false, SessionEnd::CommunityFault, Reason::ConnectionBroken),
    ] {
        let Session { mut client, mut server, program, .. } = start().await;
        let sender = if of_client { &mut client } else { &mut server };
        sender.write_all(&[said(1), vec![0, 0, 0, 1], said(2)].concat()).await.expect("room");
        let (to_server, to_client) = (read_to_end(&mut server).await, read_to_end(&mut client).await);
        if of_client {
            assert_eq!((to_server, to_client), (said(1), farewell.destroy()));
        } else {
            assert_eq!((to_server, to_client), (vec![], [said(1), farewell.destroy()].concat()));
        }
        assert_eq!(program.reason(), Some(reason));
        drop((client, server));
        assert!(program.ends_as(reason).await < 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_ends_a_session_in_seconds_although_nobody_reads() {
    for closes_before in [false, true] {
        let Session { mut client, server, program, .. } = start().await;
        let (server, _kept) = if closes_before {
            write_then(server, much()[..ON_THE_WAY].to_vec(), drop);
            (duplex(1).0, None)
        } else {
            let (left, right) = tokio::io::split(server);
            let mut into = right;
            tokio::spawn(async move { into.write_all(&much()).await });
            (duplex(1).0, Some(left))
        };
        sleep(SECOND).await;
        let since = Instant::now();
        assert!(!program.mux.is_draining());
        let drained = program.mux.drain().await;
        assert_eq!((drained.ended, drained.left, program.mux.is_draining()), (1, 0, true));
        assert!(since.elapsed() < FAREWELL_TIMEOUT);
        program.ends_as(SessionEnd::Drained).await;
        let received = read_to_end(&mut client).await;
        assert!(much().starts_with(&received), "what it had room for, and no farewell message between");
        drop(server);
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_leaves_time_for_the_last_bytes_although_both_sides_have_closed() {
    let settings = MuxSettings { idle_timeout: Some(SECOND * 5), ..settings() };
    let Session { mut client, mut server, server_faults, program, .. } = start_with(settings, 1 << 20).await;
    server.write_all(&much()[..30_000]).await.expect("room");
    sleep(SECOND).await;
    server_faults.writes(Errno::PIPE);
    client.write_all(&said(1)).await.expect("room");
    client.shutdown().await.expect("shut down");
    sleep(SECOND * 5).await;
    // The session has its order, and what the client has not read is kept.
    let received = read_to_end(&mut client).await;
    assert!(received[..30_000] == much()[..30_000], "{}", received.len());
    drop((client, server));
    program.ends_as(SessionEnd::Idle).await;
}

#[tokio::test(start_paused = true)]
async fn an_order_while_a_slow_client_is_served_still_gives_it_the_reason() {
    let Session { mut client, server, program, .. } = start().await;
    write_then(server, much()[..ON_THE_WAY].to_vec(), drop);
    sleep(SECOND).await;
    let mux = program.mux.clone();
    let drain = tokio::spawn(async move { mux.drain().await });
    sleep(SECOND / 10).await;
    let received = read_slowly(&mut client, 500, SECOND / 10).await;
    // What was not read yet is not worth the wait.
    assert!(received == [&much()[..2 * BUFFER], &Reason::ConnectionBroken.destroy()].concat());
    drop(client);
    assert_eq!(drain.await.expect("drained").left, 0);
    program.ends_as(SessionEnd::Drained).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_sessions_and_ends_those_that_are_left() {
    let drain_timeout = SECOND * 10;
    let no_room = |program: &Program| {
        let via = Via {
            client: SocketAddr::from(([192, 0, 2, 9], 4000)),
            port: 1533.into(),
            transport: Transport::Raw,
            accepted: Instant::now().into_std(),
        };
        let arrival = Arrival { stream: Stream::other(tokio::io::empty()), first: Bytes::new(), via };
        program.mux.take(arrival).err().map(|refused| refused.0)
    };
    for leaves in [true, false] {
        let settings = MuxSettings { drain_timeout, ..settings() };
        let Session { mut client, server, program, .. } = start_with(settings, BUFFER).await;
        let (mux, since) = (program.mux.clone(), Instant::now());
        let drain = tokio::spawn(async move { (mux.drain().await, since.elapsed()) });
        sleep(SECOND * 5).await;
        assert!(program.mux.is_draining() && no_room(&program) == Some(Refusal::Draining));
        assert_eq!((program.mux.sessions(), program.reason()), (1, None), "it goes on");
        if !leaves {
            let reason = crate::wire::reason::Reason::ConnectionBroken.destroy();
            assert_eq!(read_to_end(&mut client).await, reason);
            let told = since.elapsed() - drain_timeout;
            assert!(told < SECOND / 50, "{told:?}");
        }
        drop((client, server));
        let (drained, took) = drain.await.expect("no panic");
        assert_eq!(drained, Drained { ended: usize::from(!leaves), left: 0 });
        assert_eq!(took.as_secs(), if leaves { 5 } else { 10 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_sessions_evenly_over_its_time() {
    let settings = MuxSettings { drain_timeout: SECOND * 100, capacity: 50, logging_in: 50, ..settings() };
    let mux = Mux::start(
        settings.clone(),
        Arc::new(OneServer { link: Mutex::default(), place: Arc::default() }),
        Telemetry::new("0"),
    );
    let client = SocketAddr::from(([192, 0, 2, 1], 4000));
    let via = Via { client, port: 1533.into(), transport: Transport::Raw, accepted: Instant::now().into_std() };
    let mut tickets: Vec<Ticket> = (0..50).map(|_| mux.0.admission.admit(&settings, &via).expect("room")).collect();
    let (since, draining) = (Instant::now(), mux.clone());
    let drain = tokio::spawn(async move { draining.drain().await });
    // After 30 s, ten clients leave by themselves. Then nobody else has to for a while.
    let mut present = Vec::new();
    sleep(SECOND / 4).await;
    for second in 1..=110 {
        sleep(SECOND).await;
        tickets.retain(|ticket| ticket.entry.order().is_none());
        if second == 30 {
            tickets.truncate(tickets.len() - 10);
        }
        present.push(tickets.len());
    }
    let at = |second: usize| present[second - 1];
    assert_eq!((at(10), at(20), at(29)), (45, 40, 36));
    assert_eq!((at(30), at(40), at(49)), (25, 25, 25), "ten have left by themselves");
    assert_eq!((at(60), at(90), at(99), at(101)), (20, 5, 1, 0));
    assert_eq!(drain.await.expect("no panic"), Drained { ended: 40, left: 0 });
    assert!(since.elapsed() < SECOND * 111);
}

/// What is logged on this thread as long as the guard is there.
fn log() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let lines = Arc::<Mutex<Vec<u8>>>::default();
    let writer = Arc::clone(&lines);
    let subscriber = tracing_subscriber::fmt().with_writer(move || Captured(Arc::clone(&writer))).with_ansi(false);
    (lines, tracing::subscriber::set_default(subscriber.finish()))
}

#[tokio::test(start_paused = true)]
async fn the_log_warns_of_a_link_that_broke_and_not_of_one_that_was_closed() {
    for is_broken in [true, false] {
        let (lines, _guard) = log();
        let Session { client, server, server_faults, program, .. } = start().await;
        if is_broken {
            server_faults.reads(Errno::CONNRESET);
        }
        drop((client, server));
        let reason = if is_broken { SessionEnd::CommunityBroken } else { SessionEnd::CommunityClosed };
        sleep(SECOND).await;
        assert_eq!((program.mux.sessions(), program.reason()), (0, Some(reason)));
        let lines = String::from_utf8(lines.lock().clone()).expect("text");
        let closed = lines.lines().find(|line| line.contains("session closed")).expect("a line");
        assert_eq!((closed.contains("WARN"), closed.contains("INFO")), (is_broken, !is_broken), "{closed}");
        assert!(closed.contains("192.0.2.1:4000") && closed.contains(reason.name()), "{closed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_not_idle_while_it_takes_the_last_bytes() {
    let settings = MuxSettings { idle_timeout: Some(SECOND * 5), ..settings() };
    let Session { mut client, server, program, .. } = start_with(settings, BUFFER).await;
    write_then(server, much()[..30_000].to_vec(), drop);
    assert!(read_slowly(&mut client, 500, SECOND).await == much()[..30_000]);
    drop(client);
    program.ends_as(SessionEnd::CommunityClosed).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_a_slow_receiver_is_at_most_one_read() {
    let Session { client, server, program, .. } = start_with(settings(), 1 << 20).await;
    write_then(server, much().repeat(3), drop);
    sleep(SECOND).await;
    let held = program.mux.held_bytes();
    assert!((scratch::SIZE - BUFFER..=scratch::SIZE).contains(&held), "{held}");
    drop(client);
    program.ends_as(SessionEnd::ClientClosed).await;
}
