//! The byte stream of a session, as the core sees it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    handle::SessionHandle,
    live::{LiveSession, Waiter},
};

/// The byte stream of a session, for the core. A read gets what the client's requests brought; what is written, the
/// client's requests fetch.
pub(super) struct TunnelStream(Arc<SessionHandle>);

impl TunnelStream {
    pub(super) fn new(session: Arc<SessionHandle>) -> Self {
        Self(session)
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll(Waiter::Reader, cx, |live| live.read(buf)).map_err(io::Error::from)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll(Waiter::Writer, cx, |live| live.write(buf)).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.change(LiveSession::shut_down);
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        self.0.change(LiveSession::let_go);
    }
}
