//! The streaming tunnel's service as it runs: requests that wait for the Community, an endless response that its client
//! reads slowly, keep-alives, and the end of either side. Time passes only in the steps that advance the clock.

use std::{
    cell::Cell,
    collections::VecDeque,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use sametime_mux::{
    ingress::tunnel::{Service, StreamOpening, TunnelResponse, TunnelSettings},
    limits::budget::{Budget, HeldBytes},
    stream::{Arrival, Core, Stream},
    telemetry::outcome::{Refusal, TunnelOutcome},
    wire::{
        frame,
        message::Writer,
        tunnel::{
            name::{SessionName, UrlName},
            stream,
        },
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::Choices;

/// The address of the client.
const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
/// What the response begins with, before its body.
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
/// How many requests of a session may wait.
const MOST_WAITING: usize = 4;
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A body of a POST request: what is read and written again has the same bytes.
pub fn check_post(body: &[u8]) {
    let Some(post) = stream::post(body) else { return };
    let name = &body[3..post.payload_at];
    assert_eq!(body[0], 0xFF);
    assert_eq!(usize::from(u16::from_be_bytes([body[1], body[2]])), name.len());
    let text = std::str::from_utf8(name).expect("ASCII");
    assert_eq!(UrlName::parse(text), Some(post.name));
    if let UrlName::Session(name) = post.name {
        let again = stream::post_response(&name);
        assert!(again.eq_ignore_ascii_case(&body[..post.payload_at]));
    }
}

/// The connection of the GET request.
#[derive(Default)]
struct Wire {
    /// What the client has not read.
    unread: VecDeque<u8>,
    /// How many bytes there is room for.
    room: usize,
    client_has_closed: bool,
    server_has_closed: bool,
}

struct Connection(Arc<Mutex<Wire>>);

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.lock().expect("one thread").client_has_closed { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock().expect("one thread");
        assert!(!wire.server_has_closed, "bytes after the end");
        let n = wire.room.min(bytes.len());
        if n == 0 {
            return Poll::Pending;
        }
        wire.room -= n;
        wire.unread.extend(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().expect("one thread").server_has_closed = true;
        Poll::Ready(Ok(()))
    }
}

/// A core that keeps the one stream that arrives.
#[derive(Default)]
struct Community(Mutex<Option<Stream>>);

impl Core for Community {
    fn take(&self, arrival: Arrival) -> Result<(), Box<(Refusal, Arrival)>> {
        *self.0.lock().expect("one thread") = Some(arrival.stream);
        Ok(())
    }
}

/// A request that has no response yet.
struct Waiting {
    response: Pin<Box<dyn Future<Output = TunnelResponse>>>,
    /// Where its bytes end among all bytes that were taken.
    end: usize,
}

struct World {
    service: Arc<Service>,
    budget: Arc<Budget>,
    name: SessionName,
    is_chunked: bool,
    wire: Arc<Mutex<Wire>>,
    /// `None`: the core has let the session go.
    stream: Option<Stream>,
    waiting: Vec<Waiting>,
    /// When each request was taken that the Community has not read to its end, and where its bytes end.
    unread: VecDeque<(Instant, usize)>,
    /// The bytes of the requests that were taken.
    taken: Vec<u8>,
    community_received: Vec<u8>,
    /// The frames of the Community, and how much of them is written.
    community_sent: Vec<u8>,
    written: usize,
    /// Everything that the client has read.
    client_received: Vec<u8>,
    /// The session has ended because the Community left a request unread.
    was_too_slow: bool,
    texts: u16,
}

/// The first byte chooses the form of the response; the others choose the steps.
pub fn check(input: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        /// The number of runs. A service's own task ends at its next tick, so every 64 runs the clock advances.
        static RUNS: Cell<u32> = const { Cell::new(0) };
    }
    check_post(input);
    RUNTIME.with(|runtime| {
        runtime.block_on(run(input));
        RUNS.set(RUNS.get() + 1);
        if RUNS.get().is_multiple_of(64) {
            runtime.block_on(async { tokio::time::sleep(Duration::from_secs(2)).await });
        }
    });
}

async fn run(input: &[u8]) {
    let mut choices = Choices(input);
    let is_chunked = choices.below(2) == 1;
    let settings = TunnelSettings {
        hold: Duration::from_secs(25),
        reply_wait: Duration::from_millis(100),
        session_timeout: SESSION_TIMEOUT,
        stream_keep_alive: Some(KEEP_ALIVE),
        version: 0,
        window: 1 << 20,
        same_address: true,
        sessions: 10,
        sessions_per_address: 0,
        exempt: vec![],
    };
    let core = Arc::new(Community::default());
    let service = Service::start(settings, Arc::clone(&core) as Arc<dyn Core>);
    let name = SessionName::random().expect("random");
    let wire = Arc::new(Mutex::new(Wire { room: choices.below(200), ..Wire::default() }));
    let opening = StreamOpening { name, head: HEAD.to_vec(), is_chunked, client: FROM, port: 1533.into() };
    assert!(service.open_stream(Connection(Arc::clone(&wire)), opening).is_ok(), "refused");
    let stream = core.0.lock().expect("one thread").take();
    let mut world = World {
        service,
        budget: Budget::new(usize::MAX, 0, &[]),
        name,
        is_chunked,
        wire,
        stream,
        waiting: Vec::new(),
        unread: VecDeque::new(),
        taken: Vec::new(),
        community_received: Vec::new(),
        community_sent: Vec::new(),
        written: 0,
        client_received: Vec::new(),
        was_too_slow: false,
        texts: 0,
    };
    while !choices.is_over() {
        match choices.below(9) {
            0 | 1 => world.post(&mut choices),
            2 | 3 => world.community_reads(1 + choices.below(60)),
            4 => world.community_sends(choices.below(60)),
            5 => world.client_reads(choices.below(100)),
            6 => world.connection_breaks(&mut choices),
            7 => tokio::time::advance(Duration::from_millis(10 << choices.below(12))).await,
            _ => world.stranger_posts(&mut choices),
        }
        world.settle();
    }
    if input.len().is_multiple_of(2) { world.all_arrives() } else { world.client_leaves().await }
}

impl World {
    fn upload(&self, name: SessionName, data: &[u8], from: IpAddr) -> Pin<Box<dyn Future<Output = TunnelResponse>>> {
        let mut body = Writer::new();
        body.u8(0xFF).string(&name.digits()).raw(data);
        let at = stream::post(&body.0).expect("our own form").payload_at;
        assert_eq!(&body.0[at..], data);
        let (service, held) = (Arc::clone(&self.service), HeldBytes::none(&self.budget, from));
        Box::pin(async move { service.upload(name, body.0, at, held).await })
    }

    /// A text that was not sent before.
    fn new_text(&mut self, n: usize) -> Vec<u8> {
        self.texts += 1;
        let [a, b] = self.texts.to_be_bytes();
        [a, b].into_iter().chain((0..n).map(|i| (i % 251) as u8)).collect()
    }

    /// The client sends a request, maybe while others wait.
    fn post(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(40);
        let data = if n == 0 { Vec::new() } else { self.new_text(n) };
        let mut response = self.upload(self.name, &data, FROM.ip());
        match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => {
                assert!(self.stream.is_some() && self.unread.len() < MOST_WAITING && !data.is_empty());
                self.taken.extend(data);
                self.unread.push_back((Instant::now(), self.taken.len()));
                self.waiting.push(Waiting { response, end: self.taken.len() });
            }
            Poll::Ready(TunnelResponse::Body(body, outcome)) => {
                let expected = if self.stream.is_some() { TunnelOutcome::Taken } else { TunnelOutcome::AfterEnd };
                assert_eq!(outcome, expected);
                assert!(outcome == TunnelOutcome::AfterEnd || data.is_empty(), "it is not read yet");
                let body: &[u8] = body.as_ref();
                assert_eq!(body, stream::post_response(&self.name));
            }
            Poll::Ready(response) => match response.status() {
                503 => assert!(self.unread.len() == MOST_WAITING || self.is_late(), "{response:?}"),
                404 => assert!(self.stream.is_none(), "{response:?}"),
                _ => panic!("{response:?}"),
            },
        }
    }

    /// Whether the Community has left a request unread for too long.
    fn is_late(&self) -> bool {
        self.unread.front().is_some_and(|(since, _)| since.elapsed() >= SESSION_TIMEOUT)
    }

    /// Someone without the session's name, or without its address, sends a request.
    fn stranger_posts(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(40);
        let data = choices.bytes(n).to_vec();
        let (name, from) = match n % 2 {
            0 => (SessionName::random().expect("random"), FROM.ip()),
            _ => (self.name, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9))),
        };
        let mut response = self.upload(name, &data, from);
        match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) if response.status() == 404 => (),
            other => panic!("{other:?}"),
        }
    }

    /// The Community reads some bytes. Every read also writes what is pending for the client.
    fn community_reads(&mut self, most: usize) {
        let Some(stream) = &mut self.stream else { return };
        let mut buffer = [0; 60];
        let mut read = ReadBuf::new(&mut buffer[..most.min(60)]);
        match Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut read) {
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                self.community_received.extend_from_slice(read.filled());
                while self.unread.front().is_some_and(|(_, end)| *end <= self.community_received.len()) {
                    self.unread.pop_front();
                }
            }
            Poll::Ready(Ok(())) => {
                let client_has_closed = self.wire.lock().expect("one thread").client_has_closed;
                assert!(client_has_closed, "the session ends although its client is there");
                assert!(self.unread.is_empty(), "bytes of requests are lost");
                self.stream = None;
            }
            Poll::Ready(Err(error)) => {
                assert!(self.is_late(), "{error}");
                self.was_too_slow = true;
                self.unread.clear();
                self.stream = None;
            }
            Poll::Pending => assert!(self.unread.is_empty() || self.is_late(), "bytes are there, and are not read"),
        }
    }

    /// The Community sends a frame, and as much is written as there is room for.
    fn community_sends(&mut self, n: usize) {
        if self.written == self.community_sent.len() {
            let text = self.new_text(n);
            self.community_sent.extend(frame::build(5, 1, &text));
        }
        self.community_writes();
    }

    fn community_writes(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let left = &self.community_sent[self.written..];
        if left.is_empty() {
            return;
        }
        match Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), left) {
            Poll::Ready(Ok(n)) => self.written += n,
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => (),
        }
    }

    /// The client reads some bytes, which makes room for as many.
    fn client_reads(&mut self, most: usize) {
        let mut wire = self.wire.lock().expect("one thread");
        let n = most.min(wire.unread.len());
        self.client_received.extend(wire.unread.drain(..n));
        wire.room += n.max(1);
    }

    /// The connection of a request breaks. Its bytes stay taken.
    fn connection_breaks(&mut self, choices: &mut Choices<'_>) {
        if !self.waiting.is_empty() {
            self.waiting.remove(choices.below(self.waiting.len()));
        }
    }

    /// Polls the requests, and checks the order of the bytes.
    fn settle(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let (received, is_over, is_late) = (self.community_received.len(), self.stream.is_none(), self.is_late());
        self.waiting.retain_mut(|waiting| match waiting.response.as_mut().poll(&mut cx) {
            Poll::Pending => {
                assert!(received < waiting.end && !is_over, "a request is not answered");
                true
            }
            Poll::Ready(TunnelResponse::Body(_, outcome)) => {
                let is_read = waiting.end <= received;
                assert_eq!(outcome, if is_read { TunnelOutcome::Taken } else { TunnelOutcome::AfterEnd });
                assert!(is_read || is_over, "answered before its bytes are read");
                false
            }
            Poll::Ready(response) => {
                assert_eq!(response.status(), 503);
                assert!(is_late || is_over, "{response:?}");
                false
            }
        });
        assert!(self.taken.starts_with(&self.community_received), "not what was sent, or not in order");
        self.check_response();
    }

    /// The bytes of the stream that the client has received so far.
    fn check_response(&self) -> usize {
        let received = &self.client_received[..];
        let Some(body) = received.strip_prefix(HEAD) else {
            assert!(HEAD.starts_with(received), "{}", received.escape_ascii());
            return 0;
        };
        let data = if self.is_chunked { unchunked(body) } else { body.to_vec() };
        let beginning = stream::beginning(&self.name);
        let Some(mut data) = data.strip_prefix(&beginning[..]) else {
            assert!(beginning.starts_with(&data));
            return 0;
        };
        // Keep-alives are between two frames only.
        let mut frames = &self.community_sent[..];
        while let Some(first) = data.first() {
            if *first == frame::KEEP_ALIVE {
                data = &data[1..];
                continue;
            }
            let length = frames.first_chunk().map_or(0, |length| 4 + u32::from_be_bytes(*length) as usize);
            let n = length.min(frames.len()).min(data.len());
            assert!(n > 0 && data[..n] == frames[..n], "not what the Community sent, or not in order");
            assert!(n == length || n == data.len(), "a byte in the middle of a frame");
            (data, frames) = (&data[n..], &frames[n..]);
        }
        let received = self.community_sent.len() - frames.len();
        assert!(received <= self.written, "bytes that the Community has not written");
        received
    }

    /// Everybody reads everything: every byte has arrived then, and every request is answered.
    fn all_arrives(&mut self) {
        self.wire.lock().expect("one thread").room = 1 << 20;
        while !self.unread.is_empty() && self.stream.is_some() {
            self.community_reads(60);
        }
        if self.stream.is_none() {
            return;
        }
        while self.written < self.community_sent.len() {
            self.community_writes();
        }
        // The Community closes.
        let stream = self.stream.as_mut().expect("the session is there");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(Pin::new(stream).poll_shutdown(&mut cx), Poll::Ready(Ok(()))));
        assert!(self.wire.lock().expect("one thread").server_has_closed);
        self.client_reads(usize::MAX);
        self.settle();
        assert_eq!(self.community_received, self.taken, "lost on the way to the Community");
        assert_eq!(self.check_response(), self.community_sent.len(), "lost on the way to the client");
        assert!(!self.is_chunked || self.client_received.ends_with(b"0\r\n\r\n"), "the body does not end");
        assert!(self.waiting.is_empty(), "no answer");
    }

    /// The client closes its connection: what it sent before arrives, and the session ends.
    async fn client_leaves(&mut self) {
        self.wire.lock().expect("one thread").client_has_closed = true;
        for _ in 0..3 {
            while !self.unread.is_empty() && self.stream.is_some() {
                self.community_reads(60);
            }
            self.community_reads(60);
            tokio::time::advance(Duration::from_millis(300)).await;
        }
        assert!(self.stream.is_none(), "the session does not end");
        self.settle();
        assert!(self.waiting.is_empty(), "no answer");
        assert!(self.was_too_slow || self.community_received == self.taken, "lost on the way to the Community");
        // The last request of a client that logs out still gets its answer.
        let mut last = self.upload(self.name, b"x", FROM.ip());
        let response = last.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(&response, Poll::Ready(response) if [200, 404].contains(&response.status())), "{response:?}");
    }
}

/// The data of the chunks so far.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(at) = body.windows(2).position(|two| two == b"\r\n") {
        let line = std::str::from_utf8(&body[..at]).expect("text");
        let n = usize::from_str_radix(line, 16).expect("the length of a chunk");
        let rest = &body[at + 2..];
        data.extend_from_slice(&rest[..n.min(rest.len())]);
        let Some(behind) = rest.get(n..) else { break };
        assert!(b"\r\n".starts_with(&behind[..behind.len().min(2)]), "the end of a chunk");
        let Some(next) = behind.get(2..) else { break };
        body = next;
    }
    data
}
