//! One connection, from accept until it is handed over to the core or to HTTP, or dropped.
//!
//! ```text
//!  limits ── identify ── limits of the client ──┬── Sametime ── core
//!  (total)      ▲        behind a trusted proxy ├── HTTP ────── http
//!               └──────── handshake ◄─── TLS ───┘
//! ```
//! What can fail for a connection is [`Dropped`]; its policy says what the client is sent.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    time::{timeout, timeout_at},
};
use tracing::{Level, debug, info};

use super::{
    ClientCertificates, Ingress, IngressSettings, Origin,
    connection_limits::ConnectionLimitReached,
    detect::Protocol,
    http,
    identify::{Identification, Identified, IdentifyError, ProxyHeader},
    tls::{self, TlsConnection},
};
use crate::{
    limits::{budget::LITTLE, tally::Permit},
    net::{
        Port,
        address::{canonical, lies_in},
    },
    runtime::scratch,
    stream::{ClosingBounds, Replayed, Stream, close_in_stages, peer_has_left, refuse},
    telemetry::outcome::{ConnectionDrop, Outcome, Sent, TlsAlert, TlsOutcome},
    wire::Transport,
};

/// How long to wait for the first bytes of a connection that is over a limit, to refuse it in its own protocol. Clients
/// send their first bytes at once.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a connection is dropped.
#[derive(Debug)]
enum Dropped {
    ClosedEarly,
    LoginTimeout,
    Broken(io::Error),
    UnknownProtocol,
    Ssl2,
    ProxyHeader(IdentifyError),
    TlsHandshake(io::Error),
    NoCertificate,
    Limit(ConnectionLimitReached),
}

impl Dropped {
    /// As it is counted and logged. Its policy is what the client is sent.
    fn outcome(&self) -> ConnectionDrop {
        match self {
            Self::ClosedEarly => ConnectionDrop::ClosedEarly,
            Self::LoginTimeout => ConnectionDrop::LoginTimeout,
            Self::Broken(_) => ConnectionDrop::Broken,
            Self::UnknownProtocol => ConnectionDrop::UnknownProtocol,
            Self::Ssl2 => ConnectionDrop::OldSsl,
            Self::ProxyHeader(_) => ConnectionDrop::ProxyHeader,
            Self::TlsHandshake(_) => ConnectionDrop::TlsHandshake,
            Self::NoCertificate => ConnectionDrop::NoCertificate,
            Self::Limit(reached) => reached.outcome(),
        }
    }

    /// What the log has in addition to the outcome.
    fn detail(&self) -> Option<&dyn fmt::Display> {
        match self {
            Self::Broken(error) | Self::TlsHandshake(error) => Some(error),
            Self::ProxyHeader(error) => Some(error),
            Self::Ssl2 => {
                Some(&"the client begins with a hello of SSL 2.0: TLS 1.2 is the oldest version that is accepted")
            }
            _ => None,
        }
    }
}

/// A client's stream, with TLS or without.
enum ClientStream {
    Plain(TcpStream),
    /// Boxed: rustls needs more than a kilobyte.
    Tls(Box<TlsConnection<Replayed<TcpStream>>>),
}

impl ClientStream {
    fn transport(&self) -> Transport {
        match self {
            Self::Plain(_) => Transport::Raw,
            Self::Tls(_) => Transport::Tls,
        }
    }
}

impl From<ClientStream> for Stream {
    fn from(stream: ClientStream) -> Self {
        match stream {
            ClientStream::Plain(tcp) => Self::Tcp(tcp),
            ClientStream::Tls(tls) => Self::Other(tls),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

/// A connection that is counted, until it is handed over or dropped.
struct Connection {
    ingress: Arc<Ingress>,
    stream: ClientStream,
    origin: Origin,
    permit: Permit,
    identification: Identification,
    /// The settings that the connection was accepted under, until it has been checked against them.
    unchecked: Option<Arc<IngressSettings>>,
}

/// Serves a connection on the present runtime, in a task of its own.
pub(super) fn start(ingress: Arc<Ingress>, tcp: TcpStream, peer: SocketAddr, port: Port) {
    let origin = Origin { client: canonical(peer), port, is_tls: false, is_peer: false, accepted: Instant::now() };
    let settings = ingress.settings.load_full();
    let is_behind_proxy = lies_in(&settings.proxy_protocol_from, origin.client.ip());
    let permit = ingress.counters.enter(&settings.limits).and_then(|mut permit| {
        // Behind a trusted proxy, the client is not known yet.
        if !is_behind_proxy {
            ingress.counters.claim(&mut permit, &settings.limits, origin.client)?;
        }
        Ok(permit)
    });
    match permit {
        Ok(permit) => {
            let (stream, identification) = (ClientStream::Plain(tcp), Identification::new(is_behind_proxy));
            let connection = Connection { ingress, stream, origin, permit, identification, unchecked: Some(settings) };
            tokio::spawn(connection.serve());
        }
        Err(reached) => {
            let identification = Identification::new(is_behind_proxy);
            tokio::spawn(refuse_uncounted(ingress, tcp, origin, identification, reached));
        }
    }
}

impl Connection {
    /// Serves the connection until it is handed over or dropped.
    ///
    /// The future has one copy of the connection, and room for the most frequent path only: whatever few connections
    /// need is boxed.
    // Not `async fn`, whose future would have two copies.
    #[allow(clippy::manual_async_fn)]
    fn serve(mut self) -> impl Future<Output = ()> + Send {
        async move {
            let (dropped, protocol) = loop {
                let deadline = self.deadline();
                let identify = identify(&mut self.stream, &mut self.identification);
                let identified = match timeout_at(deadline.into(), identify).await {
                    Ok(Ok(identified)) => identified,
                    Ok(Err(dropped)) => break (dropped, Protocol::Unknown),
                    Err(_) => break (Dropped::LoginTimeout, Protocol::Unknown),
                };
                if let Err(dropped) = self.check(&identified) {
                    break (dropped, identified.protocol);
                }
                match identified.protocol {
                    Protocol::Sametime => {
                        if let Some(refusal) = self.hand_over(identified.first) {
                            refusal.await;
                        }
                        return;
                    }
                    Protocol::Http => return self.serve_http(identified.first),
                    Protocol::Tls => match Box::pin(self.handshake(identified.first)).await {
                        Some(inside) => self = inside,
                        None => return,
                    },
                    Protocol::Ssl2 => break (Dropped::Ssl2, Protocol::Ssl2),
                    Protocol::Unknown => break (Dropped::UnknownProtocol, Protocol::Unknown),
                }
            };
            self.refuse(dropped, protocol).await;
        }
    }

    /// Until when the client has to have shown its protocol.
    fn deadline(&self) -> Instant {
        self.origin.accepted + self.ingress.settings.load().login_timeout
    }

    /// Checks a connection once its client and the protocol outside of TLS are known.
    fn check(&mut self, identified: &Identified) -> Result<(), Dropped> {
        let Some(settings) = self.unchecked.take() else { return Ok(()) };
        if let ProxyHeader::Read { client } = identified.proxy_header {
            self.origin.client = client.map_or(self.origin.client, canonical);
            let claimed = self.ingress.counters.claim(&mut self.permit, &settings.limits, self.origin.client);
            claimed.map_err(Dropped::Limit)?;
        }
        let needs_tls = settings.tls.client_certificates == ClientCertificates::Required;
        if needs_tls && identified.protocol != Protocol::Tls { Err(Dropped::NoCertificate) } else { Ok(()) }
    }

    /// Hands the client over to the core. If the core refuses it, returns what sends the farewell message.
    fn hand_over(self, first: Bytes) -> Option<Pin<Box<impl Future<Output = ()> + Send>>> {
        let transport = self.stream.transport();
        let (stream, reason) = self.ingress.hand_over(self.stream.into(), first, &self.origin, transport)?;
        let permit = self.permit;
        Some(Box::pin(async move {
            refuse(stream, reason).await;
            drop(permit);
        }))
    }

    /// Serves HTTP in a task of its own, as small as possible: it is mostly idle.
    fn serve_http(self, first: Bytes) {
        let Self { ingress, stream, origin, permit, .. } = self;
        match stream {
            ClientStream::Plain(tcp) => {
                tokio::spawn(http::serve(Arc::clone(&ingress.http), Replayed::new(first, tcp), origin, permit));
            }
            ClientStream::Tls(tls) => {
                tokio::spawn(http::serve(Arc::clone(&ingress.http), Replayed::new(first, *tls), origin, permit));
            }
        }
    }

    /// Makes the TLS handshake. `None`: it failed, and the connection was dropped.
    async fn handshake(self, first: Bytes) -> Option<Self> {
        let deadline = self.deadline();
        // `Identification` finds no TLS inside TLS.
        let ClientStream::Plain(tcp) = self.stream else { return None };
        let accepted = timeout_at(deadline.into(), self.ingress.tls.accept(Replayed::new(first, tcp))).await;
        let handshakes = &self.ingress.telemetry.tls.handshakes;
        let (failed, outcome, unread) = match accepted {
            Ok(Ok(tls)) => {
                handshakes.count(TlsOutcome::Accepted);
                let (stream, origin) = (ClientStream::Tls(Box::new(tls)), Origin { is_tls: true, ..self.origin });
                return Some(Self { stream, origin, ..self });
            }
            Ok(Err((error, _))) if peer_has_left(&error) => (Dropped::ClosedEarly, TlsOutcome::Abandoned, None),
            Ok(Err((error, stream))) => (Dropped::TlsHandshake(error), TlsOutcome::Failed, Some(stream)),
            Err(_) => (Dropped::LoginTimeout, TlsOutcome::Failed, None),
        };
        handshakes.count(outcome);
        report(&self.ingress, &failed, &self.origin);
        // The alert that says why is written already.
        if let Some(stream) = unread {
            close_in_stages(stream, ClosingBounds::SESSION).await;
        }
        None
    }

    /// Drops the connection, and sends the client the reason in the protocol that it uses, as far as that is known.
    fn refuse(self, dropped: Dropped, protocol: Protocol) -> Pin<Box<impl Future<Output = ()> + Send>> {
        report(&self.ingress, &dropped, &self.origin);
        let (Self { stream, permit, .. }, outcome) = (self, dropped.outcome());
        Box::pin(async move {
            send_refusal(stream, protocol, outcome).await;
            drop(permit);
        })
    }
}

/// Reads until the protocol is known: of the connection, or inside TLS.
async fn identify(stream: &mut ClientStream, identification: &mut Identification) -> Result<Identified, Dropped> {
    loop {
        let read = poll_fn(|cx| scratch::poll_read_some(stream, cx, LITTLE, |read, _| identification.receive(read)));
        match read.await {
            Ok(Some(Ok(None))) => (),
            Ok(Some(Ok(Some(identified)))) => return Ok(identified),
            Ok(Some(Err(error))) => return Err(Dropped::ProxyHeader(error)),
            Ok(None) => return Err(Dropped::ClosedEarly),
            Err(error) if peer_has_left(&error) => return Err(Dropped::ClosedEarly),
            Err(error) => return Err(Dropped::Broken(error)),
        }
    }
}

/// Drops a connection that a limit leaves no room for. Sends the reason to the client if its first bytes arrive at
/// once, which show the protocol; behind a trusted proxy, the PROXY header is in front of them.
async fn refuse_uncounted(
    ingress: Arc<Ingress>,
    tcp: TcpStream,
    mut origin: Origin,
    mut identification: Identification,
    reached: ConnectionLimitReached,
) {
    let (permit, mut stream) = (ingress.counters.try_notify(), ClientStream::Plain(tcp));
    let identified = match permit {
        Some(_) => timeout(FIRST_BYTES_TIMEOUT, identify(&mut stream, &mut identification)).await.ok(),
        None => None,
    };
    let protocol = identified.and_then(Result::ok).map(|identified| {
        if let ProxyHeader::Read { client: Some(client) } = identified.proxy_header {
            origin.client = canonical(client);
        }
        identified.protocol
    });
    report(&ingress, &Dropped::Limit(reached), &origin);
    if let Some(protocol) = protocol {
        send_refusal(stream, protocol, reached.outcome()).await;
    }
}

/// Sends a client in the protocol that it uses why it is refused, if the policy says so, and closes.
async fn send_refusal(stream: ClientStream, protocol: Protocol, outcome: ConnectionDrop) {
    if let Sent::TlsAlert(alert) = outcome.policy().sent {
        return send_alert(stream, alert).await;
    }
    let Some(reason) = outcome.policy().farewell() else { return };
    match (protocol, stream) {
        // Before the handshake, only an alert can be sent.
        (Protocol::Tls | Protocol::Ssl2, stream) => send_alert(stream, TlsAlert::InternalError).await,
        (Protocol::Http, ClientStream::Plain(tcp)) => {
            http::refuse(tcp, outcome).await;
        }
        (_, stream) => refuse(stream.into(), reason).await,
    }
}

/// Sends an alert to a client that has not made its handshake, and closes.
async fn send_alert(stream: ClientStream, alert: TlsAlert) {
    if let ClientStream::Plain(tcp) = stream {
        tls::send_alert(tcp, alert).await;
    }
}

/// Counts a connection that is dropped, and logs it.
fn report(ingress: &Ingress, dropped: &Dropped, origin: &Origin) {
    let outcome = dropped.outcome();
    ingress.telemetry.connections.dropped.count(outcome);
    let (client, port, reason) = (origin.client, origin.port.number, outcome.name());
    if outcome.policy().level == Some(Level::DEBUG) {
        debug!(%client, port, reason, "connection dropped");
    } else if let Some(more) = ingress.dropped.pass(outcome.index()) {
        let detail = dropped.detail().map(ToString::to_string);
        info!(%client, port, reason, detail, more, "connection dropped");
    }
}
