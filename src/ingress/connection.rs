//! One connection, from accept to the hand-over.

use std::{future::poll_fn, io, net::SocketAddr, sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncRead, net::TcpStream, time::timeout_at};
use tracing::{debug, info};

use super::{
    Ingress, Origin, believed,
    detect::{Protocol, detect},
    http,
};
use crate::{
    stream::{Replayed, Stream, Transport, canonical, refuse, scratch},
    wire::{
        proxy_protocol::{self, Parsed},
        reason::Reason,
    },
};

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
}

impl Dropped {
    fn name(&self) -> &'static str {
        match self {
            Self::ClosedEarly => "closed_early",
            Self::LoginTimeout => "login_timeout",
            Self::Broken(_) => "broken",
            Self::UnknownProtocol => "unknown_protocol",
            Self::ProxyHeader(_) => "proxy_header",
            Self::Tls(_) => "tls_handshake",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Broken(error) | Self::Tls(error) => error.to_string(),
            Self::ProxyHeader(why) => why.clone(),
            _ => String::new(),
        }
    }

    /// What the client is told, where that makes sense.
    fn reason(&self) -> Option<Reason> {
        match self {
            Self::LoginTimeout => Some(Reason::TimedOut),
            Self::UnknownProtocol => Some(Reason::ProtocolError),
            _ => None,
        }
    }
}

/// Serves a connection until it is handed over or done.
pub(super) async fn serve(ingress: Arc<Ingress>, mut tcp: TcpStream, peer: SocketAddr, port: u16) {
    let mut origin = Origin { client: canonical(peer), port, accepted: Instant::now() };
    let deadline = origin.accepted + ingress.settings.load().login_timeout;
    let found = timeout_at(deadline.into(), first(&ingress, &mut tcp, &mut origin)).await;
    let dropped = match found {
        Ok(Ok((Protocol::Sametime, bytes))) => {
            return ingress.arrive(Stream::Tcp(tcp), bytes, origin, Transport::Raw).await;
        }
        // Boxed: most connections need neither.
        Ok(Ok((Protocol::Http, bytes))) => {
            return Box::pin(http::serve(ingress, Replayed::new(bytes, tcp), origin)).await;
        }
        Ok(Ok((Protocol::Tls, bytes))) => return Box::pin(serve_tls(ingress, Replayed::new(bytes, tcp), origin)).await,
        Ok(Ok((Protocol::Unknown, _))) => Dropped::UnknownProtocol,
        Ok(Err(dropped)) => dropped,
        Err(_) => Dropped::LoginTimeout,
    };
    report(&ingress, &dropped, &origin);
    if let Some(reason) = dropped.reason() {
        refuse(Stream::Tcp(tcp), reason).await;
    }
}

async fn serve_tls(ingress: Arc<Ingress>, tcp: Replayed<TcpStream>, origin: Origin) {
    let deadline = origin.accepted + ingress.settings.load().login_timeout;
    let accepted = timeout_at(deadline.into(), ingress.tls.accept(tcp)).await;
    ingress.telemetry.tls_handshake(matches!(accepted, Ok(Ok(_))));
    let mut tls = match accepted {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return report(&ingress, &Dropped::Tls(error), &origin),
        Err(_) => return report(&ingress, &Dropped::LoginTimeout, &origin),
    };
    let found = timeout_at(deadline.into(), inner(&mut tls)).await;
    let dropped = match found {
        Ok(Ok((Protocol::Sametime, bytes))) => {
            return ingress.arrive(Stream::other(tls), bytes, origin, Transport::Tls).await;
        }
        Ok(Ok((Protocol::Http, bytes))) => return http::serve(ingress, Replayed::new(bytes, tls), origin).await,
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
async fn first(ingress: &Ingress, tcp: &mut TcpStream, origin: &mut Origin) -> Result<(Protocol, Bytes), Dropped> {
    let mut bytes = BytesMut::new();
    let due = believed(&ingress.settings.load().proxy_protocol_from, origin.client.ip());
    if due {
        let (source, length) = loop {
            read_more(tcp, &mut bytes).await?;
            match proxy_protocol::parse(&bytes) {
                Ok(Parsed::Whole { source, length }) => break (source, length),
                Ok(Parsed::Partial) => (),
                Err(fault) => return Err(Dropped::ProxyHeader(fault.to_string())),
            }
        };
        origin.client = source.map_or(origin.client, canonical);
        let _header = bytes.split_to(length);
    }
    loop {
        if !due && proxy_protocol::is_header(&bytes) {
            let why = "a PROXY header from an address that is not in listeners.proxy_protocol_from";
            return Err(Dropped::ProxyHeader(why.to_owned()));
        }
        // "P" may be POST or PROXY.
        match detect(&bytes) {
            Some(protocol) if due || !proxy_protocol::could_be(&bytes) => return Ok((protocol, bytes.freeze())),
            _ => read_more(tcp, &mut bytes).await?,
        }
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
    match poll_fn(|cx| scratch::poll_read(stream, cx, |read, _| bytes.extend_from_slice(read))).await {
        Ok(Some(())) => Ok(()),
        Ok(None) => Err(Dropped::ClosedEarly),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Dropped::ClosedEarly),
        Err(error) => Err(Dropped::Broken(error)),
    }
}

fn report(ingress: &Ingress, dropped: &Dropped, origin: &Origin) {
    ingress.telemetry.connection_dropped(dropped.name());
    let (client, port, reason, detail) = (origin.client, origin.port, dropped.name(), dropped.detail());
    if matches!(dropped, Dropped::ClosedEarly) {
        debug!(%client, port, reason, "connection dropped");
    } else if let Some(more) = ingress.troubles.pass() {
        info!(%client, port, reason, detail, more, "connection dropped");
    }
}
