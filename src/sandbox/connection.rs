//! The socket of one client of the sandbox.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::AsyncWrite,
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{community::SandboxCommunity, session::SandboxSession};
use crate::runtime::scratch;

/// While more bytes than this wait to be written, nothing is read.
const MAX_WAITING: usize = 256 * 1024;
/// How long a client may take to read the last bytes.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// One client's connection: a future that is ready when the session is over. It is true if the client still has to read
/// a farewell message.
pub(super) struct SandboxConnection {
    tcp: TcpStream,
    session: SandboxSession,
    /// How many bytes of the session's output are written: `0 <= written <= session.out.len()`.
    written: usize,
    /// Runs since the session has ended.
    closing: Option<Pin<Box<Sleep>>>,
}

impl SandboxConnection {
    pub(super) fn new(tcp: TcpStream, community: Arc<SandboxCommunity>) -> Self {
        Self { tcp, session: SandboxSession::new(community), written: 0, closing: None }
    }

    /// Ends the session. Returns the socket.
    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp
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
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let this = self.get_mut();
        this.session.register_waker(cx.waker());
        loop {
            this.session.take_peer_messages(MAX_WAITING);
            let is_closing = this.session.is_closing();
            match this.poll_write(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Ready(Ok(())) if is_closing => return Poll::Ready(true),
                Poll::Pending if is_closing => {
                    let closing = this.closing.get_or_insert_with(|| Box::pin(sleep(LAST_BYTES)));
                    return closing.as_mut().poll(cx).map(|()| false);
                }
                Poll::Pending if this.session.out.len() > MAX_WAITING => return Poll::Pending,
                Poll::Ready(Ok(())) if this.session.has_peer_messages() => continue,
                Poll::Ready(Ok(())) | Poll::Pending => (),
            }
            if this.session.should_pause() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // The bytes are copied, because the session must not work while the shared buffer is in use.
            let read = ready!(scratch::poll_read(&mut this.tcp, cx, |bytes, _| bytes.to_vec()));
            match read {
                Ok(Some(bytes)) => this.session.receive(&bytes),
                Ok(None) | Err(_) => return Poll::Ready(false),
            }
        }
    }
}
