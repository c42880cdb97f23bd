//! The socket of one client of the sandbox.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, net::TcpStream};

use super::{community::SandboxCommunity, session::SandboxSession};
use crate::runtime::scratch;

/// While more bytes than this wait to be written, nothing is read.
const MAX_WAITING: usize = 256 * 1024;

/// One client's connection: a future that is ready when the connection is closed.
pub(super) struct SandboxConnection {
    tcp: TcpStream,
    session: SandboxSession,
    /// How many bytes of the session's output are written: `0 <= written <= session.out.len()`.
    written: usize,
}

impl SandboxConnection {
    pub(super) fn new(tcp: TcpStream, community: Arc<SandboxCommunity>) -> Self {
        Self { tcp, session: SandboxSession::new(community), written: 0 }
    }

    /// Writes the session's output. Ready when everything is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.session.out.len() {
            self.written += ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.session.out[self.written..]))?;
        }
        // A client that waits holds no buffer.
        (self.session.out, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl Future for SandboxConnection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.session.register_waker(cx.waker());
        loop {
            if !this.session.take_peer_messages() {
                return Poll::Ready(());
            }
            let is_closing = this.session.is_closing();
            match this.poll_write(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) if is_closing => {
                    let _ = ready!(Pin::new(&mut this.tcp).poll_shutdown(cx));
                    return Poll::Ready(());
                }
                Poll::Pending if is_closing || this.session.out.len() > MAX_WAITING => return Poll::Pending,
                Poll::Ready(Ok(())) | Poll::Pending => (),
            }
            // The bytes are copied, because the session must not work while the shared buffer is in use.
            let read = ready!(scratch::poll_read(&mut this.tcp, cx, |bytes, _| bytes.to_vec()));
            match read {
                Ok(Some(bytes)) => this.session.receive(&bytes),
                Ok(None) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}
