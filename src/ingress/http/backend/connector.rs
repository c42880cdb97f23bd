//! Connections to the web server.
//!
//! A name is looked up when a connection needs it, and its addresses are tried as RFC 8305 says. An address on which
//! this program itself listens is not used, since the request would come back.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{Uri, http::Extensions};
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connected, Connection},
    },
    rt::TokioIo,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower_service::Service;

use crate::net::{
    connect::{ConnectFailure, connect},
    lookup::{LookupError, RemoteHost},
    own::OwnListeners,
    shortage::is_shortage,
};

/// How long the web server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes connections to the web server.
#[derive(Clone)]
pub(super) struct Connector {
    own: OwnListeners,
    /// The web server of the last connection. A reload may bring another one.
    host: Arc<Mutex<Option<NamedHost>>>,
}

struct NamedHost {
    /// `host:port`.
    name: String,
    host: Arc<RemoteHost>,
}

impl Connector {
    /// Connections to another program than the one with these listeners.
    pub(super) fn new(own: OwnListeners) -> Self {
        Self { own, host: Arc::default() }
    }

    fn host(&self, url: &Uri) -> Arc<RemoteHost> {
        let name = format!("{}:{}", url.host().unwrap_or_default(), url.port_u16().unwrap_or(80));
        let mut host = self.host.lock();
        match &*host {
            Some(known) if known.name == name => Arc::clone(&known.host),
            _ => {
                let new = Arc::new(RemoteHost::new(&name, self.own.clone()));
                *host = Some(NamedHost { name, host: Arc::clone(&new) });
                new
            }
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<ServerStream>;
    type Error = Unreached;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unreached>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreached>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let host = self.host(&url);
        Box::pin(async move {
            let (tcp, _) = connect(&host, CONNECT_TIMEOUT).await.map_err(Unreached)?;
            // Without it, small requests are sent late.
            let _ = tcp.set_nodelay(true);
            Ok(TokioIo::new(ServerStream { tcp, is_write_broken: false, use_before: ServerConnectionUse::default() }))
        })
    }
}

/// There is no connection to the web server.
#[derive(Debug)]
pub(super) struct Unreached(ConnectFailure);

impl Unreached {
    /// What `error` of the HTTP client says about it; `None`: there was a connection.
    pub(super) fn of(error: &legacy::Error) -> Option<&Self> {
        std::error::Error::source(error)?.downcast_ref()
    }

    /// Whether descriptors or memory have run out.
    pub(super) fn is_of_a_shortage(&self) -> bool {
        match &self.0 {
            ConnectFailure::NotResolved(LookupError::Shortage(_)) => true,
            ConnectFailure::Unconnected(error) => {
                error.attempts.iter().any(|attempt| attempt.error.as_ref().is_some_and(is_shortage))
            }
            ConnectFailure::NotResolved(_) | ConnectFailure::LookupTimedOut(_) => false,
        }
    }

    /// Whether the web server is this program itself.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.0, ConnectFailure::NotResolved(LookupError::Own { .. }))
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ConnectFailure::NotResolved(error) => error.fmt(f),
            ConnectFailure::LookupTimedOut(within) => {
                write!(f, "the name was not resolved within {}", humantime::format_duration(*within))
            }
            ConnectFailure::Unconnected(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Unreached {}

/// Whether a connection had a request before the present one. Clones are of the same connection.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerConnectionUse(Arc<AtomicBool>);

impl ServerConnectionUse {
    /// Notes that the connection had a request. Returns whether it had one before.
    pub(super) fn note(&self) -> bool {
        self.0.swap(true, Relaxed)
    }

    /// Of the connection on which this error occurred.
    pub(super) fn of(error: &legacy::Error) -> Option<Self> {
        let mut extras = Extensions::new();
        error.connect_info()?.get_extras(&mut extras);
        extras.remove()
    }
}

/// A connection to the web server.
///
/// A web server may respond before it has read the request's body, and close. Then the body can't be written any more,
/// but the response is still there to be read. So an error in writing is not reported: what follows is not sent, and
/// reading has the response, or the end.
pub(super) struct ServerStream {
    tcp: TcpStream,
    is_write_broken: bool,
    use_before: ServerConnectionUse,
}

impl ServerStream {
    /// `written`, or all of `length` bytes if they can't be written.
    fn hide_error(&mut self, written: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(_)) => {
                self.is_write_broken = true;
                Poll::Ready(Ok(length))
            }
            written => written,
        }
    }
}

impl Connection for ServerStream {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.use_before.clone())
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_write_broken {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.tcp).poll_write(cx, buf);
        self.hide_error(written, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if self.is_write_broken {
            return Poll::Ready(Ok(length));
        }
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.hide_error(written, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
