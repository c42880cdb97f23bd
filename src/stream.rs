//! What passes over the seams: byte streams, and how a client came in.
//!
//! Ingress, mux and community are blind to each other. Ingress turns whatever came in into
//! an [`Arrival`] and hands it to a [`Core`]; the core asks a [`Community`] for a [`Link`].
//! `server` is the one place that knows who is behind those two traits.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::{Buf, Bytes};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use crate::wire::reason::Reason;

pub mod budget;
mod close;
pub mod scratch;

pub use budget::Budget;
pub use close::{linger, note_vanished, refuse};

/// A section of the configuration database that holds ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// The Community ports: direct TCP.
    ClientConnections,
    /// HTTP-tunnelled.
    HttpTunneledClientConnections,
    /// Through an HTTPS proxy's CONNECT.
    HttpsTunneledClientConnections,
}

impl Section {
    /// Every section, in the file's order.
    pub const ALL: [Self; 3] =
        [Self::ClientConnections, Self::HttpTunneledClientConnections, Self::HttpsTunneledClientConnections];

    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientConnections => "client_connections",
            Self::HttpTunneledClientConnections => "http_tunneled_client_connections",
            Self::HttpsTunneledClientConnections => "https_tunneled_client_connections",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a client's bytes are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Frames straight on TCP.
    Raw,
    /// Frames in TLS.
    Tls,
    /// The polling HTTP tunnel, in TLS or not.
    HttpPolling,
    /// The hybrid (long-polling) HTTP tunnel, in TLS or not.
    HttpHybrid,
}

impl Transport {
    /// Every transport, in the order of the status page.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Tls, Self::HttpPolling, Self::HttpHybrid];

    /// Its name in metrics, status and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tls => "tls",
            Self::HttpPolling => "http_polling",
            Self::HttpHybrid => "http_hybrid",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a client came in: for limits, logs and metrics, never for a decision of the core.
#[derive(Debug, Clone, Copy)]
pub struct Via {
    /// The client, as far as it can be believed (PROXY header, X-Forwarded-For).
    pub client: SocketAddr,
    /// The listener's port.
    pub port: u16,
    /// How its bytes are wrapped.
    pub transport: Transport,
    /// When its connection was accepted.
    pub accepted: Instant,
}

/// A stream that is neither TCP nor worth a name at the seam.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The one stream type at the seams. TCP, by far the most common, is not boxed.
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// Anything else: TLS, a tunnel session.
    Other(Box<dyn Duplex>),
}

impl Stream {
    /// Erases `stream`.
    pub fn other(stream: impl Duplex + 'static) -> Self {
        Self::Other(Box::new(stream))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Stream::Tcp",
            Self::Other(_) => "Stream::Other",
        })
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Other(other) => Pin::new(other).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Other(other) => Pin::new(other).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Other(other) => Pin::new(other).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Other(other) => Pin::new(other).poll_shutdown(cx),
        }
    }
}

/// A stream whose first bytes were read already; they are read again first.
#[derive(Debug)]
pub struct Replayed<S> {
    first: Bytes,
    inner: S,
}

impl<S> Replayed<S> {
    /// `inner`, with `first` in front of it.
    pub fn new(first: Bytes, inner: S) -> Self {
        Self { first, inner }
    }

    /// The bytes not yet read again, and the stream behind them.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.first, self.inner)
    }

    /// Whether bytes are left that are read again first.
    pub fn has_first(&self) -> bool {
        !self.first.is_empty()
    }

    /// Puts `bytes` in front of what is read next.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.first = if self.first.is_empty() { bytes } else { [&bytes[..], &self.first].concat().into() };
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..n]);
        self.first.advance(n);
        if self.first.is_empty() {
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// A client at the door: a byte stream of frames, whatever it came wrapped in.
#[derive(Debug)]
pub struct Arrival {
    /// The stream of frames.
    pub stream: Stream,
    /// Its bytes read so far.
    pub first: Bytes,
    /// How it came in.
    pub via: Via,
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// As many clients as `limits.capacity` allows.
    Capacity,
    /// As many clients from this address as `limits.per_address` allows.
    PerAddress,
    /// As many clients that are not logged in as `limits.logging_in` allows.
    LoggingIn,
    /// As many from this address as `limits.logging_in_per_address` allows.
    LoggingInPerAddress,
    /// As many tunnel sessions as `limits.tunnel_sessions` allows.
    TunnelSessions,
    /// As many from this address as `limits.tunnel_sessions_per_address` allows.
    TunnelSessionsPerAddress,
    /// The multiplexer is being stopped.
    Draining,
}

impl Refusal {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::PerAddress => "per_address",
            Self::LoggingIn => "logging_in",
            Self::LoggingInPerAddress => "logging_in_per_address",
            Self::TunnelSessions => "tunnel_sessions",
            Self::TunnelSessionsPerAddress => "tunnel_sessions_per_address",
            Self::Draining => "draining",
        }
    }

    /// Every refusal, for metrics.
    pub const ALL: [Self; 7] = [
        Self::Capacity,
        Self::PerAddress,
        Self::LoggingIn,
        Self::LoggingInPerAddress,
        Self::TunnelSessions,
        Self::TunnelSessionsPerAddress,
        Self::Draining,
    ];

    /// The reason that a client is given in its own protocol.
    pub fn reason(self) -> Reason {
        match self {
            Self::Draining => Reason::NotResponding,
            _ => Reason::ServerFull,
        }
    }
}

/// What ingress hands its arrivals to.
pub trait Core: Send + Sync + 'static {
    /// Takes the client in and serves it to its end, on a task of its own; or gives it back
    /// with the reason, for ingress to refuse it in the client's own protocol. Does not wait.
    ///
    /// # Errors
    /// The refusal, counted already, and the arrival as it was.
    fn take(&self, arrival: Arrival) -> Result<(), Box<(Refusal, Arrival)>>;

    /// What counts the bytes that are held for slow clients; one for all ways in. By default
    /// there is no bound.
    fn budget(&self) -> Arc<Budget> {
        Budget::new(usize::MAX, 0, &[])
    }
}

/// A link that is being opened.
pub type Linking<'a> = Pin<Box<dyn Future<Output = Result<(Link, Vec<u8>), LinkError>> + Send + 'a>>;
/// Is over when a client speaks on, or ends, although it has no answer yet.
pub type SpeaksOn<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send + 'a)>;

/// What the core asks for links.
pub trait Community: Send + Sync + 'static {
    /// Chooses a server, opens a link to it for `client`, sends it `hello` (the client's Handshake)
    /// and waits for its first answer, whose bytes come with the link. A server that refuses, or does
    /// not answer, is skipped for the next one. When the client speaks on, it is committed: the
    /// server that has its hello keeps it, and is not waited for.
    fn connect<'a>(&'a self, client: SocketAddr, hello: &'a [u8], speaks_on: SpeaksOn<'a>) -> Linking<'a>;
}

/// A stream to a Community server, and the place on that server that it takes up.
#[derive(Debug)]
pub struct Link {
    /// Bytes to and from the server.
    pub stream: Stream,
    /// Which server, for logs.
    pub server: Arc<str>,
    /// Counted on the server until dropped; told how the link ended.
    pub lease: Box<dyn Lease>,
}

/// A place on a Community server, given back when dropped.
pub trait Lease: Send + Sync + fmt::Debug {
    /// The link broke (no orderly end): the server may be in trouble.
    fn broken(&self, why: &str);
}

/// No Community server could be reached. Ours to tell the client, in its protocol.
#[derive(Debug)]
pub struct LinkError {
    /// The reason for the client: can't connect, or not responding.
    pub reason: Reason,
    /// For the log: which servers were tried, and what each said.
    pub detail: String,
}

/// Writes all of `bytes`, then flushes.
pub(crate) async fn write_all(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// `10.0.0.1` for `::ffff:10.0.0.1`, so that one client has one address.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// What limits count as one address: an IPv4 address, or the 64 bits of an IPv6 one that a single
/// subscriber has to itself (RFC 6177, section 2).
pub fn counted_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        ip @ IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => {
            let network = u128::from(ip) & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
    }
}

/// Whether `address` lies in one of `networks`; an IPv4-mapped address counts as IPv4.
pub fn lies_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subscriber_is_one_address() {
        let counted = |text: &str| counted_address(text.parse().expect("address")).to_string();
        assert_eq!(counted("10.1.2.3"), "10.1.2.3");
        assert_eq!(counted("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(counted("2001:db8:1:2::9"), "2001:db8:1:2::");
    }
}
