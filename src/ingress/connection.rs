//! One connection, from accept to the hand-over.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::AsyncRead,
    net::TcpStream,
    time::{timeout, timeout_at},
};
use tracing::{Level, debug, info};

use super::{
    ClientCertificates, Ingress, Origin,
    connection_limits::Over,
    detect::{Protocol, begin, detect},
    http,
};
use crate::{
    limits::{budget::LITTLE, tally::Place},
    net::{
        Port,
        address::{canonical, lies_in},
    },
    runtime::scratch,
    stream::{Replayed, Stream, refuse},
    telemetry::outcome::{ConnectionDrop, Outcome, TlsOutcome},
    wire::{Transport, reason::Reason},
};

/// How long a connection that is turned away may take to show what it speaks. Clients speak first,
/// at once.
const BEGUN: Duration = Duration::from_millis(100);

/// Why a connection never became an arrival.
#[derive(Debug)]
enum Dropped {
    /// It closed before it said what it is: a health check, a port scan.
    ClosedEarly,
    /// It did not say in time.
    LoginTimeout,
    /// It broke.
    Broken(io::Error),
    /// It speaks none of the protocols.
    UnknownProtocol,
    /// Its PROXY header is missing or wrong, or it has one but isn't believed.
    ProxyHeader(String),
    /// TLS could not be agreed on.
    Tls(io::Error),
    /// It speaks without TLS where clients must have certificates.
    NoCertificate,
    /// There are too many, or they come too fast.
    Over(Over),
}

impl Dropped {
    fn outcome(&self) -> ConnectionDrop {
        match self {
            Self::ClosedEarly => ConnectionDrop::ClosedEarly,
            Self::LoginTimeout => ConnectionDrop::LoginTimeout,
            Self::Broken(_) => ConnectionDrop::Broken,
            Self::UnknownProtocol => ConnectionDrop::UnknownProtocol,
            Self::ProxyHeader(_) => ConnectionDrop::ProxyHeader,
            Self::Tls(_) => ConnectionDrop::TlsHandshake,
            Self::NoCertificate => ConnectionDrop::NoCertificate,
            Self::Over(over) => over.outcome(),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Broken(error) | Self::Tls(error) => Some(error.to_string()),
            Self::ProxyHeader(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// The reason of the farewell message, where one makes sense.
    fn reason(&self) -> Option<Reason> {
        self.outcome().policy().farewell()
    }
}

/// Serves a connection until it is handed over or done. What few connections come to is boxed: each
/// one carries the room for all that is not.
pub(super) async fn serve(ingress: Arc<Ingress>, mut tcp: TcpStream, peer: SocketAddr, port: Port) {
    let mut origin = Origin { client: canonical(peer), port, accepted: Instant::now() };
    let settings = ingress.settings.load_full();
    let mut place = match ingress.counters.enter(&settings.limits) {
        Ok(place) => place,
        Err(over) => return Box::pin(turn_away(&ingress, tcp, over, &origin)).await,
    };
    let deadline = origin.accepted + settings.login_timeout;
    // Behind a believed proxy the client is not known yet.
    let due = lies_in(&settings.proxy_protocol_from, origin.client.ip());
    if !due && let Err(over) = ingress.counters.claim(&mut place, &settings.limits, origin.client) {
        drop(place);
        return Box::pin(turn_away(&ingress, tcp, over, &origin)).await;
    }
    let found = timeout_at(deadline.into(), first(due, &mut tcp, &mut origin)).await;
    let claimed = match found {
        Ok(Ok(_)) if due => ingress.counters.claim(&mut place, &settings.limits, origin.client),
        _ => Ok(()),
    };
    let needs_tls = settings.tls.client_certificates == ClientCertificates::Required;
    drop(settings);
    let dropped = match found {
        Ok(Ok((protocol, _))) if claimed.is_err() || (needs_tls && protocol != Protocol::Tls) => {
            let dropped = claimed.map_or_else(Dropped::Over, |()| Dropped::NoCertificate);
            report(&ingress, &dropped, &origin);
            return Box::pin(reject(tcp, protocol, &dropped)).await;
        }
        Ok(Ok((Protocol::Sametime, bytes))) => {
            return ingress.arrive(Stream::Tcp(tcp), bytes, origin, Transport::Raw, place).await;
        }
        // A task of its own, as small as it can be: it is mostly idle.
        Ok(Ok((Protocol::Http, bytes))) => {
            tokio::spawn(http::serve(ingress, Replayed::new(bytes, tcp), origin, place));
            return;
        }
        Ok(Ok((Protocol::Tls, bytes))) => {
            return Box::pin(serve_tls(ingress, Replayed::new(bytes, tcp), origin, place)).await;
        }
        Ok(Ok((Protocol::Unknown, _))) => Dropped::UnknownProtocol,
        Ok(Err(dropped)) => dropped,
        Err(_) => Dropped::LoginTimeout,
    };
    report(&ingress, &dropped, &origin);
    if let Some(reason) = dropped.reason() {
        Box::pin(refuse(Stream::Tcp(tcp), reason)).await;
    }
}

/// Refuses a connection in the protocol that it speaks, as far as that is seen at once.
async fn turn_away(ingress: &Ingress, tcp: TcpStream, over: Over, origin: &Origin) {
    report(ingress, &Dropped::Over(over), origin);
    let Some(_told) = ingress.counters.tell() else { return };
    let mut begun = [0; 8];
    let n = match timeout(BEGUN, tcp.peek(&mut begun)).await {
        Ok(Ok(n)) => n,
        _ => return,
    };
    if let Some(protocol) = detect(&begun[..n]) {
        reject(tcp, protocol, &Dropped::Over(over)).await;
    }
}

/// Tells a client why it is refused, in the protocol that it speaks.
async fn reject(tcp: TcpStream, protocol: Protocol, dropped: &Dropped) {
    match (protocol, dropped) {
        (Protocol::Tls, _) => (),
        (Protocol::Http, Dropped::NoCertificate) => http::turn_away(tcp, http::NO_CERTIFICATE).await,
        (Protocol::Http, _) => http::turn_away(tcp, http::NO_ROOM).await,
        (Protocol::Sametime | Protocol::Unknown, _) => {
            if let Some(reason) = dropped.reason() {
                refuse(Stream::Tcp(tcp), reason).await;
            }
        }
    }
}

async fn serve_tls(ingress: Arc<Ingress>, tcp: Replayed<TcpStream>, origin: Origin, place: Place) {
    let deadline = origin.accepted + ingress.settings.load().login_timeout;
    let accepted = timeout_at(deadline.into(), ingress.tls.accept(tcp)).await;
    let outcome = if matches!(accepted, Ok(Ok(_))) { TlsOutcome::Accepted } else { TlsOutcome::Failed };
    ingress.telemetry.tls.handshakes.count(outcome);
    let mut tls = match accepted {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return report(&ingress, &Dropped::Tls(error), &origin),
        Err(_) => return report(&ingress, &Dropped::LoginTimeout, &origin),
    };
    let found = timeout_at(deadline.into(), inner(&mut tls)).await;
    let dropped = match found {
        Ok(Ok((Protocol::Sametime, bytes))) => {
            return ingress.arrive(Stream::other(tls), bytes, origin, Transport::Tls, place).await;
        }
        Ok(Ok((Protocol::Http, bytes))) => {
            tokio::spawn(http::serve(ingress, Replayed::new(bytes, tls), origin, place));
            return;
        }
        Ok(Ok(_)) => Dropped::UnknownProtocol,
        Ok(Err(dropped)) => dropped,
        Err(_) => Dropped::LoginTimeout,
    };
    report(&ingress, &dropped, &origin);
    if let Some(reason) = dropped.reason() {
        refuse(Stream::other(tls), reason).await;
    }
}

/// Reads until the protocol is known, past a PROXY header where one is due.
async fn first(due: bool, tcp: &mut TcpStream, origin: &mut Origin) -> Result<(Protocol, Bytes), Dropped> {
    let mut bytes = BytesMut::new();
    loop {
        if let Some(begun) = begin(&bytes, due).map_err(Dropped::ProxyHeader)? {
            origin.client = begun.source.map_or(origin.client, canonical);
            let _header = bytes.split_to(begun.header);
            return Ok((begun.protocol, bytes.freeze()));
        }
        read_more(tcp, &mut bytes).await?;
    }
}

/// Reads until the protocol inside TLS is known.
async fn inner<S: AsyncRead + Unpin>(tls: &mut S) -> Result<(Protocol, Bytes), Dropped> {
    let mut bytes = BytesMut::new();
    loop {
        match detect(&bytes) {
            // TLS in TLS is nobody's.
            Some(Protocol::Tls) => return Err(Dropped::UnknownProtocol),
            Some(protocol) => return Ok((protocol, bytes.freeze())),
            None => read_more(tls, &mut bytes).await?,
        }
    }
}

async fn read_more<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut BytesMut) -> Result<(), Dropped> {
    let read = poll_fn(|cx| scratch::poll_read_some(stream, cx, LITTLE, |read, _| bytes.extend_from_slice(read)));
    match read.await {
        Ok(Some(())) => Ok(()),
        Ok(None) => Err(Dropped::ClosedEarly),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Dropped::ClosedEarly),
        Err(error) => Err(Dropped::Broken(error)),
    }
}

fn report(ingress: &Ingress, dropped: &Dropped, origin: &Origin) {
    let outcome = dropped.outcome();
    ingress.telemetry.connections.dropped.count(outcome);
    let (client, port, reason, detail) = (origin.client, origin.port.number, outcome.name(), dropped.detail());
    if outcome.policy().level == Level::DEBUG {
        debug!(%client, port, reason, "connection dropped");
    } else if let Some(more) = ingress.troubles.pass() {
        info!(%client, port, reason, detail, more, "connection dropped");
    }
}
