//! The service with clients by the book and a core that the tests are, on a clock that stands still while there is
//! something to do.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    stream::StreamError,
    wire::{
        frame,
        message::{Reader, Writer, kind},
        tunnel::cipher::{BLOCK, Cipher, FIRST_IV, agree_with},
    },
};

const SECOND: Duration = Duration::from_secs(1);
const ANN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 4000);
const BOB: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 4000);

/// A core that keeps the clients for the test.
#[derive(Default)]
struct Taker {
    arrivals: Mutex<Vec<Arrival>>,
    refuses: AtomicBool,
}

impl Core for Taker {
    fn take(&self, arrival: Arrival) -> Result<(), Box<(Refusal, Arrival)>> {
        if self.refuses.load(Relaxed) {
            return Err(Box::new((Refusal::Capacity, arrival)));
        }
        self.arrivals.lock().push(arrival);
        Ok(())
    }
}

fn settings() -> TunnelSettings {
    TunnelSettings {
        hold: SECOND * 25,
        reply_wait: SECOND / 10,
        session_timeout: SECOND * 90,
        stream_keep_alive: None,
        version: 0,
        window: 10_000,
        same_address: false,
        sessions: 2,
        sessions_per_address: 0,
        exempt: vec![],
    }
}

fn start(settings: TunnelSettings) -> (Arc<Service>, Arc<Taker>) {
    let core = Arc::<Taker>::default();
    (Service::start(settings, Arc::clone(&core) as Arc<dyn Core>), core)
}

impl Taker {
    /// The stream of the client that arrived last.
    fn stream(&self) -> Stream {
        self.arrivals.lock().pop().expect("a client").stream
    }
}

/// A client of the polling or the hybrid tunnel.
struct TunnelClient {
    kind: TunnelKind,
    name: SessionName,
    cipher: Cipher,
    iv: [u8; BLOCK],
    token: Vec<u8>,
}

/// The body of a first request.
fn opening(kind: TunnelKind, public: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.u32(0).u32(1).opaque(public);
    if kind == TunnelKind::Hybrid {
        out.raw(&envelope::record(0, b"S\0\0\0\x01C"));
    }
    out.0
}

fn open(service: &Service, kind: TunnelKind, from: SocketAddr) -> Result<TunnelClient, TunnelOutcome> {
    let secret = [3; 32];
    let public = agree_with(&[3], &secret).expect("legal").public;
    let response = service.open(kind, &opening(kind, &public), from, 80);
    let TunnelResponse::Body(body, TunnelOutcome::Opened) = &response else { return Err(response.outcome()) };
    let mut reader = Reader(body);
    assert_eq!((reader.u32(), reader.string(), reader.u32()), (Some(0), Some(&b""[..]), Some(0)));
    let name = std::str::from_utf8(reader.string().expect("a name")).expect("text");
    let name = SessionName::parse(name).expect("a name");
    let cipher = agree_with(reader.opaque().expect("a value"), &secret).expect("legal").cipher;
    let token = reader.opaque().expect("a token").to_vec();
    Ok(TunnelClient { kind, name, cipher, iv: FIRST_IV, token })
}

impl TunnelClient {
    /// Sends a request and reads the response.
    async fn request(&mut self, service: &Service, data: &[u8]) -> (TunnelOutcome, Vec<u8>) {
        let acknowledgement = self.cipher.encrypt(&mut self.iv, &self.token);
        let payload = if self.kind == TunnelKind::Hybrid { envelope::record(1, data) } else { data.to_vec() };
        let mut out = Writer::new();
        out.u32(0).opaque(&acknowledgement).raw(&payload);
        let response = service.request(self.kind, self.name, out.0, ANN.ip()).await;
        let mut received = Vec::new();
        if let TunnelResponse::Body(body, _) = &response {
            let mut reader = Reader(body);
            self.token = reader.opaque().expect("a token").to_vec();
            assert_eq!(reader.u8(), Some(0));
            match self.kind {
                TunnelKind::Polling => received.extend_from_slice(reader.0),
                TunnelKind::Hybrid => {
                    envelope::each_record(reader.0, |_, bytes| received.extend_from_slice(bytes)).expect("records");
                }
            }
        }
        (response.outcome(), received)
    }
}

/// Reads `n` bytes, which have to come in a minute.
async fn read(from: &mut (impl AsyncRead + Unpin), n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    timeout(SECOND * 60, from.read_exact(&mut bytes)).await.expect("in time").expect("bytes");
    bytes
}

/// Reads up to the end. Returns how long it took, too.
async fn read_to_end(from: &mut (impl AsyncRead + Unpin)) -> (io::Result<Vec<u8>>, Duration) {
    let (start, mut bytes) = (Instant::now(), Vec::new());
    let read = timeout(SECOND * 600, from.read_to_end(&mut bytes)).await.expect("in time");
    (read.map(|_| bytes), start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn what_requests_bring_the_core_reads_and_what_it_writes_they_fetch() {
    for kind in [TunnelKind::Polling, TunnelKind::Hybrid] {
        let (service, core) = start(settings());
        let mut client = open(&service, kind, ANN).expect("room");
        let arrived = core.arrivals.lock().pop().expect("a client");
        assert_eq!((arrived.via.client, arrived.via.port.number, arrived.via.transport), (ANN, 80, transport(kind)));
        let mut stream = arrived.stream;
        let echo = tokio::spawn(async move {
            for _ in 0..20 {
                let said = read(&mut stream, 3000).await;
                stream.write_all(&said).await.expect("room");
                stream.flush().await.expect("nothing to do");
            }
            stream.shutdown().await.expect("nothing to do");
            stream
        });
        for n in 0..20 {
            let said = [n; 3000];
            let (outcome, mut heard) = client.request(&service, &said).await;
            assert!(matches!(outcome, TunnelOutcome::Payload | TunnelOutcome::Empty), "{outcome}");
            while heard.is_empty() {
                heard = client.request(&service, b"").await.1;
            }
            assert!(heard == said, "{n}");
        }
        let stream = echo.await.expect("no panic");
        assert_eq!(service.sessions(), 1);
        assert_eq!(client.request(&service, b"").await.0, TunnelOutcome::Gone, "the core has written the last byte");
        assert_eq!(client.request(&service, b"").await.0, TunnelOutcome::Unknown);
        drop(stream);
        assert_eq!(service.sessions(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_over_when_the_core_lets_it_go() {
    let (service, core) = start(settings());
    let mut client = open(&service, TunnelKind::Hybrid, ANN).expect("room");
    drop(core.stream());
    assert_eq!(client.request(&service, b"").await.0, TunnelOutcome::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_found_by_its_name_and_kind_and_address() {
    let (service, _core) = start(TunnelSettings { same_address: true, ..settings() });
    let mut client = open(&service, TunnelKind::Polling, ANN).expect("room");
    let stranger = SessionName::random().expect("random");
    let ask = |kind, name, from: SocketAddr| {
        let service = Arc::clone(&service);
        async move { service.request(kind, name, vec![], from.ip()).await.outcome() }
    };
    assert_eq!(ask(TunnelKind::Hybrid, client.name, ANN).await, TunnelOutcome::Unknown);
    assert_eq!(ask(TunnelKind::Polling, stranger, ANN).await, TunnelOutcome::Unknown);
    assert_eq!(ask(TunnelKind::Polling, client.name, BOB).await, TunnelOutcome::OtherAddress);
    assert_eq!(ask(TunnelKind::Polling, client.name, ANN).await, TunnelOutcome::NotAcknowledged);
    assert_eq!(client.request(&service, b"").await.0, TunnelOutcome::Empty);
    service.reconfigure(settings());
    assert_eq!(ask(TunnelKind::Polling, client.name, BOB).await, TunnelOutcome::NotAcknowledged);
    // What a body without room may have, only requests of a session get.
    assert!(service.exception(TunnelKind::Polling, &client.name).is_some());
    assert!(service.exception(TunnelKind::Hybrid, &client.name).is_none());
    assert!(service.exception(TunnelKind::Polling, &stranger).is_none());
    assert!(service.upload_exception(&client.name).is_none());
}

#[tokio::test(start_paused = true)]
async fn sessions_are_bounded_in_total_and_for_each_address_that_is_not_exempt() {
    let (kind, limited) = (TunnelKind::Polling, TunnelSettings { sessions_per_address: 1, ..settings() });
    let (service, core) = start(limited.clone());
    let outcome = |from| open(&service, kind, from).map(|_| ());
    let refusal = |from| match service.open(kind, &opening(kind, &[7; 64]), from, 80) {
        TunnelResponse::Refused(refusal, TunnelOutcome::Full) => refusal,
        response => panic!("{response:?}"),
    };
    core.refuses.store(true, Relaxed);
    assert_eq!((outcome(ANN), service.sessions()), (Err(TunnelOutcome::Refused), 0));
    core.refuses.store(false, Relaxed);
    assert_eq!(outcome(ANN), Ok(()));
    assert_eq!(refusal(ANN), Refusal::TunnelSessionsPerAddress);
    assert_eq!(outcome(BOB), Ok(()));
    assert_eq!(refusal(BOB), Refusal::TunnelSessions);
    service.reconfigure(TunnelSettings { sessions: 3, exempt: vec![ANN.ip().into()], ..limited });
    assert_eq!(refusal(BOB), Refusal::TunnelSessionsPerAddress);
    assert_eq!(outcome(ANN), Ok(()));
    assert_eq!(service.sessions(), 3);
    // A first request that is none takes no place.
    service.reconfigure(TunnelSettings { sessions: 4, ..settings() });
    for body in [opening(kind, &[1]), opening(kind, &[0; 64]), b"garbage".to_vec()] {
        let response = service.open(kind, &body, BOB, 80);
        assert!(matches!(response, TunnelResponse::Failed(TunnelOutcome::Malformed)), "{response:?}");
    }
    assert_eq!(service.sessions(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_session_without_requests_ends_and_is_forgotten() {
    // A short time is kept as exactly as a long one.
    for session_timeout in [SECOND / 5, SECOND * 90] {
        let (service, core) = start(TunnelSettings { session_timeout, ..settings() });
        let mut client = open(&service, TunnelKind::Polling, ANN).expect("room");
        assert_eq!(client.request(&service, b"").await.0, TunnelOutcome::Empty);
        let (read, took) = read_to_end(&mut core.stream()).await;
        assert_eq!(read.as_ref().err().and_then(StreamError::of), Some(StreamError::SessionTimeout));
        assert!((session_timeout..session_timeout + SECOND.min(session_timeout / 4)).contains(&took), "{took:?}");
        let since = Instant::now();
        while service.sessions() > 0 {
            assert!(since.elapsed() < LINGER + SECOND * 2);
            sleep(SECOND / 100).await;
        }
        let response = service.request(TunnelKind::Polling, client.name, vec![], ANN.ip()).await;
        assert_eq!(response.outcome(), TunnelOutcome::Unknown);
    }
}

/// A streaming client: the far end of its GET request, and the core's stream.
struct Streaming {
    name: SessionName,
    get: DuplexStream,
    core: Stream,
}

fn stream_opening(name: SessionName) -> StreamOpening {
    StreamOpening { name, head: b"head;".to_vec(), is_chunked: false, client: ANN, port: 80.into() }
}

async fn open_streaming(service: &Service, core: &Taker) -> Streaming {
    let (near, mut get) = duplex(1000);
    let name = service.new_name().expect("random");
    assert!(service.open_stream(near, stream_opening(name)).is_ok(), "there is room");
    let mut stream = core.stream();
    // The session's first read comes before its first write.
    poll_fn(|cx| {
        let mut buf = [0; 8];
        assert!(Pin::new(&mut stream).poll_read(cx, &mut ReadBuf::new(&mut buf)).is_pending());
        Poll::Ready(())
    })
    .await;
    assert_eq!(read(&mut get, 46).await, [b"head;", &*stream::beginning(&name)].concat());
    Streaming { name, get, core: stream }
}

/// Sends a POST request on a task of its own.
fn upload(service: &Arc<Service>, name: SessionName, bytes: &[u8]) -> tokio::task::JoinHandle<TunnelResponse> {
    let (service, body) = (Arc::clone(service), bytes.to_vec());
    let held = HeldBytes::none(&service.budget, ANN.ip());
    tokio::spawn(async move { service.upload(name, body, 0, held).await })
}

fn said(n: u32) -> Vec<u8> {
    frame::build(kind::SEND_ON_CNL, n + 1, &[7; 88])
}

#[tokio::test(start_paused = true)]
async fn a_streaming_client_gets_what_the_core_writes_and_is_answered_when_the_core_has_read() {
    let (service, core) = start(settings());
    let Streaming { name, mut get, core: mut stream } = open_streaming(&service, &core).await;
    assert!(service.upload_exception(&name).is_some());
    stream.write_all(&said(1)).await.expect("room");
    assert_eq!(read(&mut get, 100).await, said(1));
    let posts = [upload(&service, name, b"first"), upload(&service, name, b"second")];
    sleep(SECOND).await;
    assert!(posts.iter().all(|post| !post.is_finished()), "the core has not read");
    assert_eq!(read(&mut stream, 3).await, b"fir");
    sleep(SECOND).await;
    assert!(posts.iter().all(|post| !post.is_finished()), "it has not read the first to its end");
    assert_eq!(read(&mut stream, 8).await, b"stsecond");
    for post in posts {
        let response = post.await.expect("no panic");
        let TunnelResponse::Body(body, TunnelOutcome::Taken) = &response else { panic!("{response:?}") };
        assert_eq!(**body, *stream::post_response(&name));
    }
    // A byte behind the GET request has no meaning.
    get.write_all(b"?").await.expect("room");
    let reading = tokio::spawn(async move { (read(&mut stream, 5).await, stream) });
    sleep(SECOND).await;
    upload(&service, name, b"third").await.expect("no panic");
    let (bytes, mut stream) = reading.await.expect("no panic");
    assert_eq!(bytes, b"third");
    stream.shutdown().await.expect("room");
    assert!(read_to_end(&mut get).await.0.expect("the end").is_empty());
    let waits = upload(&service, name, b"after the last byte");
    sleep(SECOND).await;
    drop(stream);
    assert_eq!(waits.await.expect("no panic").outcome(), TunnelOutcome::AfterEnd);
    sleep(LINGER - SECOND).await;
    assert_eq!(upload(&service, name, b"late").await.expect("no panic").outcome(), TunnelOutcome::AfterEnd);
    sleep(SECOND * 3).await;
    assert_eq!(upload(&service, name, b"later").await.expect("no panic").outcome(), TunnelOutcome::Unknown);
    assert_eq!(service.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_streaming_client_that_is_refused_can_be_told_why() {
    let (service, core) = start(TunnelSettings { sessions: 1, same_address: true, ..settings() });
    let first = open_streaming(&service, &core).await;
    let other = HeldBytes::none(&service.budget, BOB.ip());
    let response = service.upload(first.name, b"bytes".to_vec(), 0, other).await;
    assert_eq!(response.outcome(), TunnelOutcome::OtherAddress);
    service.reconfigure(TunnelSettings { sessions: 1, ..settings() });
    let other = HeldBytes::none(&service.budget, BOB.ip());
    let mut stream = first.core;
    let (response, bytes) = tokio::join!(service.upload(first.name, b"bytes".to_vec(), 0, other), read(&mut stream, 5));
    assert_eq!((response.outcome(), &bytes[..]), (TunnelOutcome::Taken, &b"bytes"[..]));
    for is_full in [true, false] {
        let (near, mut get) = duplex(1000);
        let name = service.new_name().expect("random");
        if !is_full {
            service.reconfigure(TunnelSettings { sessions: 2, ..settings() });
            core.refuses.store(true, Relaxed);
        }
        let Err(refused) = service.open_stream(near, stream_opening(name)) else { panic!("taken") };
        let expected = if is_full {
            (Refusal::TunnelSessions, TunnelOutcome::Full)
        } else {
            (Refusal::Capacity, TunnelOutcome::Refused)
        };
        assert_eq!((refused.refusal, refused.outcome), expected);
        let mut stream = refused.stream;
        stream.write_all(b"reason").await.expect("room");
        drop(stream);
        let all = read_to_end(&mut get).await.0.expect("the end");
        assert_eq!(all, [b"head;", &*stream::beginning(&name), b"reason"].concat());
        assert_eq!(upload(&service, name, b"?").await.expect("no panic").outcome(), TunnelOutcome::Unknown);
        assert_eq!(service.sessions(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_response_gets_keep_alives_between_frames() {
    let keep_alive = SECOND * 10;
    let (service, core) = start(TunnelSettings { stream_keep_alive: Some(keep_alive), ..settings() });
    let Streaming { mut get, core: mut stream, .. } = open_streaming(&service, &core).await;
    let (to_core, mut to_write) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
    // Reads all the time, as the core does, and writes what the test says.
    tokio::spawn(async move {
        let mut buf = [0; 8];
        loop {
            tokio::select! {
                read = stream.read(&mut buf) => if read.is_err() { return },
                bytes = to_write.recv() => {
                    let Some(bytes) = bytes else { return };
                    stream.write_all(&bytes).await.expect("room");
                }
            }
        }
    });
    for _ in 0..2 {
        let since = Instant::now();
        assert_eq!(read(&mut get, 1).await, [0x80]);
        assert!((keep_alive - SECOND * 2..keep_alive + SECOND * 2).contains(&since.elapsed()), "{:?}", since.elapsed());
    }
    // What the core writes is a sign of life, too.
    sleep(keep_alive * 7 / 10).await;
    to_core.send(said(1)).expect("open");
    assert_eq!(read(&mut get, 100).await, said(1));
    let since = Instant::now();
    assert_eq!(read(&mut get, 1).await, [0x80]);
    assert!(since.elapsed() > keep_alive - SECOND * 2, "{:?}", since.elapsed());
    // None in the middle of a frame.
    to_core.send(said(2)[..50].to_vec()).expect("open");
    assert_eq!(read(&mut get, 50).await, said(2)[..50]);
    assert!(timeout(keep_alive * 3, get.read_u8()).await.is_err());
    to_core.send(said(2)[50..].to_vec()).expect("open");
    assert_eq!(read(&mut get, 51).await, [&said(2)[50..], &[0x80]].concat());
    // None after bytes that are no frames: their ends are unknown.
    to_core.send(7u32.to_be_bytes().to_vec()).expect("open");
    assert_eq!(read(&mut get, 4).await, [0, 0, 0, 7]);
    to_core.send(said(3)).expect("open");
    assert_eq!(read(&mut get, 100).await, said(3));
    assert!(timeout(keep_alive * 3, get.read_u8()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_last_request_may_come_shortly_after_the_client_has_closed_the_other_one() {
    for has_last in [true, false] {
        let (service, core) = start(settings());
        let Streaming { name, get, core: mut stream, .. } = open_streaming(&service, &core).await;
        let first = upload(&service, name, b"first");
        drop(get);
        sleep(SECOND / 10).await;
        assert_eq!(read(&mut stream, 5).await, b"first");
        first.await.expect("no panic");
        let last = has_last.then(|| {
            let service = Arc::clone(&service);
            tokio::spawn(async move {
                sleep(SECOND / 10).await;
                // A long one may come in two requests.
                let parts = [upload(&service, name, b"la"), upload(&service, name, b"st")];
                for part in parts {
                    assert_eq!(part.await.expect("no panic").outcome(), TunnelOutcome::Taken);
                }
            })
        });
        let (rest, took) = read_to_end(&mut stream).await;
        assert_eq!(rest.expect("the end"), if has_last { &b"last"[..] } else { b"" });
        // After the last request nothing is waited for.
        let expected = if has_last { 100..110 } else { 250..260 };
        assert!(expected.contains(&took.as_millis()), "{took:?}");
        if let Some(last) = last {
            last.await.expect("no panic");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_the_core_does_not_read_ends_the_session() {
    let (service, core) = start(TunnelSettings { session_timeout: SECOND * 20, ..settings() });
    let Streaming { name, core: mut stream, get: _get } = open_streaming(&service, &core).await;
    let (post, since) = (upload(&service, name, b"first"), Instant::now());
    assert_eq!(post.await.expect("no panic").outcome(), TunnelOutcome::Busy);
    assert!((20..23).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    assert_eq!(upload(&service, name, b"next").await.expect("no panic").outcome(), TunnelOutcome::Busy);
    let flushed = stream.flush().await.expect_err("it is over");
    assert_eq!(StreamError::of(&flushed), Some(StreamError::CommunityTooSlow));
    let (rest, _) = read_to_end(&mut stream).await;
    assert_eq!(rest.as_ref().err().and_then(StreamError::of), Some(StreamError::CommunityTooSlow));
}

/// A connection whose reads fail.
struct FailingReads(fn() -> io::Error);

impl AsyncRead for FailingReads {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(self.0()))
    }
}

impl AsyncWrite for FailingReads {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_fails_ends_the_session_at_once_and_one_that_is_cut_off_as_a_closed_one() {
    let failures: [(fn() -> io::Error, _); 2] =
        [(|| rustix::io::Errno::CONNRESET.into(), None), (|| StreamError::Truncated.into(), Some(250))];
    for (failure, waits) in failures {
        let (service, core) = start(settings());
        let name = service.new_name().expect("random");
        assert!(service.open_stream(FailingReads(failure), stream_opening(name)).is_ok());
        let (read, took) = read_to_end(&mut core.stream()).await;
        match waits {
            None => assert_eq!((read.map_err(|e| e.raw_os_error()), took), (Err(Some(104)), Duration::ZERO)),
            Some(ms) => assert!(read.is_ok() && (ms..ms + 5).contains(&took.as_millis()), "{took:?}"),
        }
    }
}
