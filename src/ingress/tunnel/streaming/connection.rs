//! The byte stream of a streaming session, as the core sees it: reads get what POST requests brought, and writes go
//! into the response to the GET request.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{
    body::EndlessBody,
    handle::{Attention, StreamingHandle},
    inbox::InboxRead,
};
use crate::{
    stream::StreamError,
    wire::frame::{KEEP_ALIVE, Scanner},
};

/// How long after the end of the GET request a last POST request may come. A client that logs out sends its last
/// message and closes at the same time, on two connections.
const LAST_POST: Duration = Duration::from_millis(250);
/// How many bytes are read at once from a client that sends some behind its GET request. They have no meaning.
const MEANINGLESS: usize = 64;

/// Whether the client still has the connection of its GET request.
#[derive(Debug)]
enum GetRequest {
    Open,
    /// The client has closed it. A last POST request is waited for until the timer has run out.
    Closed(Pin<Box<Sleep>>),
    /// And nothing is waited for any more.
    Ended,
}

/// The stream of a session.
pub(in crate::ingress::tunnel) struct StreamingConnection<S> {
    inner: S,
    session: Arc<StreamingHandle>,
    body: EndlessBody,
    /// Follows the frames to the client: a keep-alive may only be between two frames.
    scanner: Scanner,
    /// Whether the scanner follows them. It does not after bytes that are no frames.
    follows: bool,
    get: GetRequest,
}

impl<S: AsyncRead + AsyncWrite + Unpin> StreamingConnection<S> {
    /// A session's stream on `inner`, where the response begins with `head`, and its body with `beginning`.
    pub(in crate::ingress::tunnel) fn new(
        inner: S,
        session: Arc<StreamingHandle>,
        is_chunked: bool,
        head: Vec<u8>,
        beginning: &[u8],
    ) -> Self {
        let body = EndlessBody::new(is_chunked, head, beginning);
        Self { inner, session, body, scanner: Scanner::new(), follows: true, get: GetRequest::Open }
    }

    /// Writes what is pending, and a keep-alive when one is due.
    ///
    /// # Errors
    /// The stream's, and [`StreamError::CommunityTooSlow`].
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.session.attention() {
            Attention::None => (),
            Attention::KeepAlive if self.follows && self.scanner.at_boundary() => {
                // When other bytes are on their way, the response is not silent.
                self.body.try_append(&[KEEP_ALIVE]);
            }
            Attention::KeepAlive => (),
            Attention::Overdue => return Poll::Ready(Err(StreamError::CommunityTooSlow.into())),
        }
        self.body.poll_pending(&mut self.inner, cx)
    }

    /// Looks whether the client has closed the connection of its GET request, and waits for a last POST request then.
    /// Ready when the session is over.
    fn poll_get(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.get {
                GetRequest::Open => {
                    let mut bytes = [0; MEANINGLESS];
                    let mut buf = ReadBuf::new(&mut bytes);
                    match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf)) {
                        Ok(()) if !buf.filled().is_empty() => (),
                        Err(error) if StreamError::of(&error) != Some(StreamError::Truncated) => {
                            return Poll::Ready(Err(error));
                        }
                        Ok(()) | Err(_) => self.get = GetRequest::Closed(Box::pin(sleep(LAST_POST))),
                    }
                }
                GetRequest::Closed(timer) => {
                    ready!(timer.as_mut().poll(cx));
                    self.get = GetRequest::Ended;
                }
                GetRequest::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for StreamingConnection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // The session's first read comes before its first write.
        if let Poll::Ready(Err(error)) = this.poll_pending(cx) {
            return Poll::Ready(Err(error));
        }
        match this.session.poll_read(cx, buf) {
            Poll::Ready(InboxRead::Overdue) => return Poll::Ready(Err(StreamError::CommunityTooSlow.into())),
            Poll::Ready(InboxRead::Bytes) => {
                if !matches!(this.get, GetRequest::Open) {
                    // That was the last request, or those that are there already are.
                    this.get = GetRequest::Ended;
                }
                return Poll::Ready(Ok(()));
            }
            // The session's task is woken by the next request, and by what `poll_get` waits for.
            Poll::Ready(InboxRead::Empty) | Poll::Pending => (),
        }
        // No byte in the buffer is the end.
        this.poll_get(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for StreamingConnection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = ready!(this.body.poll_write(&mut this.inner, cx, bytes))?;
        // After an invalid frame, a scanner knows no further one.
        this.follows = this.follows && this.scanner.scan(&bytes[..written], u32::MAX, |_| ()).is_ok();
        this.session.written();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // A session whose Community takes nothing is not read, but it is flushed.
        ready!(this.poll_pending(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.body.poll_end(&mut this.inner, cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<S> Drop for StreamingConnection<S> {
    fn drop(&mut self) {
        self.session.end();
    }
}
