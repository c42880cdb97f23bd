//! The stream from which hyper reads requests and to which it writes responses. Bytes that two parsers could read in
//! two ways do not pass, and a client that takes nothing of its response is given up.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::framing::{Framing, FramingError};
use crate::stream::StreamError;

/// hyper reads this in place of the first wrong byte and of everything behind it. It answers it with 400 and closes,
/// wherever it is: in a head, in a chunk's size, behind a chunk. So requests in front of the wrong one are answered
/// first. The empty line makes hyper look at a head at once.
const WRONG_BYTES: &[u8] = b"\0\r\n\r\n";

/// How far hyper is with what it was given.
#[derive(Debug, Default)]
pub(super) struct HyperProgress {
    /// Complete requests that hyper has read; [`Self::INCOMPLETE`] while another has begun or is refused.
    read: AtomicU64,
    /// Responses whose body hyper has dropped, because it has all of it or has given up.
    answered: AtomicU64,
    /// Whether the client takes nothing of what is written.
    stalled: AtomicBool,
}

impl HyperProgress {
    const INCOMPLETE: u64 = u64::MAX;

    /// hyper has no more use for a response.
    pub(super) fn response_done(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    /// Whether the client takes nothing of what is written.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.load(Relaxed)
    }

    /// Whether hyper, when it waits, waits for the first byte of a request, and has answered one before.
    pub(super) fn is_idle(&self) -> bool {
        let answered = self.answered.load(Relaxed);
        answered > 0 && self.read.load(Relaxed) == answered && !self.stalled.load(Relaxed)
    }
}

/// A stream between a client and hyper.
pub(super) struct Guarded<S, F> {
    inner: S,
    framing: Framing,
    on_error: F,
    /// After an error: how many of [`WRONG_BYTES`] hyper has read. `0 <= wrong_read <= WRONG_BYTES.len()`.
    wrong_read: Option<usize>,
    /// How long the client may take nothing of what is written.
    timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    progress: Arc<HyperProgress>,
}

impl<S, F: Fn(FramingError)> Guarded<S, F> {
    /// Guards `inner`. `on_error` is called for the first error of framing; there is no second one.
    pub(super) fn new(inner: S, timeout: Duration, on_error: F) -> Self {
        let (framing, progress) = (Framing::default(), Arc::default());
        Self { inner, framing, on_error, wrong_read: None, timeout, stalled: None, progress }
    }

    /// How far hyper is; follows what happens later, too.
    pub(super) fn progress(&self) -> Arc<HyperProgress> {
        Arc::clone(&self.progress)
    }

    /// The stream behind the guard.
    pub(super) fn into_inner(self) -> S {
        self.inner
    }

    fn record_read(&self) {
        let complete = self.wrong_read.is_none() && self.framing.at_boundary();
        self.progress.read.store(if complete { self.framing.requests() } else { HyperProgress::INCOMPLETE }, Relaxed);
    }

    fn read_wrong_bytes(&mut self, buf: &mut ReadBuf<'_>) {
        if let Some(read) = &mut self.wrong_read {
            let rest = &WRONG_BYTES[*read..];
            let n = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..n]);
            *read += n;
        }
    }

    /// `written`, or an error when the client takes nothing for too long.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            self.progress.stalled.store(false, Relaxed);
            return written;
        }
        self.progress.stalled.store(true, Relaxed);
        let timeout = self.timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(StreamError::ResponseNotTaken.into()))
    }
}

impl<S: AsyncRead + Unpin, F: Fn(FramingError) + Unpin> AsyncRead for Guarded<S, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.wrong_read.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            let followed = this.framing.follow(&buf.filled()[before..]);
            if let Err((at, error)) = followed {
                buf.set_filled(before + at);
                (this.on_error)(error);
                this.wrong_read = Some(0);
            }
            this.record_read();
            if followed.is_ok() {
                return Poll::Ready(Ok(()));
            }
        }
        this.read_wrong_bytes(buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, F: Fn(FramingError) + Unpin> AsyncWrite for Guarded<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.in_time(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        // A stream without a buffer has nothing to flush, which does not mean that the client takes something.
        if flushed.is_ready() { flushed } else { self.in_time(cx, flushed) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.in_time(cx, shut_down)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
