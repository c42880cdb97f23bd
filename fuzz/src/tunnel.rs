//! The tunnel's service as it runs: requests that are held, superseded or whose connection closes, and the
//! Community's stream behind them. Time passes only in the steps that advance the clock.

use std::{
    cell::Cell,
    collections::VecDeque,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use sametime_mux::{
    ingress::tunnel::{Service, TunnelResponse, TunnelSettings},
    stream::{Arrival, Core, Stream},
    telemetry::outcome::{Refusal, TunnelOutcome},
    wire::tunnel::{envelope::TunnelKind, name::SessionName},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Choices,
    client::{Client, carries_payload},
};

/// The tunnels and their versions.
const TUNNELS: [(TunnelKind, u32); 4] =
    [(TunnelKind::Polling, 0), (TunnelKind::Polling, 1), (TunnelKind::Hybrid, 0), (TunnelKind::Hybrid, 1)];
/// The most requests that are at the server at the same time.
const HELD: usize = 8;
/// The limits between two responses that the client reads; see the module `session`.
const UNREAD: usize = 60;
const OVERTAKING: usize = 6;
/// The address of the clients.
const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
/// More bytes than any run sends: what happens when the window is full is not tested here.
const WINDOW: usize = 1 << 20;

/// A core that keeps the one stream that arrives.
#[derive(Default)]
struct Community(Mutex<Option<Stream>>);

impl Core for Community {
    fn take(&self, arrival: Arrival) -> Result<(), Box<(Refusal, Arrival)>> {
        *self.0.lock().expect("one thread") = Some(arrival.stream);
        Ok(())
    }
}

/// A request that the service holds.
struct Held {
    connection: usize,
    response: Pin<Box<dyn Future<Output = TunnelResponse>>>,
}

/// Client, network, service and Community.
struct World {
    kind: TunnelKind,
    service: Arc<Service>,
    name: SessionName,
    client: Client,
    stream: Stream,
    /// The newest request, which has no response yet, and whether a copy of it has arrived.
    current: Option<(Vec<u8>, bool)>,
    /// The connection that the client reads: the one that it opened last.
    connection: usize,
    /// Requests since a response was read.
    unread: usize,
    /// Late copies since a response was read.
    overtaking: usize,
    /// Copies that are still on their way.
    late: VecDeque<Vec<u8>>,
    held: Vec<Held>,
    /// The bytes that the client sent.
    client_sent: Vec<u8>,
    /// The bytes of the client that the Community received.
    community_received: Vec<u8>,
    /// The bytes that the Community sent.
    community_sent: Vec<u8>,
    /// The number of texts so far.
    texts: u16,
}

/// The first byte chooses the tunnel; the others choose the steps.
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
    let (kind, version) = TUNNELS[choices.below(TUNNELS.len())];
    let settings = TunnelSettings {
        hold: Duration::from_secs(25),
        reply_wait: Duration::from_millis(100),
        // Longer than all steps of a run together.
        session_timeout: Duration::from_secs(1 << 30),
        stream_keep_alive: None,
        version,
        window: WINDOW,
        same_address: false,
        sessions: 10,
        sessions_per_address: 0,
        exempt: vec![],
    };
    let core = Arc::new(Community::default());
    let service = Service::start(settings, Arc::clone(&core) as Arc<dyn Core>);
    let TunnelResponse::Body(body, _) = service.open(kind, &Client::opening(kind), FROM, 1533) else {
        panic!("refused")
    };
    let (client, name) = Client::opened(kind, &body);
    let stream = core.0.lock().expect("one thread").take().expect("an arrival");
    let mut world = World {
        kind,
        service,
        name,
        client,
        stream,
        current: None,
        connection: 0,
        unread: 0,
        overtaking: 0,
        late: VecDeque::new(),
        held: Vec::new(),
        client_sent: Vec::new(),
        community_received: Vec::new(),
        community_sent: Vec::new(),
        texts: 0,
    };
    while !choices.is_over() {
        match choices.below(8) {
            0..=2 => world.post(&mut choices),
            3 => world.late_copy_arrives(&mut choices),
            4 => world.community_sends(&mut choices),
            5 => world.connection_breaks(&mut choices),
            6 => tokio::time::advance(Duration::from_millis(10 << choices.below(12))).await,
            _ => world.stranger_posts(&mut choices),
        }
        world.settle();
    }
    world.network_recovers().await;
}

impl World {
    /// A text that was not sent before, so that no two requests are the same by chance.
    fn new_text(&mut self, n: usize) -> Vec<u8> {
        self.texts += 1;
        let [a, b] = self.texts.to_be_bytes();
        [a, b].into_iter().chain((0..n).map(|i| (i % 251) as u8)).collect()
    }

    /// The client sends a new request, or a copy of the newest one.
    fn post(&mut self, choices: &mut Choices<'_>) {
        let choice = choices.byte();
        let in_parallel = self.kind == TunnelKind::Hybrid && choice & 1 == 1;
        match &self.current {
            Some((_, arrived)) if !(in_parallel && *arrived && self.unread < UNREAD) => (),
            current => {
                let data =
                    if current.is_some() || choice & 2 == 2 { self.new_text((choice >> 4).into()) } else { Vec::new() };
                self.client_sent.extend_from_slice(&data);
                self.current = Some((self.client.request(&data), false));
                self.unread += 1;
            }
        }
        self.connection += 1;
        let Some((body, arrived)) = &mut self.current else { return };
        let body = body.clone();
        if choice & 4 == 4 {
            self.late.push_back(body.clone());
        }
        // Otherwise this copy is lost, and a retry or a late copy arrives instead.
        if choice & 8 == 0 {
            *arrived = true;
            let connection = self.connection;
            self.arrive(connection, body);
        }
    }

    /// A request arrives at the service.
    fn arrive(&mut self, connection: usize, body: Vec<u8>) {
        if self.held.len() == HELD {
            self.held.remove(0);
        }
        let (service, name, kind) = (Arc::clone(&self.service), self.name, self.kind);
        let response = Box::pin(async move { service.request(kind, name, &body, FROM.ip()).await });
        self.held.push(Held { connection, response });
        self.settle();
    }

    fn late_copy_arrives(&mut self, choices: &mut Choices<'_>) {
        let at = choices.below(self.late.len());
        if self.overtaking == OVERTAKING {
            return;
        }
        self.overtaking += 1;
        if let Some(body) = self.late.remove(at) {
            if let Some((current, arrived)) = &mut self.current {
                *arrived |= *current == body;
            }
            // The client does not read the response on this connection.
            self.arrive(usize::MAX, body);
        }
    }

    fn community_sends(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(60);
        let data = self.new_text(n);
        let mut cx = Context::from_waker(Waker::noop());
        let written = Pin::new(&mut self.stream).poll_write(&mut cx, &data);
        assert!(matches!(written, Poll::Ready(Ok(n)) if n == data.len()), "{written:?}");
        self.community_sent.extend(data);
    }

    /// A connection breaks. The server drops its request.
    fn connection_breaks(&mut self, choices: &mut Choices<'_>) {
        if !self.held.is_empty() {
            let at = choices.below(self.held.len());
            self.held.remove(at);
        }
    }

    /// Someone who knows the session's name, but not its acknowledgement, sends a request.
    fn stranger_posts(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(40);
        let mut body = choices.bytes(n).to_vec();
        // With the length 0 in bytes 4..8 the body has no acknowledgement, so it cannot have the right one.
        for byte in body.iter_mut().skip(4).take(4) {
            *byte = 0;
        }
        let (service, name, kind) = (Arc::clone(&self.service), self.name, self.kind);
        let mut response = Box::pin(async move { service.request(kind, name, &body, FROM.ip()).await });
        match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) if response.status() == 404 => (),
            other => panic!("{other:?}"),
        }
    }

    /// Polls the requests and the stream until nothing changes any more, and checks the order of the bytes.
    fn settle(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        // A request that supersedes others lets them end.
        loop {
            let before = self.held.len();
            let mut answered = Vec::new();
            self.held.retain_mut(|held| match held.response.as_mut().poll(&mut cx) {
                Poll::Pending => true,
                Poll::Ready(response) => {
                    answered.push((held.connection, response));
                    false
                }
            });
            for (connection, response) in answered {
                self.answered(connection, response);
            }
            if self.held.len() == before {
                break;
            }
        }
        let mut buffer = [0; 512];
        loop {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.stream).poll_read(&mut cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    self.community_received.extend_from_slice(read.filled())
                }
                Poll::Ready(Err(error)) => panic!("{error}"),
                _ => break,
            }
        }
        assert!(
            self.client_sent.starts_with(&self.community_received),
            "the Community received bytes that were not sent, or not in order"
        );
        assert!(
            self.community_sent.starts_with(&self.client.received),
            "the client received bytes that were not sent, or not in order"
        );
    }

    /// A request has its response.
    fn answered(&mut self, connection: usize, response: TunnelResponse) {
        match response {
            TunnelResponse::Body(body, outcome) => {
                let superseded = matches!(outcome, TunnelOutcome::Superseded | TunnelOutcome::Stale);
                assert!(!superseded || !carries_payload(&body), "payload in a {outcome} response");
                if connection == self.connection && self.current.take().is_some() {
                    self.client.receive(&body);
                    (self.unread, self.overtaking) = (0, 0);
                }
            }
            // A late copy of a request from a much older epoch.
            failed if failed.status() == 404 => assert_ne!(connection, self.connection, "{failed:?}"),
            other => panic!("{other:?}"),
        }
    }

    /// The network works again: every byte arrives, and the session ends after the last one.
    async fn network_recovers(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        // Each round completes one request, after the hold time if the Community has nothing to send.
        for _ in 0..4 {
            self.connection += 1;
            let body = match &self.current {
                Some((body, _)) => body.clone(),
                None => self.client.request(&[]),
            };
            self.current = Some((body.clone(), true));
            self.arrive(self.connection, body);
            if self.current.is_some() {
                tokio::time::advance(Duration::from_secs(26)).await;
                self.settle();
            }
            assert!(self.current.is_none(), "no answer");
        }
        assert_eq!(self.community_received, self.client_sent, "lost on the way to the Community");
        assert_eq!(self.client.received, self.community_sent, "lost on the way to the client");
        // The Community sends its last bytes and closes. The client fetches them, and then the session is gone.
        let _ = Pin::new(&mut self.stream).poll_write(&mut cx, b"bye");
        let _ = Pin::new(&mut self.stream).poll_shutdown(&mut cx);
        self.community_sent.extend(b"bye");
        self.held.clear();
        let body = self.client.request(&[]);
        self.current = Some((body.clone(), true));
        self.connection += 1;
        self.arrive(self.connection, body);
        assert_eq!(self.client.received, self.community_sent);
        let body = self.client.request(&[]);
        let response = self.service.request(self.kind, self.name, &body, FROM.ip()).await;
        assert_eq!(response.status(), 404, "{response:?}");
    }
}
