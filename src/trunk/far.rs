//! The far end: accepts connections of near ends, and connects each stream to the only target.
//!
//! ```text
//!  accepted ── TLS, the near end's certificate ── CONNECT target ── TCP to the target ── 200 ── relay
//!                 └── dropped                        └── 403, 405      └── 502, 503, 504
//! ```
//! When the program is stopped, each connection gets GOAWAY, and its streams go on until they end or
//! `limits.drain_timeout` has passed.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use h2::{RecvStream, server};
use http::{Method, Request, Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls};
use tracing::info;

use super::{
    CONNECTION_WINDOW, FarIdentity, STREAM_WINDOW, TrunkListenerSettings, TrunkStream, close_of,
    guard::{FrameWatch, WatchedStream},
    liveness::Liveness,
    relay::relay,
    stream::counted,
};
use crate::{
    log::Throttles,
    net::{
        connect::{ConnectFailure, connect},
        lookup::RemoteHost,
        own::OwnListeners,
        shortage::is_shortage,
    },
    telemetry::{
        Telemetry,
        outcome::{Outcome, TrunkClose, TrunkRefusal},
    },
};

/// The longest header list of a request: a CONNECT has two short headers.
const HEADERS: u32 = 4 * 1024;
/// How many streams a near end may make this end reset because of its errors.
const MOST_ERRORS: usize = 10_000;
/// How often the end of a drain is looked for.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// The far end of trunks.
pub struct FarEnd {
    in_force: ArcSwap<InForce>,
    telemetry: Arc<Telemetry>,
    draining: watch::Sender<bool>,
    /// By [`TrunkClose`], and by [`TrunkRefusal`].
    lines: (Throttles, Throttles),
}

/// The settings in force, and the target that they name.
struct InForce {
    settings: TrunkListenerSettings,
    target: RemoteHost,
}

impl InForce {
    fn new(settings: TrunkListenerSettings) -> Self {
        Self { target: RemoteHost::new(&settings.target, OwnListeners::default()), settings }
    }
}

impl FarEnd {
    /// A far end with these settings. It serves the connections that it is given.
    pub fn new(settings: TrunkListenerSettings, telemetry: Arc<Telemetry>) -> Arc<Self> {
        Arc::new(Self {
            in_force: ArcSwap::from_pointee(InForce::new(settings)),
            telemetry,
            draining: watch::Sender::new(false),
            lines: (Throttles::new(TrunkClose::ALL.len()), Throttles::new(TrunkRefusal::ALL.len())),
        })
    }

    /// Uses new settings for connections and streams from now on.
    pub fn reconfigure(&self, settings: TrunkListenerSettings) {
        if self.in_force.load().settings != settings {
            self.in_force.store(Arc::new(InForce::new(settings)));
        }
    }

    /// Sends every near end GOAWAY, and waits until all streams have ended, or until `limits.drain_timeout` has passed.
    pub async fn drain(&self) {
        self.draining.send_replace(true);
        let ended = async {
            while self.telemetry.trunk.far.streams() > 0 {
                sleep(DRAIN_STEP).await;
            }
        };
        let _ = timeout(self.in_force.load().settings.drain_timeout, ended).await;
    }

    /// Serves a connection of a near end, in a task of its own. Without an `identity`, it uses no TLS. `permit` is dropped
    /// when the connection is over.
    pub fn serve(
        self: &Arc<Self>,
        tcp: TcpStream,
        peer: SocketAddr,
        identity: Option<FarIdentity>,
        permit: impl Send + 'static,
    ) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _permit = permit;
            let (outcome, detail) = match this.connection(tcp, identity).await {
                Ok(()) => (TrunkClose::Closed, None),
                Err((outcome, detail)) => (outcome, detail),
            };
            this.telemetry.trunk.closed.count(outcome);
            if outcome != TrunkClose::Closed
                && let Some(more) = this.lines.0.pass(outcome.index())
            {
                info!(client = %peer, reason = outcome.name(), detail, more, "trunk connection closed");
            }
        });
    }

    async fn connection(
        self: &Arc<Self>,
        tcp: TcpStream,
        identity: Option<FarIdentity>,
    ) -> Result<(), (TrunkClose, Option<String>)> {
        let within = self.in_force.load().settings.login_timeout;
        let _ = tcp.set_nodelay(true);
        let Some(identity) = identity else { return self.requests(tcp, within).await };
        let accepted = timeout(within, TlsAcceptor::from(identity.0).accept(tcp)).await;
        let tls = accepted.map_err(|_| (TrunkClose::LoginTimeout, None))?.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let is_certificate =
                matches!(inner, Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)));
            let outcome = if is_certificate { TrunkClose::ClientCertificate } else { TrunkClose::TlsHandshake };
            (outcome, Some(error.to_string()))
        })?;
        self.requests(tls, within).await
    }

    /// Takes the requests of a connection until it is over.
    async fn requests<S>(self: &Arc<Self>, stream: S, within: Duration) -> Result<(), (TrunkClose, Option<String>)>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let streams = self.in_force.load().settings.streams;
        let (stream, flood) = WatchedStream::new(stream, FrameWatch::new(true, streams, Instant::now()));
        let failed = |error: h2::Error| match flood.get() {
            Some(flood) => (TrunkClose::Flood, Some(flood.name().to_owned())),
            None => (close_of(&error), Some(error.to_string())),
        };
        let mut builder = server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(STREAM_WINDOW as usize)
            .max_concurrent_streams(streams)
            .max_header_list_size(HEADERS)
            .max_local_error_reset_streams(Some(MOST_ERRORS))
            .max_concurrent_reset_streams(1024)
            .reset_stream_duration(Duration::from_secs(30));
        let handshake = timeout(within, builder.handshake::<_, Bytes>(stream)).await;
        let mut connection = handshake.map_err(|_| (TrunkClose::LoginTimeout, None))?.map_err(failed)?;
        let counted = Arc::new(self.telemetry.trunk.far.connection());
        let (mut draining, mut has_notified) = (self.draining.subscribe(), false);
        let mut liveness = Liveness::of(connection.ping_pong());
        loop {
            tokio::select! {
                request = connection.accept() => match request {
                    Some(Ok((request, respond))) => {
                        tokio::spawn(Arc::clone(self).request(request, respond, Arc::clone(&counted)));
                    }
                    Some(Err(error)) => return Err(failed(error)),
                    None => return Ok(()),
                },
                () = liveness.lost() => return Err((TrunkClose::NoPong, None)),
                Ok(_) = draining.wait_for(|draining| *draining), if !has_notified => {
                    connection.graceful_shutdown();
                    has_notified = true;
                }
            }
        }
    }

    /// Connects a stream to the target, or refuses it.
    async fn request<T: Send + Sync + 'static>(
        self: Arc<Self>,
        request: Request<RecvStream>,
        mut respond: server::SendResponse<Bytes>,
        connection: Arc<T>,
    ) {
        let in_force = self.in_force.load_full();
        let checked = check(&request, &in_force.settings.target);
        let connected = match checked {
            Ok(()) => {
                let connecting = connect(&in_force.target, in_force.settings.login_timeout);
                tokio::select! {
                    connected = connecting => connected.map_err(|error| refusal(&error)),
                    // The near end has given up meanwhile.
                    _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
                }
            }
            Err(refusal) => Err(refusal),
        };
        match connected {
            Ok((tcp, _)) => {
                let _ = tcp.set_nodelay(true);
                // It fails if the near end has given up meanwhile.
                if let Ok(send) = respond.send_response(Response::new(()), false) {
                    let counted = counted(self.telemetry.trunk.far.stream(), connection);
                    relay(TrunkStream::new(send, request.into_body(), counted), tcp).await;
                }
            }
            Err(refusal) => {
                self.telemetry.trunk.refused.count(refusal);
                if let Some(more) = self.lines.1.pass(refusal.index()) {
                    let asked = request.uri().to_string();
                    info!(reason = refusal.name(), asked, more, "trunk stream refused");
                }
                let mut response = Response::new(());
                *response.status_mut() = refusal.policy().status().unwrap_or(StatusCode::BAD_GATEWAY);
                let _ = respond.send_response(response, true);
            }
        }
    }
}

/// Checks a request against the only target.
fn check<B>(request: &Request<B>, target: &str) -> Result<(), TrunkRefusal> {
    if request.method() != Method::CONNECT {
        return Err(TrunkRefusal::Method);
    }
    let asked = request.uri().authority().map(http::uri::Authority::as_str);
    if asked.is_some_and(|asked| asked.eq_ignore_ascii_case(target)) { Ok(()) } else { Err(TrunkRefusal::Target) }
}

fn refusal(error: &ConnectFailure) -> TrunkRefusal {
    match error {
        ConnectFailure::LookupTimedOut(_) => TrunkRefusal::TimedOut,
        ConnectFailure::NotResolved(_) => TrunkRefusal::Unreachable,
        ConnectFailure::Unconnected(all) => {
            let mut errors = all.attempts.iter().map(|attempt| attempt.error.as_ref());
            if errors.clone().flatten().any(is_shortage) {
                TrunkRefusal::Shortage
            } else if errors.all(|error| error.is_none()) {
                TrunkRefusal::TimedOut
            } else {
                TrunkRefusal::Unreachable
            }
        }
    }
}
