//! The one place that names the program's own types, so that a change of their names is a change of this file.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use sametime_mux::{
    ingress::tunnel::{Service, StreamOpening, TunnelResponse, TunnelSettings},
    limits::budget::{HeldBytes, LITTLE},
    mux::{Mux, MuxSettings},
    stream::{Arrival, Community as LinkSource, Core, Lease, Link, Linking, MoreFromClient, Stream, Via},
    telemetry::{
        Telemetry,
        outcome::{Outcome, Sent, SessionEnd},
    },
    wire::{
        Transport, frame,
        message::{self, kind as message_kind},
        tunnel::{envelope::TunnelKind, stream},
    },
};

pub use sametime_mux::wire::tunnel::name::SessionName;

use super::{
    client_codec,
    pipe::Pipe,
    script::{Script, Way},
    server::Community,
};

/// Where the client comes from. Its Handshake carries this address already, so that the stamp changes no byte.
pub const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 40_000);
/// The port that it came in by.
const PORT: u16 = 1533;
/// The longest frame that a client may send in a simulation.
pub const MAX_FRAME: u32 = 1 << 20;
/// How long a client has for its first frame.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a session lives without a byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a tunnel session lives without a request.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(60);

/// The program under test: the core and the tunnel in front of it.
pub struct Program {
    mux: Mux,
    service: Arc<Service>,
    telemetry: Arc<Telemetry>,
}

/// What a request of the tunnel was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// 200 with this body.
    Body(Vec<u8>),
    /// 404.
    Unknown,
    /// 503.
    Unavailable,
    /// 400 or 500, which no client of the simulation deserves.
    Error(String),
}

impl From<TunnelResponse> for Response {
    fn from(response: TunnelResponse) -> Self {
        match (response.status(), response) {
            (_, TunnelResponse::Body(body, _)) => Self::Body(body.to_vec()),
            (404, _) => Self::Unknown,
            (503, _) => Self::Unavailable,
            (_, other) => Self::Error(format!("{other:?}")),
        }
    }
}

/// A request's body, which counts until the tunnel has taken it.
struct CountedBody {
    bytes: Vec<u8>,
    _held: HeldBytes,
}

impl AsRef<[u8]> for CountedBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn tunnel_kind(way: Way) -> TunnelKind {
    if way == Way::Hybrid { TunnelKind::Hybrid } else { TunnelKind::Polling }
}

impl Program {
    /// Starts core and tunnel as `script` sets them, in front of `community`.
    pub fn start(script: &Script, community: Arc<Community>) -> Self {
        let telemetry = Telemetry::new("simulation");
        let settings = MuxSettings {
            capacity: 100,
            per_address: 0,
            logging_in: 100,
            logging_in_per_address: 0,
            held_bytes: 256 << 20,
            held_bytes_per_address: script.held_bytes,
            exempt: Vec::new(),
            login_timeout: LOGIN_TIMEOUT,
            logging_in_timeout: None,
            idle_timeout: Some(IDLE_TIMEOUT),
            max_frame: MAX_FRAME,
            drain_timeout: Duration::from_secs(5),
        };
        let mux = Mux::start(settings, community, Arc::clone(&telemetry));
        let settings = TunnelSettings {
            hold: Duration::from_millis(script.hold),
            reply_wait: Duration::from_millis(script.reply_wait),
            session_timeout: SESSION_TIMEOUT,
            stream_keep_alive: None,
            version: script.version,
            window: script.window,
            same_address: false,
            sessions: 100,
            sessions_per_address: 0,
            exempt: Vec::new(),
        };
        let service = Service::start(settings, Arc::new(mux.clone()));
        Self { mux, service, telemetry }
    }

    /// A raw client arrives.
    pub fn take(&self, stream: Pipe) {
        let via = Via {
            client: CLIENT,
            port: PORT.into(),
            transport: Transport::Raw,
            accepted: tokio::time::Instant::now().into_std(),
        };
        self.mux.take(Arrival { stream: Stream::other(stream), first: Bytes::new(), via }).expect("there is room");
    }

    /// A streaming client's GET request arrives on `stream`.
    pub fn open_stream(&self, stream: Pipe) -> SessionName {
        let name = SessionName::random().expect("random numbers");
        let opening = StreamOpening { name, head: Vec::new(), is_chunked: false, client: CLIENT, port: PORT.into() };
        assert!(self.service.open_stream(stream, opening).is_ok(), "there is room");
        name
    }

    /// A streaming client's POST request.
    pub async fn upload(&self, name: SessionName, data: &[u8]) -> Response {
        let mut body = stream::post_response(&name);
        let at = body.len();
        body.extend_from_slice(data);
        let mut held = self.held();
        if body.len() > LITTLE && !held.grow(body.len()) {
            let Some(exception) = self.service.upload_exception(&name) else { return Response::Unavailable };
            held.except(exception);
            if !held.grow(body.len()) {
                return Response::Unavailable;
            }
        }
        self.service.upload(name, body, at, held).await.into()
    }

    /// The first request of a tunnel's client: the client's own codec, and the session's name.
    pub fn open(&self, way: Way) -> (Codec, SessionName) {
        let kind = tunnel_kind(way);
        let response = self.service.open(kind, &client_codec::Client::opening(kind), CLIENT, PORT);
        let Response::Body(body) = response.into() else { panic!("the first request was refused") };
        let (client, name) = client_codec::Client::opened(kind, &body);
        (Codec(client), name)
    }

    /// A later request of a tunnel's client. It can be asked for many times at once; to drop it is to hang up.
    pub fn request(
        &self,
        way: Way,
        name: SessionName,
        body: Vec<u8>,
    ) -> impl Future<Output = Response> + Send + 'static {
        let (service, kind, mut held) = (Arc::clone(&self.service), tunnel_kind(way), self.held());
        async move {
            // As the HTTP server counts a long body.
            if body.len() > LITTLE && !held.grow(body.len()) {
                let Some(exception) = service.exception(kind, &name) else { return Response::Unavailable };
                held.except(exception);
                if !held.grow(body.len()) {
                    return Response::Unavailable;
                }
            }
            service.request(kind, name, CountedBody { bytes: body, _held: held }, CLIENT.ip()).await.into()
        }
    }

    fn held(&self) -> HeldBytes {
        HeldBytes::none(&self.mux.budget(), CLIENT.ip())
    }

    /// Bytes that are held for slow receivers.
    pub fn held_bytes(&self) -> usize {
        self.mux.held_bytes()
    }

    /// Sessions at present: of the core, and of the tunnel.
    pub fn sessions(&self) -> (usize, usize) {
        (self.mux.sessions(), self.service.sessions())
    }

    /// How the sessions that are over ended: the name of each end, and the farewell message that belongs to it.
    pub fn ends(&self) -> Vec<(&'static str, Option<Vec<u8>>)> {
        let metrics = self.telemetry.encode();
        let counted = |end: &SessionEnd| {
            let line = format!("sametime_mux_sessions_closed_total{{reason=\"{}\"}} 1", end.name());
            metrics.lines().any(|shown| shown == line)
        };
        let ended = SessionEnd::ALL.iter().filter(|end| counted(end));
        let farewell = |end: &SessionEnd| match end.policy().sent {
            Sent::Farewell(reason) => Some(reason.destroy()),
            _ => None,
        };
        ended.map(|end| (end.name(), farewell(end))).collect()
    }
}

/// What a tunnel's client puts into requests and finds in responses.
pub struct Codec(client_codec::Client);

impl Codec {
    /// A request's body; the acknowledgement is that of the last response that was received.
    pub fn request(&mut self, data: &[u8]) -> Vec<u8> {
        self.0.request(data)
    }

    /// The bytes of the stream in a response.
    pub fn response(&mut self, body: &[u8]) -> Vec<u8> {
        self.0.receive(body);
        std::mem::take(&mut self.0.received)
    }
}

/// A place on the Community server that counts nothing.
#[derive(Debug)]
struct Place;

impl Lease for Place {
    fn broken(&self) {}
}

impl LinkSource for Community {
    fn connect<'a>(&'a self, _: SocketAddr, hello: &'a [u8], more: MoreFromClient<'a>) -> Linking<'a> {
        Box::pin(async move {
            let (stream, answer) = self.accept(hello, more).await;
            Ok((Link { stream: Stream::other(stream), server: "simulated".into(), lease: Box::new(Place) }, answer))
        })
    }
}

/// The client's first frame, with its own address where the multiplexer writes it.
pub fn handshake() -> Vec<u8> {
    let mut frame = message::handshake();
    message::stamp_client_address(&mut frame, CLIENT.ip());
    frame
}

/// What the Community answers a Handshake with, for a client that needs no log-in of its own.
pub fn welcome() -> Vec<u8> {
    let mut bytes = frame::build(message_kind::HANDSHAKE_ACK, 0, &[0; 8]);
    bytes.extend(frame::build(message_kind::LOGIN_ACK, 0, &[0; 8]));
    bytes
}

/// A frame of the conversation: `channel` is its number, from 1.
pub fn data_frame(channel: u32, body: &[u8]) -> Vec<u8> {
    frame::build(message_kind::SEND_ON_CNL, channel, body)
}

/// The message that ends a session, with a reason of the sender's.
pub fn good_bye(reason: u32) -> Vec<u8> {
    message::destroy(0, reason)
}
