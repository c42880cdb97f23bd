//! The tunnel's service as it runs: requests that are held and superseded and whose connections close, and the
//! Community's stream behind them. The clock moves only in the steps that move it.

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

const WAYS: [(TunnelKind, u32); 4] =
    [(TunnelKind::Polling, 0), (TunnelKind::Polling, 1), (TunnelKind::Hybrid, 0), (TunnelKind::Hybrid, 1)];
/// The most requests that the server holds at the same time.
const HELD: usize = 8;
/// The most requests, and late copies of them, between two responses that the client reads; see `session`.
const UNREAD: usize = 60;
const OVERTAKING: usize = 6;
/// Where clients come from.
const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
/// More than a run sends, so that no run fills the window.
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

struct Held {
    connection: usize,
    answer: Pin<Box<dyn Future<Output = TunnelResponse>>>,
}

struct World {
    kind: TunnelKind,
    service: Arc<Service>,
    name: SessionName,
    client: Client,
    stream: Stream,
    /// The request for which the client waits, and whether a copy of it has arrived.
    current: Option<(Vec<u8>, bool)>,
    connection: usize,
    /// Number of requests, and of late copies, since a response was read.
    unread: usize,
    overtaking: usize,
    /// Copies that arrive late.
    late: VecDeque<Vec<u8>>,
    held: Vec<Held>,
    sent: Vec<u8>,
    consumed: Vec<u8>,
    said: Vec<u8>,
    words: u16,
}

/// The first byte selects the tunnel, and each further byte a step.
pub fn check(input: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        /// The task of a service ends after the service, at its next timer.
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
    let (kind, version) = WAYS[choices.below(WAYS.len())];
    let settings = TunnelSettings {
        hold: Duration::from_secs(25),
        reply_wait: Duration::from_millis(100),
        session_timeout: Duration::from_secs(1 << 30),
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
        sent: Vec::new(),
        consumed: Vec::new(),
        said: Vec::new(),
        words: 0,
    };
    while !choices.is_over() {
        match choices.below(8) {
            0..=2 => world.post(&mut choices),
            3 => world.a_late_copy(&mut choices),
            4 => world.community_says(&mut choices),
            5 => world.hang_up(&mut choices),
            6 => tokio::time::advance(Duration::from_millis(10 << choices.below(12))).await,
            _ => world.stranger(&mut choices),
        }
        world.settle();
    }
    world.heals().await;
}

impl World {
    fn words(&mut self, n: usize) -> Vec<u8> {
        self.words += 1;
        let [a, b] = self.words.to_be_bytes();
        [a, b].into_iter().chain((0..n).map(|i| (i % 251) as u8)).collect()
    }

    fn post(&mut self, choices: &mut Choices<'_>) {
        let choice = choices.byte();
        let beside = self.kind == TunnelKind::Hybrid && choice & 1 == 1;
        match &self.current {
            Some((_, arrived)) if !(beside && *arrived && self.unread < UNREAD) => (),
            current => {
                let data =
                    if current.is_some() || choice & 2 == 2 { self.words((choice >> 4).into()) } else { Vec::new() };
                self.sent.extend_from_slice(&data);
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
        // Otherwise it is lost, and arrives with a retry, or late.
        if choice & 8 == 0 {
            *arrived = true;
            let connection = self.connection;
            self.arrive(connection, body);
        }
    }

    fn arrive(&mut self, connection: usize, body: Vec<u8>) {
        if self.held.len() == HELD {
            self.held.remove(0);
        }
        let (service, name, kind) = (Arc::clone(&self.service), self.name, self.kind);
        let answer = Box::pin(async move { service.request(kind, name, &body, FROM.ip()).await });
        self.held.push(Held { connection, answer });
        self.settle();
    }

    fn a_late_copy(&mut self, choices: &mut Choices<'_>) {
        let at = choices.below(self.late.len());
        if self.overtaking == OVERTAKING {
            return;
        }
        self.overtaking += 1;
        if let Some(body) = self.late.remove(at) {
            if let Some((current, arrived)) = &mut self.current {
                *arrived |= *current == body;
            }
            // Nobody reads its response.
            self.arrive(usize::MAX, body);
        }
    }

    fn community_says(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(60);
        let data = self.words(n);
        let mut cx = Context::from_waker(Waker::noop());
        let written = Pin::new(&mut self.stream).poll_write(&mut cx, &data);
        assert!(matches!(written, Poll::Ready(Ok(n)) if n == data.len()), "{written:?}");
        self.said.extend(data);
    }

    /// A connection breaks: the server drops its request.
    fn hang_up(&mut self, choices: &mut Choices<'_>) {
        if !self.held.is_empty() {
            let at = choices.below(self.held.len());
            self.held.remove(at);
        }
    }

    fn stranger(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(40);
        let mut body = choices.bytes(n).to_vec();
        // A stranger does not have the right acknowledgement, which is in the bytes 8..16.
        for byte in body.iter_mut().skip(4).take(4) {
            *byte = 0;
        }
        let (service, name, kind) = (Arc::clone(&self.service), self.name, self.kind);
        let mut answer = Box::pin(async move { service.request(kind, name, &body, FROM.ip()).await });
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) if response.status() == 404 => (),
            other => panic!("{other:?}"),
        }
    }

    /// Polls everything until nothing changes any more.
    fn settle(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        // A request that supersedes others makes them end.
        loop {
            let before = self.held.len();
            let mut answered = Vec::new();
            self.held.retain_mut(|held| match held.answer.as_mut().poll(&mut cx) {
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
                Poll::Ready(Ok(())) if !read.filled().is_empty() => self.consumed.extend_from_slice(read.filled()),
                Poll::Ready(Err(error)) => panic!("{error}"),
                _ => break,
            }
        }
        assert!(self.sent.starts_with(&self.consumed), "the Community got what was not said, or not in order");
        assert!(self.said.starts_with(&self.client.received), "the client got what was not said, or not in order");
    }

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
            // A late copy of an epoch that ended long ago.
            failed if failed.status() == 404 => assert_ne!(connection, self.connection, "{failed:?}"),
            other => panic!("{other:?}"),
        }
    }

    async fn heals(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        // The network works again: the client repeats its current request, and then fetches the rest.
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
        assert_eq!(self.consumed, self.sent, "lost on the way to the Community");
        assert_eq!(self.client.received, self.said, "lost on the way to the client");
        // The Community sends its last byte. The client fetches it, and then the session is gone.
        let _ = Pin::new(&mut self.stream).poll_write(&mut cx, b"bye");
        let _ = Pin::new(&mut self.stream).poll_shutdown(&mut cx);
        self.said.extend(b"bye");
        self.held.clear();
        let body = self.client.request(&[]);
        self.current = Some((body.clone(), true));
        self.connection += 1;
        self.arrive(self.connection, body);
        assert_eq!(self.client.received, self.said);
        let body = self.client.request(&[]);
        let response = self.service.request(self.kind, self.name, &body, FROM.ip()).await;
        assert_eq!(response.status(), 404, "{response:?}");
    }
}
