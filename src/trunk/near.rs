//! The near end: keeps the connections to one far end, and opens streams on them.
//!
//! ```text
//!  lane of a worker:  open ──▶ the connection with the fewest streams ── CONNECT ──▶ 200: a stream
//!                       │                                                  └──▶ another status: the far end refuses
//!                       └─ fewer connections than configured, or none with room ──▶ dial, not before the back-off ends
//! ```
//! A connection belongs to a worker, whose sessions use it: no wake-up crosses threads. If there are fewer connections
//! than workers, workers share them. A connection on which the far end has sent GOAWAY gets no new streams, and lasts
//! until its streams have ended.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use h2::client;
use http::{Method, Request, StatusCode};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    sync::{oneshot, watch},
    time::{timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tracing::{info, warn};

use super::{
    CONNECTION_WINDOW, NearIdentity, STREAM_WINDOW, TrunkSettings, TrunkStream, close_of,
    guard::{Flood, FrameWatch, WatchedStream},
    liveness::Liveness,
    stream::counted,
};
use crate::{
    log::Throttle,
    net::{
        connect::connect,
        keepalive::{VANISHED_TIMEOUT, watch_for_vanished},
        lookup::RemoteHost,
    },
    runtime::current_worker,
    telemetry::{
        Telemetry,
        metrics::trunk::Counted,
        outcome::{Outcome, TrunkClose},
    },
};

/// The shortest and the longest time between two attempts to connect after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How many connections a worker has at the most, if the far end permits few streams on each.
const MOST_CONNECTIONS: usize = 64;
/// How many streams a far end may reset twice at once: more than a process has descriptors for.
const MOST_STREAMS: u32 = 65_536;
/// How often a request is repeated that the far end has not processed.
const ATTEMPTS: usize = 3;

/// What the trunks to all servers share.
pub struct Trunks {
    /// The runtimes of the workers.
    runtimes: Vec<Handle>,
    identity: ArcSwapOption<NearIdentity>,
    telemetry: Arc<Telemetry>,
}

impl Trunks {
    /// Trunks whose connections are spread over these runtimes, of which there is at least one.
    pub fn new(runtimes: Vec<Handle>, telemetry: Arc<Telemetry>) -> Arc<Self> {
        Arc::new(Self { runtimes, identity: ArcSwapOption::empty(), telemetry })
    }

    /// Uses these certificates for connections from now on.
    pub fn set_identity(&self, identity: Option<NearIdentity>) {
        self.identity.store(identity.map(Arc::new));
    }
}

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrunkError {
    /// No connection to the far end.
    NotConnected(String),
    /// The far end did not answer within this time.
    TimedOut(Duration),
    /// The far end answered with this status.
    Refused(u16),
    /// The connection to the far end ended before the answer.
    Broken(String),
}

impl fmt::Display for TrunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected(error) => write!(f, "no trunk: {error}"),
            Self::TimedOut(within) => {
                write!(f, "the trunk's far end did not answer within {}", humantime::format_duration(*within))
            }
            Self::Refused(403) => f.write_str(
                "the trunk's far end refuses the target (403): trunk.target must be its trunk_listener.target",
            ),
            Self::Refused(status @ (502 | 504)) => {
                write!(f, "the trunk's far end can't connect to the Community server ({status})")
            }
            Self::Refused(status) => write!(f, "the trunk's far end refuses the request ({status})"),
            Self::Broken(error) => write!(f, "the trunk broke: {error}"),
        }
    }
}

/// A stream that the far end has connected to its target.
pub struct OpenedTrunkStream {
    /// The stream.
    pub stream: TrunkStream,
    /// The addresses of this program and of the far end on the connection.
    pub addresses: (SocketAddr, SocketAddr),
}

/// One connection to the far end.
struct TrunkConnection {
    requests: client::SendRequest<Bytes>,
    addresses: (SocketAddr, SocketAddr),
    streams: AtomicUsize,
    _counted: Counted,
}

/// Counts a stream of a connection.
struct StreamOf(Arc<TrunkConnection>);

impl Drop for StreamOf {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

impl TrunkConnection {
    /// Whether the connection takes new streams: it has not ended, and the far end has not sent GOAWAY.
    fn is_usable(&self) -> bool {
        let mut requests = self.requests.clone();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        !matches!(requests.poll_ready(&mut cx), std::task::Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.streams.load(Relaxed) < self.requests.current_max_send_streams()
    }
}

type Dialled = Result<Arc<TrunkConnection>, TrunkError>;

/// The connections of a worker.
#[derive(Default)]
struct Lane {
    connections: Vec<Arc<TrunkConnection>>,
    dialling: Option<watch::Receiver<Option<Dialled>>>,
    /// After a failure: the time to the next attempt, its end, and the failure.
    back_off: Option<(Duration, Instant, TrunkError)>,
}

/// The trunk to one far end.
pub struct Trunk {
    trunks: Arc<Trunks>,
    /// As in the configuration: `host:port`.
    name: Arc<str>,
    host: Arc<RemoteHost>,
    lanes: Box<[Mutex<Lane>]>,
    connected: Throttle,
    lost: Throttle,
}

impl Trunk {
    /// The trunk to `name`, which is `host:port`. It connects when the first stream is opened.
    pub fn new(trunks: Arc<Trunks>, name: &str, host: Arc<RemoteHost>) -> Arc<Self> {
        let lanes = trunks.runtimes.iter().map(|_| Mutex::default()).collect();
        Arc::new(Self {
            trunks,
            name: name.into(),
            host,
            lanes,
            connected: Throttle::default(),
            lost: Throttle::default(),
        })
    }

    /// Opens a stream to the target of the far end. A new connection, and the far end's answer, may take `within` each.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(
        self: &Arc<Self>,
        settings: &TrunkSettings,
        within: Duration,
    ) -> Result<OpenedTrunkStream, TrunkError> {
        let mut failed = TrunkError::TimedOut(within);
        for _ in 0..ATTEMPTS {
            let stream = self.reserve(settings, within).await?;
            match timeout(within, connect_through(&stream.0, &settings.target)).await {
                Ok(Ok((send, receive))) => {
                    let addresses = stream.0.addresses;
                    let counted = counted(self.trunks.telemetry.trunk.near.stream(), stream);
                    return Ok(OpenedTrunkStream { stream: TrunkStream::new(send, receive, counted), addresses });
                }
                Ok(Err(Unopened::NotProcessed(error))) => failed = error,
                Ok(Err(Unopened::Failed(error))) => return Err(error),
                Err(_) => return Err(TrunkError::TimedOut(within)),
            }
        }
        Err(failed)
    }

    /// Reserves a stream of a connection that has room.
    async fn reserve(self: &Arc<Self>, settings: &TrunkSettings, within: Duration) -> Result<StreamOf, TrunkError> {
        // With fewer connections than workers, some workers use the connections of another one.
        let used = self.lanes.len().min(settings.connections);
        let number = current_worker().unwrap_or(0) % used;
        let wanted = settings.connections / used + usize::from(number < settings.connections % used);
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let mut dialled = {
                let mut lane = self.lanes[number].lock();
                lane.connections.retain(|connection| connection.is_usable());
                let open = lane.connections.iter().filter(|connection| connection.has_room());
                let chosen = open.min_by_key(|connection| connection.streams.load(Relaxed)).cloned();
                let has_all = lane.connections.len() >= wanted;
                if lane.connections.len() < MOST_CONNECTIONS && (!has_all || chosen.is_none()) {
                    self.dial(&mut lane, number, settings, within);
                }
                if let Some(connection) = chosen {
                    connection.streams.fetch_add(1, Relaxed);
                    return Ok(StreamOf(connection));
                }
                match (&lane.dialling, &lane.back_off) {
                    (Some(dialling), _) => dialling.clone(),
                    (None, Some((_, _, error))) => return Err(error.clone()),
                    (None, None) => {
                        return Err(TrunkError::NotConnected("the far end permits no more streams".to_owned()));
                    }
                }
            };
            let outcome = match timeout_at(deadline, dialled.wait_for(Option::is_some)).await {
                Ok(Ok(outcome)) => outcome.clone(),
                Ok(Err(_)) => None,
                Err(_) => return Err(TrunkError::TimedOut(within)),
            };
            if let Some(Err(error)) = outcome {
                return Err(error);
            }
        }
    }

    /// Begins to connect, unless that is under way or the back-off has not ended.
    fn dial(self: &Arc<Self>, lane: &mut Lane, number: usize, settings: &TrunkSettings, within: Duration) {
        let waits = lane.back_off.as_ref().is_some_and(|(_, until, _)| Instant::now() < *until);
        if lane.dialling.is_some() || waits {
            return;
        }
        let (notify, dialling) = watch::channel(None);
        lane.dialling = Some(dialling);
        let (this, has_tls) = (Arc::clone(self), settings.tls);
        self.trunks.runtimes[number].spawn(async move {
            let dialled = match timeout(within, this.connect(has_tls, within)).await {
                Ok(dialled) => dialled,
                Err(_) => Err(TrunkError::TimedOut(within)),
            };
            let mut lane = this.lanes[number].lock();
            lane.dialling = None;
            match &dialled {
                Ok(connection) => {
                    lane.back_off = None;
                    lane.connections.push(Arc::clone(connection));
                }
                Err(error) => {
                    let before = lane.back_off.as_ref().map_or(Duration::ZERO, |(time, ..)| *time);
                    let time = (before * 2).clamp(BACK_OFF.0, BACK_OFF.1);
                    // Between half of the time and all of it, so that many near ends do not come back at once.
                    let jitter = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
                    lane.back_off = Some((time, Instant::now() + time.mul_f64(0.5 + jitter / 2.0), error.clone()));
                }
            }
            drop(lane);
            notify.send_replace(Some(dialled));
        });
    }

    /// Connects to the far end. Runs on the runtime that the connection then belongs to.
    async fn connect(self: &Arc<Self>, has_tls: bool, within: Duration) -> Dialled {
        let not_connected = |error: &dyn fmt::Display| TrunkError::NotConnected(error.to_string());
        let (tcp, address) = connect(&self.host, within).await.map_err(|error| not_connected(&Failure(error)))?;
        tcp.set_nodelay(true).map_err(|error| not_connected(&error))?;
        watch_for_vanished(SockRef::from(&tcp), VANISHED_TIMEOUT).map_err(|error| not_connected(&error))?;
        let local = tcp.local_addr().map_err(|error| not_connected(&error))?;
        if !has_tls {
            return self.handshake(tcp, (local, address)).await;
        }
        let Some(identity) = self.trunks.identity.load_full() else {
            return Err(TrunkError::NotConnected("the certificates are not loaded".to_owned()));
        };
        let host = self.name.rsplit_once(':').map_or(&*self.name, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| not_connected(&error))?;
        let tls = TlsConnector::from(Arc::clone(&identity.0)).connect(name, tcp).await;
        self.handshake(tls.map_err(|error| not_connected(&error))?, (local, address)).await
    }

    async fn handshake<S>(self: &Arc<Self>, stream: S, addresses: (SocketAddr, SocketAddr)) -> Dialled
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stream, flood) = WatchedStream::new(stream, FrameWatch::new(false, MOST_STREAMS, Instant::now()));
        let handshake = client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(STREAM_WINDOW as usize)
            .enable_push(false)
            .max_local_error_reset_streams(None)
            .max_concurrent_reset_streams(1024)
            .reset_stream_duration(Duration::from_secs(30))
            .handshake(stream)
            .await;
        let (requests, connection) = handshake.map_err(|error| TrunkError::NotConnected(error.to_string()))?;
        let (is_there, answered) = oneshot::channel();
        tokio::spawn(drive(connection, flood, is_there, Arc::clone(self)));
        // The answer to a PING comes after the far end's settings.
        if let Err(error) = answered.await.unwrap_or_else(|_| Err("it closed".to_owned())) {
            return Err(TrunkError::NotConnected(format!("the far end does not answer in HTTP/2: {error}")));
        }
        if let Some(more) = self.connected.pass() {
            info!(server = %self.name, more, "trunk connected");
        }
        let _counted = self.trunks.telemetry.trunk.near.connection();
        Ok(Arc::new(TrunkConnection { requests, addresses, streams: AtomicUsize::new(0), _counted }))
    }

    /// Counts and logs a connection that is over.
    fn note_closed(&self, outcome: TrunkClose, error: Option<String>) {
        self.trunks.telemetry.trunk.closed.count(outcome);
        if outcome != TrunkClose::Closed
            && let Some(more) = self.lost.pass()
        {
            warn!(server = %self.name, reason = outcome.name(), error, more, "trunk lost");
        }
    }
}

/// A failed connection as text.
struct Failure(crate::net::connect::ConnectFailure);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::net::connect::ConnectFailure;
        match &self.0 {
            ConnectFailure::NotResolved(error) => error.fmt(f),
            ConnectFailure::LookupTimedOut(within) => {
                write!(f, "its name was not resolved within {}", humantime::format_duration(*within))
            }
            ConnectFailure::Unconnected(all) => all.fmt(f),
        }
    }
}

/// Runs a connection until it is over, and watches that the far end is alive. Reports to `is_there` when it has answered
/// for the first time, or why it has not.
async fn drive<S>(
    mut connection: client::Connection<S, Bytes>,
    flood: Arc<OnceLock<Flood>>,
    is_there: oneshot::Sender<Result<(), String>>,
    trunk: Arc<Trunk>,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut liveness, mut is_there) = (Liveness::of(connection.ping_pong()), Some(is_there));
    let (outcome, error) = loop {
        tokio::select! {
            ended = &mut connection => break match (ended, flood.get()) {
                (Ok(()), _) => (TrunkClose::Closed, None),
                (Err(_), Some(flood)) => (TrunkClose::Flood, Some(flood.name().to_owned())),
                (Err(error), None) => (close_of(&error), Some(error.to_string())),
            },
            answered = liveness.answered() => {
                if answered.is_err() {
                    break (TrunkClose::NoPong, None);
                }
                if let Some(is_there) = is_there.take() {
                    let _ = is_there.send(Ok(()));
                }
            }
        }
    };
    match is_there {
        // The one who dials reports it.
        Some(is_there) => {
            let _ = is_there.send(Err(error.unwrap_or_else(|| outcome.to_string())));
        }
        None => trunk.note_closed(outcome, error),
    }
}

/// Why a request has brought no stream.
enum Unopened {
    /// The far end has not processed it: another attempt may succeed.
    NotProcessed(TrunkError),
    Failed(TrunkError),
}

type HttpStream = (h2::SendStream<Bytes>, h2::RecvStream);

async fn connect_through(connection: &TrunkConnection, target: &str) -> Result<HttpStream, Unopened> {
    let broken = |error: h2::Error| {
        let is_unprocessed = error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let error = TrunkError::Broken(error.to_string());
        if is_unprocessed { Unopened::NotProcessed(error) } else { Unopened::Failed(error) }
    };
    let invalid = |error: http::Error| Unopened::Failed(TrunkError::Broken(error.to_string()));
    let request = Request::builder().method(Method::CONNECT).uri(target).body(()).map_err(invalid)?;
    let mut requests = connection.requests.clone().ready().await.map_err(broken)?;
    let (response, send) = requests.send_request(request, false).map_err(broken)?;
    let response = response.await.map_err(broken)?;
    match response.status() {
        StatusCode::OK => Ok((send, response.into_body())),
        status => Err(Unopened::Failed(TrunkError::Refused(status.as_u16()))),
    }
}
